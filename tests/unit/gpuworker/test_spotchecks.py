"""Which batches are run by each request as well, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from batchyard.gpuworker.answers import NotRows
from batchyard.gpuworker.spotchecks import (
    EVERY,
    FIRST,
    KINDS_MAX,
    NEW,
    SHARE,
    SPLIT_BYTES_MAX,
    SpotChecks,
    check_split,
    rows_to_check,
)
from batchyard.transport.tensors import TensorSpec


def test_the_first_batches_of_each_kind_are_checked_and_then_one_of_many() -> None:
    checks = SpotChecks()
    assert [checks.wants("a", 2, 1) for _ in range(FIRST + 3)] == [True] * FIRST + [False] * 3
    assert checks.wants("b", 2, 1)
    for _ in range(NEW):
        checks.wants("a", 2, 1)
    later = [checks.wants("a", 2, 1) for _ in range(2 * EVERY)]
    assert later.count(True) == 2


def test_a_batch_of_more_rows_than_any_before_is_checked() -> None:
    """Of a slow model, two or three rows are compared at load: it may mix them from the eighth on."""
    checks = SpotChecks()
    assert all(checks.wants("a", 2, 1) for _ in range(FIRST))
    assert [checks.wants("a", rows, 1) for rows in (2, 3, 3, 8, 5, 9, 9)] == [False, True, False, True, False, True, False]


def test_endless_kinds_are_not_checked_without_end() -> None:
    checks = SpotChecks()
    wanted = [checks.wants(number, 2, 1) for number in range(KINDS_MAX * 4)]
    assert wanted == [True] * KINDS_MAX + [False] * (KINDS_MAX * 3)


def test_a_new_model_is_checked_as_long_as_that_takes_little_of_the_time() -> None:
    checks = SpotChecks()
    assert [checks.wants("a", 2, 1_000) for _ in range(FIRST + 1)] == [True] * FIRST + [False]
    checks.spent_ns = 50
    assert not checks.wants("a", 2, 1_000 + 50 * SHARE)
    assert checks.wants("a", 2, 1_001 + 50 * SHARE)


def test_a_request_that_is_split_answers_as_it_does_whole() -> None:
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    shared = np.float32(2)
    y = TensorSpec("y", 1, ["n", 4])
    check_split([x, shared], [0, -1, 0], [y], 4, lambda feeds: [feeds[0] * feeds[1]])
    for run in (
        lambda feeds: [feeds[0] + (np.arange(len(feeds[0])) >= 5)[:, None]],
        lambda feeds: [feeds[0][:4]],
    ):
        with pytest.raises(NotRows):
            check_split([x, shared], [0, -1, 0], [y], 4, run)


def test_as_many_rows_of_it_are_run_whole_as_there_is_room_for() -> None:
    assert rows_to_check(40, 32, 4) == 40
    assert rows_to_check(1000, 32, 4) == 128
    assert rows_to_check(1000, 32, SPLIT_BYTES_MAX // 50) == 50
    assert rows_to_check(1000, 32, SPLIT_BYTES_MAX // 20) == 0
    assert rows_to_check(32, 32, 4) == 0
