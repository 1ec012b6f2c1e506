"""`bench load`: what is sent, which rounds count, and how two runs compare. No processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from batchyard import BatchyardError
from batchyard.bench import load, schedule
from batchyard.bench.schedule import Arrival, Class


def test_a_mix_has_shares_and_deadlines() -> None:
    assert schedule.parse_mix("URGENT:1:0.05,NORMAL:8,LOW") == [
        Class("URGENT", 1, 0.05),
        Class("NORMAL", 8, None),
        Class("LOW", 1, None),
    ]


@pytest.mark.parametrize("text", ["SOON", "URGENT:0", "URGENT:x", "URGENT:1:-1", "URGENT:1:1:1", "LOW:inf", ""])
def test_a_mix_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        schedule.parse_mix(text)


def test_the_same_seed_sends_the_same_in_the_shares_of_the_mix() -> None:
    mix = schedule.parse_mix("URGENT:1:0.05,NORMAL:9")
    arrivals = schedule.poisson(2_000, 5, mix, 3)
    assert arrivals == schedule.poisson(2_000, 5, mix, 3)
    urgent = [each for each in arrivals if each.name == "URGENT"]
    assert 0.08 < len(urgent) / len(arrivals) < 0.12
    assert {each.deadline_s for each in urgent} == {0.05}


def test_a_trace_begins_at_its_first_arrival_and_the_mix_draws_what_it_leaves_out() -> None:
    lines = ["# seconds,class,deadline", "12.5", "11.5,URGENT", "12.0,LOW,0.2", ""]
    assert schedule.recorded(lines, schedule.parse_mix("NORMAL:1:0.5"), 1) == [
        Arrival(0, "URGENT", None),
        Arrival(500_000_000, "LOW", 0.2),
        Arrival(1_000_000_000, "NORMAL", 0.5),
    ]


@pytest.mark.parametrize(("line", "text"), [("x", "line 1"), ("nan", "line 1"), ("1,SOON", "line 1"), ("1,LOW,0", "line 1"), ("#", "no arrivals")])
def test_a_trace_that_is_none_is_explained(line: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        schedule.recorded([line], schedule.parse_mix("NORMAL"), 1)


def test_clients_send_together_what_one_would() -> None:
    arrivals = schedule.poisson(500, 1, schedule.parse_mix("NORMAL"), 1)
    parts = schedule.divided(arrivals, 3)
    assert sorted(each for part in parts for each in part) == arrivals
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_round_adds_up_its_clients_and_is_void_when_more_than_one_percent_was_late() -> None:
    round_ = load.Round()
    for late in (0, 2):
        found: dict[str, Any] = {"sent": 100, "late_sends": late, "late_worst_ns": late, "errors": {"Overloaded": 1}}
        round_.add(found | {"histograms": {"LOW": "ab"}}, lambda text: Counter(text))
        round_.histograms["LOW"].add = lambda other: None
    assert round_.sent == 200
    assert round_.errors == {"Overloaded": 2}
    assert not round_.is_void
    round_.late_sends += 1
    assert round_.is_void


def run(*p50s: float, void: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "rounds": [
            {"void": number in void, "figures": {"all": {"p50": p50, "p99": 10 * p50, "p99.9": 20 * p50, "rate": 100.0}}}
            for number, p50 in enumerate(p50s)
        ]
    }


def test_a_ratio_has_its_interval_and_void_rounds_are_left_out() -> None:
    lines = load.compare(run(100, 100, 900, void=(2,)), run(200, 200))
    assert lines[0].split() == ["all", "p50", "2.00x", "(2.00-2.00)"]
    assert load.table(run(100, 300, 900, void=(2,)))[0] == "2 rounds of 3 count"
    low, high = load.interval([100, 110, 120, 130, 140], [100, 110, 120, 130, 140])
    assert low < 1 < high


def test_a_run_without_a_round_that_counts_is_compared_with_nothing() -> None:
    with pytest.raises(BatchyardError):
        load.compare(run(1), run(1, void=(0,)))
