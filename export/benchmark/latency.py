"""Times candidates relative to a baseline. They take turns, in a new order every round.

A folder may hold more than fits into memory, so candidates are timed in groups. The baseline is in every
group, so that ratios to it can be compared across groups and days.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import runtime
from ..specs import BATCH, sample
from ..timing import ROUNDS_MAX, ROUNDS_MIN, WARM_RUNS
from ..validation import SEED
from .evaluation import fixed_rows, specs_of_session

GROUP_FILES = 16
GROUP_BYTES = 1 << 30

Run = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """For a batch size: the median time, and the median of the rounds' ratios to the baseline."""

    batch: int
    p50_ms: float
    ratio: float
    rounds: int


def groups(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of files, in groups that fit into memory together."""
    found: list[list[int]] = []
    held = 0
    for index, nbytes in enumerate(sizes):
        if not found or len(found[-1]) >= GROUP_FILES or held + nbytes > GROUP_BYTES:
            found.append([])
            held = 0
        found[-1].append(index)
        held += nbytes
    return found


def run_of(session: Any, batch: int) -> Run:
    """A function that runs `batch` random rows, in one run or in as many as a fixed batch size takes.
    Integers are 0 and 1, which any embedding table contains. Raises ModelFailed if a first run fails.
    """
    fixed = fixed_rows(session)
    feeds = sample(specs_of_session(session), {} if fixed else {BATCH: batch}, SEED)
    times = -(-batch // fixed) if fixed else 1

    def run() -> None:
        for _ in range(times):
            runtime.run(session, feeds)

    for _ in range(WARM_RUNS):
        run()
    return run


def interleaved(
    baseline: Run,
    runs: Sequence[Run],
    batch: int,
    budget_s: float,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[Latency]:
    """The latencies of `runs`. `budget_s`: for each of them, and for the baseline."""
    order = [(-1, baseline), *enumerate(runs)]
    shuffle = random.Random(SEED).shuffle
    took: dict[int, list[int]] = {index: [] for index, _ in order}
    end_ns = clock_ns() + int(budget_s * 1e9) * len(order)
    for turn in range(ROUNDS_MAX):
        shuffle(order)  # or each would always run on what the same neighbour left in the caches
        for index, run in order:
            began_ns = clock_ns()
            run()
            took[index].append(max(1, clock_ns() - began_ns))
        if clock_ns() > end_ns and turn + 1 >= ROUNDS_MIN:
            break
    base = took[-1]
    return [
        Latency(
            batch,
            statistics.median(took[index]) / 1e6,
            statistics.median(one / other for one, other in zip(took[index], base, strict=True)),
            len(base),
        )
        for index in range(len(runs))
    ]
