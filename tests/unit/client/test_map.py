"""`map`'s window: results in order, whatever becomes of the connection meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from batchyard.client.map import Window
from batchyard.tests.unit.client.yard import MS, Side, info
from batchyard.transport import messages as m
from batchyard.transport.errors import ArenaExhausted, BrokerLost, InvalidRequest, ModelFailed


class Mapped(Side):
    """A window on an engine that has a connection."""

    def __init__(self, inputs: Any, size: int = 4, arena: int = 1 << 20, idempotent: bool = True) -> None:
        super().__init__(arena, info(idempotent=idempotent))
        self.window = Window(self.engine, iter(inputs), size, self._plain)
        self.connect()

    def _plain(self, given: Any) -> Any:
        request = self.request(given)
        request.waiter = None
        return request

    def fill(self) -> list[Any]:
        has_room = self.window.wants_filling
        while has_room:
            has_room = self.window.fill(self.now_ns)
        return self.sent()

    def answer(self, *submits: m.Submit) -> None:
        """Each output is the first number of the input."""
        memory = self.session.memory
        assert memory is not None
        for submit in submits:
            request = self.engine.pending[submit.request]
            self.write(request, np.full((1, 3), self.read(request)[0, 0], np.float32))
            self.complete(request)

    def take(self) -> float:
        return float(self.window.take(self.now_ns).value[0, 0])  # type: ignore[call-overload,index]


@pytest.fixture
def made() -> Iterator[Callable[..., Mapped]]:
    sides: list[Mapped] = []

    def make(*arguments: Any, **options: Any) -> Mapped:
        sides.append(Mapped(*arguments, **options))
        return sides[-1]

    yield make
    for side in sides:
        side.close()


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


def test_places_that_have_come_free_are_filled_together(made: Any) -> None:
    side = made(rows(*range(40)), size=16)
    submits = side.fill()
    side.answer(*submits)
    side.take()
    assert not side.window.wants_filling
    side.take()
    assert len(side.fill()) == 2


def test_what_lost_its_broker_is_asked_again_in_its_own_place(made: Any) -> None:
    inputs = rows(1, 2, 3, 4, 5)
    side = made(inputs, size=4)
    submits = side.fill()
    side.answer(submits[1])
    for array in inputs[:4]:
        array[:] = -1  # the caller's own again
    side.lose()
    side.connect()
    again = side.sent()
    assert len(again) == 3
    assert {message.request for message in again}.isdisjoint(message.request for message in submits)
    side.answer(*reversed(again))
    assert [side.take() for _ in range(4)] == [1, 2, 3, 4]
    side.answer(*side.fill())
    assert side.take() == 5


def test_what_cannot_be_asked_again_ends_the_map(made: Any) -> None:
    side = made(rows(1, 2), size=2, idempotent=False)
    side.fill()
    side.lose()
    with pytest.raises(BrokerLost, match="not idempotent"):
        side.window.take(side.now_ns)


def test_a_map_with_nothing_under_way_goes_on_with_any_model(made: Any) -> None:
    side = made(rows(1, 2), size=1, idempotent=False)
    side.answer(*side.fill())
    side.lose()
    assert side.take() == 1
    side.connect()
    side.answer(*side.fill())
    assert side.take() == 2


def test_the_next_input_is_not_asked_for_while_the_last_one_waits_for_room(made: Any) -> None:
    asked: list[int] = []

    def inputs() -> Iterator[np.ndarray[Any, Any]]:
        for number in range(4):
            asked.append(number)
            yield np.full((15_000, 4), number, np.float32)  # two at once

    side = made(inputs(), size=4)
    submits = side.fill()
    assert (len(submits), asked) == (2, [0, 1, 2])
    side.fill()
    assert asked == [0, 1, 2]
    side.hear(m.Failed(submits[0].request, ModelFailed.code, "no"))
    assert len(side.sent()) == 1
    side.fill()
    assert asked == [0, 1, 2, 3]
    assert len(side.window.under_way) == 4


def test_what_will_never_have_room_is_an_error_in_its_place(made: Any) -> None:
    side = made([*rows(1), np.full((60_000, 4), 2, np.float32), *rows(3)], size=3)
    side.answer(*side.fill())
    assert side.take() == 1
    with pytest.raises(ArenaExhausted):
        side.window.take(side.now_ns)
    assert side.fill() == [], "the first error ends it"


def test_an_error_is_raised_in_its_place_and_the_rest_is_cancelled(made: Any) -> None:
    side = made([*rows(1, 2, 3)], size=3)
    submits = side.fill()
    side.answer(submits[0])
    side.hear(m.Failed(submits[1].request, ModelFailed.code, "no"))
    assert side.take() == 1
    with pytest.raises(ModelFailed):
        side.window.take(side.now_ns)
    (third,) = side.window.under_way
    side.window.leave()
    assert side.sent() == [m.Cancel([submits[2].request])]
    assert not side.window.under_way
    assert third.outcome is not None


def test_an_input_that_cannot_be_is_an_error_in_its_place(made: Any) -> None:
    side = made([*rows(1), np.zeros((1, 5), np.float32), *rows(3)], size=3)
    side.answer(*side.fill())
    assert side.take() == 1
    with pytest.raises(InvalidRequest):
        side.window.take(side.now_ns)


def test_results_that_nobody_took_are_let_go_of(made: Any) -> None:
    side = made(rows(1, 2), size=2)
    side.answer(*side.fill())
    side.window.leave()
    assert side.session.used == 0


def test_the_patience_is_each_requests_own(made: Any) -> None:
    side = made(rows(1, 2), size=1)
    submits = side.fill()
    side.wait(400 * MS)
    side.answer(*submits)
    side.take()
    side.fill()
    side.wait(400 * MS)
    assert side.window.waits
    side.wait(200 * MS)
    assert not side.window.waits


def test_half_a_window_leaves_before_the_rest_is_made(made: Any) -> None:
    """A worker has something to do meanwhile."""
    side = made(rows(*range(20)), size=16)
    assert side.window.fill(side.now_ns)
    assert len(side.sent()) == 8
    assert len(side.fill()) == 8
    assert not side.window.fill(side.now_ns)
