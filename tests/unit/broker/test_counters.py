"""Histograms: which bucket a value falls into, and what can be read back from it."""

from __future__ import annotations

from batchyard.broker.counters import BUCKETS_PER_OCTAVE, Counters, Histogram, bucket_of, bucket_upper_ns
from batchyard.transport.messages import Done
from hypothesis import given
from hypothesis import strategies as st

ns = st.integers(0, 1 << 62)


def test_the_first_buckets_are_exact() -> None:
    assert [bucket_of(value) for value in range(8)] == list(range(8))


@given(ns)
def test_a_value_lies_between_the_upper_ends_of_its_bucket_and_the_one_before(value: int) -> None:
    bucket = bucket_of(value)
    assert value < bucket_upper_ns(bucket)
    assert bucket == 0 or value >= bucket_upper_ns(bucket - 1)


@given(st.integers(0, 240))
def test_the_upper_end_of_a_bucket_is_the_first_value_of_the_next(bucket: int) -> None:
    assert bucket_of(bucket_upper_ns(bucket)) == bucket + 1
    assert bucket_of(bucket_upper_ns(bucket) - 1) == bucket


@given(ns, ns)
def test_larger_values_never_fall_into_lower_buckets(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert bucket_of(low) <= bucket_of(high)


@given(st.integers(BUCKETS_PER_OCTAVE, 1 << 62))
def test_a_bucket_is_narrow_enough_for_a_quantile_to_be_within_a_quarter(value: int) -> None:
    """Four buckets an octave: at most 25 % wide, so its middle in logarithms is within 19 %."""
    bucket = bucket_of(value)
    low, high = bucket_upper_ns(bucket - 1), bucket_upper_ns(bucket)
    assert (high - low) / low <= 1 / BUCKETS_PER_OCTAVE
    assert high / low <= 1.25


def test_a_negative_time_is_counted_as_none() -> None:
    assert bucket_of(-5) == 0  # a clock that is behind must not end the broker


def test_a_histogram_counts_and_sums() -> None:
    histogram = Histogram()
    for value in (1, 1, 1_000_000):
        histogram.add(value)
    snapshot = histogram.snapshot()
    assert snapshot == {"counts": {1: 2, bucket_of(1_000_000): 1}, "sum": 1_000_002}


def test_a_snapshot_is_a_copy_of_plain_values() -> None:
    counters = Counters()
    counters.refuse("malformed")
    counters.end("net", 2, "ok")
    counters.batch("net", 4, Done(1, 1, 10, 20, 30, 40, []))
    before = counters.snapshot()
    counters.refuse("malformed")
    counters.end("net", 2, "ok")
    counters.batch("net", 4, Done(1, 1, 10, 20, 30, 40, []))
    assert before["refused"] == {"malformed": 1}
    assert before["requests"] == [["net", 2, "ok", 1]]
    assert (before["batches"], before["rows"], before["copied_bytes"]) == (1, 4, 40)
    assert [row[:2] for row in before["batch_stages"]] == [
        ["net", stage] for stage in ("rows", "gather", "compute", "scatter")
    ]
    assert before["batch_stages"][0][2]["counts"] == {4: 1}
