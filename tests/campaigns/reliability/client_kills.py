"""`client-kills`: client processes are killed with requests under way; nothing of theirs stays behind."""

from __future__ import annotations

from dataclasses import dataclass

from . import field, proc
from .campaign import Campaign, Say, demand
from .doomed import Footprint, nursery, settled
from .ledger import WRONG, Ledger
from .load import Load
from .verdict import Figure, outcomes, times

DEADLINE_S = 20.0
RECLAIM_TIMEOUT_S = 10.0
SAY_EVERY = 50


@dataclass(frozen=True, slots=True)
class Demand:
    kills: int = demand(300, "SIGKILLs of clients, one after the other")
    in_flight: int = demand(32, "requests that each of them has under way")
    bystander_in_flight: int = demand(2, "requests of a client that nobody kills")


def run(demand: Demand, say: Say) -> list[Figure]:
    ledger = Ledger()
    reclaimed_ns: list[int] = []
    with field.opened(1) as yard:
        with (
            Load(yard.client, yard.truth, ledger, demand.bystander_in_flight, DEADLINE_S),
            nursery(yard, demand.in_flight) as clients,
        ):
            proc.kill(clients.born())  # once, for what is opened on first use and kept
            before, descriptors_before = settled(yard, RECLAIM_TIMEOUT_S), proc.descriptors(yard.broker_pid)
            while len(reclaimed_ns) < demand.kills:
                killed_ns = proc.kill(clients.born())
                reclaimed_ns.append(before.wait_back(yard, RECLAIM_TIMEOUT_S) - killed_ns)
                if len(reclaimed_ns) % SAY_EVERY == 0:
                    say(f"{len(reclaimed_ns)} of {demand.kills} kills")
            left = before.over(Footprint(yard))
            descriptors_left = proc.descriptors(yard.broker_pid) - descriptors_before
        counters = yard.yard.snapshot()
    return [
        Figure("kills", len(reclaimed_ns), at_least=demand.kills),
        *(Figure(f"left: {what}", left.get(what, 0), at_most=0) for what in before.values),
        Figure("left: the broker's descriptors", descriptors_left, at_most=0),
        Figure("left: rows under way", counters["rows_under_way"], at_most=0),
        Figure("left: bytes under way", counters["bytes_under_way"], "bytes", at_most=0),
        *outcomes("the bystander's requests ended as", ledger.outcomes),
        Figure("the bystander's lost: no outcome", len(ledger.under_way()), at_most=0),
        Figure("the bystander's wrong answers", ledger.outcomes[WRONG], at_most=0),
        *times("kill to everything reclaimed", reclaimed_ns, (50, 99, 100)),
    ]


CAMPAIGN = Campaign(
    "client-kills", "clients die with requests under way; 0 bytes stay", Demand(), Demand(kills=5), run
)
