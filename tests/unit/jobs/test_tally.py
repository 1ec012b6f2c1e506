"""Figures of a queue, against numbers that are counted by hand."""

from __future__ import annotations

import pytest
from batchyard.jobs.table import JobStatus
from batchyard.jobs.tally import SAMPLES_MAX, WINDOW_S, Tally


def test_a_queue_that_did_nothing_has_no_figures() -> None:
    found = Tally().statistics(5.0, 0, 0, 8)
    assert (found.submitted, found.throughput, found.latency_p50_s, found.batch_fill) == (0, 0.0, None, None)


def test_ends_are_counted_by_their_kind() -> None:
    tally = Tally()
    for number, status in enumerate(
        (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.FAILED, JobStatus.EXPIRED)
    ):
        tally.began(float(number))
        tally.ended(status)
    found = tally.statistics(9.0, 2, 3, 8)
    assert (found.submitted, found.pending, found.running) == (4, 2, 3)
    assert (found.completed, found.failed, found.cancelled, found.expired) == (1, 2, 0, 1)


def test_a_batch_counts_once_however_many_jobs_saw_it() -> None:
    tally = Tally()
    for rows in (8, 8, 8, 8, 8, 8, 8, 8, 2, 2):  # one batch of 8, and one of 2
        tally.ran(1.0, 0.5, 1, rows)
    found = tally.statistics(2.0, 0, 0, 8)
    assert found.batch_rows_mean == pytest.approx(5)
    assert found.batch_fill == pytest.approx(5 / 8)


def test_throughput_is_of_the_last_seconds_or_of_all_when_there_were_fewer() -> None:
    tally = Tally()
    tally.began(100.0)
    for number in range(20):
        tally.ran(100.0 + number / 10, 0.1, 1, 1)
    assert tally.statistics(102.0, 0, 0, 8).throughput == pytest.approx(10)
    assert tally.statistics(100.0 + WINDOW_S + 1, 0, 0, 8).throughput == pytest.approx(10 / WINDOW_S)
    assert tally.statistics(100.0 + 3 * WINDOW_S, 0, 0, 8).throughput == 0


def test_throughput_does_not_suffer_from_what_was_forgotten() -> None:
    tally = Tally()
    tally.began(0.0)
    for number in range(3 * SAMPLES_MAX):
        tally.ran(number / 1e3, 0.1, 1, 1)
    assert tally.statistics(3 * SAMPLES_MAX / 1e3, 0, 0, 8).throughput == pytest.approx(1000, rel=0.01)


def test_percentiles_are_of_latencies() -> None:
    tally = Tally()
    for number in range(101):
        tally.ran(1.0, number / 100, 1, 1)
    found = tally.statistics(2.0, 0, 0, 8)
    assert (found.latency_p50_s, found.latency_p95_s, found.latency_p99_s) == pytest.approx((0.5, 0.95, 0.99))


def test_a_model_that_does_not_batch_is_a_batch_of_one() -> None:
    tally = Tally()
    tally.ran(1.0, 0.1, 1, 0)
    assert tally.statistics(2.0, 0, 0, 1).batch_rows_mean == 1
