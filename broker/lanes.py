"""Requests, their parts, and the lanes in which they wait.

A lane holds the parts of one (model, shape signature) in order of virtual deadline. A request
enters as one part covering all its rows; a batch may take a prefix, and the rest goes back as a
part of its own, so a request larger than the model's maximum is split here and nowhere else.
Ended requests leave their parts behind in the heap; they are skipped, and swept when they are
the majority.

Pure: no clock, no sockets. Must not import anything but transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from ..transport.messages import Item, Submit
from ..transport.tensors import Slot, Tensor

if TYPE_CHECKING:
    from .identical import Key
    from .registry import Model
    from .timing import TimeModel

SWEEP_MIN = 64  # a smaller heap is not worth sweeping


class Request:
    """One admitted request, from Submit to its outcome and the release of its slots."""

    __slots__ = (
        "arena", "arrived_ns", "conn", "deadline_ns", "ended", "followers", "id", "inputs", "key", "lane",
        "leader", "losses", "model", "nbytes", "outputs", "parts", "priority", "rows", "rows_done",
        "rows_leased", "virtual_ns",
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
        self.losses = 0  # workers that died while they ran nothing but a part of it
        self.ended = False  # the client has been told its outcome
        self.parts: list[tuple[int, list[Tensor], Sequence[Any]]] | None = None  # outputs not in its slots
        self.key: Key | None = None  # of its content; see identical.py
        self.leader: Request | None = None  # whose result it waits for, instead of waiting in its lane
        self.followers: dict[Request, None] | None = None

    def is_asked_by(self, message: Submit) -> bool:
        """Whether a message says the same, but for the time that was left when it was sent."""
        asked = (message.model, message.priority, message.inputs, message.outputs)
        return (self.model.name, self.priority, self.inputs, self.outputs) == asked

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


class Lane:
    """Waiting parts that may share a batch, earliest virtual deadline first."""

    __slots__ = ("_heap", "_sequence", "model", "retries", "rows", "signature", "users")

    def __init__(self, model: Model, signature: tuple[tuple[int, ...], ...] = ()) -> None:
        self.model = model
        self.signature = signature
        self.users = 0  # requests whose slots have not been released
        self.rows = 0  # of requests that have not ended
        self.retries: list[list[Part]] = []  # halves of failed batches, to be run as they are
        self._heap: list[tuple[int, int, Part]] = []
        self._sequence = 0

    def push(self, part: Part) -> None:
        """Queue a part at its request's place."""
        self._sequence += 1
        heappush(self._heap, (part.request.virtual_ns, self._sequence, part))
        self._count(part.request, part.stop - part.start)

    def push_front(self, part: Part) -> None:
        """Queue a part ahead of what arrived later with the same virtual deadline."""
        self._sequence += 1
        heappush(self._heap, (part.request.virtual_ns, -self._sequence, part))
        self._count(part.request, part.stop - part.start)

    def _count(self, request: Request, rows: int) -> None:
        self.rows += rows
        self.model.waiting[request.priority] += rows

    def head_ns(self) -> int | None:
        """Virtual deadline of the earliest live part; None when nothing waits."""
        while self.retries:
            live = [part for part in self.retries[0] if not part.request.ended]
            if live:
                self.retries[0] = live
                return min(part.request.virtual_ns for part in live)
            del self.retries[0]
        heap = self._heap
        while heap:
            if heap[0][2].request.ended:
                heappop(heap)
            else:
                return heap[0][0]
        return None

    def head_priority(self) -> int:
        """Priority of what `take` would begin with; the lane is not empty."""
        if self.retries:
            return min(part.request.priority for part in self.retries[0])
        return self._heap[0][2].request.priority

    def take(self, rows_max: int, starts_ns: int = 0, timing: TimeModel | None = None) -> list[Part]:
        """Remove and return up to `rows_max` rows of parts, in order; the last may be split.

        With a time model: no more than are expected to be done by the nearest of their deadlines,
        when the batch starts at `starts_ns`. The head goes in any case; that it can be in time was
        judged when it was admitted.
        """
        if self.retries:
            group = [part for part in self.retries.pop(0) if not part.request.ended]
            if group:
                for part in group:
                    self._count(part.request, part.start - part.stop)
                return group
        taken: list[Part] = []
        heap = self._heap
        room = rows_max
        nearest_ns = 0  # of the deadlines of what is taken; 0: none
        full_ns = starts_ns + timing.predict_ns(rows_max) if timing is not None else 0
        while heap and room > 0:
            entry = heappop(heap)
            part = entry[2]
            if part.request.ended:
                continue
            rows = part.stop - part.start
            if rows > room:
                if taken and rows <= rows_max:
                    heappush(heap, entry)  # it fits into a batch whole: don't cut it in two
                    break
                rest = Part(part.request, part.start + room, part.stop)
                self._sequence += 1
                heappush(heap, (entry[0], self._sequence, rest))
                part.stop = part.start + room
                rows = room
            deadline_ns = part.request.deadline_ns
            if deadline_ns and (not nearest_ns or deadline_ns < nearest_ns):
                nearest_ns = deadline_ns
            if timing is not None and taken and 0 < nearest_ns < full_ns:
                ends_ns = starts_ns + timing.predict_ns(rows_max - room + rows)
                if ends_ns > nearest_ns:
                    heappush(heap, (entry[0], entry[1], part))
                    break
            taken.append(part)
            room -= rows
            self._count(part.request, -rows)
        return taken

    def retry(self, group: list[Part]) -> None:
        """Queue parts that must run together and with no one else, before everything."""
        self.retries.append(group)
        for part in group:
            self._count(part.request, part.stop - part.start)

    def forget(self, request: Request) -> None:
        """A request has just ended: its waiting rows no longer count."""
        self._count(request, -request.rows_waiting)
        heap = self._heap
        if len(heap) > SWEEP_MIN and self.rows * 2 < len(heap):
            live = [entry for entry in heap if not entry[2].request.ended]
            if len(live) * 2 <= len(heap):
                heapify(live)
                self._heap = live

    def withdraw(self, request: Request) -> bool:
        """Take a request out that waits as a whole; False when it does not."""
        for index, entry in enumerate(self._heap):
            part = entry[2]
            if part.request is request and part.stop - part.start == request.rows:
                self._heap[index] = self._heap[-1]
                self._heap.pop()
                heapify(self._heap)
                self._count(request, -request.rows)
                return True
        return False

    def waiting(self) -> list[Part]:
        """Every live part, unordered; for validate()."""
        parts = [entry[2] for entry in self._heap] + [part for group in self.retries for part in group]
        return [part for part in parts if not part.request.ended]
