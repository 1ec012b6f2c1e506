"""`cancels`: most of a long queue is cancelled; it is gone at once, and none of it reaches a worker.

The worker is stopped (SIGSTOP) while the queue is made and cancelled, so that what ran afterwards is known
row by row. It has to go on before the broker counts it as hung, after 5 s.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import field, proc
from .campaign import Campaign, Say, demand
from .ledger import WRONG, Ledger
from .load import submit
from .truth import INPUTS
from .verdict import Figure, outcomes, times

GONE_NS = 50_000_000  # promised: depth and bytes have fallen so soon after the last cancel
DEADLINE_S = 3600.0  # a stopped worker looks like a slow one: a near deadline would be refused
TIMEOUT_S = 30.0
LENT_ROWS_MAX = 64  # two batches of 32 may be with the worker already: these are never cancelled
ARENA_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Demand:
    requests: int = demand(10_000, "queued, of one row each")
    cancelled: int = demand(9_000, "of them, drawn")
    rounds: int = demand(5, "of all this")
    seed: int = demand(1, "of what is cancelled")


def run(demand: Demand, say: Say) -> list[Figure]:
    ledger = Ledger()
    draws = random.Random(demand.seed)
    fallen_ns: list[int] = []
    ran_in_vain = 0
    with field.opened(1, rows=1, arena_bytes=ARENA_BYTES) as yard:
        for number in range(demand.rounds):
            took_ns, in_vain = _round(yard, ledger, demand, draws)
            fallen_ns.append(took_ns)
            ran_in_vain += in_vain
            say(f"round {number + 1} of {demand.rounds}")
    kept = (demand.requests - demand.cancelled) * demand.rounds
    return [
        Figure("requests", ledger.sent),
        *outcomes("ended as", ledger.outcomes),
        Figure("lost: no outcome", len(ledger.under_way()), at_most=0),
        Figure("wrong answers", ledger.outcomes[WRONG], at_most=0),
        Figure("not cancelled, and right", ledger.outcomes["ok"], at_least=kept),
        Figure("cancelled rows that ran", ran_in_vain, at_most=0),
        *times("last cancel to depth and bytes of what remains", fallen_ns, (50, 100), GONE_NS),
    ]


def _round(yard: field.Field, ledger: Ledger, demand: Demand, draws: random.Random) -> tuple[int, int]:
    """(time until the queue had fallen, rows that ran beyond those that were wanted)."""
    (worker,) = yard.worker_pids()
    kept = demand.requests - demand.cancelled
    rows_before = yard.yard.snapshot()["rows"]
    proc.send(worker, signal.SIGSTOP)
    try:
        futures: list[Any] = [
            submit(yard.client, yard.truth, ledger, number % INPUTS, DEADLINE_S, _nothing)
            for number in range(demand.requests)
        ]
        proc.until(lambda: _depth(yard)[0] == demand.requests, TIMEOUT_S, "everything is queued")
        row_nbytes = _depth(yard)[1] // demand.requests
        for future in draws.sample(futures[LENT_ROWS_MAX:], demand.cancelled):
            future.cancel()
        cancelled_ns = time.monotonic_ns()
        fallen_ns = proc.until(lambda: _is_at_most(yard, kept, kept * row_nbytes), TIMEOUT_S, "it has fallen")
    finally:
        with suppress(ProcessLookupError):  # it was stopped for too long: why is what matters then
            proc.send(worker, signal.SIGCONT)
    proc.until(lambda: not ledger.under_way() and _depth(yard) == (0, 0), TIMEOUT_S, "what remains is done")
    return fallen_ns - cancelled_ns, max(0, yard.yard.snapshot()["rows"] - rows_before - kept)


def _depth(yard: field.Field) -> tuple[int, int]:
    """(rows, bytes) that are waiting or lent."""
    counters = yard.yard.snapshot()
    return counters["rows_under_way"], counters["bytes_under_way"]


def _is_at_most(yard: field.Field, rows: int, nbytes: int) -> bool:
    has_rows, has_nbytes = _depth(yard)
    return has_rows <= rows and has_nbytes <= nbytes


def _nothing() -> None:
    pass


CAMPAIGN = Campaign(
    "cancels",
    "9,000 of 10,000 are cancelled; they are gone at once",
    Demand(),
    Demand(requests=1_000, cancelled=900, rounds=1),
    run,
)
