"""`soak`: most of the capacity, and a kill every few seconds: a worker, a client, the broker, in turn.

Memory is sampled all the while. A process that was killed begins anew, so a slope is taken within lives
that were long enough, each from its own start: the first seconds are warm-up and belong to nobody.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from dataclasses import field as value_of

from batchyard.bench.loops import closed_loop
from batchyard.bench.statistics import rate_per_s

from . import proc
from .campaign import Campaign, Say, demand
from .doomed import Footprint, Nursery, nursery, settled
from .field import Field, opened
from .ledger import WRONG, Ledger
from .load import Load
from .truth import MODEL
from .verdict import Figure, outcomes, slope_per_s

DEADLINE_S = 5.0
IN_FLIGHT_MAX = 256  # an open loop that falls behind by so many waits
CAPACITY_IN_FLIGHT = 32
CAPACITY_S = 2.0
DOOMED_IN_FLIGHT = 4
LATE_NS = 50_000_000  # promised: an outcome by the deadline and this
SAMPLE_S = 0.5
WARM_UP_S = 5.0
BACK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Demand:
    seconds: float = demand(1200.0, "of load")
    kill_every_s: float = demand(10.0, "one kill: worker, client, broker, in turn")
    share: float = demand(0.8, "of the measured capacity arrive")
    workers: int = demand(2, "workers of the yard")


@dataclass(slots=True)
class Lives:
    """Resident memory of one kind of process over its lives: pid -> [(time in s, bytes)]. Pages of
    arenas count in every process that has touched them."""

    samples: dict[int, list[tuple[float, float]]] = value_of(default_factory=dict)

    def sample(self, pid: int, now_s: float) -> None:
        """Look at a process; nothing when it is gone."""
        if nbytes := proc.rss_bytes(pid):
            self.samples.setdefault(pid, []).append((now_s, nbytes))

    def slope_per_s(self) -> float:
        """Bytes per second within lives, those that were warm pooled: each about its own mean."""
        pooled: list[tuple[float, float]] = []
        for life in self.samples.values():
            warm = [(at_s, nbytes) for at_s, nbytes in life if at_s >= life[0][0] + WARM_UP_S]
            if warm:
                mean_s, mean = (sum(column) / len(warm) for column in zip(*warm, strict=True))
                pooled += [(at_s - mean_s, nbytes - mean) for at_s, nbytes in warm]
        return slope_per_s(pooled)


def run(demand: Demand, say: Say) -> list[Figure]:
    ledger = Ledger()
    names_before = proc.segments_named()
    lives = {"broker": Lives(), "workers": Lives(), "this client": Lives()}
    with opened(demand.workers) as yard:
        rate = demand.share * _capacity_per_s(yard)
        say(f"{rate:,.0f} requests/s for {demand.seconds:g} s")
        before, own_before = _at_rest(yard), proc.descriptors(os.getpid())
        broker_before = proc.descriptors(yard.broker_pid)
        with (
            yard.yard.client() as client,
            Load(client, yard.truth, ledger, IN_FLIGHT_MAX, DEADLINE_S, rate),
            nursery(yard, DOOMED_IN_FLIGHT) as clients,
        ):
            kills = _kill_in_turn(yard, clients, demand, lives, say)
        left = before.over(_at_rest(yard))
        broker_left = proc.descriptors(yard.broker_pid) - broker_before
        own_held = proc.descriptors(os.getpid()) - own_before
        gc.collect()
        own_left = proc.descriptors(os.getpid()) - own_before
    return [
        *(Figure(f"kills: {kind}", count) for kind, count in kills.items()),
        Figure("requests", ledger.sent),
        *outcomes("ended as", ledger.outcomes),
        Figure("lost: no outcome", len(ledger.under_way()), at_most=0),
        Figure("outcomes beyond the first", ledger.duplicated, at_most=0),
        Figure("wrong answers", ledger.outcomes[WRONG], at_most=0),
        Figure("latest outcome after its deadline", ledger.late_worst_ns, "ns", at_most=LATE_NS),
        *(Figure(f"left: {what}", left.get(what, 0), at_most=0) for what in before.values),
        Figure("left: the broker's descriptors", broker_left, at_most=0),
        Figure("held until Python collects garbage: this client's descriptors", own_held - own_left),
        Figure("left: this client's descriptors", own_left, at_most=0),
        Figure("left: named segments", len(proc.segments_named() - names_before), at_most=0),
        *(
            Figure(f"memory per hour: {kind}", life.slope_per_s() * 3600, "bytes")
            for kind, life in lives.items()
        ),
    ]


def _kill_in_turn(
    yard: Field, clients: Nursery, demand: Demand, lives: dict[str, Lives], say: Say
) -> dict[str, int]:
    """Until the time is over; how many of each kind were killed."""
    kills = dict.fromkeys(("worker", "client", "broker"), 0)
    end_s = time.monotonic() + demand.seconds
    due_s = time.monotonic() + demand.kill_every_s
    client = clients.born()
    while (now_s := time.monotonic()) < end_s:
        workers = yard.worker_pids()
        lives["broker"].sample(yard.broker_pid, now_s)
        lives["this client"].sample(os.getpid(), now_s)
        for pid in workers:
            lives["workers"].sample(pid, now_s)
        if now_s >= due_s:
            kind = min(kills, key=lambda kind: kills[kind])
            if kind == "client":
                proc.kill(client)
                client = clients.born()
            else:
                proc.kill(workers[0] if kind == "worker" else yard.broker_pid)
            kills[kind] += 1
            say(f"killed: {', '.join(f'{count} {kind}s' for kind, count in kills.items())}")
            due_s += demand.kill_every_s
            proc.until(lambda: _is_up(yard), BACK_TIMEOUT_S, "the yard serves again")
        time.sleep(SAMPLE_S)
    return kills


def _capacity_per_s(yard: Field) -> float:
    """By a client of its own, as the load has: it is gone before the baseline is taken."""
    with yard.yard.client() as client:
        closed = closed_loop(client, MODEL, list(yard.truth.inputs), CAPACITY_IN_FLIGHT, CAPACITY_S)
    return rate_per_s(closed)


def _is_up(yard: Field) -> bool:
    """Whether every worker serves; a broker that is away is an answer, too."""
    try:
        return yard.is_whole()
    except OSError:  # BrokerLost is a ConnectionError, DeadlineExceeded a TimeoutError
        return False


def _at_rest(yard: Field) -> Footprint:
    """The footprint when nothing is under way."""
    requests = yard.workers * 4  # so that every worker has met this client's arena
    for future in [yard.client.submit(MODEL, x) for x in yard.truth.inputs[:requests]]:
        future.result()
    return settled(yard, BACK_TIMEOUT_S)


CAMPAIGN = Campaign(
    "soak",
    "load and a kill every 10 s; memory and descriptors stay where they were",
    Demand(),
    Demand(seconds=7.0, kill_every_s=2.0),
    run,
)
