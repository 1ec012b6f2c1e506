"""The field: a yard of our own, a client in this process, the truth, and what all campaigns ask of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import proc
from .truth import MODEL, Truth

SERVING_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Field:
    """An embedded yard that serves MODEL, with `workers` workers. `truth_file` is `truth`, for others."""

    yard: Any
    client: Any
    truth: Truth
    truth_file: Path
    workers: int

    @property
    def broker_pid(self) -> int:
        return int(self.yard.processes[0].pid)

    def worker_pids(self) -> list[int]:
        """The processes that hold the sessions, by worker; each is a supervisor's child."""
        (info,) = [info for info in self.client.models() if info.name == MODEL]
        return [worker.pid for worker in info.workers]

    def is_whole(self, but: int = 0) -> bool:
        """Whether every worker serves, and none of them is process `but`."""
        pids = self.worker_pids()
        return len(pids) == self.workers and but not in pids

    def wait_whole(self, but: int = 0) -> int:
        """Until then; when it was so (time.monotonic_ns)."""
        return proc.until(lambda: self.is_whole(but), SERVING_TIMEOUT_S, "every worker serves again")

    def books(self) -> dict[str, int]:
        """How the broker says that requests have ended: outcome -> count."""
        counts: dict[str, int] = {}
        for _, _, outcome, count in self.yard.snapshot()["requests"]:
            counts[outcome] = counts.get(outcome, 0) + count
        return counts


@contextmanager
def opened(
    workers: int, *, max_batch: int = 32, rows: int = 8, arena_bytes: int = 256 << 20
) -> Iterator[Field]:
    """A field whose processes, files, and memory are gone afterwards. `rows` are each request's."""
    from batchyard.bench import models
    from batchyard.client import serve

    with ExitStack() as stack:
        # What a killed process's supervisor has to say is said hundreds of times here.
        log = stack.enter_context(open(os.devnull, "wb"))
        path = stack.enter_context(models.written(MODEL))
        truth = Truth.of(path, rows)
        truth_file = path.with_suffix(".npz")
        truth.save(truth_file)
        yard = stack.enter_context(
            serve({MODEL: path}, workers=workers, max_batch=max_batch, threads=1, log=log)
        )
        client = stack.enter_context(yard.client(arena_bytes=arena_bytes))
        field = Field(yard, client, truth, truth_file, workers)
        field.wait_whole()  # `serve` returns when one worker does
        yield field
