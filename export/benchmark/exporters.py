"""The exporting processes: how many run at once, what happens when one dies or hangs, and the rule that none
works while another measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

MODULE = "batchyard.export.benchmark.exporter"


@dataclass(frozen=True)
class Ended:
    """How a candidate's export ended: `error` in one sentence, or None."""

    name: str
    took_s: float
    error: str | None


class Turns:
    """Many may work at once, or one may measure alone. A wish to measure goes before new work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._waiting = 0
        self._measuring = False

    @contextmanager
    def work(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not (self._measuring or self._waiting))
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """For a process that works: it pauses its work meanwhile."""
        with self._changed:
            self._working -= 1
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._measuring or self._working))
            self._waiting -= 1
            self._measuring = True
        try:
            yield
        finally:
            with self._changed:
                self._measuring = False
                self._working += 1  # it goes on with what it was at
                self._changed.notify_all()


class Exporters:
    """`jobs` processes for the models of `where`. `common`: export_to_onnx's arguments for all. `limit_s`:
    the time limit of one export. `log`: an open file for the candidates' output."""

    def __init__(
        self, where: Path, out: Path, common: Mapping[str, Any], jobs: int, limit_s: float, log: IO[bytes]
    ) -> None:
        self._first = {"where": str(where), "out": str(out), "common": dict(common)}
        self._jobs = jobs
        self._limit_s = limit_s
        self._log = log
        self._turns = Turns()
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[str]] = set()
        self._over = False

    def run(self, names: Sequence[str]) -> Iterator[Ended]:
        """Export all, and yield each as it ends. The end of the iteration ends the processes."""
        rest, ended = list(reversed(names)), SimpleQueue[Ended]()
        threads = [
            threading.Thread(target=self._serve, args=(rest, ended), daemon=True)
            for _ in range(min(self._jobs, len(names)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in names:
                yield ended.get()
        finally:
            with self._lock:
                self._over = True
                rest.clear()
                for child in self._children:
                    child.kill()
            for thread in threads:
                thread.join()

    def _serve(self, rest: list[str], ended: SimpleQueue[Ended]) -> None:
        child = None
        while True:
            with self._lock:
                if not rest:
                    break
                name = rest.pop()
            began_s = time.perf_counter()
            try:
                with self._turns.work():
                    if child is None:
                        child = self._start()
                    error = self._export(child, name)
            except OSError as failure:
                error = f"its process could not be spoken to: {failure}"
            ended.put(Ended(name, time.perf_counter() - began_s, error))
            if child is not None and child.poll() is not None:
                self._end(child)
                child = None
        if child is not None:
            self._end(child)

    def _start(self) -> subprocess.Popen[str]:
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        child = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        with self._lock:
            self._children.add(child)
            if self._over:
                child.kill()
        _tell(child, self._first)
        return child

    def _end(self, child: subprocess.Popen[str]) -> None:
        with self._lock:
            self._children.discard(child)
        for pipe in (child.stdin, child.stdout):  # it ends with its orders
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not sent to a dead one
                    pass
        child.wait()

    def _export(self, child: subprocess.Popen[str], name: str) -> str | None:
        """The error in one sentence, or None."""
        limit = _Limit(child, self._limit_s)
        try:
            limit.go_on()
            _tell(child, {"export": name})
            while (event := _heard(child)) is not None:
                if event.get("quiet"):
                    limit.rest()  # others' work is not on its account
                    with self._turns.measure():
                        limit.go_on()
                        _tell(child, {})
                        if _heard(child) is None:
                            break
                elif "ended" in event:
                    return None if event["error"] is None else str(event["error"])
        except BrokenPipeError:
            pass
        finally:
            limit.rest()
        status = child.wait()
        if limit.is_over:
            return f"it was still not exported after {self._limit_s:g} s"
        return f"it ended its process ({f'signal {-status}' if status < 0 else f'status {status}'})"


class _Limit:
    """Kills a child that works for longer than its limit."""

    def __init__(self, child: subprocess.Popen[str], limit_s: float) -> None:
        self.is_over = False
        self._child = child
        self._left_s = limit_s
        self._began_s = 0.0
        self._timer: threading.Timer | None = None

    def go_on(self) -> None:
        self._began_s = time.perf_counter()
        self._timer = threading.Timer(self._left_s, self._kill)
        self._timer.start()

    def rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left_s = max(0.0, self._left_s - (time.perf_counter() - self._began_s))

    def _kill(self) -> None:
        self.is_over = True
        self._child.kill()


def _tell(child: subprocess.Popen[str], order: Mapping[str, Any]) -> None:
    assert child.stdin is not None
    print(json.dumps(order), file=child.stdin, flush=True)


def _heard(child: subprocess.Popen[str]) -> dict[str, Any] | None:
    assert child.stdout is not None
    line = child.stdout.readline()
    return dict(json.loads(line)) if line.endswith("\n") else None
