"""Rates that are measured in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Way = Callable[[], int]  # does a piece of work, and says how many rows it was


def rates(ways: Mapping[str, Way], rounds: int, seconds: float) -> dict[str, float]:
    """Rows a second of each way: the median of `rounds` turns of so many seconds, after one piece of
    work that does not count."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started_s = time.perf_counter()
            rows = 0
            while (took_s := time.perf_counter() - started_s) < seconds:
                rows += way()
            found[name].append(rows / took_s)
    return {name: median(turns) for name, turns in found.items()}


def table(measured: Mapping[str, float], against: str) -> str:
    """The rates, each beside its ratio to one of them."""
    wide = max(map(len, measured))
    return "\n".join(
        f"  {name:{wide}}  {rate:9,.0f} rows/s  {rate / measured[against]:6.2f}"
        for name, rate in measured.items()
    )
