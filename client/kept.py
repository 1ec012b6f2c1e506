"""The processes of a yard: each is started again when it has died, with growing patience."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from ..transport.flag import Flag
from ..transport.processes import Backoff, ChildProcess
from . import ending

POLL_S = 0.1  # how soon a dead process is seen where it has no sentinel
REST_S = 1.0  # the longest sleep of who watches


class Process:
    """A process of the yard, and when it may be started again."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.name = child.name
        self.restarts = 0
        self.backoff = Backoff()
        self.due_s: float | None = None  # None: it runs
        self.status = 0  # with which it ended last
        self.last_words = b""  # what it wrote to stdout before it died last

    @property
    def pid(self) -> int:
        return self.child.pid or 0


class Keeper:
    """Keeps processes running, on a thread of its own, until `stop` is set."""

    def __init__(self, stop: Flag) -> None:
        self.processes: list[Process] = []
        self.thread = threading.Thread(target=self._watch, name="batchyard-yard", daemon=True)
        self._stop = stop

    def start(self) -> None:
        for process in self.processes:
            process.backoff.next_delay_s(time.monotonic())  # this start is not a restart
            process.child.start()
        ending.start(self.thread)

    def join(self, give_up_s: float) -> None:
        """Return when the thread has ended, or at `give_up_s` (time.monotonic)."""
        on_it = self.thread is threading.current_thread()
        if self.thread.is_alive() and not on_it and not ending.is_finalizing():
            self.thread.join(max(0.0, give_up_s - time.monotonic()))

    def _watch(self) -> None:
        """Start again what dies, with growing patience."""
        while not self._rest():
            now_s = time.monotonic()
            for process in self.processes:
                if process.due_s is None and process.child.poll() is not None:
                    if process.child.stdout is not None:
                        process.last_words = process.child.stdout.read()
                    process.status = process.child.poll() or 0
                    process.due_s = now_s + process.backoff.next_delay_s(now_s)
                elif process.due_s is not None and now_s >= process.due_s and not self._stop.is_set():
                    process.restarts += 1
                    try:
                        process.child.start()
                        process.due_s = None
                    except OSError:  # no room for a process now: later, then
                        process.due_s = now_s + process.backoff.next_delay_s(now_s)

    def _rest(self) -> bool:
        """Sleep until a process may have ended, or is due. Returns whether to stop."""
        if any(process.due_s is not None for process in self.processes):
            return self._stop.wait(POLL_S)
        sentinels = [process.child.sentinel for process in self.processes]
        known = [sentinel for sentinel in sentinels if sentinel is not None]
        return self._stop.wait(REST_S if len(known) == len(sentinels) else POLL_S, known)


def processes_of(
    broker: Sequence[str],
    worker: Sequence[str],
    workers: int,
    companions: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    workers_environment: Mapping[str, str],
    log: IO[bytes] | None,
) -> list[Process]:
    """A yard's, of these command lines; none is started yet. The broker's stdout is where it says why it
    can't start; it says nothing else there."""
    found = [ChildProcess(broker, environment, "broker", stdout=subprocess.PIPE, stderr=log)]
    for number in range(1, workers + 1):
        share = {**workers_environment, "BATCHYARD_WORKER": str(number)}  # which GPU is its own
        found.append(ChildProcess(worker, share, f"worker.{number}", stdout=log, stderr=log))
    for name, command in companions.items():
        found.append(ChildProcess(command, environment, name, stdout=log, stderr=log))
    return [Process(child) for child in found]
