"""Which batch a worker is lent next, and how long it may keep it: the policy, apart from the bookkeeping.

An idle worker takes what there is: the best lane's head, and what else the lane holds, as long as
every member is expected to be in time. A busy one may hold one batch ahead, when that is worth it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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
HUNG_FACTOR = 20  # nor before so many times its expected time
HUNG_UNKNOWN_NS = 120_000_000_000  # when nothing is expected yet


class Choice(NamedTuple):
    """A lane, what it would begin with, and the class that goes first in it; -1: by virtual deadline."""

    lane: Lane
    heads: Heads
    begin: int


def choose(lanes: Iterable[Lane], worker: Worker, now_ns: int) -> Choice | None:
    """The lane to serve next, of those that this worker serves, and the class to begin with.

    What has the earliest virtual deadline goes first, unless that has passed already: then there is
    more work than workers, and going by it would make the highest class wait for everything older. So
    the highest class goes first, and what is overdue has every OVERDUE_SHARE-th batch.
    """
    due: Choice | None = None
    first: Choice | None = None
    starts_ns = max(now_ns, worker.busy_until_ns)
    for lane in lanes:
        if lane.model.name not in worker.models:
            continue
        lane.set_late_aside(starts_ns, worker.timings[lane.model.name])
        heads = lane.heads()
        if heads is None:
            continue
        if due is None or heads.due_ns < due.heads.due_ns:
            due = Choice(lane, heads, -1)
        if first is None or (heads.first_class, heads.first_ns) < (
            first.heads.first_class,
            first.heads.first_ns,
        ):
            first = Choice(lane, heads, heads.first_class)
    if due is None or first is None or due.heads.due_ns > now_ns or worker.passed >= OVERDUE_SHARE - 1:
        return due
    return first if first.begin < due.heads.due_class else due


def lend_ns(choice: Choice, worker: Worker, urgent_present: bool) -> int:
    """When the worker should have this batch, as things are: 0 means now.

    A busy worker is lent its next batch when the running one is nearly done, so that what comes
    until then can still go ahead of it or into it; and only when it is no smaller than what runs.
    Otherwise the first request to arrive would leave alone, and batches would stay small for ever.
    """
    if not worker.leases:
        return 0
    lane = choice.lane
    running = next(iter(worker.leases.values()))
    if lane.rows < min(lane.model.max_batch, running.rows):
        return NEVER_NS
    urgent = choice.heads.first_class == Priority.URGENT
    lead_ns = URGENT_LEAD_NS if urgent_present and not urgent else LEAD_NS
    return worker.busy_until_ns - lead_ns


def take(choice: Choice, worker: Worker, urgent_present: bool, urgent_ns: int, now_ns: int) -> list[Part]:
    """The parts of the batch: as many rows as the model takes and every member's deadline allows.

    While urgent requests come, the others are kept to half the time that an urgent request may take:
    it may have to wait for one such batch, and go in another. Where only some sizes are run, padding
    must be cheaper than a smaller size.
    """
    lane = choice.lane
    timing = worker.timings[lane.model.name]
    rows_max = lane.model.max_batch
    lower_max = timing.rows_within(rows_max, urgent_ns // 2) if urgent_present else 0
    if lane.rows:
        rows_max = timing.worth_taking(min(rows_max, lane.rows))
    return lane.take(rows_max, max(now_ns, worker.busy_until_ns), timing, choice.begin, lower_max)


def lease_ns(batch: Batch) -> int:
    """How long a worker may run this batch before it counts as hung."""
    if not batch.predicted_ns:
        return HUNG_UNKNOWN_NS
    return max(HUNG_MIN_NS, HUNG_FACTOR * batch.predicted_ns)
