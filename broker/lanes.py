"""Lanes: parts of requests that may share a batch, each class in order of virtual deadline.

A lane holds the parts of one (model, shape signature). It keeps parts in order, and decides nothing:
taking.py takes them out of `heaps`. Ended requests leave their parts behind in their heap,
withdrawn ones an empty part; they are skipped, and swept when they are the majority.

Pure: no clock, no sockets. It sees no model: the rows that wait are counted in a list that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from ..transport.heaps import AT_ONCE_MAX, tidy
from ..transport.messages import Priority
from ..transport.tensors import Tensor
from .requests import NEVER_NS, Part, Request

SWEEP_MIN = 64  # a smaller heap is not worth sweeping
LATE_MAX = 64  # parts that were set aside, and are looked at again

Entry = tuple[int, int, Part]  # virtual deadline, sequence
NOTHING_FIRST = (len(Priority), NEVER_NS)


def _is_over(entry: Entry) -> bool:
    return entry[2].is_over


class Lane:
    """`waiting`: rows that wait by class, counted for all lanes of the model `model_name`.

    `due_ns` and `first` are never later than the truth: no part has an earlier virtual deadline; none has a
    higher class, and none of that class an earlier virtual deadline. The policy makes them exact when it
    looks. They are the same for all workers: a part that is too late for one of them counts, too.
    `is_earlier`: one of them has become earlier since it was last looked up.
    """

    __slots__ = (
        "_cursor", "_sequence", "due_ns", "first", "heaps", "is_alone", "is_earlier", "late", "model_name",
        "place", "retries", "rows", "signature", "users", "waiting_rows",
    )  # fmt: skip

    def __init__(
        self, model_name: str, waiting_rows: list[int], signature: Any = (), is_alone: bool = False
    ) -> None:
        self.model_name = model_name
        self.waiting_rows = waiting_rows
        self.signature = signature  # the shapes that its requests have in common
        self.is_alone = is_alone  # a batch is one request, as it is
        self.place = 0  # among the lanes that hold something; see waiting.py
        self.due_ns = NEVER_NS
        self.first = NOTHING_FIRST
        self.is_earlier = False
        self.users = 0  # requests whose slots have not been released
        self.rows = 0  # of requests that have not ended
        self.retries: list[list[Part]] = []  # halves of failed batches, to be run as they are
        self.heaps: list[list[Entry]] = [[] for _ in Priority]
        self.late: list[Entry] = []  # parts that can't be in time any more: they go when nothing else waits
        self._sequence = 0
        self._cursor = 0  # in a long heap that is tidied

    is_ragged = False  # see ragged.py

    def sizes_of(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """A request's sizes along padded axes; (): it has none."""
        return ()

    @property
    def shapes(self) -> list[list[int]]:
        """The shapes of its requests' inputs without rows, for display."""
        return [list(part) for part in self.signature if isinstance(part, tuple)]

    # ---- queueing -----------------------------------------------------------------------------

    def push(self, part: Part, in_front: bool = False) -> None:
        """Queue a part at its request's place: behind those that have the same, or in front of them."""
        self._sequence += 1
        request = part.request
        priority, virtual_ns = request.priority, request.virtual_ns
        sequence = -self._sequence if in_front else self._sequence
        heappush(self.heaps[priority], (virtual_ns, sequence, part))
        if virtual_ns < self.due_ns:
            self.due_ns = virtual_ns
            self.is_earlier = True
        if (priority, virtual_ns) < self.first:
            self.first = priority, virtual_ns
            self.is_earlier = True
        rows = part.stop - part.start
        self.rows += rows
        self.waiting_rows[priority] += rows

    def push_front(self, part: Part) -> None:
        """Queue a part ahead of later arrivals with the same virtual deadline."""
        self.push(part, in_front=True)

    def retry(self, group: list[Part]) -> None:
        """Queue parts that must run together and with no one else, before everything."""
        self.retries.append(group)
        for part in group:
            self._count(part.request, part.stop - part.start)
        requests = [part.request for part in group]
        due_ns = min(request.virtual_ns for request in requests)
        self.due_ns = min(self.due_ns, due_ns)
        self.first = min(self.first, (min(request.priority for request in requests), due_ns))
        self.is_earlier = True

    def _count(self, request: Request, rows: int) -> None:
        self.rows += rows
        self.waiting_rows[request.priority] += rows

    # ---- leaving ------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether nothing waits. Then nothing is due, either."""
        if self.rows:
            return False
        self.due_ns = NEVER_NS
        self.first = NOTHING_FIRST
        self.retries.clear()
        return True

    def call_back(self) -> None:
        """Put parts that were set aside as too late into their classes again: the first of them, if they are
        many, because it is done at every look."""
        late = self.late
        if len(late) <= LATE_MAX:
            self.late = []
            called = late
        else:
            called = [heappop(late) for _ in range(LATE_MAX)]
        for entry in called:
            if not entry[2].is_over:
                heappush(self.heaps[entry[2].request.priority], entry)

    def put_back(self, entry: Entry) -> None:
        """Put back an entry that was looked at and not taken."""
        heappush(self.heaps[entry[2].request.priority], entry)

    def split(self, entry: Entry, rows: int) -> None:
        """Cut the part of an entry that was popped after so many rows; the rest waits in its place."""
        part = entry[2]
        self._sequence += 1
        rest = Part(part.request, part.start + rows, part.stop)
        heappush(self.heaps[part.request.priority], (entry[0], self._sequence, rest))
        part.stop = part.start + rows

    def taken(self, part: Part) -> None:
        """A part has left its heap for a batch."""
        rows = part.stop - part.start
        self.rows -= rows
        self.waiting_rows[part.request.priority] -= rows

    def take_again(self, rows_max: int) -> list[Part]:
        """Remove and return parts that are to run with no one else; empty: there are none. The worker that
        lost them may take more rows than this one: those beyond `rows_max` wait for the next turn."""
        while self.retries:
            waiting = [part for part in self.retries.pop(0) if not part.request.ended]
            taken: list[Part] = []
            room = rows_max
            while waiting and room > 0:
                part = waiting.pop(0)
                rows = part.stop - part.start
                if self.is_alone and not taken:
                    room = rows
                if rows > room and taken:
                    waiting.insert(0, part)  # it is whole in another batch
                    break
                if rows > room:
                    waiting.insert(0, Part(part.request, part.start + room, part.stop))
                    part.stop = part.start + room
                    rows = room
                taken.append(part)
                room -= rows
                self._count(part.request, -rows)
            if waiting:
                self.retries.insert(0, waiting)
            if taken:
                return taken
        return []

    def forget(self, request: Request) -> None:
        """A request has just ended: its waiting rows no longer count."""
        self._count(request, -request.rows_waiting)
        self._sweep(request.priority)

    def withdraw(self, part: Part) -> bool:
        """Take back a part that waits in its class as its whole request; False when it does not."""
        request = part.request
        if part.stop - part.start < request.rows or request.rows_waiting < request.rows:
            return False
        if any(part in group for group in self.retries):
            return False  # it is to run as it is
        part.stop = part.start  # what is left of it is skipped
        self._count(request, -request.rows)
        self._sweep(request.priority)
        return True

    def _sweep(self, priority: int) -> None:
        heap = self.heaps[priority]
        if len(heap) > AT_ONCE_MAX:
            self._cursor = tidy(heap, self._cursor, _is_over)
        elif len(heap) > SWEEP_MIN and self.waiting_rows[priority] * 2 < len(heap):
            live = [entry for entry in heap if not entry[2].is_over]
            if len(live) * 2 <= len(heap):
                heapify(live)
                self.heaps[priority] = live

    def waiting(self) -> list[Part]:
        """Every live part, unordered; for the tests' invariants."""
        parts = [entry[2] for heap in (*self.heaps, self.late) for entry in heap]
        parts += [part for group in self.retries for part in group]
        return [part for part in parts if not part.is_over]
