"""Fronts of candidates that nothing beats in everything."""

from __future__ import annotations

import math

from batchyard.export.benchmark.order import rank, ranked
from batchyard.export.benchmark.ranking import beats, fronts
from hypothesis import given
from hypothesis import strategies as st

COST = st.integers(0, 5).map(float)


def test_only_what_is_nowhere_worse_and_somewhere_better_beats() -> None:
    assert beats((1.0, 2.0), (1.0, 3.0))
    assert not beats((1.0, 2.0), (1.0, 2.0))
    assert not beats((1.0, 3.0), (2.0, 2.0))


def test_fronts_are_peeled_off_one_after_the_other_and_equals_share_one() -> None:
    costs = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 4.0), (math.nan, 0.0)]
    assert fronts(costs) == [0, 0, 0, 0, 1, 2, None]


@given(st.lists(st.tuples(COST, COST), max_size=30))
def test_whoever_is_in_a_front_is_beaten_from_the_one_before_and_by_nobody_in_it(
    costs: list[tuple[float, float]],
) -> None:
    found = fronts(costs)
    for cost, front in zip(costs, found, strict=True):
        assert front is not None
        beaten_by = {other for one, other in zip(costs, found, strict=True) if beats(one, cost)}
        assert front not in beaten_by
        assert front == 0 or front - 1 in beaten_by


def part(
    ratio: float, nbytes: int, accuracy: float | None = None, error: str | None = None
) -> dict[str, object]:
    return {"latencies": [{"ratio": ratio}], "bytes": nbytes, "accuracy": accuracy, "error": error}


def test_accuracy_ranks_where_there_is_any_and_size_where_there_is_none() -> None:
    names = ["quick", "right", "beaten", "broken"]
    rows = [part(1.0, 9, 0.5), part(2.0, 9, 0.9), part(3.0, 1, 0.7), part(0.1, 1, 0.99, "it fell over")]
    candidates = [{"name": name, "files": [row]} for name, row in zip(names, rows, strict=True)]
    rank(candidates)
    assert [row["front"] for row in rows] == [0, 0, 1, None]
    assert [name for name, _ in ranked({"candidates": candidates})] == ["right", "quick", "beaten", "broken"]
    for row in rows:
        row["accuracy"] = None
    rank(candidates)
    assert [row["front"] for row in rows] == [0, 1, 0, None]


def test_what_was_not_measured_has_no_place() -> None:
    candidates = [{"name": "new", "files": [{"bytes": 1}]}]
    rank(candidates)
    assert [row["front"] for _, row in ranked({"candidates": candidates})] == [None]
