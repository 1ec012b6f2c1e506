"""The time-by-batch-size model."""

from __future__ import annotations

from batchyard.broker.timing import POINTS_MAX, TimeModel


def test_the_warm_up_is_the_first_prediction_and_the_rest_is_interpolated() -> None:
    model = TimeModel({1: 100, 2: 120, 4: 160, 8: 240})
    assert [model.predict_ns(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [100, 120, 140, 160, 200, 240, 400]


def test_nothing_known_predicts_nothing_and_one_size_scales_upwards() -> None:
    assert TimeModel().predict_ns(8) == 0
    assert TimeModel({4: 100}).predict_ns(8) == 200
    assert TimeModel({4: 100}).predict_ns(1) == 100


def test_slower_is_believed_quickly_and_faster_slowly() -> None:
    model = TimeModel({8: 1000})
    model.learn(8, 3000)
    assert model.predict_ns(8) == 2000
    model.learn(8, 1000)
    assert model.predict_ns(8) == 1875


def test_a_size_never_seen_is_learnt_from_its_first_batch_and_sizes_are_bounded() -> None:
    model = TimeModel({1: 100})
    model.learn(5, 900)
    assert model.predict_ns(5) == 900
    for rows in range(1, 1000):
        model.learn(rows, rows * 100)
    assert len(model._rows) == POINTS_MAX


def test_rows_within_a_budget_are_the_most_that_fit_and_at_least_one() -> None:
    model = TimeModel({1: 100, 2: 200, 4: 400, 8: 800})
    assert model.rows_within(8, 10_000) == 8
    assert model.rows_within(8, 799) == 7
    assert model.rows_within(8, 350) == 3
    assert model.rows_within(8, 5) == 1
    assert model.rows_within(1, 5) == 1


def test_noise_does_not_make_a_larger_batch_look_cheaper_without_end() -> None:
    model = TimeModel({4: 500, 8: 400})
    assert model.predict_ns(6) == 500
    assert model.predict_ns(64) == 500
