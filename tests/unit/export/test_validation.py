"""Differences between answers: the figures, and that a NaN is never lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batchyard.export.axes import Bounds
from batchyard.export.kinds import CLASSES, EMBEDDING, VALUES
from batchyard.export.specs import InputSpec
from batchyard.export.validation import Case, compare, given_cases, random_cases, varied_cases
from batchyard.transport.errors import ModelFailed

X = InputSpec("x", (1, 3), axes=("batch", ""))
WANTED = np.array([[1.0, 2.0], [40.0, 3.0]], np.float32)


def compared(*got: Any, kind: str = CLASSES) -> Any:
    case = Case({"x": np.zeros((2, 1), np.float32)}, [WANTED], 2)
    return compare([case], lambda _: list(got), [kind] * len(case.wanted))


def test_the_figures_are_what_they_say() -> None:
    found = compared(WANTED + np.array([[0, 0], [0, 0.5]], np.float32))
    assert (found.abs_max, found.rel_max, found.scaled_max) == (0.5, 0.5 / 40, 0.5 / 40)
    assert found.rms == pytest.approx(0.5 / math.sqrt(1 + 4 + 1600 + 9))
    assert (found.agreement, found.rows, found.batch_sizes) == (1.0, 2, (2,))


def test_another_largest_class_is_a_disagreement() -> None:
    assert compared(WANTED[:, ::-1].copy()).agreement == 0.0


def test_nan_is_never_lost() -> None:
    wrong = WANTED.copy()
    wrong[0, 0] = np.nan
    answers = [[wrong], [WANTED]]
    found = compare([Case({"x": WANTED}, [WANTED], 2)] * 2, lambda _: answers.pop(0), [VALUES])
    assert all(math.isnan(value) for value in (found.abs_max, found.scaled_max, found.rms))


def test_another_shape_is_infinitely_far_away() -> None:
    assert compared(WANTED[:1]).scaled_max == math.inf
    assert compared(WANTED, WANTED).scaled_max == math.inf


def test_cases_are_random_rows_of_every_size_and_the_given_ones() -> None:
    random = random_cases([X], lambda feeds: [feeds["x"]], (1, 7))
    assert [len(case.wanted[0]) for case in random] == [1, 7]
    given = given_cases({"x": np.ones((70, 3), np.float32)}, [X], lambda feeds: [feeds["x"]], 32)
    assert [len(case.wanted[0]) for case in given] == [32, 32]


def test_a_scalar_and_equal_infinities_are_compared() -> None:
    for wanted, got in ((np.array(2.0), np.array(2.5)), (np.array([-np.inf, 2.0]), np.array([-np.inf, 2.5]))):
        case = Case({"x": np.zeros(1, np.float32)}, [wanted], 1)
        assert compare([case], lambda _, got=got: [got], [VALUES]).abs_max == 0.5  # type: ignore[misc]


def test_classes_are_counted_embeddings_are_turned_and_values_are_neither() -> None:
    turned = np.array([[2.0, -1.0], [40.0, 3.0]], np.float32)  # the first row by a right angle
    assert compared(turned).agreement == 0.5
    assert compared(turned).cosine is None
    embedding = compared(turned, kind=EMBEDDING)
    assert (embedding.agreement, embedding.cosine) == (None, pytest.approx(0.0, abs=1e-6))
    assert compared(WANTED, kind=EMBEDDING).cosine == pytest.approx(1.0)
    values = compared(turned, kind=VALUES)
    assert (values.agreement, values.cosine) == (None, None)


def test_zero_vectors_agree_with_each_other_and_with_nothing_else() -> None:
    zeros = np.zeros((1, 4), np.float32)
    case = Case({"x": zeros}, [zeros], 1)
    assert compare([case], lambda _: [zeros], [EMBEDDING]).cosine == 1.0
    assert compare([case], lambda _: [zeros + 1], [EMBEDDING]).cosine == 0.0


def only_below(limit: int) -> Any:
    def reference(feeds: Any) -> Any:
        if feeds["x"].shape[1] > limit:
            raise ModelFailed(f"no place for {feeds['x'].shape[1]}")
        return [feeds["x"]]

    return reference


def test_free_axes_are_tried_at_sizes_that_pytorch_takes() -> None:
    specs = [InputSpec("x", (1, 20), axes=("batch", "sequence"))]
    cases, taken, refused = varied_cases(specs, only_below(20), {"sequence": 20}, {}, 2)
    assert taken == {"sequence": [1, 8, 12, 19, 20]}
    assert sorted(case.feeds["x"].shape for case in cases) == [(2, 1), (2, 8), (2, 12), (2, 19)]
    assert refused == {}
    _, taken, refused = varied_cases(
        specs, only_below(20), {"sequence": 20}, {"sequence": Bounds(20, 99)}, 2
    )
    assert (taken, list(refused)) == ({"sequence": [20]}, ["sequence"])
    assert refused["sequence"].startswith("no place for")


def test_a_size_at_which_the_source_itself_is_no_number_is_no_trial() -> None:
    def unless_alone(feeds: Any) -> Any:
        return [feeds["x"] * (np.nan if len(feeds["x"]) == 1 else 1)]

    specs = [InputSpec("x", (3, 2), axes=("rows", ""))]
    cases, taken, _ = varied_cases(specs, unless_alone, {"rows": 3}, {}, 1)
    assert 1 not in taken["rows"]
    assert all(np.isfinite(case.wanted[0]).all() for case in cases)


def test_several_free_axes_are_tried_together_too() -> None:
    specs = [InputSpec("x", (1, 5, 7), axes=("batch", "a", "b"))]
    cases, _, _ = varied_cases(specs, lambda feeds: [feeds["x"]], {"a": 5, "b": 7}, {}, 2)
    shapes = [case.feeds["x"].shape[1:] for case in cases]
    assert any(a != 5 and b != 7 and a != b for a, b in shapes)
