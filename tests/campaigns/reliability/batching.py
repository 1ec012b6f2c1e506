"""`batching`: automatic batches against the best fixed maximum, and a lone client against no batching at all.

Automatic is the default maximum: the yard takes what there is whenever a worker is free. A fixed maximum is
what an operator would tune by hand; the sweep finds the best one for this machine, and the two then run
side by side, round by round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from batchyard.bench.compare import Comparison, Contender, Slice, interleave
from batchyard.bench.loops import closed_loop
from batchyard.bench.models import sample
from batchyard.bench.statistics import p50_ns, rate_per_s
from batchyard.bench.target import Targets

from .campaign import Campaign, Say, demand
from .truth import INPUTS, MODEL
from .verdict import Figure

AUTOMATIC = 32  # rows: what `serve` takes by default
FIXED = (1, 2, 4, 8, 16, 32)  # rows
RATIO_MIN = 0.97  # promised, of the best fixed maximum's throughput
ALONE_MAX = 1.05  # "no added delay", and what two equal yards may differ by


@dataclass(frozen=True, slots=True)
class Demand:
    rounds: int = demand(9, "of each comparison; every round has fresh processes")
    sweep_rounds: int = demand(3, "of the sweep over fixed maxima")
    seconds: float = demand(2.0, "of each contender in a round")
    in_flight: int = demand(64, "requests of one row under way")


def run(demand: Demand, say: Say) -> list[Figure]:
    sweep = _compare([f"max_batch {rows}" for rows in FIXED], FIXED, demand, demand.sweep_rounds, say)
    best = max(FIXED, key=lambda rows: sweep.summary(f"max_batch {rows}").rate_per_s)
    say(f"best fixed maximum: {best}")
    duel = _compare(["automatic", "best"], (AUTOMATIC, best), demand, demand.rounds, say)
    alone = _compare(["automatic", "single"], (AUTOMATIC, 1), demand, demand.rounds, say, in_flight=1)
    ratio = duel.ratio("automatic", "best", rate_per_s)
    delay = alone.ratio("automatic", "single", p50_ns)
    failed = sum(
        sum(measured.errors.values()) for one in (sweep, duel, alone) for measured in one.pooled.values()
    )
    return [
        Figure("requests that failed", failed, at_most=0),
        *(
            Figure(f"sweep: requests/s with max_batch {rows}", sweep.summary(f"max_batch {rows}").rate_per_s)
            for rows in FIXED
        ),
        Figure("best fixed max_batch", best),
        Figure("requests/s, automatic", duel.summary("automatic").rate_per_s),
        Figure("requests/s, best fixed", duel.summary("best").rate_per_s),
        Figure("automatic / best fixed: median of rounds", ratio.median, "x", at_least=RATIO_MIN),
        Figure("automatic / best fixed: lowest round", ratio.low, "x"),
        Figure("automatic / best fixed: highest round", ratio.high, "x"),
        Figure("alone: p50, automatic", alone.summary("automatic").p50_ns, "ns"),
        Figure("alone: p50, max_batch 1", alone.summary("single").p50_ns, "ns"),
        Figure("alone: automatic / max_batch 1: median of rounds", delay.median, "x", at_most=ALONE_MAX),
    ]


def _compare(
    names: list[str],
    maxima: tuple[int, ...],
    demand: Demand,
    rounds: int,
    say: Say,
    in_flight: int | None = None,
) -> Comparison:
    window = in_flight or demand.in_flight
    contenders = [
        Contender(name, partial(_open, max_batch, window))
        for name, max_batch in zip(names, maxima, strict=True)
    ]
    return interleave(contenders, rounds, demand.seconds, say=lambda line: say(f"{', '.join(names)}: {line}"))


@contextmanager
def _open(max_batch: int, in_flight: int) -> Iterator[Slice]:
    inputs = [sample(MODEL, 1, seed) for seed in range(INPUTS)]
    with Targets().open(MODEL, max_batch) as target:
        target.client.infer(MODEL, inputs[0])
        yield partial(closed_loop, target.client, MODEL, inputs, in_flight)


CAMPAIGN = Campaign(
    "batching",
    "automatic batches against the best fixed maximum",
    Demand(),
    Demand(rounds=1, sweep_rounds=1, seconds=0.2),
    run,
)
