"""Histograms: which bucket a value falls into, and what can be read back from it."""

from __future__ import annotations

from batchyard.transport.histograms import BUCKETS_PER_OCTAVE, bucket_of, bucket_upper
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
