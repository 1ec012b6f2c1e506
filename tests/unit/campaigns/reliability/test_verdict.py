"""Bounds, formats, and slopes, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from batchyard.tests.campaigns.reliability.verdict import (
    Figure,
    Verdict,
    outcomes,
    shown,
    slope_per_s,
    table,
    times,
)


def test_a_bound_holds_up_to_its_own_value() -> None:
    assert Figure("lost", 0, at_most=0).met is True
    assert Figure("lost", 1, at_most=0).met is False
    assert Figure("ratio", 0.97, "x", at_least=0.97).met is True
    assert Figure("ratio", 0.969, "x", at_least=0.97).met is False


def test_a_figure_without_a_bound_is_neither_met_nor_missed() -> None:
    assert Figure("requests", 7).met is None
    assert Verdict("a", [Figure("requests", 7)]).kept


def test_what_could_not_be_measured_meets_no_bound() -> None:
    assert Figure("p99", math.nan, "ns", at_most=1e9).met is False
    assert Figure("p99", math.nan, "ns", at_least=0).met is False


def test_a_campaign_that_did_not_come_to_its_end_kept_nothing() -> None:
    assert not Verdict("a", [Figure("lost", 0, at_most=0)], error="TimeoutError: never").kept


def test_the_table_shows_what_is_not_met_and_what_went_wrong() -> None:
    text = table(
        [
            Verdict("a", [Figure("lost", 2, at_most=0), Figure("p99", 2.5e6, "ns", at_most=5e6)]),
            Verdict("b", error="TimeoutError: not within 30 s: replies"),
        ]
    )
    header, _, lost, p99, failed = text.splitlines()
    assert header.split() == ["campaign", "figure", "seen", "bound", "met"]
    assert lost.split() == ["a", "lost", "2", "<=", "0", "NO"]
    assert p99.split() == ["p99", "2.50", "ms", "<=", "5.00", "ms", "yes"]
    assert failed == "FAILED: b: TimeoutError: not within 30 s: replies"


def test_the_bound_on_times_is_on_the_last_percentile() -> None:
    p50, longest = times("reply", [3, 1, 2], (50, 100), at_most_ns=2)
    assert (p50.what, p50.value, p50.met) == ("reply: p50", 2, None)
    assert (longest.what, longest.value, longest.met) == ("reply: max", 3, False)


def test_outcomes_come_with_the_most_frequent_first() -> None:
    assert [figure.what for figure in outcomes("ended as", {"BrokerLost": 1, "ok": 9})] == [
        "ended as: ok",
        "ended as: BrokerLost",
    ]


def test_a_slope_is_the_line_through_all_points() -> None:
    assert slope_per_s([(0, 10), (1, 12), (2, 14)]) == pytest.approx(2)
    assert slope_per_s([(0, 0), (1, 3), (2, 0)]) == pytest.approx(0)
    assert math.isnan(slope_per_s([(1, 5)]))
    assert math.isnan(slope_per_s([(1, 5), (1, 6)]))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234, "", "1,234"),
        (4.3e6, "ns", "4.30 ms"),
        (512, "bytes", "512 B"),
        (-3 << 20, "bytes", "-3.00 MiB"),
        (0.975, "x", "0.975x"),
        (0.5, "share", "50.00 %"),
        (math.nan, "ns", "-"),
    ],
)
def test_every_unit_is_shown_as_people_read_it(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text
