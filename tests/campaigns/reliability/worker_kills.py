"""`worker-kills`: workers are killed under load; every request is answered all the same, once and rightly."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial

from . import field, proc
from .campaign import Campaign, Say, demand
from .ledger import OK, WRONG, Ledger, Sent
from .load import Load
from .verdict import Figure, outcomes, times

DEADLINE_S = 20.0  # long enough that only a loss is a loss
CALM_S = (0.02, 0.08)  # of load before a kill, drawn: kills fall anywhere in a batch


@dataclass(frozen=True, slots=True)
class Demand:
    kills: int = demand(300, "SIGKILLs of workers, one after the other")
    workers: int = demand(2, "workers of the yard")
    in_flight: int = demand(16, "requests under way")
    kills_per_yard: int = demand(8, "then a fresh yard: one whose workers die and die is patient with them")
    seed: int = demand(1, "of the moments of the kills")


def run(demand: Demand, say: Say) -> list[Figure]:
    ledger = Ledger()
    draws = random.Random(demand.seed)
    replied_ns: list[int] = []
    serving_ns: list[int] = []
    ran_again = off_books = 0
    while len(serving_ns) < demand.kills:
        before = ledger.outcomes[OK]
        with field.opened(demand.workers) as yard:
            with Load(yard.client, yard.truth, ledger, demand.in_flight, DEADLINE_S):
                for turn in range(min(demand.kills_per_yard, demand.kills - len(serving_ns))):
                    time.sleep(draws.uniform(*CALM_S))
                    pid = yard.worker_pids()[turn % demand.workers]
                    under_way = ledger.under_way()
                    killed_ns = proc.kill(pid)
                    proc.until(partial(_have_ended, under_way), DEADLINE_S, "replies")
                    replied_ns.append(max(sent.ended_ns for sent in under_way) - killed_ns)
                    serving_ns.append(yard.wait_whole(but=pid) - killed_ns)
            # Each result is one result at the broker, too: what was run twice was answered once.
            off_books += abs(yard.books().get(OK, 0) - (ledger.outcomes[OK] - before))
            ran_again += yard.yard.snapshot()["requeued"]
        say(f"{len(serving_ns)} of {demand.kills} kills, {ledger.sent:,} requests")
    return [
        Figure("kills", len(serving_ns), at_least=demand.kills),
        Figure("requests", ledger.sent),
        *outcomes("ended as", ledger.outcomes),
        Figure("lost: no outcome", len(ledger.under_way()), at_most=0),
        Figure("outcomes beyond the first", ledger.duplicated, at_most=0),
        Figure("results at the broker less results here", off_books, at_most=0),
        Figure("wrong answers", ledger.outcomes[WRONG], at_most=0),
        Figure("parts lent to a dead worker, lent again", ran_again),
        *times("kill to the last reply of what was under way", replied_ns),
        *times("kill to the worker serving again", serving_ns),
    ]


def _have_ended(requests: list[Sent]) -> bool:
    return all(sent.outcome for sent in requests)


CAMPAIGN = Campaign(
    "worker-kills", "workers die; nothing is lost, doubled, or wrong", Demand(), Demand(kills=2), run
)
