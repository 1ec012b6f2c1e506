"""A canary through two real models: what counts as a difference, and what is refused whatever is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.evidence.words import first_line
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.comparison import compare
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.providers import recipe
from batchyard.transport import messages as m

FLOAT, INT64 = 1, 7


def served(path: Path, max_batch: int = 4, buckets: list[int] | None = None) -> ServedModel:
    return ServedModel(m.Load("net", 1, str(path), max_batch, None, False, buckets or []), recipe("cpu", 1))


@pytest.fixture(scope="module")
def plus(onnx_models: Any) -> Any:
    """plus(amount): a served `y = x + amount` of float32[n, 3]."""

    def make(amount: float, *buckets: int) -> ServedModel:
        amounts = np.full(3, amount, np.float32)
        path = onnx_models.save(
            f"plus {amount}", [("Add", ["x", "a"], ["y"], {})],
            [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], {"a": amounts},
        )  # fmt: skip
        return served(path, buckets[-1] if buckets else 4, list(buckets))

    return make


def chain(onnx_models: Any, name: str, *ops: str, axes: Any = ("n", 3), dtype: int = FLOAT) -> ServedModel:
    """y = the operators on x, one after the other."""
    names = ["x", *(f"h{index}" for index in range(len(ops) - 1)), "y"]
    nodes = [(op, [names[index]], [names[index + 1]], {}) for index, op in enumerate(ops)]
    return served(onnx_models.save(name, nodes, [("x", dtype, axes)], [("y", dtype, axes)]))


def test_the_same_model_twice_does_not_differ(plus: Any) -> None:
    assert compare(plus(1.0), plus(1.0), 0.0) == 0.0


def test_the_greatest_difference_of_any_value_is_told(plus: Any) -> None:
    assert compare(plus(1.0), plus(1.5), None) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [((), (), 2), ((1, 2, 4), (1, 2, 4), 2), ((1, 4, 8), (1, 4), 4), ((1, 4), (1,), 1), ((3, 4), (), 3)],
)
def test_a_canary_has_a_number_of_rows_that_both_models_run(
    plus: Any, monkeypatch: pytest.MonkeyPatch, old: tuple[int, ...], new: tuple[int, ...], rows: int
) -> None:
    before, after = plus(1.0, *old), plus(1.5, *new)
    ran = []
    answers = type(after).answers
    monkeypatch.setattr(after, "answers", lambda feeds, rows: ran.append(len(feeds["x"])) or answers(after, feeds, rows))
    compare(before, after, None)
    assert ran == [rows]


def test_whatever_an_error_says_of_itself_is_one_line_that_can_be_sent() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise self

    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("a name \udce4")) == "a name ?"
    assert first_line(Unspeakable()) == "Unspeakable"


def test_what_is_allowed_is_the_operators_to_say(plus: Any) -> None:
    assert compare(plus(1.0), plus(1.5), 0.6) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(
        CannotServe, match=r"its answers to a canary differ by up to 0\.5, and 0\.4 is allowed"
    ):
        compare(plus(1.0), plus(1.5), 0.4)


@pytest.mark.parametrize("tolerance", [None, 1e30])
def test_no_numbers_where_there_were_some_are_never_allowed(
    plus: Any, onnx_models: Any, tolerance: float | None
) -> None:
    nan = chain(onnx_models, "log of minus", "Abs", "Neg", "Log")
    with pytest.raises(
        CannotServe, match="its output 'y' is not finite on a canary where the served model's is"
    ):
        compare(plus(0.0), nan, tolerance)


def test_numbers_in_place_of_none_are_welcome(plus: Any, onnx_models: Any) -> None:
    nan = chain(onnx_models, "log of minus", "Abs", "Neg", "Log")
    assert compare(nan, plus(0.0), 0.0) == 0.0


def test_another_shape_is_never_allowed(onnx_models: Any) -> None:
    once, twice = (
        served(onnx_models.save(
            f"{times} times", [("Concat", ["x"] * times, ["y"], {"axis": 1})],
            [("x", FLOAT, ["n", "t"])], [("y", FLOAT, ["n", "k"])],
        ))
        for times in (1, 2)
    )  # fmt: skip
    with pytest.raises(CannotServe, match=r"its output 'y' has shape \(2, 14\) where the served model's has \(2, 7\)"):
        compare(once, twice, None)


def test_other_tensors_are_left_to_the_broker_who_says_which(plus: Any, onnx_models: Any) -> None:
    other = served(
        onnx_models.save(
            "other", [("Neg", ["z"], ["y"], {})], [("z", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])]
        )
    )
    more = served(onnx_models.save(
        "more", [("Neg", ["x"], ["y"], {}), ("Abs", ["x"], ["w"], {})],
        [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3]), ("w", FLOAT, ["n", 3])],
    ))  # fmt: skip
    assert compare(plus(0.0), other, 0.0) is None
    assert compare(plus(0.0), more, 0.0) is None


def rows_of_a_table(onnx_models: Any, name: str, rows: int) -> ServedModel:
    """y = a table's rows, by int64 x: fails for an x beyond the table."""
    table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return served(onnx_models.save(
        name, [("Gather", ["t", "x"], ["y"], {})], [("x", INT64, ["n", 8])], [("y", FLOAT, ["n", 8, 2])], {"t": table}
    ))  # fmt: skip


def test_a_model_that_fails_on_what_is_drawn_is_asked_with_zeros(onnx_models: Any) -> None:
    one, two = rows_of_a_table(onnx_models, "one row", 1), rows_of_a_table(onnx_models, "two rows", 2)
    assert compare(one, two, 0.0) == 0.0


def test_one_that_fails_where_the_served_one_answers_is_refused(onnx_models: Any) -> None:
    one, many = rows_of_a_table(onnx_models, "one row", 1), rows_of_a_table(onnx_models, "many rows", 12)
    with pytest.raises(CannotServe, match="it fails on a canary that the served model answers"):
        compare(many, one, None)


def test_without_an_answer_of_the_old_one_there_is_no_canary(onnx_models: Any) -> None:
    two = rows_of_a_table(onnx_models, "two rows", 2)
    empty = rows_of_a_table(onnx_models, "no row", 0)
    assert compare(empty, two, 0.0) is None


def test_whole_numbers_are_compared_as_numbers(onnx_models: Any) -> None:
    same = chain(onnx_models, "int abs", "Abs", dtype=INT64)
    minus = chain(onnx_models, "int minus", "Abs", "Neg", dtype=INT64)
    assert compare(same, same, 0.0) == 0.0
    drawn = same.canary(2)
    assert drawn is not None
    assert compare(same, minus, None) == 2.0 * np.abs(drawn["x"]).max() > 0


def test_a_model_without_a_batch_axis_is_compared_too(onnx_models: Any) -> None:
    same = chain(onnx_models, "fixed abs", "Abs", axes=(2, 3))
    minus = chain(onnx_models, "fixed minus", "Abs", "Neg", axes=(2, 3))
    assert not same.batchable
    assert compare(same, same, 0.0) == 0.0
    assert (compare(same, minus, None) or 0) > 0


def test_no_rows_at_all_do_not_differ(onnx_models: Any) -> None:
    empty = chain(onnx_models, "empty", "Abs", axes=("n", 0))
    assert compare(empty, empty, 0.0) == 0.0
