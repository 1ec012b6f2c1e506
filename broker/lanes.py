"""Requests, their parts, and the lanes in which they wait.

A lane holds the parts of one (model, shape signature), each class in order of virtual deadline. A request
enters as one part covering all its rows; a batch may take a prefix, and the rest goes back as a
part of its own, so a request larger than the model's maximum is split here and nowhere else.
Ended requests leave their parts behind in their heap, withdrawn ones an empty part; they are skipped,
and swept when they are the majority.

Pure: no clock, no sockets. Must not import anything but transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from ..transport.messages import Item, Priority, Submit
from ..transport.tensors import Slot, Tensor

if TYPE_CHECKING:
    from .identical import Key, Run
    from .registry import Model
    from .timing import TimeModel

SWEEP_MIN = 64  # a smaller heap is not worth sweeping
MIXED = -1  # a Request's revision

Entry = tuple[int, int, "Part"]  # virtual deadline, sequence


class Request:
    """One admitted request, from Submit to its outcome and the release of its slots."""

    __slots__ = (
        "arena", "arrived_ns", "conn", "deadline_ns", "ended", "id", "inputs", "key", "lane", "losses",
        "model", "nbytes", "outputs", "parts", "priority", "revision", "rows", "rows_done", "rows_leased",
        "run", "virtual_ns",
    )  # fmt: skip

    def __init__(
        self, conn: int, message: Submit, arena: int, lane: Lane, rows: int, nbytes: int, arrived_ns: int
    ) -> None:
        self.conn = conn
        self.id = message.request
        self.arena = arena
        self.lane = lane
        self.model = lane.model
        self.priority = message.priority
        self.rows = rows
        self.nbytes = nbytes
        self.inputs = message.inputs
        self.outputs = message.outputs
        self.arrived_ns = arrived_ns
        self.deadline_ns = arrived_ns + message.deadline_ns if message.deadline_ns else 0  # 0: none
        self.virtual_ns = 0
        self.rows_done = 0
        self.rows_leased = 0  # rows that a worker may be touching now
        self.revision = 0  # of the model that has run parts of it; 0: none yet; MIXED: more than one
        self.losses = 0  # workers that died while they ran nothing but a part of it
        self.ended = False  # the client has been told its outcome
        self.parts: list[tuple[int, list[Tensor], Sequence[Any]]] | None = None  # outputs not in its slots
        self.key: Key | None = None  # of its content; see identical.py
        self.run: Run | None = None  # that it leads, or whose result it waits for

    def is_asked_by(self, message: Submit) -> bool:
        """Whether a message says the same, but for the time that was left when it was sent."""
        asked = (message.model, message.priority, message.inputs, message.outputs)
        return (self.model.name, self.priority, self.inputs, self.outputs) == asked

    @property
    def leader(self) -> Request | None:
        """Whose result it waits for, instead of waiting in its lane."""
        run = self.run
        return run.leader if run is not None and run.leader is not self else None

    @property
    def rows_waiting(self) -> int:
        return self.rows - self.rows_done - self.rows_leased


class Part:
    """Rows [start, stop) of a request."""

    __slots__ = ("request", "start", "stop")

    def __init__(self, request: Request, start: int, stop: int) -> None:
        self.request = request
        self.start = start
        self.stop = stop

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is to be run any more: its request has ended, or it was withdrawn."""
        return self.request.ended or self.start == self.stop

    def item(self) -> Item:
        """The part as a worker sees it: the request's own descriptors, or a slice of their rows."""
        request = self.request
        rows = request.rows
        if self.stop - self.start == rows:
            if request.key is not None:  # others may want the result: it comes back as frames
                return Item(request.arena, request.inputs, [], request.key[1])
            return Item(request.arena, request.inputs, request.outputs)
        taken = self.stop - self.start
        inputs = [
            Tensor(tensor.dtype, [taken, *tensor.shape[1:]], tensor.offset + self.start * stride)
            for tensor, stride in zip(request.inputs, request.model.input_strides(request), strict=True)
        ]
        outputs = [
            Slot(slot.offset + self.start * (slot.nbytes // rows), taken * (slot.nbytes // rows))
            for slot in request.outputs
        ]
        return Item(request.arena, inputs, outputs)


# What a lane would begin with, by either rule: the earliest virtual deadline and the priority of what has
# it; the highest priority that waits, and its earliest virtual deadline. (A plain tuple: this is made for
# every batch, and a named one costs more than finding it.)
Heads = tuple[int, int, int, int]


class Lane:
    """Waiting parts that may share a batch: by priority, and there by virtual deadline."""

    __slots__ = ("_heaps", "_late", "_sequence", "model", "retries", "rows", "signature", "users")

    def __init__(self, model: Model, signature: tuple[tuple[int, ...], ...] = ()) -> None:
        self.model = model
        self.signature = signature
        self.users = 0  # requests whose slots have not been released
        self.rows = 0  # of requests that have not ended
        self.retries: list[list[Part]] = []  # halves of failed batches, to be run as they are
        self._heaps: list[list[Entry]] = [[] for _ in Priority]
        self._late: list[Entry] = []  # what can't be in time any more: it goes when nothing else waits
        self._sequence = 0

    def push(self, part: Part) -> None:
        """Queue a part at its request's place."""
        self._sequence += 1
        request = part.request
        heappush(self._heaps[request.priority], (request.virtual_ns, self._sequence, part))
        self._count(request, part.stop - part.start)

    def push_front(self, part: Part) -> None:
        """Queue a part ahead of what arrived later with the same virtual deadline."""
        self._sequence += 1
        request = part.request
        heappush(self._heaps[request.priority], (request.virtual_ns, -self._sequence, part))
        self._count(request, part.stop - part.start)

    def _count(self, request: Request, rows: int) -> None:
        self.rows += rows
        self.model.waiting[request.priority] += rows

    def heads(self, starts_ns: int = 0, timing: TimeModel | None = None) -> Heads | None:
        """What it would begin with; None when nothing waits.

        With a time model: what could not be in time if it began at `starts_ns` is set aside, and counts
        only when nothing else waits. It is looked at anew every time: another worker may be free
        sooner, or quicker.
        """
        while self.retries:
            live = [part.request for part in self.retries[0] if not part.request.ended]
            if live:
                due_ns = min(request.virtual_ns for request in live)
                priority = min(request.priority for request in live)
                return due_ns, priority, priority, due_ns
            del self.retries[0]
        if not self.rows:
            return None
        if self._late:
            self._call_back()
        far_ns = starts_ns + timing.longest_ns if timing is not None else 0
        due_ns = first_ns = 0
        due_class = first_class = -1
        for priority, heap in enumerate(self._heaps):
            while heap:
                part = heap[0][2]
                if part.is_over:
                    heappop(heap)
                elif 0 < part.request.deadline_ns < far_ns and self._is_late(part, starts_ns, timing):
                    heappush(self._late, heappop(heap))
                else:
                    head_ns = heap[0][0]
                    if first_class < 0:
                        first_class, first_ns = priority, head_ns
                    if due_class < 0 or head_ns < due_ns:
                        due_ns, due_class = head_ns, priority
                    break
        if due_class < 0 and self._late:
            due_ns = first_ns = self._late[0][0]
            due_class = first_class = self._late[0][2].request.priority
        return (due_ns, due_class, first_class, first_ns) if due_class >= 0 else None

    def _call_back(self) -> None:
        """What was set aside is in its class again."""
        late, self._late = self._late, []
        for entry in late:
            if not entry[2].is_over:
                heappush(self._heaps[entry[2].request.priority], entry)

    def _is_late(self, part: Part, starts_ns: int, timing: TimeModel | None) -> bool:
        rows = min(part.stop - part.start, self.model.max_batch)
        return timing is not None and part.request.deadline_ns < starts_ns + timing.predict_ns(rows)

    def _next_heap(self, begin: int) -> list[Entry] | None:
        """Where the next part comes from: the class to begin with, else the earliest virtual deadline."""
        if begin >= 0 and self._heaps[begin]:
            return self._heaps[begin]
        best: list[Entry] | None = None
        for heap in self._heaps:
            if heap and (best is None or heap[0][0] < best[0][0]):
                best = heap
        return best

    def take(
        self,
        rows_max: int,
        starts_ns: int = 0,
        timing: TimeModel | None = None,
        begin: int = -1,
        lower_max: int = 0,
    ) -> list[Part]:
        """Remove and return up to `rows_max` rows of parts; the last may be split. In order of virtual
        deadline, but all of class `begin` first, unless that is -1.

        With a time model: no more than are expected to be done by the nearest of their deadlines,
        when the batch starts at `starts_ns`. What can't be in time any more goes only when nothing
        else waits.
        `lower_max`: what is not URGENT must not make the batch larger than so many rows; 0: it may.
        """
        taken: list[Part] = []
        total = 0
        nearest_ns = 0  # of the deadlines of what is taken; 0: none
        far_ns = starts_ns + timing.longest_ns if timing is not None else 0
        full = [heap for heap in self._heaps if heap]
        only = full[0] if len(full) == 1 else None  # mostly there is but one class
        while total < rows_max:
            heap = only or self._next_heap(begin)
            if heap is None:
                if taken or not self._late:
                    break
                heap, timing = self._late, None
            entry = heappop(heap)
            part = entry[2]
            request = part.request
            rows = part.stop - part.start
            if part.is_over:
                continue
            deadline_ns = request.deadline_ns
            # Only where a deadline is nearer than the longest run does it matter how much nearer.
            is_near = 0 < deadline_ns < far_ns
            if is_near and self._is_late(part, starts_ns, timing):
                heappush(self._late, entry)
                continue
            most = lower_max if lower_max and request.priority != Priority.URGENT else rows_max
            room = most - total
            if rows > room:
                if taken and (rows <= rows_max or room <= 0):
                    heappush(heap, entry)  # it fits into a batch whole: don't cut it in two
                    break
                rest = Part(request, part.start + room, part.stop)
                self._sequence += 1
                heappush(heap, (entry[0], self._sequence, rest))
                part.stop = part.start + room
                rows = room
            if timing is not None and (is_near or nearest_ns):
                ends_ns = starts_ns + timing.predict_ns(total + rows)
                if taken and 0 < nearest_ns < ends_ns:
                    heappush(heap, entry)
                    break
                if is_near and ends_ns <= deadline_ns and (not nearest_ns or deadline_ns < nearest_ns):
                    nearest_ns = deadline_ns
            taken.append(part)
            total += rows
            self._count(request, -rows)
        return taken

    def take_again(self, rows_max: int) -> list[Part]:
        """Remove and return parts that are to run with no one else; empty: there are none. They may come
        of a worker that takes more rows than this one: what is beyond `rows_max` waits for the next turn."""
        while self.retries:
            waiting = [part for part in self.retries.pop(0) if not part.request.ended]
            taken: list[Part] = []
            room = rows_max
            while waiting and room:
                part = waiting.pop(0)
                rows = part.stop - part.start
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

    def retry(self, group: list[Part]) -> None:
        """Queue parts that must run together and with no one else, before everything."""
        self.retries.append(group)
        for part in group:
            self._count(part.request, part.stop - part.start)

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
        heap = self._heaps[priority]
        if len(heap) > SWEEP_MIN and self.model.waiting[priority] * 2 < len(heap):
            live = [entry for entry in heap if not entry[2].is_over]
            if len(live) * 2 <= len(heap):
                heapify(live)
                self._heaps[priority] = live

    def waiting(self) -> list[Part]:
        """Every live part, unordered; for validate()."""
        parts = [entry[2] for heap in (*self._heaps, self._late) for entry in heap]
        parts += [part for group in self.retries for part in group]
        return [part for part in parts if not part.is_over]
