"""Requests: one from its Submit to the release of its slots, the parts that it is run in, the runs it shares.

A request enters its lane as one part that covers all its rows. A batch may take a prefix of it, and the rest
goes back as a part of its own. Identical requests share a run: the first leads and waits in its lane, the
others follow and wait for its result (sharing.py decides which are identical).

Pure: no clock, no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from ..transport import messages as m
from ..transport.errors import BatchyardError, Overloaded
from ..transport.heaps import AT_ONCE_MAX, tidy
from ..transport.tensors import Slot, Tensor, moved

if TYPE_CHECKING:
    from .lanes import Lane
    from .models import Model

NEVER_NS = 1 << 62
MIXED = -1  # a Request's revision
SWEEP_MIN = 64  # places of followers that have gone are not worth sweeping before

Key = tuple[int, bytes, tuple[tuple[int, ...], ...]]  # revision, digest, (dtype, *shape) of each input
Outputs = list[list[Tensor]]  # as in messages.Answer


class Request:
    """One admitted request. `sizes`: along padded axes, see ragged.py. `like`: the Submit that it came in.
    `number`, `left_ns` and `offsets`: of one of the further requests in that; see messages.More."""

    __slots__ = (
        "_like", "_offsets", "arena", "arrived_ns", "conn", "deadline_ns", "ended", "id", "key", "lane",
        "losses", "model", "nbytes", "parts", "priority", "queue_ns", "receipt", "revision", "rows",
        "rows_done", "rows_leased", "run", "sizes", "streamed", "virtual_ns", "was_slow",
    )  # fmt: skip

    def __init__(
        self,
        conn: int,
        like: m.Submit,
        arena: int,
        model: Model,
        lane: Lane,
        rows: int,
        nbytes: int,
        arrived_ns: int,
        virtual_ns: int = 0,
        number: int = 0,
        left_ns: int = 0,
        offsets: Sequence[int] | None = None,
    ) -> None:
        if offsets is None:
            number, left_ns = like.request, like.deadline_ns
        self.conn = conn
        self.id = number
        self.arena = arena
        self.lane = lane
        self.model = model
        self.priority = like.priority
        self.rows = rows
        self.nbytes = nbytes
        self._like = like
        self._offsets = offsets
        self.sizes = lane.sizes_of(like.inputs) if lane.is_ragged else ()
        self.arrived_ns = arrived_ns
        self.deadline_ns = arrived_ns + left_ns if left_ns else 0  # 0: none
        self.virtual_ns = virtual_ns
        self.rows_done = 0
        self.rows_leased = 0  # rows that a worker may be touching now
        self.revision = 0  # of the model that has run parts of it; 0: none yet; MIXED: more than one
        self.losses = 0  # workers that died by themselves while they ran nothing but a part of it
        self.was_slow = False  # a worker that ran it was ended for the time that it took; see leases.py
        self.streamed = False  # the client has some of its answers
        self.ended = False  # the client has its outcome
        self.parts: list[tuple[int, list[Tensor], Sequence[Any]]] | None = None  # outputs not in its slots
        self.receipt: m.BatchReceipt | None = None  # of its pieces that have run, where it has any
        self.queue_ns = 0  # until the first of them
        self.key: Key | None = None  # of its content; see sharing.py
        self.run: SharedRun | None = None  # that it leads, or whose result it waits for

    @property
    def inputs(self) -> list[Tensor]:
        like = self._like
        return like.inputs if self._offsets is None else moved(like.inputs, like.outputs, self._offsets)[0]

    @property
    def outputs(self) -> list[Slot]:
        like = self._like
        return like.outputs if self._offsets is None else moved(like.inputs, like.outputs, self._offsets)[1]

    @property
    def packed(self) -> bool:
        return self._like.packed

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets of its inputs, then of its output slots."""
        if self._offsets is not None:
            return self._offsets
        like = self._like
        return [*(tensor.offset for tensor in like.inputs), *(slot.offset for slot in like.outputs)]

    def is_like(self, other: Request) -> bool:
        """Whether a request of the same lane differs from it in nothing but its number, time and place."""
        if self._like is other._like:
            return True
        mine, others = self._like.outputs, other._like.outputs
        return (
            self.rows == other.rows
            and self.arena == other.arena
            and self.packed == other.packed
            and [(slot.nbytes, slot.shape) for slot in mine] == [(slot.nbytes, slot.shape) for slot in others]
        )

    def repeats(self, message: m.Submit) -> bool:
        """Whether a message says the same, but for the time that was left when it was sent."""
        content = (message.model, message.priority, message.inputs, message.outputs)
        return (self.model.name, self.priority, self.inputs, self.outputs) == content

    @property
    def leader(self) -> Request | None:
        """The request whose result this one waits for, if it follows another."""
        run = self.run
        return run.leader if run is not None and run.leader is not self else None

    @property
    def rows_waiting(self) -> int:
        return self.rows - self.rows_done - self.rows_leased

    def add_piece(self, batch: m.BatchReceipt, queue_ns: int) -> None:
        """Some of its rows have run in a batch. Its receipt is the sum of all its batches."""
        sum_ = self.receipt
        if sum_ is None:
            self.receipt, self.queue_ns = batch, queue_ns
        elif sum_.batch != batch.batch:  # two pieces may share one
            rows = sum_.rows + batch.rows
            self.receipt = m.BatchReceipt(
                rows,
                sum_.gather_ns + batch.gather_ns,
                sum_.compute_ns + batch.compute_ns,
                sum_.scatter_ns + batch.scatter_ns,
                sum_.copied_bytes + batch.copied_bytes,
                batch.worker,
                batch.provider,
                batch.revision,
                batch.batch,
                sum_.lent_ns + batch.lent_ns,
                (sum_.padded * sum_.rows + batch.padded * batch.rows) / (rows or 1),
            )

    def gathered(self) -> tuple[Outputs, list[Any]] | None:
        """Its outputs that lie elsewhere than in its slots, parts in the order of their rows, frames numbered
        anew; and the frames. None when a worker sent none, or named a frame that it did not send."""
        if not self.parts:
            return None
        parts: Outputs = []
        frames: list[Any] = []
        for _, outputs, behind in sorted(self.parts, key=lambda entry: entry[0]):
            tensors = []
            numbers: dict[int, int] = {}  # outputs of one part mostly share a frame
            for tensor in outputs:
                if not 1 <= tensor.frame <= len(behind):
                    return None
                if tensor.frame not in numbers:
                    frames.append(behind[tensor.frame - 1])
                    numbers[tensor.frame] = len(frames)
                at = numbers[tensor.frame]
                tensors.append(Tensor(tensor.dtype, tensor.shape, tensor.offset, at, tensor.strings_nbytes))
            parts.append(tensors)
        return parts, frames


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

    def item(self) -> m.Item:
        """The part as an item of a batch."""
        request = self.request
        if self.stop - self.start == request.rows:
            if request.key is None:
                return m.Item(request.arena, request.inputs, request.outputs, packed=request.packed)
            # Others may want the result: it comes back as frames.
            return m.Item(request.arena, request.inputs, [], request.key[1], packed=request.packed)
        rows = self.stop - self.start
        return m.Item(
            request.arena, request.inputs, request.outputs, b"", self.start, rows, [], request.packed
        )


def items_of(parts: Sequence[Part], is_uniform: bool) -> list[m.Item]:
    """Parts as a worker sees them. `is_uniform`: requests of their lane with as many rows have tensors of the
    same shapes and bytes. Then whole ones share an item."""
    items: list[m.Item] = []
    first: Request | None = None  # of the last item, if others may share it
    for part in parts:
        request = part.request
        is_whole = is_uniform and request.key is None and part.stop - part.start == request.rows
        if is_whole and first is not None and request.is_like(first):
            items[-1].more += request.offsets
            continue
        items.append(part.item())
        first = request if is_whole else None
    return items


class SharedRun:
    """A leader, and the requests that wait for its result: when it ends, one of them leads.

    Joining, leaving and succeeding cost no walk over the followers: there may be thousands.
    """

    __slots__ = ("_cursor", "_places", "_sequence", "followers", "is_answered", "leader", "part")

    def __init__(self, leader: Request) -> None:
        self.leader = leader
        self.part: Part | None = None  # as which the leader was queued
        self.is_answered = False  # the result is there, and not all followers have it yet
        self.followers: dict[Request, None] = {}
        self._places: list[tuple[int, int, Request]] = []  # a heap; those that have left are skipped
        self._sequence = 0
        self._cursor = 0

    def follow(self, request: Request) -> None:
        """The request waits for the leader's result."""
        request.run = self
        self.followers[request] = None
        self._sequence += 1
        heappush(self._places, (request.virtual_ns, self._sequence, request))

    def leave(self, request: Request) -> None:
        request.run = None
        del self.followers[request]
        if len(self._places) > AT_ONCE_MAX:
            self._cursor = tidy(self._places, self._cursor, self._has_left)
        elif len(self._places) > SWEEP_MIN + 2 * len(self.followers):
            self._places = [place for place in self._places if place[2] in self.followers]
            heapify(self._places)

    def _has_left(self, place: tuple[int, int, Request]) -> bool:
        return place[2] not in self.followers

    def lead(self, request: Request) -> None:
        request.run = self
        self.leader = request
        self.part = None

    def succeed(self) -> Request | None:
        """The follower whose turn comes first leads; None when there is none."""
        while self._places:
            request = heappop(self._places)[2]
            if request in self.followers:
                del self.followers[request]
                self.lead(request)
                return request
        return None


def refusal(message: m.Submit | m.Describe, error: BatchyardError) -> m.Failed:
    """The answer to a request or question that is refused."""
    retry_ns = int(error.retry_after_s * 1e9) if isinstance(error, Overloaded) else 0
    return m.Failed(message.request, error.code, str(error), retry_ns)
