"""Doomed clients: the nursery's other end, which asks for clients and kills them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import proc
from .field import Field

STEADY_S = 0.05  # two looks so far apart show the same


class Nursery:
    """A running nursery. `born` makes a client that has requests under way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def born(self) -> int:
        """The pid of a new client. Raises TimeoutError when it could not live."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise TimeoutError("the nursery has ended")
        return int(line)


@contextmanager
def nursery(yard: Field, in_flight: int) -> Iterator[Nursery]:
    """A nursery whose clients have `in_flight` requests under way at the field's yard."""
    argv = [sys.executable, "-m", "batchyard.tests.campaigns.reliability.nursery"]
    argv += [yard.yard.url, os.fspath(yard.truth_file), str(in_flight)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()  # its clients end with it


class Footprint:
    """What clients cost a yard: the broker's arenas and connections, and memory in workers."""

    __slots__ = ("values",)

    def __init__(self, yard: Field) -> None:
        counters = yard.yard.snapshot()
        self.values = {
            "arenas": counters["arenas"],
            "arena bytes": counters["arena_bytes"],
            "connections": counters["clients"],
            "arenas that the broker holds open": proc.arena_descriptors(yard.broker_pid),
            "arena bytes mapped by workers": sum(map(proc.arena_bytes_mapped, yard.worker_pids())),
        }

    def wait_back(self, yard: Field, timeout_s: float) -> int:
        """Wait until the yard is again as it was, and return when that was seen (time.monotonic_ns).
        Raises TimeoutError with what is left."""
        try:
            return proc.until(lambda: not self.over(Footprint(yard)), timeout_s, "everything is reclaimed")
        except TimeoutError as late:
            raise TimeoutError(f"{late}; left: {self.over(Footprint(yard))}") from None

    def over(self, now: Footprint) -> dict[str, int]:
        """What is more now, and by how much; less counts as well, as below zero."""
        return {
            what: now.values[what] - value for what, value in self.values.items() if now.values[what] != value
        }


def settled(yard: Field, timeout_s: float) -> Footprint:
    """The footprint of the field's own client alone: one arena, mapped by every worker, and steady."""
    seen: list[Footprint] = []

    def is_steady() -> bool:
        time.sleep(STEADY_S)
        seen.append(Footprint(yard))
        now = seen[-1].values
        mapped = now["arena bytes"] * yard.workers
        alone = now["arenas"] == 1 and now["arena bytes mapped by workers"] == mapped
        return alone and len(seen) > 1 and now == seen[-2].values

    proc.until(is_steady, timeout_s, "a yard with one client")
    return seen[-1]
