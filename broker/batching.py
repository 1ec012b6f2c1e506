"""Which batch a worker is lent next, and how long it may keep it: the policy, apart from the bookkeeping.

An idle worker takes what there is: the best lane's head, and what else the lane holds, as long as
every member is expected to be in time. A busy one may hold one batch ahead, when that is worth it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..transport.messages import Priority
from .lanes import Heads, Lane, Part
from .registry import Batch, Worker

CREDIT = 2  # batches lent to a worker: one running, one prefetched
URGENT_MEMORY_NS = 1_000_000_000  # urgent traffic is present for so long after an urgent request
LEAD_NS = 2_000_000  # before a running batch ends: lend the next one, or the worker would wait for us
URGENT_LEAD_NS = 500_000  # the same while urgent requests come: what is lent can't be overtaken
NEVER_NS = 1 << 62
OVERDUE_SHARE = 8  # while there is more work than workers: the batches of which one goes by age
HUNG_MIN_NS = 5_000_000_000  # no batch is overdue sooner; a machine that swaps is not hung
HUNG_LOADING_NS = 60_000_000_000  # while its worker loads a model: a first run may hold the device for long
HUNG_FACTOR = 20  # nor before so many times its expected time
HUNG_UNKNOWN_NS = 120_000_000_000  # when nothing is expected yet


Choice = tuple[Lane, Heads, int]  # and the class that goes first in the lane; -1: by virtual deadline


def choose(lanes: Iterable[Lane], worker: Worker, now_ns: int) -> Choice | None:
    """The lane to serve next, of those that this worker serves, and the class to begin with.

    What has the earliest virtual deadline goes first, unless that has passed already: then there is
    more work than workers, and going by it would make the highest class wait for everything older. So
    the highest class goes first, and what is overdue has every OVERDUE_SHARE-th batch.
    """
    starts_ns = max(now_ns, worker.busy_until_ns)
    due: tuple[Heads, Lane] | None = None
    first: tuple[Heads, Lane] | None = None
    for lane in lanes:
        name = lane.model.name
        if not lane.rows or name not in worker.models:
            continue
        heads = lane.heads(starts_ns, worker.timings[name])
        if heads is None:
            continue
        if due is None or heads[0] < due[0][0]:
            due = heads, lane
        if first is None or heads[2:] < first[0][2:]:
            first = heads, lane
    if due is None or first is None:
        return None
    (due_ns, due_class, _, _), _ = due
    first_class = first[0][2]
    if first_class < due_class and due_ns <= now_ns and worker.passed < OVERDUE_SHARE - 1:
        return first[1], first[0], first_class
    return due[1], due[0], -1


def lend_ns(choice: Choice, worker: Worker, urgent_present: bool) -> int:
    """When the worker should have this batch, as things are: 0 means now.

    A busy worker is lent its next batch when the running one is nearly done, so that what comes
    until then can still go ahead of it or into it; and only when it is no smaller than what runs.
    Otherwise the first request to arrive would leave alone, and batches would stay small for ever.
    """
    if not worker.leases:
        return 0
    lane, (_, _, first_class, _), _ = choice
    running = next(iter(worker.leases.values()))
    if lane.rows < min(lane.model.max_batch, running.rows):
        return NEVER_NS
    lead_ns = URGENT_LEAD_NS if urgent_present and first_class != Priority.URGENT else LEAD_NS
    return worker.busy_until_ns - lead_ns


def take(choice: Choice, worker: Worker, urgent_present: bool, urgent_ns: int, now_ns: int) -> list[Part]:
    """The parts of the batch: as many rows as the worker takes and every member's deadline allows.

    While urgent requests come, the others are kept to half the time that an urgent request may take:
    it may have to wait for one such batch, and go in another. Where only some sizes are run, padding
    must be cheaper than a smaller size.
    """
    lane, _, begin = choice
    timing = worker.timings[lane.model.name]
    rows_max = worker.rows_max[lane.model.name]
    if lane.retries and (again := lane.take_again(rows_max)):
        return again
    lower_max = timing.rows_within(rows_max, urgent_ns // 2) if urgent_present else 0
    if timing.buckets and lane.rows:
        rows_max = timing.worth_taking(min(rows_max, lane.rows))
    return lane.take(rows_max, max(now_ns, worker.busy_until_ns), timing, begin, lower_max)


def lease_ns(batch: Batch) -> int:
    """How long a worker may run this batch before it counts as hung."""
    if not batch.predicted_ns:
        return HUNG_UNKNOWN_NS
    least_ns = HUNG_LOADING_NS if batch.worker.loads_on_device else HUNG_MIN_NS
    return max(least_ns, HUNG_FACTOR * batch.predicted_ns)
