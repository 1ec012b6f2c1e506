"""A connection's requests, answered by a broker made of plain messages: each is settled once, and its
slots come back once, exactly when no worker can touch them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from batchyard.client.channel import Channel, Pending
from batchyard.client.memory import SlotMemory
from batchyard.client.reply import Reply
from batchyard.client.signature import Signature
from batchyard.transport import messages as m
from batchyard.transport.errors import (
    ArenaExhausted,
    BrokerLost,
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    Overloaded,
)
from batchyard.transport.tensors import Tensor, TensorSpec

RECEIPT = m.BatchReceipt(3, 10, 20, 30, 40, 1, "cpu", 1)
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def signature(
    outputs: list[TensorSpec] | None = None, known: dict[str, Signature] | None = None, **changed: Any
) -> Signature:
    """net: x: float32[n, 4] -> y: float32[n, 3]."""
    fields = {
        "name": "net",
        "state": m.ModelState.READY,
        "reason": "",
        "revision": 1,
        "inputs": [TensorSpec("x", 1, ["n", 4])],
        "outputs": outputs or [TensorSpec("y", 1, ["n", 3])],
        "batchable": True,
        "alone_reason": "",
        "max_batch": 8,
        "workers": [],
    } | changed
    return Signature(m.ModelInfo(**fields), known)


NET = signature()


class Side:
    """The client's side of a connection, and what a broker would answer to it."""

    def __init__(self, memory: SlotMemory | None) -> None:
        self.memory = memory
        self.channel = Channel(memory, count(1))

    def submit(self, inputs: Any = X, net: Signature = NET) -> Pending:
        pending, self.frames = self.channel.submit(net, inputs, 2, 0, 0.0)
        return pending

    def settle(self, message: Any, frames: Any = ()) -> list[tuple[int, Any]]:
        return [(pending.number, outcome) for pending, outcome in self.channel.handle(message, frames)]

    @property
    def used(self) -> int:
        assert self.memory is not None
        return self.memory.used_bytes

    def write(self, pending: Pending, y: np.ndarray[Any, Any]) -> None:
        """As a worker would, into the request's output slot."""
        assert self.memory is not None
        (slot,) = pending.message.outputs
        self.memory.segment.buffer[slot.offset : slot.offset + slot.nbytes] = y.tobytes()


def completed(*numbers: int) -> m.Completed:
    return m.Completed(list(numbers), [5] * len(numbers), RECEIPT)


@pytest.fixture
def side() -> Iterator[Side]:
    memory = SlotMemory(1 << 20)
    yield Side(memory)
    memory.close()


def test_a_request_names_its_slots_and_its_result_is_a_view_of_one(side: Side) -> None:
    pending = side.submit()
    (tensor,), (slot,) = pending.message.inputs, pending.message.outputs
    assert (tensor.dtype, tensor.shape, tensor.frame, slot.nbytes) == (1, [2, 4], 0, 24)
    assert side.memory is not None
    assert bytes(side.memory.segment.buffer[tensor.offset : tensor.offset + 32]) == X.tobytes()
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    side.write(pending, y)
    ((number, reply),) = side.settle(completed(1))
    assert number == pending.number
    assert isinstance(reply, Reply)
    np.testing.assert_array_equal(reply.value, y)
    assert reply.receipt.queue_ns == 5
    assert (reply.receipt.rows, reply.receipt.copied_bytes, reply.receipt.provider) == (3, 40, "cpu")


def test_on_completion_the_input_slot_is_free_and_the_output_slot_with_its_last_view(side: Side) -> None:
    side.submit()
    both = side.used
    ((_, reply),) = side.settle(completed(1))
    assert 0 < side.used < both
    view = reply.value[1:, ::2]
    del reply
    assert side.used > 0
    del view
    assert side.used == 0
    assert side.channel.pending == {}


def test_several_requests_are_completed_by_one_message(side: Side) -> None:
    numbers = [side.submit().number for _ in range(3)]
    assert [number for number, _ in side.settle(completed(*numbers))] == numbers
    assert side.used == 0


def test_a_failure_settles_with_a_typed_error_and_frees_everything(side: Side) -> None:
    side.submit()
    ((_, error),) = side.settle(m.Failed(1, Overloaded.code, "too much under way", 2_000_000))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(0.002)
    assert side.used == 0


def test_a_failure_while_a_worker_holds_the_slots_frees_them_only_when_released(side: Side) -> None:
    side.submit()
    used = side.used
    ((_, error),) = side.settle(m.Failed(1, DeadlineExceeded.code, "late", 0, True))
    assert isinstance(error, DeadlineExceeded)
    assert side.used == used
    assert side.settle(m.Released([1])) == []
    assert side.used == 0
    assert side.settle(m.Released([1])) == []  # nothing is freed twice


def test_an_answer_in_frames_frees_every_slot_and_joins_its_parts(side: Side) -> None:
    pending = side.submit()
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts = [[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [1, 3], 0, 2)]]
    ((_, reply),) = side.settle(
        m.Answer(pending.number, 9, RECEIPT, parts), [y[:1].tobytes(), y[1:].tobytes()]
    )
    np.testing.assert_array_equal(reply.value, y)
    assert side.used == 0


@pytest.mark.parametrize(
    ("parts", "frames"),
    [
        ([[Tensor(1, [2, 3], 0, 1)]], []),
        ([[Tensor(1, [2, 3], 0, 2)]], [bytes(24)]),
        ([[Tensor(1, [2, 3], 0, 0)]], [bytes(24)]),
        ([[Tensor(1, [2, 3], 0, 1)]], [bytes(23)]),
        ([[Tensor(99, [2, 3], 0, 1)]], [bytes(24)]),
        ([[Tensor(1, [1 << 32, 1 << 32], 0, 1)]], [b""]),
        ([[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [1, 4], 0, 2)]], [bytes(12), bytes(16)]),
        ([[Tensor(1, [1, 3], 0, 1)], []], [bytes(12)]),
        ([[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [], 0, 2)]], [bytes(12), bytes(4)]),
        ([], []),
        ([[]], []),
        ([[Tensor(1, [2, 3], 0, 1), Tensor(1, [2, 3], 0, 1)]], [bytes(24)]),
    ],
)
def test_a_damaged_answer_is_an_error_of_that_request_alone(side: Side, parts: Any, frames: Any) -> None:
    side.submit()
    ((_, error),) = side.settle(m.Answer(1, 9, RECEIPT, parts), frames)
    assert isinstance(error, MalformedMessage)
    assert side.used == 0


def test_an_abandoned_request_is_not_settled_again_however_the_broker_ends_it(side: Side) -> None:
    endings: list[list[Any]] = [
        [completed(1)],
        [m.Failed(2, Cancelled.code, "cancelled")],
        [m.Failed(3, Cancelled.code, "cancelled", 0, True), m.Released([3])],
        [m.Answer(4, 9, RECEIPT, [[Tensor(1, [2, 3], 0, 1)]])],
    ]
    for number, messages in enumerate(endings, start=1):
        pending = side.submit()
        assert side.channel.abandon(pending) == m.Cancel([number])
        assert side.used > 0, "a worker may still write into it"
        assert [side.settle(message, [bytes(24)]) for message in messages] == [[]] * len(messages)
        assert side.used == 0
    assert side.channel.pending == {}


def test_abandoning_what_has_ended_says_nothing(side: Side) -> None:
    pending = side.submit()
    side.settle(m.Failed(1, Cancelled.code, "cancelled"))
    assert side.channel.abandon(pending) is None


def test_a_second_outcome_is_ignored(side: Side) -> None:
    side.submit()
    assert len(side.settle(completed(1))) == 1
    for message in (completed(1), m.Failed(1, 8, "no"), m.Answer(1, 0, RECEIPT, []), m.Released([1])):
        assert side.settle(message) == []
    assert side.used == 0


def test_messages_about_requests_that_never_were_are_ignored(side: Side) -> None:
    pending = side.submit()
    for message in (
        completed(99),
        m.Failed(99, 8, "no"),
        m.Failed(99, 8, "no", 0, True),
        m.Released([98, 99]),
        m.Answer(99, 0, RECEIPT, []),
        m.Described(99, []),
        m.Welcome(1, 1),
    ):
        assert side.settle(message) == []
    assert list(side.channel.pending) == [pending.number]


def test_a_request_the_broker_answers_as_if_it_were_another_kind_does_not_end_the_client(side: Side) -> None:
    describing = side.channel.describe("net")
    assert side.settle(completed(describing.number)) == []
    unsized = signature([TensorSpec("y", 1, ["n", "found"])])
    pending = side.submit(net=unsized)
    ((number, error),) = side.settle(completed(pending.number))  # but no slot was reserved
    assert number == pending.number
    assert isinstance(error, MalformedMessage)
    assert side.used == 0


def test_losing_the_connection_settles_everything_once_and_frees_nothing(side: Side) -> None:
    for _ in range(3):
        side.submit()
    side.channel.describe("net")
    abandoned = side.submit()
    side.channel.abandon(abandoned)
    used = side.used
    error = BrokerLost("gone")
    assert [outcome for _, outcome in side.channel.lose(error)] == [error] * 4
    assert side.channel.lose(error) == []
    assert side.used == used, "a worker of the lost broker may still write"


def test_a_refusal_ends_the_whole_connection(side: Side) -> None:
    side.submit()
    ((_, error),) = side.settle(m.Refused(BrokerLost.code, "no"))
    assert isinstance(error, BrokerLost)


def test_a_description_settles_the_question(side: Side) -> None:
    pending = side.channel.describe("net")
    assert pending.message == m.Describe(1, "net")
    assert side.settle(m.Described(1, [])) == [(1, [])]


def test_a_request_that_does_not_fit_leaves_nothing_behind(side: Side) -> None:
    big = np.zeros((60_000, 4), np.float32)  # 960 kB in, and 720 kB out do not fit beside it
    with pytest.raises(ArenaExhausted):
        side.submit(big)
    assert side.used == 0
    assert side.channel.pending == {}


def test_a_request_with_a_wrong_array_leaves_nothing_behind(side: Side) -> None:
    with pytest.raises(InvalidRequest):
        side.submit(np.zeros((2, 5), np.float32))
    assert side.used == 0
    assert side.channel.pending == {}


@pytest.mark.parametrize(
    ("code", "asks_anew"),
    [(Code.UNKNOWN_MODEL, True), (Code.INVALID_REQUEST, True), (Code.MODEL_FAILED, False), (Code.CANCELLED, False)],
)
def test_after_a_refusal_about_the_model_its_signature_is_asked_for_anew(
    side: Side, code: Code, asks_anew: bool
) -> None:
    known: dict[str, Signature] = {}
    known["net"] = net = signature(known=known)
    side.submit(net=net)
    side.settle(m.Failed(1, code, "no"))
    assert bool(known) != asks_anew


def test_an_array_that_does_not_fit_may_be_for_another_model_of_that_name(side: Side) -> None:
    known: dict[str, Signature] = {}
    known["net"] = net = signature(known=known)
    for _ in range(2):  # whoever still holds it may use it again
        with pytest.raises(InvalidRequest):
            side.submit(np.zeros((2, 5), np.float32), net)
        assert known == {}
    known["net"] = newer = signature(known=known)
    with pytest.raises(InvalidRequest):
        side.submit(np.zeros((2, 5), np.float32), net)
    assert known == {"net": newer}


def test_an_array_that_lies_in_the_arena_is_not_copied_and_lives_until_the_end(side: Side) -> None:
    assert side.memory is not None
    mine = side.memory.array(side.memory.alloc(64), np.dtype(np.float32), (4, 4))
    mine[:] = 7
    pending = side.submit(mine[1:3])
    assert side.memory.bytes_copied == 0
    assert pending.message.inputs[0].offset == side.memory.offset_of(mine) + 16
    del mine
    used = side.used
    side.settle(m.Failed(pending.number, 8, "no"))
    del pending
    assert side.used < used
    assert side.used == 0


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1, :4], np.s_[:, 1:5]])
def test_a_part_that_is_not_contiguous_is_copied(side: Side, view: Any) -> None:
    assert side.memory is not None
    mine = side.memory.array(side.memory.alloc(64), np.dtype(np.float32), (2, 8))
    mine[:] = np.arange(16).reshape(2, 8)
    pending = side.submit(mine[view])
    assert side.memory.bytes_copied == 32
    offset = pending.message.inputs[0].offset
    assert (
        bytes(side.memory.segment.buffer[offset : offset + 32]) == np.ascontiguousarray(mine[view]).tobytes()
    )


# ---- without an arena ---------------------------------------------------------------------------


def test_without_an_arena_tensors_travel_as_frames_both_ways() -> None:
    side = Side(None)
    pending = side.submit(np.asfortranarray(X))
    assert pending.message.inputs == [Tensor(1, [2, 4], 0, 1)]
    assert pending.message.outputs == []
    assert [bytes(frame) for frame in side.frames] == [X.tobytes()]
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    ((_, reply),) = side.settle(m.Answer(1, 9, RECEIPT, [[Tensor(1, [2, 3], 0, 1)]]), [y.tobytes()])
    np.testing.assert_array_equal(reply.value, y)


def test_without_an_arena_empty_and_scalar_tensors_travel_too() -> None:
    side = Side(None)
    net = signature(
        inputs=[TensorSpec("a", 1, []), TensorSpec("b", 1, [0])],
        outputs=[TensorSpec("y", 1, []), TensorSpec("z", 7, [0])],
        batchable=False,
    )
    side.submit({"a": np.float32(3)[()], "b": np.zeros(0, np.float32)}, net)
    assert [bytes(frame) for frame in side.frames] == [np.float32(3).tobytes(), b""]
    parts = [[Tensor(1, [], 0, 1), Tensor(7, [0], 0, 2)]]
    ((_, reply),) = side.settle(m.Answer(1, 9, RECEIPT, parts), [np.float32(5).tobytes(), b""])
    assert reply.outputs["y"] == 5
    assert reply.outputs["z"].shape == (0,)
