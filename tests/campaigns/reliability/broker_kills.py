"""`broker-kills`: the broker is killed under load; every request ends in time, and the yard comes back."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass

from . import field, proc
from .campaign import Campaign, Say, demand
from .ledger import WRONG, Ledger, Sent
from .load import Load
from .verdict import Figure, outcomes, times

LATE_NS = 50_000_000  # promised: an outcome by the deadline and this
CALM_S = (0.1, 0.2)  # of load before a kill, drawn
BACK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Demand:
    kills: int = demand(30, "SIGKILLs of the broker, one after the other")
    workers: int = demand(2, "workers of the yard")
    in_flight: int = demand(16, "requests under way")
    deadline_s: float = demand(2.0, "of each request")
    kills_per_yard: int = demand(3, "then a fresh yard: one whose broker dies and dies is patient with it")
    seed: int = demand(1, "of the moments of the kills")


def run(demand: Demand, say: Say) -> list[Figure]:
    ledger = Ledger()
    draws = random.Random(demand.seed)
    serving_ns: list[int] = []
    struck: list[Sent] = []  # under way when a broker died
    while len(serving_ns) < demand.kills:
        with (
            field.opened(demand.workers) as yard,
            Load(yard.client, yard.truth, ledger, demand.in_flight, demand.deadline_s),
        ):
            for _ in range(min(demand.kills_per_yard, demand.kills - len(serving_ns))):
                time.sleep(draws.uniform(*CALM_S))
                struck += ledger.under_way()
                killed_ns = proc.kill(yard.broker_pid)
                ledger.mark(killed_ns)
                proc.until(lambda: bool(ledger.answered_ns), BACK_TIMEOUT_S, "an answer after the kill")
                serving_ns.append(ledger.answered_ns - killed_ns)
                yard.yard.wait_for_broker(BACK_TIMEOUT_S)
                yard.wait_whole()
        say(f"{len(serving_ns)} of {demand.kills} kills, {ledger.sent:,} requests")
    return [
        Figure("kills", len(serving_ns), at_least=demand.kills),
        Figure("requests", ledger.sent),
        *outcomes("ended as", ledger.outcomes),
        *outcomes("under way at a kill, ended as", Counter(sent.outcome for sent in struck if sent.outcome)),
        Figure("lost: no outcome", len(ledger.under_way()), at_most=0),
        Figure("outcomes beyond the first", ledger.duplicated, at_most=0),
        Figure("wrong answers", ledger.outcomes[WRONG], at_most=0),
        Figure("latest outcome after its deadline", ledger.late_worst_ns, "ns", at_most=LATE_NS),
        *times("kill to the first answer of a request sent after it", serving_ns, (50, 100)),
    ]


CAMPAIGN = Campaign(
    "broker-kills", "the broker dies; every request ends in time", Demand(), Demand(kills=1), run
)
