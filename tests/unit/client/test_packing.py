"""Small requests of a map that go as rows of one: what goes together, in which order results come, and what becomes
of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from batchyard.client.map import SEND_SHARE
from batchyard.client.packing import ANSWER_BYTES_MAX, BYTES_MAX, RUN_NS_MAX, packer_of
from batchyard.client.reply import Reply
from batchyard.tests.unit.client.test_map import Mapped, rows
from batchyard.tests.unit.client.yard import MS, RECEIPT, info
from batchyard.transport import messages as m
from batchyard.transport.errors import Code, DeadlineExceeded, InvalidRequest, ModelFailed, Overloaded
from batchyard.transport.tensors import TensorSpec

QUICK = m.WorkerInfo(3, 99, "cpu", "", {1: 1_000, 4: 2_000, 8: 3_000})
PACKABLE = {"workers": [QUICK], "packs": True}


class Packing(Mapped):
    """A map whose small requests are packed."""

    def __init__(self, inputs: Any, size: int = 8, model: m.ModelInfo | None = None) -> None:
        super().__init__(inputs, size)
        self.knows = model or info(**PACKABLE)
        self.connect()
        self.window.packer = packer_of(self.knows, size // SEND_SHARE)

    def answer(self, *submits: m.Submit) -> None:
        """Each row of the output is the first number of the input's."""
        for submit in submits:
            request = self.engine.pending[submit.request]
            x = self.read(request)
            self.write(request, np.repeat(x[:, :1], 3, axis=1))
            self.complete(request)

    def fail(self, submit: m.Submit, code: Code) -> None:
        self.hear(m.Failed(submit.request, code, "it cannot be"))

    def all(self) -> list[float]:
        """Every result, answered as it is asked for."""
        found = []
        while not self.window.is_over or self.window.wants_filling:
            self.answer(*self.fill())
            while not self.window.waits and not self.window.is_over:
                reply = self.window.take(self.now_ns)
                if reply is not None:
                    found.append(float(reply.value[0, 0]))  # type: ignore[call-overload,index]
                else:
                    break
            if self.window.refill_at < 0 and self.window.is_over:
                break
        return found


@pytest.fixture
def sides() -> Iterator[list[Packing]]:
    made: list[Packing] = []
    yield made
    for side in made:
        side.close()


def sizes(submits: list[m.Submit]) -> list[tuple[int, bool]]:
    return [(submit.inputs[0].shape[0], submit.packed) for submit in submits]


def test_small_ones_go_as_rows_of_one_and_come_back_each_by_itself(sides: list[Packing]) -> None:
    shown = np.zeros((1, 4), np.float32)

    def inputs() -> Iterator[Any]:
        for number in range(10):
            shown[:] = number
            yield shown
            shown[:] = -1  # the caller's own again

    sides.append(side := Packing(inputs()))
    first = side.fill()
    assert sizes(first) == [(4, True), (4, True)]
    side.answer(*first)
    replies = [side.window.take(side.now_ns) for _ in range(8)]
    assert [reply.value.shape for reply in replies] == [(1, 3)] * 8  # type: ignore[union-attr]
    assert [reply.value[0, 0] for reply in replies] == list(range(8))  # type: ignore[index,union-attr]
    replies[0].value[:] = 77  # type: ignore[index,union-attr]
    assert replies[1].value[0, 0] == 1  # type: ignore[index,union-attr]
    assert sizes(side.fill()) == [(2, True)]


def test_what_is_larger_or_has_other_shapes_goes_by_itself_and_in_order(sides: list[Packing]) -> None:
    two = np.full((2, 4), 5, np.float32)
    sides.append(side := Packing([*rows(1, 2), two, *rows(3), two, *rows(6, 7)], size=16))
    asked = side.fill()
    assert sizes(asked) == [(2, True), (2, False), (1, False), (2, False), (2, True)]
    side.answer(*asked)
    assert [side.take() for _ in range(7)] == [1, 2, 5, 3, 5, 6, 7]


def test_a_shared_input_is_one_for_all_that_go_together(sides: list[Packing]) -> None:
    model = info(
        inputs=[TensorSpec("x", 1, ["n", 4]), TensorSpec("rate", 1, [1])], batch_axes=[0, -1, 0], **PACKABLE
    )
    given = [{"x": x, "rate": np.full(1, rate, np.float32)} for x, rate in zip(rows(1, 2, 3, 4), (8, 8, 9, 9), strict=True)]
    sides.append(side := Packing(given, 8, model))
    assert sizes(side.fill()) == [(2, True), (2, True)]


def test_rows_may_lie_on_any_axis(sides: list[Packing]) -> None:
    model = info(
        inputs=[TensorSpec("x", 1, [2, "n", 4])], outputs=[TensorSpec("y", 1, [3, "n"])], batch_axes=[1, 1], **PACKABLE
    )
    sides.append(side := Packing([np.full((2, 1, 4), number, np.float32) for number in range(4)], 8, model))
    (submit,) = side.fill()
    assert (submit.inputs[0].shape, submit.packed) == ([2, 4, 4], True)
    request = side.engine.pending[submit.request]
    x = side.read(request)
    assert (x[:, :, 0] == [0, 1, 2, 3]).all()
    side.write(request, np.repeat(x[:1, :, 0], 3, axis=0))
    side.complete(request)
    for number in range(4):
        reply = side.window.take(side.now_ns)
        assert isinstance(reply, Reply)
        assert isinstance(reply.value, np.ndarray)
        assert reply.value.flags.c_contiguous
        assert (reply.value == np.full((3, 1), number)).all()


@pytest.mark.parametrize("code", [Code.MODEL_FAILED, Code.INVALID_REQUEST, Code.WORKER_LOST])
def test_what_one_of_them_may_have_caused_is_asked_of_each(sides: list[Packing], code: Code) -> None:
    sides.append(side := Packing(rows(*range(12)), 16))
    one, *others = side.fill()
    side.fail(one, code)
    side.answer(*others)
    assert side.window.take(side.now_ns) is None
    again = side.sent()
    if code == Code.INVALID_REQUEST:  # another model may have been loaded: it is asked for anew
        side.hear(m.Described(again[0].request, [side.knows]))
        again = side.sent()
    assert sizes(again) == [(1, False)] * 8
    assert not side.window.packer
    side.answer(*again)
    assert [side.take() for _ in range(8)] == list(range(8))
    assert sizes(side.fill()) == []
    assert [side.take() for _ in range(4)] == [8, 9, 10, 11]


def test_who_is_sent_apart_has_the_time_that_is_left(sides: list[Packing]) -> None:
    sides.append(side := Packing(rows(*range(4)), 8))
    (submit,) = side.fill()
    side.now_ns += 100 * MS
    side.fail(submit, Code.MODEL_FAILED)
    assert side.window.take(side.now_ns) is None
    assert {again.deadline_ns for again in side.sent()} == {submit.deadline_ns - 100 * MS}
    side.wait(450 * MS)
    with pytest.raises(DeadlineExceeded):
        side.take()


def test_the_one_that_fails_fails_in_its_place(sides: list[Packing]) -> None:
    sides.append(side := Packing(rows(*range(4)), 8))
    side.fail(side.fill()[0], Code.MODEL_FAILED)
    assert side.window.take(side.now_ns) is None
    again = side.sent()
    side.answer(*again[:2], again[3])
    side.fail(again[2], Code.MODEL_FAILED)
    assert [side.take() for _ in range(2)] == [0, 1]
    with pytest.raises(ModelFailed):
        side.take()


def test_what_would_befall_each_of_them_is_their_error(sides: list[Packing]) -> None:
    sides.append(side := Packing(rows(*range(4)), 8))
    side.fail(side.fill()[0], Code.OVERLOADED)
    with pytest.raises(Overloaded):
        side.take()


def test_an_answer_with_other_rows_is_none_of_theirs(sides: list[Packing]) -> None:
    sides.append(side := Packing(rows(*range(4)), 8, info([TensorSpec("y", 1, ["m"])], **PACKABLE)))
    (submit,) = side.fill()
    answer = m.Answer(submit.request, 5, RECEIPT, [[m.Tensor(1, [3], 0, 1)]])
    side.hear(answer, frames=[bytes(12)])
    assert side.window.take(side.now_ns) is None
    assert sizes(side.sent()) == [(1, False)] * 4


def test_an_input_that_cannot_be_is_an_error_in_its_place(sides: list[Packing]) -> None:
    sides.append(side := Packing([*rows(1, 2), np.zeros((1, 5), np.float32), *rows(3)], 8))
    side.answer(*side.fill())
    assert [side.take() for _ in range(2)] == [1, 2]
    with pytest.raises(InvalidRequest):
        side.take()


def test_what_has_to_be_converted_goes_by_itself_and_is_converted_once(sides: list[Packing]) -> None:
    class Exporter:
        asked = 0

        def __array__(self, *_: Any, **__: Any) -> Any:
            Exporter.asked += 1
            return np.full((1, 4), 2, np.float32)

    sides.append(side := Packing([*rows(0, 1), Exporter(), [[3.0] * 4], *rows(4, 5)], 12))
    asked = side.fill()
    assert sizes(asked) == [(2, True), (1, False), (1, False), (2, True)]
    assert Exporter.asked == 1
    side.answer(*asked)
    assert [side.take() for _ in range(6)] == list(range(6))


def test_all_results_come_in_order_however_they_went(sides: list[Packing]) -> None:
    values = list(range(1, 60))
    sides.append(side := Packing(rows(*values), 8))
    assert side.all() == values


def test_packed_requests_leave_in_columns_of_their_own(sides: list[Packing]) -> None:
    """Plain ones of as many rows are not packed by going along with them."""
    sides.append(side := Packing([*rows(*range(8)), np.full((4, 4), 9, np.float32)], 18, info(max_batch=4, **PACKABLE)))
    has_room = True
    while has_room:
        has_room = side.window.fill(side.now_ns)
    (envelope,) = side.engine.take_envelopes()
    messages = envelope[0]
    assert [(message.packed, message.more is not None) for message in messages] == [(True, True), (False, False)]
    assert [each.packed for each in messages[0].apart()] == [True, True]


@pytest.mark.parametrize(
    ("changed", "most"),
    [
        ({}, 8),
        ({"max_batch": 3}, 3),
        ({"packs": False}, 1),
        ({"workers": []}, 8),
        ({"workers": [QUICK, m.WorkerInfo(4, 98, "cpu", "", {1: 1_000, 4: RUN_NS_MAX, 8: RUN_NS_MAX + 1})]}, 4),
        ({"workers": [m.WorkerInfo(4, 98, "cpu", "", {})]}, 1),
        ({"inputs": [TensorSpec("x", 8, ["n", 4])]}, 1),
        ({"outputs": [TensorSpec("y", 8, ["n", 3])]}, 1),
    ],
    ids=str,
)
def test_which_models_requests_are_packed(changed: dict[str, Any], most: int) -> None:
    packer = packer_of(info(**(PACKABLE | changed)), 32)
    assert (packer._rows_max if packer is not None else 1) == most


def test_only_what_has_the_same_shapes_goes_together(sides: list[Packing]) -> None:
    model = info(inputs=[TensorSpec("x", 1, ["n", "w"])], **PACKABLE)
    given = [np.full((1, width), width, np.float32) for width in (4, 4, 1, 5, 5)]
    sides.append(side := Packing(given, 12, model))
    asked = side.fill()
    assert [submit.inputs[0].shape for submit in asked] == [[2, 4], [1, 1], [2, 5]]
    assert all((side.read(side.engine.pending[submit.request]) == submit.inputs[0].shape[1]).all() for submit in asked)


def test_what_gives_much_goes_by_itself(sides: list[Packing]) -> None:
    model = info([TensorSpec("y", 1, ["n", ANSWER_BYTES_MAX // 4 + 1])], **PACKABLE)
    sides.append(side := Packing(rows(1, 2), 8, model))
    assert sizes(side.fill()) == [(1, False), (1, False)]


def test_what_is_large_is_not_copied_twice(sides: list[Packing]) -> None:
    wide = BYTES_MAX // 4
    model = info(inputs=[TensorSpec("x", 1, ["n", "w"])], **PACKABLE)
    sides.append(side := Packing([np.ones((1, width), np.float32) for width in (wide, wide, wide + 1, wide + 1)], 8, model))
    assert sizes(side.fill()) == [(2, True), (1, False), (1, False)]
