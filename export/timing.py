"""Times a file against fp32. The runs alternate, so that a busy machine slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_RUNS = 3
ROUNDS_MIN = 9
ROUNDS_MAX = 200
BUDGET_S = 1.0  # per batch size: two of them and four variants stay under ten seconds


@dataclass(frozen=True)
class Timing:
    """Medians of one batch size on one provider; `ratio` is the median of the pairs' ratios."""

    batch: int
    provider: str
    fp32_ms: float
    ms: float
    ratio: float
    rounds: int


def interleaved(
    fp32: Callable[[], object],
    variant: Callable[[], object],
    batch: int,
    provider: str,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    budget_s: float = BUDGET_S,
) -> Timing:
    """Run both in turn, each first in every other round, for `budget_s` and at least ROUNDS_MIN rounds."""
    for _ in range(WARM_RUNS):
        fp32()
        variant()
    took: dict[Callable[[], object], list[int]] = {fp32: [], variant: []}
    end_ns = clock_ns() + int(budget_s * 1e9)
    for turn in range(ROUNDS_MAX):
        for run in (fp32, variant) if turn % 2 else (variant, fp32):
            began_ns = clock_ns()
            run()
            took[run].append(max(1, clock_ns() - began_ns))
        if clock_ns() > end_ns and turn + 1 >= ROUNDS_MIN:
            break
    base, mine = took[fp32], took[variant]
    ratio = statistics.median(one / other for one, other in zip(mine, base, strict=True))
    return Timing(
        batch, provider, statistics.median(base) / 1e6, statistics.median(mine) / 1e6, ratio, len(base)
    )
