"""One request: what was asked, where its tensors lie, and what it has come to.

Pure. engine.py moves requests along; here is how one is laid out for a broker, and what its answer becomes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..transport import dtypes, errors
from ..transport import messages as m
from ..transport.tensors import ABSENT, Slot, Tensor
from .encoding import decode, encode
from .memory import SlotMemory, Want
from .reply import Reply
from .signature import Array, Kind, Signature

if TYPE_CHECKING:
    from .packing import Packed
    from .spans import RequestSpan

_BYTE = np.dtype("u1")
FORESEEN_SHARE = 64  # of an arena: for larger outputs whose sizes are only foreseen, no slots are kept
Outcome = Reply | list[m.ModelInfo] | Exception
TAKEN = Exception("the outcome has been taken")
Fresh = list[tuple[Tensor, Array]]  # what has to be copied into a slot


class Stream:
    """A request's answers, where it may have several. `bell` is the driver's: there is another."""

    def __init__(self, bell: Callable[[], object]) -> None:
        self.answers: deque[Reply] = deque()  # that nobody has taken yet
        self.count = 0  # in all
        self.bell = bell


class Request:
    """A request, or (`is_question`) a question about models. `waiter` and `span` are the driver's.

    outcome: what it has come to; None while it is under way. Whoever it is for takes it out (`take`), because
        an engine may hold the request for longer, and must not hold results.
    message: None until it has been placed.
    """

    __slots__ = (
        "arrays", "began_ns", "due_ns", "expect", "frames", "given", "inputs", "is_patient", "is_question",
        "is_sent", "kind", "layout", "lost", "lost_ns", "message", "model", "outcome", "outputs", "packed",
        "priority", "rows", "sent_ns", "signature", "span", "stream", "traceparent", "until_ns", "waiter",
        "want",
    )  # fmt: skip

    def __init__(
        self, model: str, given: Any, priority: int, until_ns: int, due_ns: int, now_ns: int
    ) -> None:
        self.model = model
        self.given = given  # by the caller, until it lies where a worker finds it
        self.priority = priority
        self.until_ns = until_ns  # the deadline that the broker is told
        self.due_ns = due_ns  # when the caller's patience ends
        self.began_ns = self.sent_ns = now_ns
        self.outcome: Outcome | None = None
        self.message: Any = None
        self.is_question = False
        self.stream: Stream | None = None  # of answers, where the caller takes several
        self.is_sent = False
        self.is_patient = True  # it waits for room
        self.expect: Callable[[Signature], Signature] | None = None  # outputs' sizes that the caller foresees
        self.signature: Signature | None = None
        self.kind: Kind | None = None  # once it has been placed in an arena
        self.rows = 0
        self.inputs: Sequence[int] = ()  # slots that we made for it
        self.outputs: Sequence[int] = ()
        # Kept while somebody may read them: the caller's, in which a worker reads; or what we sent.
        self.arrays: Sequence[Array | None] | None = None
        self.frames: Sequence[Any] = ()
        self.layout: tuple[list[Tensor], Fresh, list[int], int] | None = None  # while it waits for room
        self.want: Want | None = None
        self.packed: Packed | None = None  # several of one row, of which each is one of the caller's
        self.lost = ""  # how it lost its broker
        self.lost_ns = 0
        self.waiter: Any = None
        self.span: RequestSpan | None = None
        self.traceparent: str | None = None  # the caller's, for a gateway

    def take(self) -> Outcome | None:
        """Take the outcome: from now on it is the caller's."""
        outcome = self.outcome
        if outcome is not None:
            self.outcome = TAKEN
        return outcome

    def drop_arrays(self) -> None:
        """It won't be placed: let go of the caller's arrays."""
        self.given = self.layout = self.arrays = None

    def keep(self) -> None:
        """The caller will not wait until it is placed, and may change the inputs: copy them."""
        self.given = deepcopy(self.given)

    def check_answers(self, signature: Signature) -> None:
        """Raises InvalidRequest for a model with several answers, of a call that takes one."""
        if signature.streams and self.stream is None:
            raise errors.InvalidRequest(
                f"{self.model!r} answers several times: ask it with client.stream(), which gives one answer "
                "after the other"
            )

    # ---- on the way to the broker ---------------------------------------------------------------

    def place(self, signature: Signature, memory: SlotMemory | None, number: int, now_ns: int) -> bool:
        """Check what was given, and lay it out as message `number`. False: there is no room now, and `layout`
        says what it takes. Raises InvalidRequest; ArenaExhausted for more than the arena has."""
        self.signature = signature
        self.check_answers(signature)
        try:
            arrays, kind = signature.sorted_out(self.given)
        except errors.InvalidRequest:
            signature.doubt()
            raise
        self.rows = kind.rows
        if memory is None:
            self.arrays, tensors, self.frames = _as_frames(signature, arrays)
            self.layout = tensors, [], [], 0
            self.fill(None, [], number, now_ns)
            return True
        self.kind = kind
        self.signature = kind.signature or signature.foresee(kind, memory.segment.nbytes // FORESEEN_SHARE)
        tensors = []
        sizes = []
        fresh: Fresh = []
        for want, array, shape in zip(signature.inputs, arrays, kind.shapes, strict=True):
            if array is None or shape is None:
                tensors.append(Tensor(ABSENT, [], 0))
                continue
            tensor = Tensor(want.code, shape, 0)
            tensors.append(tensor)
            if want.is_plain:
                offset = memory.offset_of(array) if array.base is not None else None
            else:
                offset = None
                array = encode(want.code, array)
                tensor.strings_nbytes = array.nbytes if want.is_text else 0
            if offset is None:
                sizes.append(array.nbytes)
                fresh.append((tensor, array))
            else:
                tensor.offset = offset
                self.arrays = arrays
        copied = len(sizes)
        sizes += kind.output_nbytes
        self.layout = tensors, fresh, sizes, copied
        offsets = memory.take(sizes)
        if offsets is None:
            return False
        self.fill(memory, offsets, number, now_ns)
        return True

    def fill(self, memory: SlotMemory | None, offsets: list[int], number: int, now_ns: int) -> None:
        """There is room, at these offsets: copy what lies elsewhere."""
        assert self.layout is not None
        tensors, fresh, sizes, copied = self.layout
        slots = []
        if memory is not None:
            self.inputs = offsets[:copied]
            self.outputs = offsets[copied:]
            try:
                for (tensor, array), offset in zip(fresh, offsets, strict=False):
                    tensor.offset = offset
                    memory.write(offset, array)
            except BaseException:
                self.give_back(memory)
                raise
            expected = self.kind.expected if self.kind is not None else None
            for index, (offset, nbytes) in enumerate(zip(self.outputs, sizes[copied:], strict=True)):
                slots.append(Slot(offset, nbytes, None if expected is None else expected[index]))
        left_ns = self.until_ns - now_ns
        if left_ns < 1:
            left_ns = 1
        self.message = m.Submit(number, self.model, self.priority, left_ns, tensors, slots)
        if self.packed is not None:
            self.message.packed = True
        self.sent_ns = now_ns
        self.given = self.layout = None

    def give_back(self, memory: SlotMemory | None) -> None:
        """Free its slots in `memory`: nobody else can touch them. Let go of its arrays."""
        offsets = (*self.inputs, *self.outputs)
        self.inputs = self.outputs = ()  # first: a signal's exception in between must not free them twice
        if memory is not None:
            memory.free(*offsets)
        self.arrays = None
        self.frames = ()

    def pick_up(self, memory: SlotMemory | None, how: str, now_ns: int) -> None:
        """Its connection is lost, and it is to be asked once more: what was given is read where it lies. The
        slots stay: a worker of the lost broker may still write."""
        if self.message is not None and not self.is_question:
            self.given = asked(self, memory)
        self.message = self.arrays = self.layout = self.want = None
        self.inputs = self.outputs = self.frames = ()
        self.is_sent = False
        if not self.lost:
            self.lost = how  # not the error, whose traceback keeps the lost session
            self.lost_ns = now_ns

    # ---- answers ----------------------------------------------------------------------------------

    def answer(self, message: m.Answer, frames: Sequence[Any]) -> Outcome:
        """Its outputs came as frames, in parts of consecutive rows."""
        signature = self.signature
        assert signature is not None
        if signature.streams:  # its answers came before: this is the end
            return Reply([], [], message.queue_ns, message.batch)
        try:
            parts = [[_from_frame(tensor, frames) for tensor in part] for part in message.parts]
            if not parts or len(parts[0]) != len(signature.output_names):
                raise errors.MalformedMessage("not one tensor for every output")
            arrays = (
                parts[0]
                if len(parts) == 1
                else [
                    np.concatenate(column, axis)
                    for column, axis in zip(
                        zip(*parts, strict=True), message.axes or signature.output_axes, strict=True
                    )
                ]
            )
        except (errors.BatchyardError, ValueError) as error:
            return errors.MalformedMessage(f"the broker's answer is damaged: {error}")
        if self.message is not None:
            signature.learn(self.message.inputs, arrays, self.rows, signature.expected is not None)
        return Reply(signature.output_names, arrays, message.queue_ns, message.batch)


    def yielded(self, message: m.Streamed, frames: Sequence[Any], batch: m.BatchReceipt) -> Reply | Exception:
        """One of a stream's answers came as frames."""
        assert self.signature is not None
        try:
            arrays = [_from_frame(tensor, frames) for tensor in message.outputs]
            if len(arrays) != len(self.signature.output_names):
                raise errors.MalformedMessage("not one tensor for every output")
        except (errors.BatchyardError, ValueError) as error:
            return errors.MalformedMessage(f"the broker's answer is damaged: {error}")
        return Reply(self.signature.output_names, arrays, 0, batch)


def asked(request: Request, memory: SlotMemory | None) -> dict[str, Array]:
    """The inputs of a placed request, by name, as they were when it was placed.

    What was copied into `memory` is read there, since the caller may have changed his array. Workers only
    read it, and nobody frees it. What was not copied is the caller's own array, which keeps its slot.
    """
    assert request.signature is not None
    tensors = request.message.inputs
    arrays: Sequence[Array | None] = request.arrays or [None] * len(tensors)
    copied = set(request.inputs)
    found = {}
    for want, tensor, array in zip(request.signature.inputs, tensors, arrays, strict=True):
        if tensor.dtype == ABSENT:
            continue
        if memory is not None and not want.is_plain:
            array = decode(tensor.dtype, memory.view(tensor.offset, _BYTE, (tensor.nbytes,)), tensor.shape)
        elif memory is not None and (array is None or tensor.offset in copied):
            array = memory.view(tensor.offset, dtypes.BY_CODE[tensor.dtype].numpy, tuple(tensor.shape))
        assert array is not None
        found[want.spec.name] = array
    return found


def _as_frames(
    signature: Signature, arrays: Sequence[Array | None]
) -> tuple[list[Array | None], list[Tensor], list[Any]]:
    """(copies, their descriptors, their bytes): the caller's own arrays may change before they are sent,
    or sent again."""
    copies: list[Array | None] = []
    tensors = []
    frames: list[Any] = []
    for want, array in zip(signature.inputs, arrays, strict=True):
        if array is None:
            copies.append(None)
            tensors.append(Tensor(ABSENT, [], 0))
            continue
        if array.nbytes > m.INLINE_BYTES_MAX:
            raise errors.InvalidRequest(
                f"{array.nbytes} bytes are more than one request can carry over tcp ({m.INLINE_BYTES_MAX}): "
                "send fewer rows"
            )
        copy = np.array(array, order="C")
        copies.append(copy)
        packed = copy.reshape(-1).view(np.uint8) if want.is_plain else encode(want.code, copy)
        frames.append(packed.data)
        nbytes = packed.nbytes if want.is_text else 0
        tensors.append(Tensor(want.code, list(array.shape), 0, len(frames), nbytes))
    return copies, tensors, frames


def _from_frame(tensor: Tensor, frames: Sequence[Any]) -> Array:
    """An array over a received frame, which it keeps alive."""
    entry = dtypes.BY_CODE.get(tensor.dtype)
    if entry is None or not 1 <= tensor.frame <= len(frames):
        raise errors.MalformedMessage("a tensor without a type or a frame")
    frame = memoryview(frames[tensor.frame - 1]).cast("B")
    nbytes = tensor.nbytes
    if nbytes > frame.nbytes - tensor.offset:
        raise errors.MalformedMessage("a frame of the wrong size")
    if not entry.itemsize:
        return decode(tensor.dtype, frame[tensor.offset : tensor.offset + nbytes], tensor.shape)
    if not nbytes:
        return np.empty(tensor.shape, entry.numpy)
    array: Array = np.frombuffer(frame, entry.numpy, nbytes // entry.itemsize, tensor.offset)
    if frame.readonly:  # a small one: its array is the caller's to change, as every other
        array = array.copy()
    return array.reshape(tensor.shape)
