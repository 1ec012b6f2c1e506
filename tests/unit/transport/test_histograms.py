"""Histograms: which bucket a value falls into, and what can be read back from it."""

from __future__ import annotations

from collections import Counter

import pytest
from batchyard.transport.histograms import BUCKETS_PER_OCTAVE, bucket_of, bucket_upper, quantile
from hypothesis import given
from hypothesis import strategies as st

ns = st.integers(0, 1 << 62)


def test_the_first_buckets_are_exact() -> None:
    assert [bucket_of(value) for value in range(8)] == list(range(8))


@given(ns)
def test_a_value_lies_between_the_upper_ends_of_its_bucket_and_the_one_before(value: int) -> None:
    bucket = bucket_of(value)
    assert value < bucket_upper(bucket)
    assert bucket == 0 or value >= bucket_upper(bucket - 1)


@given(st.integers(0, 240))
def test_the_upper_end_of_a_bucket_is_the_first_value_of_the_next(bucket: int) -> None:
    assert bucket_of(bucket_upper(bucket)) == bucket + 1
    assert bucket_of(bucket_upper(bucket) - 1) == bucket


@given(ns, ns)
def test_larger_values_never_fall_into_lower_buckets(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert bucket_of(low) <= bucket_of(high)


@given(st.integers(BUCKETS_PER_OCTAVE, 1 << 62))
def test_a_bucket_is_narrow_enough_for_a_quantile_to_be_within_a_quarter(value: int) -> None:
    """Four buckets an octave: at most 25 % wide, so its middle in logarithms is within 19 %."""
    bucket = bucket_of(value)
    low, high = bucket_upper(bucket - 1), bucket_upper(bucket)
    assert (high - low) / low <= 1 / BUCKETS_PER_OCTAVE
    assert high / low <= 1.25


def test_a_negative_time_is_counted_as_none() -> None:
    assert bucket_of(-5) == 0  # a clock that is behind must not end the broker


@given(st.lists(st.integers(0, 1 << 50), min_size=1), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_has_its_rank(values: list[int], share: float) -> None:
    found = quantile(Counter(map(bucket_of, values)), share)
    rank = max(1, -int(-share * len(values) // 1))  # the least that is not below the share
    bucket = bucket_of(sorted(values)[rank - 1])
    assert found is not None
    assert (bucket_upper(bucket - 1) if bucket else 0) <= found <= bucket_upper(bucket) - 1


def test_a_quantile_of_nothing_is_none_and_of_small_numbers_exact() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({5: 0}, 0.5) is None
    assert quantile({0: 0, 3: 10, 5: 90}, 0.99) == 5
    assert quantile({bucket_of(100): 4}, 0.5) == pytest.approx(100, rel=0.25)
