"""The broker's snapshot as the sidecar reads it: typed, because it is a peer's data.

Owns which of the snapshot's keys are read (docs/protocol.md lists them all), and the pull.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..transport import messages as m
from ..transport.admin import ask
from ..transport.endpoints import Endpoint
from ..transport.errors import MalformedMessage
from ..transport.keys import KeyFolder

Natural = Annotated[int, msgspec.Meta(ge=0)]
Class = Annotated[int, msgspec.Meta(ge=0, lt=len(m.Priority))]


class Histogram(msgspec.Struct, frozen=True):
    """Counts by bucket of transport/histograms.py, and the sum of what was counted."""

    counts: dict[Natural, Natural]
    sum: Natural


class Snapshot(msgspec.Struct, frozen=True):
    """What one broker has done since it started, and what is under way now."""

    version: str
    pid: Natural
    requests: list[tuple[str, Class, str, Natural]]  # model, priority, status, count
    refused: dict[str, Natural]
    identical: list[tuple[str, str, Natural]]  # model, "joined" or "cached", count
    stages: list[tuple[str, Class, str, Histogram]]  # model, priority, "total" or "queue", ns
    batch_stages: list[tuple[str, str, Histogram]]  # model, "rows", "gather", "compute", "scatter"
    models: list[tuple[str, Natural, Natural, list[Natural], dict[str, Natural]]]
    # ^ name, revision, state, rows that wait by priority, workers by provider
    batches_failed: Natural
    requeued: Natural
    copied_bytes: Natural
    inline_copied_bytes: Natural
    workers: Natural
    worker_pids: list[Natural]
    workers_lost: Natural
    workers_restarted: Natural
    workers_hung: Natural
    clients: Natural
    credit: Natural
    batches_lent: Natural
    rows_under_way: Natural
    arena_bytes: Natural
    bytes_held: Natural


def pull(endpoint: Endpoint, keys: KeyFolder | None, timeout_s: float) -> Snapshot:
    """Ask the broker. Raises what `ask` raises, and MalformedMessage for a broker of another kind."""
    return read(ask(endpoint, keys, m.Snapshot(), m.SnapshotTaken, timeout_s).counters)


def read(counters: object) -> Snapshot:
    """Raises MalformedMessage."""
    try:
        return msgspec.convert(counters, Snapshot)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"this is not the snapshot of a broker of our version: {error}") from None
