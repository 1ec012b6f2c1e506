"""The time-by-batch-size model."""

from __future__ import annotations

import pytest
from batchyard.broker.leases import HUNG_FACTOR
from batchyard.broker.timing import CLAIM_BENT_MAX, CLAIM_NS_MAX, POINTS_MAX, TRIED_AFTER, TimeModel


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


def buckets(times: dict[int, int]) -> TimeModel:
    """Only these sizes are run, and take so long."""
    return TimeModel(times, sorted(times))


def test_with_buckets_a_batch_takes_as_long_as_the_size_that_it_is_padded_to() -> None:
    model = buckets({1: 100, 4: 250, 16: 800})
    assert [model.predict_ns(rows) for rows in (1, 2, 4, 5, 16)] == [100, 250, 250, 800, 800]
    model.learn(2, 450)  # it ran as 4
    assert model.predict_ns(3) == 350
    assert model.predict_ns(1) == 100


def test_padding_is_chosen_where_it_takes_less_time() -> None:
    """A device that takes as long for 4 rows as for one."""
    model = buckets({1: 100, 4: 100, 16: 120})
    assert [model.worth_taking(rows) for rows in range(1, 17)] == list(range(1, 17))


def test_a_smaller_size_is_chosen_where_padding_takes_more_time() -> None:
    """A device on which every row costs the same: no row is run that nobody asked for."""
    model = buckets({1: 100, 4: 400, 16: 1600})
    assert [model.worth_taking(rows) for rows in (1, 2, 3, 4, 5, 6, 15, 16)] == [1, 1, 1, 4, 4, 4, 4, 16]


def test_between_them_it_depends_on_how_many_rows_there_are() -> None:
    model = buckets({1: 100, 4: 160, 16: 400})
    # 2 rows: 160 padded, 200 alone. 5: 400 padded, 160 + 100. 9: 400 padded, 2 * 160 + 100.
    assert [model.worth_taking(rows) for rows in (2, 3, 5, 6, 8, 9, 12)] == [2, 3, 4, 4, 4, 9, 12]


def test_where_no_time_is_known_all_are_taken_and_without_buckets_too() -> None:
    assert TimeModel({}, (1, 4, 16)).worth_taking(9) == 9
    assert TimeModel({1: 100, 16: 9000}).worth_taking(9) == 9


def test_equal_times_pad_because_one_run_is_less_work_than_two() -> None:
    assert buckets({1: 100, 2: 200}).worth_taking(2) == 2
    assert buckets({2: 100, 4: 200}).worth_taking(3) == 3


def test_what_is_chosen_is_the_cheapest_way_to_cut_so_many_rows() -> None:
    """Against all ways; where a larger size is not dearer by the row than the one below it."""
    for times in ({1: 7, 3: 15, 8: 31}, {2: 9, 5: 15, 8: 20}, {3: 5, 8: 9}):
        model = buckets(times)
        best = {0: 0}
        for rows in range(1, 9):
            best[rows] = min(model.predict_ns(taken) + best[rows - taken] for taken in range(1, rows + 1))
            assert model._cheapest(rows)[0] == best[rows]


def test_sizes_that_are_far_apart_take_no_thousand_steps() -> None:
    assert buckets({1: 1, 1024: 1 << 40}).worth_taking(1023) == 1


# ---- what a model's file claims ------------------------------------------------------------------

LIES = [{1: 1, 8: 1}, {1: 10**13, 8: 10**13}, {1: 10**13, 8: 1}, {1: 1, 8: 10**13}, {8: 10**13}, {512: 1}]


def test_a_claim_is_what_is_expected_until_something_is_measured() -> None:
    model = TimeModel({}, (), {1: 100, 8: 300})
    assert not model.is_measured
    assert [model.predict_ns(rows) for rows in (1, 8)] == [100, 300]
    model.learn(1, 1000)  # this machine is ten times slower than the one that measured
    assert model.is_measured
    assert [model.predict_ns(rows) for rows in (1, 8)] == [1000, 3000]


def test_what_was_measured_wins_over_what_is_claimed() -> None:
    swept = TimeModel({1: 100, 4: 250, 8: 420})
    claimed = TimeModel({1: 100, 4: 250, 8: 420}, (), {1: 9, 2: 9999, 4: 9, 8: 9})
    assert [claimed.predict_ns(rows) for rows in range(1, 20)] == [swept.predict_ns(rows) for rows in range(1, 20)]


def test_beyond_the_warm_up_the_claims_say_how_the_time_grows() -> None:
    """The sweep ended at 4 rows; a device with room to spare takes as long for 16."""
    model = TimeModel({1: 1000, 4: 1100}, (), {1: 100, 4: 110, 16: 120})
    assert model.predict_ns(16) == 1200
    assert TimeModel({1: 1000, 4: 1100}).predict_ns(16) == 1500


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("seed", [{1: 1000}, {4: 4000}, {1: 1000, 4: 4000}])
def test_no_claim_moves_a_size_beyond_its_bounds_once_something_is_measured(
    lie: dict[int, int], seed: dict[int, int]
) -> None:
    model = TimeModel(seed, (), lie)
    for rows in (1, 2, 4, 8, 16):
        assert 1000 / CLAIM_BENT_MAX <= model.predict_ns(rows) <= 1000 * rows * CLAIM_BENT_MAX * 4


def test_a_claim_that_more_rows_cost_nothing_leaves_a_worker_the_time_to_run_them() -> None:
    """The sweep ended at one row of 1 s; a batch of 64 then takes 64 s, and may be kept for 20 times what is
    expected."""
    model = TimeModel({1: 10**9}, (), {1: 10**6, 64: 10**6})
    assert model.predict_ns(64) == 8 * 10**9
    assert model.predict_ns(64) * HUNG_FACTOR > 64 * 10**9
    assert model.predict_ns(4) <= 4 * 10**9


@pytest.mark.parametrize("lie", LIES)
def test_whatever_is_claimed_one_batch_of_each_size_ends_it(lie: dict[int, int]) -> None:
    model = TimeModel({}, (), lie)
    assert model.predict_ns(8) <= 8 * CLAIM_NS_MAX
    for rows in (8, 1, 4):
        model.learn(rows, 1000 * rows)
    assert [model.predict_ns(rows) for rows in (1, 4, 8)] == [1000, 4000, 8000]


def test_a_claimed_size_that_is_measured_is_a_point_like_any_other() -> None:
    model = TimeModel({}, (1, 4), {1: 100, 4: 200})
    model.learn(3, 800)  # it ran as 4
    assert (model.predict_ns(2), model.predict_ns(1)) == (800, 400)
    model.learn(1, 300)
    model.learn(4, 1600)
    assert (model.predict_ns(1), model.predict_ns(4)) == (300, 1200)


def test_an_idle_worker_takes_half_of_what_waits_where_two_runs_take_hardly_longer_than_one() -> None:
    steep = {1: 100_000, 16: 500_000, 32: 1_000_000, 64: 2_000_000}
    assert TimeModel(steep).worth_halving(64) == 32
    assert TimeModel(steep).worth_halving(63) == 32
    flat = {1: 900_000, 32: 950_000, 64: 1_000_000}
    assert TimeModel(flat).worth_halving(64) == 64
    assert TimeModel(steep, buckets=[32, 64]).worth_halving(64) == 64
    assert TimeModel().worth_halving(64) == 64


def test_short_batches_and_long_ones_are_not_halved() -> None:
    """A second batch costs something beside its run; and beside a long run what clients do counts for little."""
    for scale in (0.1, 100):
        times = TimeModel({rows: int(rows * 20_000 * scale) for rows in (1, 8, 16)})
        assert times.worth_halving(16) == 16


def test_one_slow_run_does_not_rule_a_size_out() -> None:
    times = TimeModel({1: 100_000, 16: 500_000, 32: 12_000_000, 64: 2_000_000})
    first = [times.worth_halving(64) for _ in range(TRIED_AFTER)]
    assert first == [64] * (TRIED_AFTER - 1) + [32]
    for _ in range(100):
        times.learn(32, 1_000_000)
        assert times.worth_halving(64) == 32


def test_a_half_that_is_slow_is_tried_ever_more_rarely() -> None:
    times = TimeModel({1: 100_000, 32: 2_000_000, 64: 2_000_000})  # runs of 32 at least
    halved = []
    for number in range(1_000):
        if times.worth_halving(64) == 32:
            halved.append(number)
            times.learn(32, 2_000_000)
        times.learn(64, 2_000_000)
    assert halved == [15, 47, 111, 239, 495]


@pytest.mark.parametrize("others", [2, 10, 20])
def test_batches_of_another_size_neither_hasten_nor_prevent_a_try(others: int) -> None:
    times = TimeModel({1: 500_000, 4: 1_000_000, 8: 1_900_000, 16: 5_000_000, 32: 5_000_000})
    halved = []
    for number in range(1_000):
        if number % others == 0:
            assert times.worth_halving(8) == 4
            times.learn(4, 1_000_000)
        if times.worth_halving(32) == 16:
            halved.append(number)
            times.learn(16, 5_000_000)
        times.learn(32, 5_000_000)
    assert halved == [15, 47, 111, 239, 495]
