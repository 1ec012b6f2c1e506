"""Which batch a worker is lent next: the policy, apart from the bookkeeping of leases.

An idle worker takes what there is. A busy one may hold one batch ahead, when that is worth it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .lanes import Lane
from .registry import Worker

CREDIT = 2  # batches lent to a worker: one running, one prefetched


def best_lane(lanes: Iterable[Lane], worker: Worker) -> Lane | None:
    """The lane whose head has the earliest virtual deadline, of those that this worker serves."""
    best: Lane | None = None
    best_ns = 0
    for lane in lanes:
        head_ns = lane.head_ns()
        if head_ns is None or lane.model.name not in worker.models:
            continue
        if best is None or head_ns < best_ns:
            best, best_ns = lane, head_ns
    return best


def may_lend(lane: Lane, worker: Worker) -> bool:
    """Whether the worker should have this lane's next batch now.

    A busy worker is lent its next batch only when that is no smaller than what it runs. Otherwise
    the first request to arrive would leave alone, and batches would stay small for ever. (With a
    model of time by batch size this becomes a moment instead of a size.)
    """
    if not worker.leases:
        return True
    running = next(iter(worker.leases.values()))
    return lane.rows >= min(lane.model.max_batch, running.rows)
