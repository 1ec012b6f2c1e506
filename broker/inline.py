"""Tensors that come as frames: laid into an arena of the broker's own, and read back for the reply.

A client without an arena in common (tcp) sends the same messages with frames behind them. Here its
tensors become handles into one arena, so that core and workers know only handles. The copies are
the price of the network, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..transport import segments
from ..transport.arena import Arena
from ..transport.errors import ArenaExhausted, InvalidRequest, Overloaded
from ..transport.messages import Answer, BatchReceipt, Submit
from ..transport.tensors import ABSENT, Slot, Tensor, nbytes_of

if TYPE_CHECKING:
    from .models import Model

INLINE_ARENA_BYTES = 1 << 30  # address space; pages are committed as they are needed
RETRY_AFTER_S = 0.05

OutputShapes = list[tuple[int, list[int]]]


@dataclass(slots=True)
class InlineRequest:
    """The slots that a request's tensors were laid into."""

    model: Model
    offsets: list[int]
    outputs: list[Slot]
    shapes: OutputShapes


class InlineTensors:
    """The arena and its slots, by (connection, request)."""

    def __init__(self, register: Callable[[segments.Segment], int]) -> None:
        self.copied_bytes = 0
        self._register = register
        self._segment: segments.Segment | None = None
        self._arena: Arena | None = None
        self._number = 0
        self._requests: dict[int, dict[int, InlineRequest]] = {}  # connection -> request -> slots

    @property
    def arena(self) -> int:
        """The arena's number; the arena is made on first use."""
        if self._segment is None:
            self._segment = segments.create(INLINE_ARENA_BYTES)
            self._arena = Arena(self._segment.nbytes, self._segment.commit)
            self._number = self._register(self._segment)
        return self._number

    @property
    def nbytes(self) -> int:
        assert self._segment is not None, "the arena is made by asking for its number"
        return self._segment.nbytes

    def lay(self, conn: int, message: Submit, frames: Sequence[Any], model: Model | None) -> None:
        """Copy a request's frames into the arena and rewrite its descriptors in place.

        Raises InvalidRequest for a frame that isn't there or hasn't the size its shape says, and
        Overloaded when the arena is full. On an error nothing stays allocated.
        """
        assert self._arena is not None
        assert self._segment is not None
        if message.request in self._requests.get(conn, ()):
            # Under way, or ended while a worker still holds its slots: they are not this one's.
            raise InvalidRequest(f"the slots of an earlier request {message.request} are still held")
        if model is None or len(message.inputs) != len(model.inputs):
            return  # the core says so; thousands of tensors are not copied for that
        offsets: list[int] = []
        try:
            named = [tensor.frame for tensor in message.inputs if tensor.dtype != ABSENT]
            if len(set(named)) != len(named):
                raise InvalidRequest("two tensors name one frame")  # a few bytes would become many
            inputs = [self._lay_tensor(tensor, frames, offsets) for tensor in message.inputs]
            rows = model.rows(inputs)
            shapes = model.output_shapes(rows) if rows or not model.batchable else None
            outputs = []
            for dtype, shape in shapes or ():
                nbytes = nbytes_of(dtype, shape)
                offsets.append(self._arena.alloc(nbytes))
                outputs.append(Slot(offsets[-1], nbytes))
        except ArenaExhausted:
            self._free(offsets)
            raise Overloaded("the broker's room for tensors sent over tcp is full", RETRY_AFTER_S) from None
        except InvalidRequest:
            self._free(offsets)
            raise
        message.inputs = inputs
        message.outputs = outputs
        entry = InlineRequest(model, offsets, outputs, shapes or [])
        self._requests.setdefault(conn, {})[message.request] = entry

    def _lay_tensor(self, tensor: Tensor, frames: Sequence[Any], offsets: list[int]) -> Tensor:
        assert self._arena is not None
        assert self._segment is not None
        if tensor.dtype == ABSENT:
            return tensor
        nbytes = tensor.nbytes
        if not 1 <= tensor.frame <= len(frames):
            raise InvalidRequest(
                f"a tensor refers to frame {tensor.frame} of {len(frames)}: a connection without an arena "
                "sends its tensors as frames"
            )
        frame = memoryview(frames[tensor.frame - 1]).cast("B")
        if frame.nbytes != nbytes:
            raise InvalidRequest(f"a frame has {frame.nbytes} bytes, and its tensor's shape takes {nbytes}")
        offset = self._arena.alloc(nbytes)
        offsets.append(offset)
        self._segment.buffer[offset : offset + nbytes] = frame
        self.copied_bytes += nbytes
        return Tensor(tensor.dtype, tensor.shape, offset, 0, tensor.strings_nbytes)

    def answer(
        self, conn: int, number: int, queue_ns: int, batch: BatchReceipt
    ) -> tuple[Answer, list[bytes]]:
        """The reply with its tensors as frames, of a request whose outputs lie in its slots."""
        assert self._segment is not None
        request = self._requests[conn][number]
        frames = []
        tensors = []
        for slot, (dtype, shape) in zip(request.outputs, request.shapes, strict=True):
            frames.append(self._segment.buffer[slot.offset : slot.offset + slot.nbytes])
            tensors.append(Tensor(dtype, shape, 0, len(frames)))
            self.copied_bytes += slot.nbytes
        self.release(conn, number)
        return Answer(number, queue_ns, batch, [tensors]), frames

    def release(self, conn: int, number: int) -> None:
        """A request's slots are free. Idempotent."""
        requests = self._requests.get(conn, {})
        request = requests.pop(number, None)
        if request is not None:
            self._free(request.offsets)
            if not requests:
                del self._requests[conn]

    def holds(self, conn: int) -> bool:
        """Whether any slot belongs to a request of this connection."""
        return conn in self._requests

    def _free(self, offsets: list[int]) -> None:
        assert self._arena is not None
        for offset in offsets:
            self._arena.free(offset)

    @property
    def used_bytes(self) -> int:
        return self._arena.used_bytes if self._arena is not None else 0

    def snapshot(self) -> dict[str, int]:
        return {"inline_copied_bytes": self.copied_bytes, "inline_used_bytes": self.used_bytes}
