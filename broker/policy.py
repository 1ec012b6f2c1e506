"""Which batch a worker is lent next, and when: everything that decides order and size.

A policy is one class in one file, and one line in POLICIES. The core tells it which lanes hold something and
which worker has credit; it answers with parts, or with the time at which to ask again. This file has the
default: virtual deadlines. An idle worker takes the best lane's head at once, and whatever else the lane
holds, as long as every member is expected to be in time. A busy one may hold one batch ahead, when that is
worth it. waiting.py finds the best lane without a look at each; taking.py takes parts out of it.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..transport.messages import Priority
from .lanes import Entry, Lane
from .requests import NEVER_NS, Part
from .serving import Worker
from .taking import heads, take_rows
from .waiting import Heads, Waiting

CREDIT = 2  # batches lent to a worker: one running, one prefetched
URGENT_MEMORY_NS = 1_000_000_000  # urgent traffic is present for so long after an urgent request
LEAD_NS = 2_000_000  # before a running batch ends: lend the next one, or the worker would wait for us
URGENT_LEAD_NS = 500_000  # the same while urgent requests come: a batch that is lent can't be overtaken
OVERDUE_SHARE = 8  # while there is more work than workers: the batches of which one goes by age

Choice = tuple[Lane, Heads, int]  # and the class that goes first in the lane; -1: by virtual deadline
Batch = tuple[Lane, list[Part]]


class Policy(Protocol):
    """`lanes`: those that may hold something, in the order in which they came, so that runs replay."""

    lanes: dict[Lane, None]

    def place_ns(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        """Where a request of this class that comes now waits in its lane: the earliest place goes first.
        `deadline_ns`: its own; 0: none."""

    def add(self, lane: Lane) -> None:
        """The lane has something, or will have before the next choice."""

    def drop(self, lane: Lane) -> None:
        """The lane holds nothing, and may be gone for good."""

    def next_batch(self, worker: Worker, now_ns: int) -> Batch | int:
        """The next batch of a worker that has credit: parts, taken out of their lane; or when to ask again,
        at the latest, if nothing happens before (NEVER_NS: not at all)."""


class VirtualDeadlines(Waiting):
    """Earliest virtual deadline first: arrival plus the class's budget, or a nearer deadline down to half the
    budget. When that has passed, the highest class goes first, and every OVERDUE_SHARE-th batch by age."""

    def __init__(self, budgets_ns: Sequence[int]) -> None:
        super().__init__(heads)
        self._budgets_ns = budgets_ns
        self._urgent_until_ns = 0  # urgent traffic is present until then

    def place_ns(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        if priority == Priority.URGENT:
            self._urgent_until_ns = now_ns + URGENT_MEMORY_NS
        virtual_ns = now_ns + self._budgets_ns[priority]
        # A nearer deadline may bring a request forward inside its class, down to the class's floor: half its
        # budget. Otherwise LOW would buy URGENT's place with a short deadline.
        if deadline_ns and deadline_ns < virtual_ns:
            virtual_ns = max(deadline_ns, (now_ns + virtual_ns) // 2)
        return virtual_ns

    def next_batch(self, worker: Worker, now_ns: int) -> Batch | int:
        urgent_present = now_ns < self._urgent_until_ns
        if len(self.lanes) == 1 and not worker.leases:
            (lane,) = self.lanes
            part = _lone(lane, worker, urgent_present)
            if part is not None:
                worker.overdue_passed_over = 0
                self.drop(lane)
                return lane, [part]
        choice = choose(self, worker, now_ns)
        if choice is None:
            return NEVER_NS
        if worker.leases:
            due_ns = lend_ns(choice, worker, urgent_present)
            if due_ns > now_ns:
                return due_ns
        parts = take(choice, worker, urgent_present, self._budgets_ns[Priority.URGENT], now_ns)
        worker.overdue_passed_over = worker.overdue_passed_over + 1 if choice[2] >= 0 else 0
        lane = choice[0]
        if not lane.rows:
            self.drop(lane)
        return lane, parts


POLICIES: dict[str, Callable[[Sequence[int]], Policy]] = {
    "virtual deadlines": VirtualDeadlines,
}
DEFAULT = "virtual deadlines"


def _lone(lane: Lane, worker: Worker, urgent_present: bool) -> Part | None:
    """The only part in the only lane, taken out of it, for an idle worker: it goes first by any rule. None
    where there is more to weigh. Saves half the cost of a choice."""
    timing = worker.timings.get(lane.model_name)
    if timing is None or lane.retries or lane.late:
        return None
    if lane.rows > 1 and not lane.is_alone:
        is_cut = urgent_present or timing.buckets or lane.is_ragged
        if is_cut or lane.rows > worker.rows_max[lane.model_name]:
            return None
    only: list[Entry] | None = None
    for heap in lane.heaps:
        if heap:
            if only is not None or len(heap) > 1:
                return None
            only = heap
    if only is None:
        return None
    part = only[0][2]
    if part.request.ended or part.start == part.stop:
        return None
    only.clear()
    lane.taken(part)
    return part


# ---- which lane, and when ---------------------------------------------------------------------------


def choose(waiting: Waiting, worker: Worker, now_ns: int) -> Choice | None:
    """The lane to serve next, of those that this worker serves, and the class to begin with.

    The earliest virtual deadline goes first, unless it has passed already: then there is more work than
    workers, and going by it would make the highest class wait for everything older. So the highest class
    goes first, and overdue work gets every OVERDUE_SHARE-th batch.
    """
    starts_ns = max(now_ns, worker.busy_until_ns)
    due = waiting.earliest(worker, starts_ns)
    if due is None:
        return None
    (due_ns, due_class, _, _), lane = due
    if due_class > 0 and due_ns <= now_ns and worker.overdue_passed_over < OVERDUE_SHARE - 1:
        first = waiting.highest(worker, starts_ns)
        if first is not None and first[0][2] < due_class:
            return first[1], first[0], first[0][2]
    return lane, due[0], -1


def lend_ns(choice: Choice, worker: Worker, urgent_present: bool) -> int:
    """When the worker should have this batch, as things are: 0 means now.

    A busy worker is lent its next batch when the running one is nearly done, so that later arrivals can
    still go ahead of it or into it; and only when it is no smaller than the running one. Otherwise the first
    request to arrive would leave alone, and batches would stay small.
    """
    if not worker.leases:
        return 0
    lane, (_, _, first_class, _), _ = choice
    running = next(iter(worker.leases.values()))
    if lane.rows < (1 if lane.is_alone else min(worker.rows_max[lane.model_name], running.rows)):
        return NEVER_NS
    lead_ns = URGENT_LEAD_NS if urgent_present and first_class != Priority.URGENT else LEAD_NS
    return worker.busy_until_ns - lead_ns


def take(choice: Choice, worker: Worker, urgent_present: bool, urgent_ns: int, now_ns: int) -> list[Part]:
    """The parts of the batch: as many rows as the worker takes and every member's deadline allows.

    While urgent requests come, the others are kept to half the time that an urgent request may take: it may
    have to wait for one such batch, and go in another. Where only some sizes are run, padding must be cheaper
    than a smaller size.
    """
    lane, _, begin = choice
    timing = worker.timing(lane)
    assert timing is not None, "a lane of a model that it does not serve"
    late_rows = rows_max = worker.rows_max[lane.model_name]
    if lane.retries and (again := lane.take_again(rows_max)):
        return again
    lower_max = timing.rows_within(rows_max, urgent_ns // 2) if urgent_present else 0
    if timing.buckets and lane.rows:
        rows_max = timing.worth_taking(min(rows_max, lane.rows))
    elif lane.rows > 1 and not worker.leases:
        rows_max = timing.worth_halving(min(rows_max, lane.rows))
    starts_ns = max(now_ns, worker.busy_until_ns)
    return take_rows(lane, rows_max, starts_ns, timing, begin, lower_max, late_rows)
