"""One connection's requests: what was asked, what each is owed, and what the broker's messages settle.

Pure: no socket, no clock, no thread. The blocking connection, the I/O thread, and the asyncio
client each drive one of these. Every request that is opened is settled once; its slots come back
when the broker says that no worker can touch them, which may be later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from ..transport import dtypes, errors
from ..transport import messages as m
from ..transport.tensors import Slot, Tensor, nbytes_of
from .memory import SlotMemory
from .reply import Reply
from .signature import Array, Signature

if TYPE_CHECKING:
    from .spans import RequestSpan

MODEL_NAME_CHARS_MAX = 64  # messages.Name

_ABOUT_THE_MODEL = (errors.Code.INVALID_REQUEST, errors.Code.UNKNOWN_MODEL)
Settled = tuple["Pending", Reply | list[m.ModelInfo] | Exception]


class Pending:
    """A request under way. `waiter` and `span` belong to whoever drives the channel."""

    __slots__ = (
        "arrays", "inputs", "message", "number", "outputs", "rows", "settled", "signature", "span", "waiter"
    )  # fmt: skip

    def __init__(self, number: int, signature: Signature | None, rows: int) -> None:
        self.number = number
        self.signature = signature
        self.rows = rows
        self.inputs: list[int] = []  # slots that we made for it
        self.outputs: list[int] = []
        # Kept while somebody may read them: the caller's, in which a worker reads; or what we sent.
        self.arrays: list[Array] | None = None
        self.message: Any = None
        self.settled = False
        self.waiter: Any = None
        self.span: RequestSpan | None = None


class Channel:
    """The requests of one connection. `memory` None: tensors travel as frames."""

    def __init__(self, memory: SlotMemory | None, numbers: count[int]) -> None:
        self.memory = memory
        self.pending: dict[int, Pending] = {}  # until their slots are released
        self._numbers = numbers

    # ---- asking -------------------------------------------------------------------------------

    def describe(self, model: str) -> Pending:
        """Ask for a model's metadata; settled with a list of ModelInfo. Raises UnknownModel for a name
        that none can have: the broker would refuse the message."""
        if not isinstance(model, str) or len(model) > MODEL_NAME_CHARS_MAX:
            raise errors.UnknownModel(f"no model is called {str(model)[:80]!r}")
        pending = Pending(next(self._numbers), None, 0)
        pending.message = m.Describe(pending.number, model)
        self.pending[pending.number] = pending
        return pending

    def submit(
        self, signature: Signature, inputs: Any, priority: int, deadline_ns: int, wait_s: float
    ) -> tuple[Pending, Sequence[Any]]:
        """(the request, frames to send behind its message). Settled with a Reply.

        Waits up to `wait_s` for room in the arena. Raises InvalidRequest or ArenaExhausted, and
        then nothing is under way.
        """
        if not 0 <= priority <= m.Priority.LOW:  # the broker would refuse the whole envelope
            raise errors.InvalidRequest(f"priority is 0 (URGENT) to 3 (LOW), not {priority}")
        try:
            arrays, rows = signature.arrays(inputs)
        except errors.InvalidRequest:
            signature.doubt()
            raise
        pending = Pending(next(self._numbers), signature, rows)
        memory = self.memory
        if memory is None:
            pending.arrays, tensors, frames = _as_frames(signature, arrays)
            slots: list[Slot] = []
        else:
            frames = []
            try:
                tensors, slots = self._place(memory, pending, signature, arrays, wait_s)
            except BaseException:
                self._give_back(pending)
                raise
        pending.message = m.Submit(pending.number, signature.name, priority, deadline_ns, tensors, slots)
        self.pending[pending.number] = pending
        return pending, frames

    @staticmethod
    def _place(
        memory: SlotMemory, pending: Pending, signature: Signature, arrays: list[Array], wait_s: float
    ) -> tuple[list[Tensor], list[Slot]]:
        """Slots for what does not lie in the arena yet, and for every output whose size is known."""
        tensors = []
        sizes = []
        fresh = []
        for want, array in zip(signature.inputs, arrays, strict=True):
            offset = memory.offset_of(array)
            tensor = Tensor(want.code, list(array.shape), offset or 0)
            tensors.append(tensor)
            if offset is None:
                sizes.append(array.nbytes)
                fresh.append((tensor, array))
            else:
                pending.arrays = arrays
        copied = len(sizes)
        for row_nbytes in signature.output_row_nbytes:
            sizes.append(row_nbytes * pending.rows)  # noqa: PERF401  # a comprehension costs 0.2 us more
        offsets = memory.alloc_within(sizes, wait_s)
        pending.inputs = offsets[:copied]
        pending.outputs = offsets[copied:]
        for (tensor, array), offset in zip(fresh, offsets, strict=False):
            tensor.offset = offset
            memory.write(offset, array)
        slots = []
        for offset, nbytes in zip(pending.outputs, sizes[copied:], strict=True):
            slots.append(Slot(offset, nbytes))
        return tensors, slots

    def abandon(self, pending: Pending) -> m.Cancel | None:
        """The caller no longer waits: what to tell the broker, or None when there is nothing left."""
        pending.settled = True
        if pending.number not in self.pending:
            return None
        return m.Cancel([pending.number])

    # ---- being answered -----------------------------------------------------------------------

    def handle(self, message: m.BrokerToClient, frames: Sequence[Any]) -> list[Settled]:
        """What a message settles."""
        kind = type(message)
        if kind is m.Completed:
            return self._completed(message)  # type: ignore[arg-type]
        if kind is m.Answer:
            return self._answer(message, frames)  # type: ignore[arg-type]
        if kind is m.Failed:
            return self._failed(message)  # type: ignore[arg-type]
        if kind is m.Described:
            pending = self.pending.pop(message.request, None)  # type: ignore[union-attr]
            return self._settle(pending, message.models) if pending else []  # type: ignore[union-attr]
        if kind is m.Released:
            for number in message.requests:  # type: ignore[union-attr]
                released = self.pending.pop(number, None)
                if released is not None:
                    self._give_back(released)
            return []
        if kind is m.Refused:
            return self.lose(errors.from_wire(message.code, message.text))  # type: ignore[union-attr]
        return []  # Welcome: the handshake's business

    def lose(self, error: Exception) -> list[Settled]:
        """The connection is over: everything under way is settled with the error.

        Slots are not freed: a worker of the lost broker may still write. The whole memory is
        given up instead.
        """
        settled = [(pending, error) for pending in list(self.pending.values()) if not pending.settled]
        for pending, _ in settled:
            pending.settled = True
        self.pending.clear()
        return settled  # type: ignore[return-value]

    def _settle(self, pending: Pending, outcome: Any) -> list[Settled]:
        if pending.settled:
            return []
        pending.settled = True
        return [(pending, outcome)]

    def _completed(self, message: m.Completed) -> list[Settled]:
        settled: list[Settled] = []
        memory = self.memory
        batch = message.batch
        for number, queue_ns in zip(message.requests, message.queue_ns, strict=True):
            pending = self.pending.pop(number, None)
            if pending is None or memory is None or pending.signature is None:
                continue  # no request of ours: a broker that we don't know
            if pending.settled:
                self._give_back(pending)
                continue
            signature = pending.signature
            if signature.output_tails is None:
                self._give_back(pending)
                settled += self._settle(
                    pending, errors.MalformedMessage("the broker's answer has no outputs")
                )
                continue
            lead = (pending.rows,) if signature.batchable else ()
            arrays = [
                memory.array(offset, dtype, lead + tail)
                for offset, dtype, tail in zip(
                    pending.outputs, signature.output_dtypes, signature.output_tails, strict=True
                )
            ]
            for offset in pending.inputs:
                memory.free(offset)
            pending.arrays = None
            pending.settled = True
            settled.append((pending, Reply(signature.output_names, arrays, queue_ns, batch)))
        return settled

    def _answer(self, message: m.Answer, frames: Sequence[Any]) -> list[Settled]:
        pending = self.pending.pop(message.request, None)
        if pending is None or pending.signature is None:
            return []
        self._give_back(pending)
        try:
            parts = [[_from_frame(tensor, frames) for tensor in part] for part in message.parts]
            if not parts or len(parts[0]) != len(pending.signature.output_names):
                raise errors.MalformedMessage("not one tensor for every output")
            arrays = (
                parts[0]
                if len(parts) == 1
                else [np.concatenate(column) for column in zip(*parts, strict=True)]
            )
        except (errors.BatchyardError, ValueError) as error:
            return self._settle(pending, errors.MalformedMessage(f"the broker's answer is damaged: {error}"))
        reply = Reply(pending.signature.output_names, arrays, message.queue_ns, message.batch)
        return self._settle(pending, reply)

    def _failed(self, message: m.Failed) -> list[Settled]:
        if message.held:
            pending = self.pending.get(message.request)
        else:
            pending = self.pending.pop(message.request, None)
            if pending is not None:
                self._give_back(pending)
        if pending is None:
            return []
        if pending.signature is not None and message.code in _ABOUT_THE_MODEL:
            pending.signature.doubt()
        return self._settle(pending, errors.from_wire(message.code, message.text, message.retry_after_ns))

    def _give_back(self, pending: Pending) -> None:
        """Free the request's slots: nobody else can touch them."""
        if self.memory is not None:
            for offset in pending.inputs:
                self.memory.free(offset)
            for offset in pending.outputs:
                self.memory.free(offset)
        pending.inputs = []
        pending.outputs = []
        pending.arrays = None


def _as_frames(signature: Signature, arrays: Sequence[Array]) -> tuple[list[Array], list[Tensor], list[Any]]:
    """(copies, their descriptors, their bytes): the caller's own arrays may change before they are sent,
    or sent again."""
    copies = []
    tensors = []
    frames: list[Any] = []
    for want, array in zip(signature.inputs, arrays, strict=True):
        if array.nbytes > m.INLINE_BYTES_MAX:
            raise errors.InvalidRequest(
                f"{array.nbytes} bytes are more than travel over tcp at once ({m.INLINE_BYTES_MAX}): "
                "send fewer rows"
            )
        copy = np.array(array, order="C")
        copies.append(copy)
        frames.append(copy.reshape(-1).view(np.uint8).data)
        tensors.append(Tensor(want.code, list(array.shape), 0, len(frames)))
    return copies, tensors, frames


def _from_frame(tensor: Tensor, frames: Sequence[Any]) -> Array:
    """An array over a received frame, which it keeps alive."""
    entry = dtypes.BY_CODE.get(tensor.dtype)
    if entry is None or not 1 <= tensor.frame <= len(frames):
        raise errors.MalformedMessage("a tensor without a type or a frame")
    frame = frames[tensor.frame - 1]
    if memoryview(frame).nbytes != nbytes_of(tensor.dtype, tensor.shape):
        raise errors.MalformedMessage("a frame of the wrong size")
    array: Array = np.frombuffer(frame, entry.numpy) if memoryview(frame).nbytes else np.empty(0, entry.numpy)
    return array.reshape(tensor.shape)
