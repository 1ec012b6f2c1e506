"""What a loop measured, and what may be said about it: percentiles, rates, ratios and their spread.

Pure: no clock, no socket, no client. Times are integers in nanoseconds until they are printed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Measured:
    """The raw outcome of one loop or slice: what succeeded, how long each took, and what failed.

    `elapsed_ns` is the time in which `latencies_ns` was collected, without warm-up and drain. Failed
    requests are in `errors` (by class) alone; they never improve a percentile.
    """

    latencies_ns: list[int] = field(default_factory=list)
    elapsed_ns: int = 0
    rows: int = 1  # rows of every single request or run
    errors: Counter[str] = field(default_factory=Counter)
    error_texts: dict[str, str] = field(default_factory=dict)  # the first text of each class
    late_sends: int = 0  # open loop: requests that left later than intended
    late_worst_ns: int = 0
    by_priority_ns: dict[str, list[int]] = field(default_factory=dict)

    def failed(self, error: BaseException) -> None:
        """Count a failed request by its class, and keep the first text of that class."""
        name = type(error).__name__
        self.errors[name] += 1
        self.error_texts.setdefault(name, str(error))

    def add(self, other: Measured) -> None:
        self.latencies_ns += other.latencies_ns
        self.elapsed_ns += other.elapsed_ns
        self.rows = other.rows
        self.errors.update(other.errors)
        for name, text in other.error_texts.items():
            self.error_texts.setdefault(name, text)
        self.late_sends += other.late_sends
        self.late_worst_ns = max(self.late_worst_ns, other.late_worst_ns)
        for name, latencies_ns in other.by_priority_ns.items():
            self.by_priority_ns.setdefault(name, []).extend(latencies_ns)


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of the requests that succeeded; all of them NaN when none did."""

    count: int
    p50_ns: float
    p90_ns: float
    p99_ns: float
    max_ns: float
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of per-round figures, with the lowest and the highest round."""

    median: float
    low: float
    high: float


def percentile(ordered: Sequence[int], percent: float) -> float:
    """The nearest-rank percentile of a sorted sequence: always a value that really occurred.

    No interpolation, because between two modes it would report a latency that nobody ever saw.
    """
    if not ordered:
        return math.nan
    rank = max(1, math.ceil(len(ordered) * percent / 100))
    return ordered[rank - 1]


def summarize(latencies_ns: Iterable[int], elapsed_ns: int) -> Summary:
    """Percentiles of `latencies_ns`, and their number per second of `elapsed_ns`."""
    ordered = sorted(latencies_ns)
    return Summary(
        count=len(ordered),
        p50_ns=percentile(ordered, 50),
        p90_ns=percentile(ordered, 90),
        p99_ns=percentile(ordered, 99),
        max_ns=percentile(ordered, 100),
        rate_per_s=len(ordered) * 1e9 / elapsed_ns if elapsed_ns else math.nan,
    )


def summary_of(measured: Measured) -> Summary:
    return summarize(measured.latencies_ns, measured.elapsed_ns)


def p50_ns(measured: Measured) -> float:
    return percentile(sorted(measured.latencies_ns), 50)


def rate_per_s(measured: Measured) -> float:
    return summary_of(measured).rate_per_s


def rows_per_s(measured: Measured) -> float:
    """Throughput where the two sides' requests have different numbers of rows."""
    return rate_per_s(measured) * measured.rows


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest of the values that are numbers; NaN when none is."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return Spread(math.nan, math.nan, math.nan)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Spread(median, ordered[0], ordered[-1])


def quotient(numerator: float, denominator: float) -> float:
    """`numerator / denominator`; NaN for a denominator of 0."""
    return numerator / denominator if denominator else math.nan


def format_time(time_ns: float) -> str:
    """Three significant digits in the unit that fits: `4.30 us`, `182 us`, `24.1 ms`, `1.20 s`."""
    if not math.isfinite(time_ns):
        return "-"
    for unit, unit_ns in (("us", 1e3), ("ms", 1e6), ("s", 1e9)):
        value = time_ns / unit_ns
        if value < 999.5 or unit == "s":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_rate(per_s: float) -> str:
    """`18,532/s`."""
    return f"{per_s:,.0f}/s" if math.isfinite(per_s) else "-"


def format_ratio(ratio: Spread) -> str:
    """`1.24x (1.10-1.41)`."""
    if not math.isfinite(ratio.median):
        return "-"
    return f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def format_share(ratio: Spread) -> str:
    """`87 % (81-90)`."""
    if not math.isfinite(ratio.median):
        return "-"
    return f"{ratio.median:.0%} ({ratio.low * 100:.0f}-{ratio.high * 100:.0f})".replace("%", " %")
