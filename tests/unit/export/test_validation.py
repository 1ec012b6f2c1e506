"""Differences between answers: the figures, and that a NaN is never lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batchyard.export.specs import InputSpec
from batchyard.export.validation import Case, compare, given_cases, random_cases

WANTED = np.array([[1.0, 2.0], [40.0, 3.0]], np.float32)


def compared(*got: Any) -> Any:
    return compare([Case({"x": np.zeros((2, 1), np.float32)}, [WANTED])], lambda _: list(got))


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
    found = compare([Case({"x": WANTED}, [WANTED])] * 2, lambda _: answers.pop(0))
    assert all(math.isnan(value) for value in (found.abs_max, found.scaled_max, found.rms))


def test_another_shape_is_infinitely_far_away() -> None:
    assert compared(WANTED[:1]).scaled_max == math.inf
    assert compared(WANTED, WANTED).scaled_max == math.inf


def test_cases_are_random_rows_of_every_size_and_the_given_ones() -> None:
    random = random_cases([InputSpec("x", (1, 3))], lambda feeds: [feeds["x"]], (1, 7))
    assert [len(case.wanted[0]) for case in random] == [1, 7]
    given = given_cases({"x": np.ones((70, 3), np.float32)}, lambda feeds: [feeds["x"]], 32)
    assert [len(case.wanted[0]) for case in given] == [32, 32]
