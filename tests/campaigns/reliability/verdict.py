"""Figures, their bounds, and whether these are met: the table for people and the values for programs.

Pure: no clock, no process, no client. A bound is a demand on the product, so nothing here makes one
up, and a figure that could not be measured (NaN) never meets its bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.bench.statistics import format_time, percentile

HEADER = ("campaign", "figure", "seen", "bound", "met")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a campaign. `unit` is "" (a count), "ns", "bytes", "x" (a ratio), or "share".

    Without `at_most` and `at_least` it is shown, and nothing is demanded of it.
    """

    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


@dataclass(slots=True)
class Verdict:
    """What one campaign found. `error` is what kept it from its end, if anything did."""

    campaign: str
    figures: list[Figure] = field(default_factory=list)
    error: str = ""

    @property
    def kept(self) -> bool:
        """Whether every bound is met, and the campaign came to its end."""
        return not self.error and all(figure.met is not False for figure in self.figures)

    def values(self) -> dict[str, Any]:
        """Everything in it, for JSON."""
        figures = [
            {
                "what": figure.what,
                "value": figure.value,
                "unit": figure.unit or "count",
                "at_most": figure.at_most,
                "at_least": figure.at_least,
                "met": figure.met,
            }
            for figure in self.figures
        ]
        return {"kept": self.kept, "error": self.error, "figures": figures}


def times(
    what: str, times_ns: Sequence[int], percents: Sequence[int] = (50, 99), at_most_ns: float | None = None
) -> list[Figure]:
    """Nearest-rank percentiles of `times_ns`; 100 is the maximum. The bound is on the last of them."""
    ordered = sorted(times_ns)
    names = ["max" if percent == 100 else f"p{percent}" for percent in percents]
    bounds = [None] * (len(percents) - 1) + [at_most_ns]
    return [
        Figure(f"{what}: {name}", percentile(ordered, percent), "ns", at_most=bound)
        for name, percent, bound in zip(names, percents, bounds, strict=True)
    ]


def outcomes(what: str, counts: Mapping[str, int]) -> list[Figure]:
    """One figure for each way in which requests ended, the most frequent first."""
    return [Figure(f"{what}: {name}", count) for name, count in sorted(counts.items(), key=lambda kv: -kv[1])]


def slope_per_s(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of (time in s, value); NaN when fewer than two times are given.

    Of memory over a soak: a line through everything, since first and last are two chance readings.
    """
    count = len(points)
    if count < 2:
        return math.nan
    mean_s = math.fsum(at_s for at_s, _ in points) / count
    mean = math.fsum(value for _, value in points) / count
    spread = math.fsum((at_s - mean_s) ** 2 for at_s, _ in points)
    if not spread:
        return math.nan
    return math.fsum((at_s - mean_s) * (value - mean) for at_s, value in points) / spread


def shown(value: float, unit: str) -> str:
    """A value in its unit: `4.30 ms`, `1,024`, `1.5 MiB`, `0.98x`, `99.2 %`."""
    if not math.isfinite(value):
        return "-"
    if unit == "ns":
        return format_time(value) if value >= 0 else f"-{format_time(-value)}"
    if unit == "bytes":
        return f"{value:,.0f} B" if abs(value) < 10_000 else f"{value / MIB:,.2f} MiB"
    if unit == "x":
        return f"{value:.3f}x"
    if unit == "share":
        return f"{value * 100:.2f} %"
    return f"{value:,.0f}"


def table(verdicts: Iterable[Verdict]) -> str:
    """Every figure under one header; what went wrong is listed below, never left out."""
    rows = [HEADER]
    for verdict in verdicts:
        for index, figure in enumerate(verdict.figures):
            bounds = [
                f"{sign} {shown(bound, figure.unit)}"
                for sign, bound in (("<=", figure.at_most), (">=", figure.at_least))
                if bound is not None
            ]
            met = {True: "yes", False: "NO", None: ""}[figure.met]
            name = "" if index else verdict.campaign
            rows.append((name, figure.what, shown(figure.value, figure.unit), ", ".join(bounds), met))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"FAILED: {verdict.campaign}: {verdict.error}" for verdict in verdicts if verdict.error]
    return "\n".join(lines)
