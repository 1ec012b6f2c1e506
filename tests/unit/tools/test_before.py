"""Two revisions' benchmarks side by side: which figures, and how they become ratios."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.tools.__main__ import main
from batchyard.tools.before import figures_of, table


def report(p50_ns: int, rate: float) -> dict[str, Any]:
    both = {"p50_ns": p50_ns, "rate_per_s": rate}
    pooled = {"batchyard": both, "bare onnxruntime": both}
    return {"benchmarks": {name: {"figures": {"pooled": pooled}} for name in ("tiny-latency", "cnn")}}


def test_of_each_benchmark_our_own_figure_counts() -> None:
    found = figures_of(report(150_000, 9_000.0))
    assert found == {"tiny-latency, batchyard: p50": 150_000, "cnn, batchyard: rate": 9_000.0}


def test_a_ratio_is_of_one_round_and_their_median_counts() -> None:
    rounds = [
        {"before": figures_of(report(200_000, 1_000)), "after": figures_of(report(after_ns, 2_000))}
        for after_ns in (100_000, 150_000, 400_000)
    ]
    _, latency, rate = table(rounds).splitlines()
    assert latency.split(maxsplit=3)[3].split() == ["200", "us", "150", "us", "0.75", "(0.50-2.00)"]
    assert rate.endswith("1,000/s       2,000/s  2.00 (2.00-2.00)")


def test_a_revision_that_is_none_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["before", "no-such-revision"]) == 1
    assert capsys.readouterr().err.startswith("measure: git worktree: fatal: ")
