"""`overload`: twice what the yard can do, in every class; who is let in is served, and LOW stands back first.

The arrivals of each class come from a process of their own, so that no class's latency is another's
Python, and none is refused for what another's client has under way. Requests have many rows: a batch
takes milliseconds, and the yard's worker is the limit, not its clients.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from batchyard import BatchyardError
from batchyard.bench.loops import closed_loop
from batchyard.bench.statistics import percentile, quotient, rate_per_s

from . import crowd, field
from .campaign import Campaign, Say, demand
from .crowd import Stream
from .truth import MODEL
from .verdict import Figure, times

CLASSES = ("URGENT", "HIGH", "NORMAL", "LOW")
URGENT, LOW = 0, 3
SHARES = (0.02, 0.08, 0.40, 0.50)  # of the arrivals, by class
CAPACITY_IN_FLIGHT = 32
CAPACITY_SLICES = 8
OVERLOADED_MIN = 1.5  # or the campaign has not done what it says
URGENT_FACTOR_MAX = 3.0  # promised: p99 under overload, against p99 alone
IN_TIME_MIN = 0.99  # promised, of what is let in
REFUSED_NS = 5_000_000  # promised: a refusal is known so soon
LATE_NS = 1_000_000  # a send this much after its time counts as late


@dataclass(frozen=True, slots=True)
class Demand:
    seconds: float = demand(60.0, "of overload")
    alone_seconds: float = demand(20.0, "of URGENT arrivals alone, half before and half after")
    capacity_seconds: float = demand(4.0, "of a closed loop, to find the capacity")
    factor: float = demand(2.0, "times capacity arrive")
    rows: int = demand(
        12, "of each request: many, so that clients stay light; few, so that none is cut into parts"
    )
    max_batch: int = demand(32, "rows of a batch, at most")
    urgent_deadline_s: float = demand(0.05, "of each URGENT request")
    high_deadline_s: float = demand(0.2, "of each HIGH request")
    normal_deadline_s: float = demand(1.0, "of each NORMAL request")
    low_deadline_s: float = demand(5.0, "of each LOW request")
    seed: int = demand(1, "of the arrivals")

    @property
    def deadlines_s(self) -> tuple[float, ...]:
        """By class."""
        return self.urgent_deadline_s, self.high_deadline_s, self.normal_deadline_s, self.low_deadline_s


def run(demand: Demand, say: Say) -> list[Figure]:
    with field.opened(1, max_batch=demand.max_batch, rows=demand.rows) as yard:
        capacity_per_s = _capacity_per_s(yard, demand.capacity_seconds)
        rate = demand.factor * capacity_per_s
        say(f"capacity {capacity_per_s:,.0f} requests/s; {rate:,.0f}/s will come")
        streams = [
            Stream(priority, rate * share, deadline_s)
            for priority, (share, deadline_s) in enumerate(zip(SHARES, demand.deadlines_s, strict=True))
        ]
        alone = [[streams[URGENT]]]
        half_s = demand.alone_seconds / 2
        before = _arrivals(yard, alone, half_s, demand.seed + 100)
        say(f"overload for {demand.seconds:g} s")
        rows_before = yard.yard.snapshot()["rows"]
        records = _arrivals(yard, [[stream] for stream in streams], demand.seconds, demand.seed)
        rows_run = (
            yard.yard.snapshot()["rows"] - rows_before - demand.rows * len(streams)
        )  # each process asked once before
        say("URGENT alone, again")
        after = _arrivals(yard, alone, half_s, demand.seed + 200)
    urgent_alone = np.concatenate([before, after])
    arrivals_per_s = len(records) / demand.seconds
    served_per_s = _count(records, crowd.OK) / demand.seconds
    return [
        Figure("capacity, requests/s", capacity_per_s),
        Figure("served under overload, requests/s", served_per_s),
        # A capacity that was measured in a bad moment makes no overload, and then nothing below counts.
        Figure("arrivals / served", quotient(arrivals_per_s, served_per_s), "x", at_least=OVERLOADED_MIN),
        Figure("arrivals", len(records)),
        Figure(
            "arrivals over 1 ms late", _share(records["sent_ns"] - records["intended_ns"] > LATE_NS), "share"
        ),
        *_urgent(urgent_alone, records),
        *_let_in(records, demand.deadlines_s),
        Figure("rows run of what had expired before", _in_vain(records, rows_run, demand.rows), at_most=0),
        Figure("rows run of what expired meanwhile", _count(records, crowd.LATE_RUNNING) * demand.rows),
        *_refused(records),
    ]


def _capacity_per_s(yard: field.Field, seconds: float) -> float:
    """The best of several slices of a closed loop: what disturbs the machine only ever takes away."""
    inputs = list(yard.truth.inputs)
    slices = (
        closed_loop(yard.client, MODEL, inputs, CAPACITY_IN_FLIGHT, seconds / CAPACITY_SLICES)
        for _ in range(CAPACITY_SLICES)
    )
    return max(rate_per_s(measured) for measured in slices)


def _urgent(alone: Any, records: Any) -> list[Figure]:
    during = records[records["priority"] == URGENT]
    p99_alone_ns, p99_ns = (percentile(sorted(_latencies_ns(some)), 99) for some in (alone, during))
    return [
        Figure("URGENT alone: p99", p99_alone_ns, "ns"),
        *times("URGENT under overload", _latencies_ns(during)),
        Figure(
            "URGENT p99, overload / alone", quotient(p99_ns, p99_alone_ns), "x", at_most=URGENT_FACTOR_MAX
        ),
    ]


def _let_in(records: Any, deadlines_s: tuple[float, ...]) -> list[Figure]:
    """What was not refused: it has to be right, and in time."""
    admitted = records[records["outcome"] != crowd.REFUSED]
    figures = [
        Figure("no outcome", _count(records, crowd.NONE), at_most=0),
        Figure("wrong answers", _count(records, crowd.WRONG), at_most=0),
        Figure(
            "ended otherwise than by result, refusal, or deadline", _count(records, crowd.OTHER), at_most=0
        ),
        Figure(
            "admitted that met their deadlines",
            _share(_in_time(admitted, deadlines_s)),
            "share",
            at_least=IN_TIME_MIN,
        ),
    ]
    for priority, name in enumerate(CLASSES):
        mine = admitted[admitted["priority"] == priority]
        missed = int(len(mine) - _in_time(mine, deadlines_s).sum())
        figures.append(Figure(f"admitted {name}", len(mine)))
        bound = 0 if priority == LOW else None
        figures.append(Figure(f"admitted {name} that missed their deadlines", missed, at_most=bound))
    return figures


def _refused(records: Any) -> list[Figure]:
    refused = records[records["outcome"] == crowd.REFUSED]
    shares = [_share(records["outcome"][records["priority"] == one] == crowd.REFUSED) for one in range(4)]
    took_ns = [int(value) for value in refused["ended_ns"] - refused["sent_ns"]]
    p99, longest = times("refusal, from its call", took_ns, (99, 100), REFUSED_NS)
    return [
        *(Figure(f"refused, of {name}", share, "share") for name, share in zip(CLASSES, shares, strict=True)),
        Figure("refused: LOW less the next class", shares[LOW] - max(shares[:LOW]), "share", at_least=0),
        Figure(p99.what, p99.value, "ns", at_most=REFUSED_NS),
        longest,
    ]


def _in_time(records: Any, deadlines_s: tuple[float, ...]) -> Any:
    deadlines_ns = np.array([int(seconds * 1e9) for seconds in deadlines_s])[records["priority"]]
    return (records["outcome"] == crowd.OK) & (records["ended_ns"] - records["sent_ns"] <= deadlines_ns)


def _in_vain(records: Any, rows_run: int, rows: int) -> int:
    """Rows that ran beyond those of results and of requests whose deadline passed while they ran: an
    upper bound, since a request that was cut into parts may have run in part before it expired."""
    return max(0, rows_run - rows * (_count(records, crowd.OK) + _count(records, crowd.LATE_RUNNING)))


def _latencies_ns(records: Any) -> list[int]:
    """From the intended send to the outcome of what was let in: one that missed its deadline waited, too."""
    ended = records[(records["outcome"] != crowd.REFUSED) & (records["outcome"] != crowd.NONE)]
    return [int(value) for value in ended["ended_ns"] - ended["intended_ns"]]


def _count(records: Any, outcome: int) -> int:
    return int((records["outcome"] == outcome).sum())


def _share(mask: Any) -> float:
    return quotient(float(mask.sum()), len(mask))


# ---- processes ----------------------------------------------------------------------------------


def _arrivals(yard: field.Field, groups: list[list[Stream]], seconds: float, seed: int) -> Any:
    """One process for each group of streams, started at one moment; their records together."""
    with ExitStack() as stack:
        processes = []
        for number, streams in enumerate(groups):
            records = yard.truth_file.with_name(f"records{number}.npy")
            argv = [sys.executable, "-m", "batchyard.tests.campaigns.reliability.crowd", yard.yard.url]
            argv += [str(yard.truth_file), str(records), str(seconds), str(seed + 10 * number)]
            process = stack.enter_context(
                subprocess.Popen([*argv, *map(str, streams)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)  # on the way out: it has ended, or never will
            processes.append((process, records))
        for process, _ in processes:
            _pipe(process.stdout).readline()
        for process, _ in processes:
            _pipe(process.stdin).write(b"\n")
            _pipe(process.stdin).flush()
        for process, _ in processes:
            if process.wait() != 0:
                raise BatchyardError(f"a crowd of arrivals ended with status {process.returncode}")
        return np.concatenate([_read(records) for _, records in processes])


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _read(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


CAMPAIGN = Campaign(
    "overload",
    "twice the capacity; the admitted are in time, LOW is refused first",
    Demand(),
    Demand(seconds=2.0, alone_seconds=2.0, capacity_seconds=0.8),
    run,
)
