"""The figures of an overload, from records made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from batchyard.tests.campaigns.reliability import crowd, overload
from batchyard.tests.campaigns.reliability.crowd import RECORD, Stream

MS = 1_000_000
DEADLINES_S = overload.Demand().deadlines_s


def records(*rows: tuple[int, int, int]) -> Any:
    """(priority, outcome, milliseconds that it took)."""
    made = np.zeros(len(rows), RECORD)
    for index, (priority, outcome, took_ms) in enumerate(rows):
        made[index] = (priority, outcome, 0, 1 * MS, (1 + took_ms) * MS)
    return made


def seen(figures: list[Any]) -> dict[str, float]:
    return {figure.what: figure.value for figure in figures}


def test_a_stream_reads_as_it_was_written() -> None:
    stream = Stream(3, 812.5, 5.0)
    assert Stream.parse(str(stream)) == stream


def test_what_is_let_in_and_late_or_unanswered_has_missed_its_deadline() -> None:
    figures = seen(
        overload._let_in(
            records(
                (0, crowd.OK, 49),
                (0, crowd.OK, 51),
                (3, crowd.OK, 4999),
                (3, crowd.NONE, 0),
                (3, crowd.LATE_QUEUED, 5000),
                (3, crowd.REFUSED, 1),
            ),
            DEADLINES_S,
        )
    )
    assert figures["no outcome"] == 1
    assert figures["admitted that met their deadlines"] == 2 / 5
    assert figures["admitted URGENT that missed their deadlines"] == 1
    assert (figures["admitted LOW"], figures["admitted LOW that missed their deadlines"]) == (3, 2)


def test_low_has_to_be_refused_before_any_other_class() -> None:
    fair = seen(overload._refused(records((2, crowd.OK, 1), (3, crowd.REFUSED, 2), (3, crowd.OK, 1))))
    assert fair["refused, of LOW"] == 0.5
    assert fair["refusal, from its call: max"] == 2 * MS
    unfair = overload._refused(records((0, crowd.REFUSED, 1), (3, crowd.OK, 1)))
    assert [figure.met for figure in unfair if "less the next" in figure.what] == [False]


def test_rows_that_ran_in_vain_are_those_of_no_result_and_no_running_request() -> None:
    made = records((2, crowd.OK, 1), (2, crowd.LATE_RUNNING, 1), (2, crowd.LATE_QUEUED, 1))
    assert overload._in_vain(made, 16, rows=8) == 0
    assert overload._in_vain(made, 24, rows=8) == 8


def test_an_urgent_latency_counts_from_the_intended_send_and_whatever_the_end_was() -> None:
    during = records((0, crowd.LATE_QUEUED, 5), (0, crowd.REFUSED, 70), (3, crowd.OK, 90))
    figures = seen(overload._urgent(records((0, crowd.OK, 1)), during))
    assert figures["URGENT alone: p99"] == 2 * MS
    assert figures["URGENT p99, overload / alone"] == 3.0
