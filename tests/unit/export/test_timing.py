"""The interleaved measurement, with a clock that does as it is told."""

from __future__ import annotations

import pytest
from batchyard.export.timing import ROUNDS_MAX, ROUNDS_MIN, interleaved


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def passing(self, took_ns: int) -> object:
        self.now_ns += took_ns
        return None


def test_the_ratio_is_the_median_of_pairs_so_one_hiccup_changes_nothing() -> None:
    clock = Clock()
    calls = 0

    def variant() -> object:
        nonlocal calls
        calls += 1
        return clock.passing(10_000_000 if calls == 5 else 2000)

    found = interleaved(lambda: clock.passing(1000), variant, 4, "cpu", lambda: clock.now_ns, budget_s=1e-6)
    assert found.ratio == pytest.approx(2.0)
    assert (found.batch, found.rounds) == (4, ROUNDS_MIN)
    assert found.fp32_ms == pytest.approx(0.001)


def test_a_fast_model_ends_at_the_limit_of_rounds() -> None:
    clock = Clock()
    found = interleaved(
        lambda: clock.passing(1), lambda: clock.passing(1), 1, "cpu", lambda: clock.now_ns, budget_s=1.0
    )
    assert (found.rounds, found.ratio) == (ROUNDS_MAX, 1.0)
