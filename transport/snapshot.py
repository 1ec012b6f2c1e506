"""The broker's snapshot for its readers: typed, because it is a peer's data.

Owns the keys (docs/protocol.md says what they mean) and their types. Keys that a later broker has besides
are let be.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from . import messages as m
from .admin import ask
from .endpoints import Endpoint
from .errors import MalformedMessage
from .keys import KeyFolder

_CLASSES = len(m.Priority)
Natural = Annotated[int, msgspec.Meta(ge=0)]
Class = Annotated[int, msgspec.Meta(ge=0, lt=_CLASSES)]
ByClass = Annotated[list[Natural], msgspec.Meta(min_length=_CLASSES, max_length=_CLASSES)]


class Histogram(msgspec.Struct, frozen=True):
    """Counts by bucket of histograms.py, and the sum of the counted values."""

    counts: dict[Natural, Natural]
    sum: Natural


class Snapshot(msgspec.Struct, frozen=True):
    """One broker's work since it started, and what is under way now."""

    version: str
    pid: Natural
    epoch: Natural
    requests: list[tuple[str, Class, str, Natural]]  # model, priority, outcome, count
    refused: dict[str, Natural]
    identical: list[tuple[str, str, Natural]]  # model, "joined" or "cached", count
    stages: list[tuple[str, Class, str, Histogram]]  # model, priority, "total" or "queue", ns
    batch_stages: list[tuple[str, str, Histogram]]  # model, "rows", "gather", "compute", "scatter"
    models: list[tuple[str, Natural, Natural, ByClass, dict[str, Natural]]]
    # ^ name, revision, state, rows that wait by priority, workers by provider
    lanes: list[tuple[str, list[list[Natural]], Natural]]
    # ^ model, shapes of the inputs without their rows, rows that wait
    leases: list[tuple[Natural, Natural, dict[str, str], list[tuple[str, Natural]]]]
    # ^ worker, pid, provider by model, (model, rows) of what it runs and what follows
    batches: Natural
    batches_failed: Natural
    rows: Natural
    requeued: Natural
    copied_bytes: Natural
    inline_copied_bytes: Natural
    workers: Natural
    worker_pids: list[Natural]
    workers_fallen: list[tuple[Natural, str]]  # worker, why it is on no better provider
    workers_lost: Natural
    workers_restarted: Natural
    workers_hung: Natural
    workers_left: Natural
    clients: Natural
    credit: Natural
    batches_lent: Natural
    rows_under_way: Natural
    bytes_under_way: Natural
    arenas: Natural
    arena_bytes: Natural
    bytes_held: Natural
    inline_used_bytes: Natural
    lanes_omitted: dict[str, Natural]  # by model: how many lanes are not among `lanes`
    elements: list[tuple[str, Natural, Natural]] = []  # model, along padded axes in all, of these padding
    arena_committed_bytes: Natural = 0  # of arena_bytes: what has pages


def pull(endpoint: Endpoint, keys: KeyFolder | None, timeout_s: float) -> Snapshot:
    """Ask the broker. Raises what `ask` raises, and MalformedMessage for a broker of another kind."""
    return read(ask(endpoint, keys, m.Snapshot(), m.SnapshotTaken, timeout_s).counters)


def read(counters: object) -> Snapshot:
    """Raises MalformedMessage."""
    try:
        return msgspec.convert(counters, Snapshot)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"this is not the snapshot of a broker of our version: {error}") from None
