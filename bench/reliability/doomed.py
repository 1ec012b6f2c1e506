"""Doomed clients: the nursery's other end, which asks for clients and kills them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import proc
from .field import Field


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
    argv = [sys.executable, "-m", "batchyard.bench.reliability.nursery"]
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

    def is_back(self, yard: Field) -> bool:
        """Whether the yard is again as it was."""
        return self.over(Footprint(yard)) == {}

    def over(self, now: Footprint) -> dict[str, int]:
        """What is more now, and by how much; less counts as well, as below zero."""
        return {
            what: now.values[what] - value for what, value in self.values.items() if now.values[what] != value
        }
