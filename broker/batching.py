"""Which batch a worker is lent next, and how long it may keep it: the policy, apart from the bookkeeping.

An idle worker takes what there is: the best lane's head, and what else the lane holds, as long as
every member is expected to be in time. A busy one may hold one batch ahead, when that is worth it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..transport.messages import Priority
from .lanes import Lane, Part
from .registry import Batch, Worker

CREDIT = 2  # batches lent to a worker: one running, one prefetched
URGENT_MEMORY_NS = 1_000_000_000  # urgent traffic is present for so long after an urgent request
LEAD_NS = 2_000_000  # before a running batch ends: lend the next one, or the worker would wait for us
URGENT_LEAD_NS = 500_000  # the same while urgent requests come: what is lent can't be overtaken
NEVER_NS = 1 << 62
HUNG_MIN_NS = 5_000_000_000  # no batch is overdue sooner; a machine that swaps is not hung
HUNG_FACTOR = 20  # nor before so many times its expected time
HUNG_UNKNOWN_NS = 120_000_000_000  # when nothing is expected yet


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


def lend_ns(lane: Lane, worker: Worker, urgent_present: bool) -> int:
    """When the worker should have this lane's next batch, as things are: 0 means now.

    A busy worker is lent its next batch when the running one is nearly done, so that what comes
    until then can still go ahead of it or into it; and only when it is no smaller than what runs.
    Otherwise the first request to arrive would leave alone, and batches would stay small for ever.
    """
    if not worker.leases:
        return 0
    running = next(iter(worker.leases.values()))
    if lane.rows < min(lane.model.max_batch, running.rows):
        return NEVER_NS
    lead_ns = URGENT_LEAD_NS if urgent_present and lane.head_priority() != Priority.URGENT else LEAD_NS
    return worker.busy_until_ns - lead_ns


def take(lane: Lane, worker: Worker, urgent_present: bool, urgent_wait_ns: int, now_ns: int) -> list[Part]:
    """The parts of the batch: as many rows as the model takes and every member's deadline allows.

    While urgent requests come, a batch without one is kept to a time that an urgent request may
    have to wait behind it. Where only some sizes are run, padding must be cheaper than a smaller size.
    """
    timing = worker.timings[lane.model.name]
    rows_max = lane.model.max_batch
    if urgent_present and lane.head_priority() != Priority.URGENT:
        rows_max = timing.rows_within(rows_max, urgent_wait_ns)
    rows_max = timing.worth_taking(min(rows_max, lane.rows)) if lane.rows else rows_max
    return lane.take(rows_max, max(now_ns, worker.busy_until_ns), timing)


def lease_ns(batch: Batch) -> int:
    """How long a worker may run this batch before it counts as hung."""
    if not batch.predicted_ns:
        return HUNG_UNKNOWN_NS
    return max(HUNG_MIN_NS, HUNG_FACTOR * batch.predicted_ns)
