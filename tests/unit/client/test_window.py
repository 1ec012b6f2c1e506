"""`map`'s window: results in order, whatever becomes of the connection meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from batchyard.client.channel import Channel, Pending
from batchyard.client.memory import SlotMemory
from batchyard.client.resubmit import Lost, MessageRefused
from batchyard.client.signature import Signature
from batchyard.client.window import Window
from batchyard.transport import messages as m
from batchyard.transport.errors import ArenaExhausted, BrokerLost, DeadlineExceeded, ModelFailed
from batchyard.transport.tensors import TensorSpec

RECEIPT = m.BatchReceipt(1, 10, 20, 30, 40, 1, "cpu", 1)
GONE = BrokerLost("the broker went away")
PATIENCE_S = 5.0


def signature(idempotent: bool = True) -> Signature:
    """net: x: float32[n, 4] -> y: float32[n, 3]."""
    x, y = TensorSpec("x", 1, ["n", 4]), TensorSpec("y", 1, ["n", 3])
    state = m.ModelState.READY
    return Signature(m.ModelInfo("net", state, "", 1, [x], [y], True, "", 8, [], idempotent))


class Side:
    """A window, and a broker for each connection in turn."""

    def __init__(self, inputs: Any, size: int = 4, arena: int = 1 << 20, idempotent: bool = True) -> None:
        self.numbers = count(1)
        self.arena = arena
        self.signature = signature(idempotent)
        self.memories: list[SlotMemory] = []
        self.window = Window(iter(inputs), size, 2, 10**9, PATIENCE_S)
        self.connect()

    def connect(self) -> None:
        self.memories.append(SlotMemory(self.arena))
        self.channel = Channel(self.memories[-1], self.numbers)
        self.window.begin(self.channel, self.signature)

    def fill(self, now_s: float = 100.0) -> list[Any]:
        return [message for messages, _ in self.window.fill(now_s) for message in messages]

    def answer(self, *submits: m.Submit) -> None:
        """Each output is the first number of the input."""
        for submit in submits:
            memory = self.memories[-1]
            value = memory.view(submit.inputs[0].offset, np.dtype(np.float32), (1,))[0]
            slot = submit.outputs[0]
            np.frombuffer(memory.segment.buffer, np.float32, slot.nbytes // 4, slot.offset)[:] = value
            completed = m.Completed([submit.request], [1], RECEIPT)
            for pending, outcome in self.channel.handle(completed, []):
                pending.waiter = outcome

    def take(self) -> float:
        return float(self.window.take().value[0, 0])  # type: ignore[call-overload,index]


@pytest.fixture
def made() -> Iterator[Any]:
    sides: list[Side] = []

    def make(*arguments: Any, **options: Any) -> Side:
        sides.append(Side(*arguments, **options))
        return sides[-1]

    yield make
    for side in sides:
        for memory in side.memories:
            memory.close()


def rows(*values: float) -> list[np.ndarray[Any, Any]]:
    return [np.full((1, 4), value, np.float32) for value in values]


def test_results_come_in_order_however_they_are_answered(made: Any) -> None:
    side = made(rows(1, 2, 3, 4, 5), size=4)
    submits = side.fill()
    assert len(submits) == 4
    side.answer(*submits[1:])
    assert side.window.waits
    side.answer(submits[0])
    assert [side.take() for _ in range(4)] == [1, 2, 3, 4]
    side.answer(*side.fill())
    assert side.take() == 5
    assert side.fill() == []
    assert not side.window.under_way


def test_what_lost_its_broker_is_asked_again_in_its_own_place(made: Any) -> None:
    inputs = rows(1, 2, 3, 4, 5)
    side = made(inputs, size=4)
    submits = side.fill()
    side.answer(submits[1])
    for array in inputs[:4]:
        array[:] = -1  # the caller's own again
    assert side.window.lose(GONE, 101.0) == 100.0 + PATIENCE_S  # when the first of them gives up
    side.connect()
    again = side.fill(102.0)
    assert len(again) == 3
    assert {message.request for message in again}.isdisjoint(message.request for message in submits)
    assert all(message.deadline_ns == 3_000_000_000 for message in again)  # what is left
    side.answer(*reversed(again))
    assert [side.take() for _ in range(4)] == [1, 2, 3, 4]
    side.answer(*side.fill())
    assert side.take() == 5


def test_a_window_may_lose_one_broker_after_another_even_before_it_has_asked(made: Any) -> None:
    side = made(rows(1, 2), size=2)
    side.fill()
    for _ in range(3):
        side.window.lose(GONE, 101.0)
        side.connect()
    side.answer(*side.fill())
    assert [side.take(), side.take()] == [1, 2]


@pytest.mark.parametrize(("idempotent", "error"), [(False, GONE), (True, MessageRefused("nonsense"))])
def test_what_cannot_be_asked_again_ends_the_map(made: Any, idempotent: bool, error: BrokerLost) -> None:
    side = made(rows(1, 2), size=2, idempotent=idempotent)
    side.fill()
    with pytest.raises(BrokerLost, match="nonsense" if idempotent else "not idempotent"):
        side.window.lose(error, 101.0)


def test_a_map_with_nothing_under_way_goes_on_with_any_model(made: Any) -> None:
    side = made(rows(1, 2), size=1, idempotent=False)
    side.answer(*side.fill())
    side.window.lose(GONE, 101.0)
    assert side.take() == 1
    side.connect()
    side.answer(*side.fill())
    assert side.take() == 2


def test_what_has_no_room_in_the_next_memory_waits_for_what_has(made: Any) -> None:
    big = [np.full((15_000, 4), value, np.float32) for value in (1, 2, 3)]
    side = made(big, size=3, arena=2 << 20)
    assert len(side.fill()) == 3
    side.window.lose(GONE, 101.0)
    side.arena = 1 << 20  # for two of the three
    side.connect()
    first = side.fill()
    assert len(first) == 2
    assert side.window.lost == 1
    side.answer(*first)
    assert [side.take(), side.take()] == [1, 2]
    side.answer(*side.fill())
    assert side.take() == 3


def test_what_will_never_have_room_is_an_error_in_its_place(made: Any) -> None:
    side = made(rows(1) + [np.full((15_000, 4), 2, np.float32)], size=2)
    submits = side.fill()
    side.answer(submits[0])
    side.window.lose(GONE, 101.0)
    side.arena = 1 << 16
    side.connect()
    assert side.fill() == []
    assert side.take() == 1
    with pytest.raises(ArenaExhausted):
        side.window.take()


def test_an_error_is_raised_in_its_place_and_the_rest_is_cancelled(made: Any) -> None:
    side = made(rows(1, 2, 3), size=3)
    submits = side.fill()
    side.answer(submits[0])
    for pending, outcome in side.channel.handle(m.Failed(submits[1].request, ModelFailed.code, "no"), []):
        pending.waiter = outcome
    assert side.take() == 1
    with pytest.raises(ModelFailed):
        side.window.take()
    assert side.window.cancel() == [m.Cancel([submits[2].request])]


def test_the_patience_is_each_requests_own(made: Any) -> None:
    side = made(rows(1, 2), size=1)
    submits = side.fill(100.0)
    side.window.expire(104.9)
    side.answer(*submits)
    side.window.expire(200.0)
    side.take()
    side.fill(200.0)
    side.window.expire(204.9)
    with pytest.raises(DeadlineExceeded):
        side.window.expire(205.0)
    assert type(side.window.under_way[0][0]) is Pending
    side.window.lose(GONE, 205.0)
    assert type(side.window.under_way[0][0]) is Lost
    assert side.window.cancel() == []
