"""Which of the lanes that hold work goes first: found without looking at all of them.

Any number of shapes may wait, so a choice must not cost a walk over the lanes. Two heaps have them by
what each would begin with: by its earliest virtual deadline, and by its highest class. There is one pair
of heaps for all workers that serve the same models, so no lane in it is there in vain.

A key in a heap is never later than the truth. What makes a lane's head earlier (something came) is
brought into the heaps before the next choice; what makes it later (a batch was taken, a request ended)
is noticed when the lane comes to the top, and put right there. What a lane would begin with also depends
on the worker: what could not be in time on it is set aside. So a lane is asked when it is at the top; one
whose answer is later than its key stays a candidate, while the next one is asked.

policy.py says which of the two orders counts, and what a lane would begin with. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from typing import TypeVar

from .lanes import Lane
from .serving import Worker

SWEEP_MIN = 64  # entries beyond twice the size after the last sweep: it is swept again
ORDERS_MAX = 64  # different sets of models that workers serve; beyond, all are made again on demand

# The head of a lane, by either rule: the earliest virtual deadline and its priority; the highest priority
# that waits, and its earliest virtual deadline. (A plain tuple: it is made for every
# batch, and a named one costs more than finding it.)
Heads = tuple[int, int, int, int]
Look = Callable[[Lane, Worker, int], Heads | None]  # the head of a lane on a worker, at a time
Found = tuple[Heads, Lane]
DueEntry = tuple[int, int, Lane]  # virtual deadline, the lane's place
FirstEntry = tuple[tuple[int, int], int, Lane]  # (class, virtual deadline), the lane's place

Entry = TypeVar("Entry", DueEntry, FirstEntry)


class Order:
    """The lanes of the models `served`, in both orders. Equals go by their lanes' places."""

    __slots__ = ("_due", "_due_most", "_first", "_first_most", "_look", "served")

    def __init__(self, served: frozenset[str], look: Look) -> None:
        self._look = look
        self.served = served
        self._due: list[DueEntry] = []
        self._first: list[FirstEntry] = []
        self._due_most = self._first_most = SWEEP_MIN

    def add(self, lane: Lane) -> None:
        """The lane holds something, or something earlier than before."""
        heappush(self._due, (lane.due_ns, lane.place, lane))
        heappush(self._first, (lane.first, lane.place, lane))
        if len(self._due) > self._due_most:
            self._due = _swept(self._due)
            self._due_most = 2 * len(self._due) + SWEEP_MIN
        if len(self._first) > self._first_most:
            self._first = _swept(self._first)
            self._first_most = 2 * len(self._first) + SWEEP_MIN

    def earliest(self, worker: Worker, starts_ns: int) -> Found | None:
        """The lane with the earliest virtual deadline of the heads for this worker then."""
        heap = self._due
        aside: list[DueEntry] = []
        best: Found | None = None
        best_ns = best_place = 0
        while heap:
            key_ns, place, lane = heap[0]
            if best is not None and (best_ns, best_place) <= (key_ns, place):
                break
            heads = self._look(lane, worker, starts_ns) if place == lane.place else None
            if heads is None:
                heappop(heap)
            elif key_ns < lane.due_ns:
                heapreplace(heap, (lane.due_ns, place, lane))
            else:
                if best is None or (heads[0], place) < (best_ns, best_place):
                    best, best_ns, best_place = (heads, lane), heads[0], place
                if heads[0] == key_ns:
                    break
                aside.append(heappop(heap))
        for entry in aside:
            heappush(heap, entry)
        return best

    def highest(self, worker: Worker, starts_ns: int) -> Found | None:
        """The lane with the highest class of the heads for this worker then; of several, with the
        earliest virtual deadline in that class."""
        heap = self._first
        aside: list[FirstEntry] = []
        best: Found | None = None
        best_key: tuple[tuple[int, int], int] = ((0, 0), 0)
        while heap:
            key, place, lane = heap[0]
            if best is not None and best_key <= (key, place):
                break
            heads = self._look(lane, worker, starts_ns) if place == lane.place else None
            if heads is None:
                heappop(heap)
            elif key < lane.first:
                heapreplace(heap, (lane.first, place, lane))
            else:
                first = heads[2:]
                if best is None or (first, place) < best_key:
                    best, best_key = (heads, lane), (first, place)
                if first == key:
                    break
                aside.append(heappop(heap))
        for entry in aside:
            heappush(heap, entry)
        return best


def _swept(heap: list[Entry]) -> list[Entry]:
    """Of every lane that holds something the first entry, in order. A lane whose requests have all ended
    loses its entry; `is_empty` resets its keys, so the next request that it gets brings it back."""
    first: dict[Lane, Entry] = {}
    for entry in sorted(heap):
        lane = entry[2]
        if entry[1] == lane.place and not lane.is_empty():
            first.setdefault(lane, entry)
    return list(first.values())


class Waiting:
    """The lanes that may hold something. A lane that got something is `add`ed, again if need be. An empty
    lane may be `drop`ped, and must be when it is gone for good."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self.lanes: dict[Lane, None] = {}  # by place, so runs replay
        self._places = 0
        self._given: dict[Lane, None] = {}  # something, since the orders were brought up to date
        self._orders: dict[frozenset[str], Order] = {}

    def add(self, lane: Lane) -> None:
        """The lane has been given something, or will be before the next choice."""
        if lane not in self.lanes:
            self._places += 1
            lane.place = self._places
            lane.is_earlier = True
            self.lanes[lane] = None
        self._given[lane] = None

    def drop(self, lane: Lane) -> None:
        """The lane holds nothing."""
        if self.lanes.pop(lane, lane) is None:
            lane.place = 0
            lane.is_empty()
            self._given.pop(lane, None)

    def earliest(self, worker: Worker, starts_ns: int) -> Found | None:
        """See Order. Of the lanes that this worker serves; None where they hold nothing."""
        if len(self.lanes) == 1:  # one model with one shape: no heap is needed
            (lane,) = self.lanes
            heads = self._look(lane, worker, starts_ns)
            return (heads, lane) if heads is not None else None
        return self._order(worker).earliest(worker, starts_ns)

    def highest(self, worker: Worker, starts_ns: int) -> Found | None:
        """See Order."""
        if len(self.lanes) == 1:
            return self.earliest(worker, starts_ns)
        return self._order(worker).highest(worker, starts_ns)

    def _order(self, worker: Worker) -> Order:
        """The order of the lanes that this worker serves, up to date."""
        if self._given:
            for lane in self._given:
                if lane.is_earlier:
                    lane.is_earlier = False
                    for order in self._orders.values():
                        if lane.model_name in order.served:
                            order.add(lane)
            self._given.clear()
        return self._orders.get(worker.served) or self._ordered(worker.served)

    def _ordered(self, served: frozenset[str]) -> Order:
        """A new order of these models."""
        if len(self._orders) >= ORDERS_MAX:
            self._orders.clear()
        order = self._orders[served] = Order(served, self._look)
        for lane in self.lanes:
            if lane.model_name in served:
                order.add(lane)
        return order
