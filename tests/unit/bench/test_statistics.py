"""Percentiles, pooling and formats, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from batchyard.bench import statistics as st
from batchyard.bench.compare import Comparison, Contender, interleave
from batchyard.bench.report import Finding, Line, table, write_json
from batchyard.bench.statistics import Measured, Spread


def test_percentiles_of_one_to_hundred_are_their_ranks() -> None:
    summary = st.summarize(range(100, 0, -1), elapsed_ns=2_000_000_000)
    assert (summary.p50_ns, summary.p90_ns, summary.p99_ns, summary.max_ns) == (50, 90, 99, 100)
    assert summary.count == 100
    assert summary.rate_per_s == 50


def test_a_percentile_is_a_value_that_occurred() -> None:
    assert st.percentile([40, 40, 90, 90], 50) == 40  # and not 65, which nobody saw
    assert st.percentile([7], 99) == 7


def test_nothing_measured_is_not_a_number_and_never_zero() -> None:
    summary = st.summarize([], elapsed_ns=1_000_000_000)
    assert summary.count == 0
    assert math.isnan(summary.p50_ns)
    assert st.format_time(summary.p50_ns) == "-"


def test_failed_requests_are_counted_by_class_with_their_first_text() -> None:
    measured = Measured()
    measured.failed(TimeoutError("first"))
    measured.failed(TimeoutError("second"))
    other = Measured([5], 10)
    other.failed(ValueError("third"))
    measured.add(other)
    assert measured.errors == {"TimeoutError": 2, "ValueError": 1}
    assert measured.error_texts == {"TimeoutError": "first", "ValueError": "third"}
    assert (measured.latencies_ns, measured.elapsed_ns) == ([5], 10)


def test_spread_is_median_lowest_and_highest_and_skips_what_is_no_number() -> None:
    assert st.spread([3.0, 1.0, math.nan, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert st.spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    assert math.isnan(st.spread([]).median)


def test_rows_per_second_counts_every_row_of_a_run() -> None:
    assert st.rows_per_s(Measured([1, 1], elapsed_ns=1_000_000_000, rows=8)) == 16


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (4_300, "4.30 us"),
        (61_440, "61.4 us"),
        (999_400, "999 us"),
        (999_600, "1.00 ms"),
        (24_100_000, "24.1 ms"),
        (1_200_000_000, "1.20 s"),
        (4_000_000_000_000, "4000 s"),
    ],
)
def test_times_have_three_digits_and_the_unit_that_fits(time_ns: int, text: str) -> None:
    assert st.format_time(time_ns) == text


def test_ratios_and_shares_show_their_extremes() -> None:
    assert st.format_ratio(Spread(1.237, 1.1, 1.408)) == "1.24x (1.10-1.41)"
    assert st.format_share(Spread(0.87, 0.81, 0.9)) == "87 % (81-90)"
    assert st.format_rate(18_532.4) == "18,532/s"


class _Recorded:
    """A contender that answers with a fixed latency per round, and notes when it was asked."""

    def __init__(self, name: str, p50s_ns: list[int], asked: list[str]) -> None:
        self.name, self._p50s_ns, self._asked = name, iter(p50s_ns), asked

    def __enter__(self):  # type: ignore[no-untyped-def]
        latency_ns = next(self._p50s_ns)

        def run(duration_s: float) -> Measured:
            self._asked.append(self.name)
            return Measured([latency_ns] * 3, int(duration_s * 1e9))

        return run

    def __exit__(self, *_: object) -> None:
        self._asked.append(f"-{self.name}")


def _compared(asked: list[str]) -> Comparison:
    # The machine turns twice as slow after the first round; the ratio does not care.
    a = _Recorded("a", [100, 200, 200], asked)
    b = _Recorded("b", [50, 100, 80], asked)
    return interleave([Contender("a", lambda: a), Contender("b", lambda: b)], 3, 1.0, slices=2)


def test_slices_alternate_and_nobody_is_always_first() -> None:
    asked: list[str] = []
    _compared(asked)
    assert asked[:6] == ["a", "b", "b", "a", "-b", "-a"]
    assert asked[6:10] == ["b", "a", "a", "b"]


def test_a_ratio_is_taken_inside_each_round() -> None:
    comparison = _compared([])
    assert comparison.ratio("a", "b", st.p50_ns) == Spread(2.0, 2.0, 2.5)
    assert comparison.summary("a").count == 18
    assert comparison.summary("a").p50_ns == 200


def test_the_table_names_what_failed_and_the_file_holds_no_nan(tmp_path: Path) -> None:
    finding = Finding("cnn", [Line("cnn", "1/s")], {"p50_ns": math.nan})
    measured = Measured()
    measured.failed(TimeoutError("no answer"))
    finding.count_errors(measured)
    assert "FAILED in cnn: TimeoutError: 1 requests, the first: no answer" in table([finding])
    write_json(tmp_path / "figures.json", {}, {}, [finding])
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["benchmarks"]["cnn"]["figures"] == {"p50_ns": None}
