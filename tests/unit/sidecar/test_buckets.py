"""Rebinning: what Prometheus counts up to a bound is what the broker observed up to there, exactly."""

from __future__ import annotations

import itertools

import pytest
from batchyard.broker.counters import Histogram
from batchyard.sidecar.buckets import ROWS, TIME, Bounds
from hypothesis import given
from hypothesis import strategies as st

times_ns = (
    st.integers(0, 1 << 45)
    | st.integers(0, 38).map(lambda k: 1 << k)
    | st.integers(2, 38).map(lambda k: 3 << k)
)


@pytest.mark.parametrize("bounds", [TIME, ROWS])
@given(values=st.lists(times_ns))
def test_a_bucket_holds_exactly_the_observations_up_to_its_bound(bounds: Bounds, values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    *bounded, (last, total) = bounds.rebin(histogram.counts)
    assert (last, total) == ("+Inf", len(values))
    for le, count in bounded:
        assert count == sum(value <= round(float(le) * bounds.unit) for value in values), le


def test_bounds_rise_and_no_two_are_further_apart_than_a_factor_of_one_and_a_half() -> None:
    numbers = [round(float(le) * TIME.unit) for le in TIME.labels]
    assert numbers == sorted(set(numbers))
    assert all(high + 1 <= 1.5 * (low + 1) for low, high in itertools.pairwise(numbers))
    assert numbers[0] < 5_000  # 5 us
    assert numbers[-1] > 60 * 10**9


def test_the_bounds_of_times_are_one_nanosecond_below_powers_of_two_and_one_and_a_half_of_them() -> None:
    numbers = {round(float(le) * TIME.unit) + 1 for le in TIME.labels}
    assert numbers == {1 << k for k in range(12, 37)} | {3 << k for k in range(11, 35)}


def test_small_numbers_of_rows_have_a_bucket_each() -> None:
    assert list(ROWS.labels[:10]) == ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "7.0", "11.0", "15.0", "23.0"]
