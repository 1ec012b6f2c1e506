"""The yard under test: one of our own for each benchmark, or a running one at a URL.

Owns how the benchmarks reach a yard; the only room of bench/ that imports the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import models

ARENA_BYTES = 256 << 20  # two frames of 24.9 MB and 64 small requests, with room to spare


@dataclass(frozen=True, slots=True)
class Target:
    """A connected client and, where the yard is our own, the yard and the model file that it serves. `where`:
    the arguments that tell another program where the yard is."""

    client: Any
    yard: Any | None
    path: Path
    where: Sequence[str] = ()

    def worker_copied_bytes(self) -> int | None:
        """Bytes that the workers have copied so far; None for a yard that is not ours."""
        return None if self.yard is None else int(self.yard.snapshot()["copied_bytes"])

    def processes(self) -> dict[str, int]:
        """Name -> pid of our own yard's processes; empty for a yard that is not ours."""
        named: dict[str, int] = {}
        for process in getattr(self.yard, "processes", ()):
            name = process.name if process.name not in named else f"{process.name} {process.pid}"
            named[name] = process.pid
        return named


@dataclass(frozen=True, slots=True)
class Targets:
    """Where targets come from: `url`, or None for an embedded yard that lives as long as its benchmark.

    `threads` are the intra-op threads of each embedded worker and of the bare runtime beside it: with
    different numbers on the two sides, a ratio would compare cores.
    """

    url: str | None = None
    workers: int = 1
    threads: int = 1

    @contextmanager
    def open(self, model: str, max_batch: int = 8) -> Iterator[Target]:
        """A target that serves `model`; the yard, the client and the file are gone afterwards."""
        from ..client import Client, serve  # late: `batchyard bench --help` needs no client

        with models.written(model) as path:
            if self.url is not None:
                with Client(self.url, arena_bytes=ARENA_BYTES) as client:
                    yield Target(client, None, path, ("--url", self.url))
                return
            with (
                serve({model: path}, workers=self.workers, max_batch=max_batch, threads=self.threads) as yard,
                yard.client(arena_bytes=ARENA_BYTES) as client,
            ):
                yield Target(client, yard, path, yard.where)
