"""Tensors that come as frames: laid, answered, and freed on every path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.broker import inline
from batchyard.broker.config import ModelConfig
from batchyard.broker.inline import InlineTensors
from batchyard.broker.models import Model
from batchyard.transport.errors import InvalidRequest, Overloaded
from batchyard.transport.messages import BatchReceipt, Loaded, Submit
from batchyard.transport.segments import Segment
from batchyard.transport.tensors import Tensor, TensorSpec

RECEIPT = BatchReceipt(1, 0, 0, 0, 0, 1, "cpu", 1)
FLOAT32 = 1
X = np.arange(8, dtype=np.float32).reshape(2, 4)


class Room:
    """InlineTensors, and the segment that it registered."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.tensors = InlineTensors(self._register)
        assert self.tensors.arena == 7

    def _register(self, segment: Segment) -> int:
        self.segments.append(segment)
        return 7

    def bytes_at(self, offset: int, nbytes: int) -> bytes:
        return bytes(self.segments[0].buffer[offset : offset + nbytes])

    def write(self, offset: int, data: bytes) -> None:
        self.segments[0].buffer[offset : offset + len(data)] = data


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setattr(inline, "INLINE_ARENA_BYTES", 1 << 20)
    made = Room()
    yield made
    for segment in made.segments:
        segment.close()


@pytest.fixture
def net() -> Model:
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    spec = TensorSpec("x", FLOAT32, ["n", 4])
    made.loaded(1, 1, Loaded("net", 1, [spec], [spec], True, "", 8, "cpu", "", {}))
    return made


def submit(number: int = 1, shape: list[int] | None = None, frame: int = 1, dtype: int = FLOAT32) -> Submit:
    return Submit(number, "net", 2, 0, [Tensor(dtype, shape or [2, 4], 0, frame)], [])


def test_a_request_becomes_handles_and_its_answer_frames_again(room: Room, net: Model) -> None:
    message = submit()
    room.tensors.lay(5, message, [X.tobytes()], net)
    (tensor,), (slot,) = message.inputs, message.outputs
    assert (tensor.frame, tensor.shape, slot.nbytes) == (0, [2, 4], 32)
    assert room.bytes_at(tensor.offset, 32) == X.tobytes()
    assert net.check(message, room.tensors.nbytes) == (2, 64)
    room.write(slot.offset, (X + 1).tobytes())
    answer, frames = room.tensors.answer(5, 1, 123, RECEIPT)
    assert (answer.request, answer.queue_ns) == (1, 123)
    assert answer.parts == [[Tensor(FLOAT32, [2, 4], 0, 1)]]
    assert frames == [(X + 1).tobytes()]
    assert room.tensors.used_bytes == 0
    assert room.tensors.copied_bytes == 64


def test_the_arena_is_made_once_and_nothing_is_used_before(room: Room) -> None:
    assert room.tensors.arena == room.tensors.arena == 7
    assert len(room.segments) == 1
    assert room.tensors.used_bytes == 0
    assert InlineTensors(room._register).used_bytes == 0  # no arena yet


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (submit(frame=0), [X.tobytes()]),
        (submit(frame=2), [X.tobytes()]),
        (submit(frame=1 << 40), [X.tobytes()]),
        (submit(frame=1), []),
        (submit(), [X.tobytes()[:-1]]),
        (submit(), [X.tobytes() + b"\0"]),
        (submit(), [b""]),
        (submit(shape=[1 << 32, 1 << 32]), [b""]),
        (submit(dtype=8), [X.tobytes()]),
        (submit(dtype=99), [X.tobytes()]),
    ],
)
def test_a_frame_that_is_missing_or_of_another_size_is_refused_and_nothing_stays(
    room: Room, net: Model, message: Submit, frames: list[Any]
) -> None:
    with pytest.raises(InvalidRequest):
        room.tensors.lay(5, message, frames, net)
    assert room.tensors.used_bytes == 0


def test_where_the_second_of_two_tensors_is_wrong_the_first_is_freed(room: Room) -> None:
    pair = Model(ModelConfig("pair", Path("/pair.onnx"), 8))
    spec = TensorSpec("x", FLOAT32, ["n", 4])
    pair.loaded(1, 1, Loaded("pair", 1, [spec, spec], [spec], True, "", 8, "cpu", "", {}))
    message = Submit(1, "pair", 2, 0, [Tensor(FLOAT32, [2, 4], 0, 1), Tensor(FLOAT32, [2, 4], 0, 9)], [])
    with pytest.raises(InvalidRequest):
        room.tensors.lay(5, message, [X.tobytes()], pair)
    assert room.tensors.used_bytes == 0


def test_tensors_of_no_model_or_more_than_it_has_are_not_even_copied(room: Room, net: Model) -> None:
    """4096 frames cost 12 ms, and the core refuses the request anyway."""
    frames = [X.tobytes()] * 2
    message = Submit(1, "net", 2, 0, [Tensor(FLOAT32, [2, 4], 0, number) for number in (1, 2)], [])
    for model in (net, None):
        room.tensors.lay(5, message, frames, model)
    assert room.tensors.copied_bytes == 0
    assert not room.tensors.holds(5)
    with pytest.raises(InvalidRequest, match="has 1 inputs"):
        net.check(message, room.tensors.nbytes)


def test_a_full_arena_asks_to_come_back_and_frees_what_it_had_taken(room: Room, net: Model) -> None:
    big = bytes(600_000)
    room.tensors.lay(5, submit(1, [37_500, 4]), [big], None)
    assert room.tensors.used_bytes == 0
    with pytest.raises(Overloaded) as caught:  # the input fits, its output beside it does not
        room.tensors.lay(5, submit(2, [37_500, 4]), [big], net)
    assert caught.value.retry_after_s > 0
    assert room.tensors.used_bytes == 0


def test_empty_tensors_and_frames_need_no_special_case(room: Room) -> None:
    free = Model(ModelConfig("free", Path("/free.onnx"), 8))
    spec = TensorSpec("x", FLOAT32, ["n", "w"])
    free.loaded(1, 1, Loaded("free", 1, [spec], [spec], True, "", 8, "cpu", "", {}))
    message = submit(shape=[2, 0])
    room.tensors.lay(5, message, [b""], free)
    assert free.check(message, room.tensors.nbytes) == (2, 0)
    room.tensors.release(5, 1)
    assert room.tensors.used_bytes == 0


def test_releasing_frees_once_and_only_that_request(room: Room, net: Model) -> None:
    for conn, number in ((5, 1), (5, 2), (6, 1)):
        room.tensors.lay(conn, submit(number), [X.tobytes()], net)
    used = room.tensors.used_bytes
    for _ in range(3):
        room.tensors.release(5, 1)
    assert room.tensors.used_bytes == used * 2 // 3
    room.tensors.release(6, 1)
    room.tensors.release(5, 2)
    room.tensors.release(9, 9)
    assert room.tensors.used_bytes == 0


def test_the_number_of_a_request_whose_slots_are_still_held_is_not_taken_again(
    room: Room, net: Model
) -> None:
    """Cancelled while it runs, a request has ended but a worker still writes into its slots. A second
    request of that number must neither get them nor give them back."""
    first = submit()
    room.tensors.lay(5, first, [X.tobytes()], net)
    used = room.tensors.used_bytes
    again = submit()
    with pytest.raises(InvalidRequest):
        room.tensors.lay(5, again, [X.tobytes()], net)
    assert room.tensors.used_bytes == used
    room.tensors.release(5, 1)
    room.tensors.lay(5, again, [X.tobytes()], net)
