"""What it costs the broker that many shapes wait: one turn of its core, by lanes and workers.

`python -m batchyard.tests.campaigns.lanes [--lanes 1,8,58] [--workers 1,8]`. No sockets, no processes. Three
turns are timed: one after requests of all shapes have come at once, by request; one that lends batches to
all workers out of what has waited, by batch; and one in which every worker is busy and it is too early to
lend it the next batch. And the choice alone, by the heaps (broker/waiting.py) and by a scan of all lanes.
Times depend on the machine; the ratios tell.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from batchyard.broker import events as e
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.transport import messages as m
from batchyard.transport.tensors import Tensor, TensorSpec

MAX_BATCH = 8
EPOCH = 7
MS = 1_000_000
ROUNDS = 60
SCANS = 200
SPEC = [TensorSpec("x", 1, ["n", "t"])]
DONE = [m.ItemOutputs(index, []) for index in range(MAX_BATCH)]


class Yard:
    """`workers` workers of one model with a free axis, and requests of as many shapes as wanted."""

    def __init__(self, workers: int, run_ns: int = MS) -> None:
        self.core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"), MAX_BATCH)}), EPOCH, 1)
        self.now_ns = 1_000 * MS
        self.number = 0
        self.handle(e.ArenaOpened(1, 1 << 30))
        self.handle(e.ClientJoined(1, 1))
        times = {1: run_ns, MAX_BATCH: 2 * run_ns}
        for worker in range(1, workers + 1):
            self.handle(e.WorkerJoined(worker, 5000 + worker))
            loaded = m.Loaded("net", 1, SPEC, SPEC, True, "", MAX_BATCH, "cpu", "", times)
            self.handle(e.WorkerSaid(worker, loaded))

    def handle(self, event: e.Event) -> list[e.Action]:
        return self.core.handle(event, self.now_ns)

    def fill(self, lanes: int, each: int = 1) -> None:
        """So many shapes wait, `each` requests of each."""
        for _ in range(each):
            for width in range(1, lanes + 1):
                self.number += 1
                message = m.Submit(self.number, "net", self.number % 4, 0, [Tensor(1, [1, width], 0)], [])
                self.handle(e.Submitted(1, 1, message))

    def turn(self) -> tuple[int, list[tuple[int, m.Batch]]]:
        """(how long it took, what was lent to whom)."""
        began_ns = time.perf_counter_ns()
        actions = self.core.handle(e.Turn(), self.now_ns)
        took_ns = time.perf_counter_ns() - began_ns
        return took_ns, [(a.worker, a.message) for a in actions if type(a) is e.ToWorker]

    def done(self, lent: list[tuple[int, m.Batch]]) -> None:
        for worker, batch in lent:
            elsewhere = DONE[: len(batch.items)]
            self.handle(e.WorkerSaid(worker, m.Done(EPOCH, batch.batch, 1, MS, 1, 0, elsewhere)))
        self.core.counters.tally()


def coming(lanes: int, workers: int) -> float:
    """Microseconds for each request, of the turn after one of every shape has come."""
    yard = Yard(workers)
    times = []
    for _ in range(ROUNDS):
        yard.fill(lanes)
        took_ns, lent = yard.turn()
        times.append(took_ns / 1000 / lanes)
        while lent:
            yard.done(lent)
            lent = yard.turn()[1]
    return statistics.median(times)


def lending(lanes: int, workers: int) -> float:
    """Microseconds for each batch, of a turn in which every worker is idle and much waits."""
    yard = Yard(workers)
    yard.fill(lanes, each=2 * workers * MAX_BATCH * ROUNDS // lanes + 1)
    times, lent = [], yard.turn()[1]
    for _ in range(ROUNDS // 2):
        yard.done(lent)
        took_ns, lent = yard.turn()
        times.append(took_ns / 1000 / len(lent))
    return statistics.median(times)


def busy(lanes: int, workers: int) -> float:
    """Microseconds of a turn in which every worker runs a batch, and it is too early for the next one."""
    yard = Yard(workers, 500 * MS)
    yard.fill(lanes, each=4 * workers * MAX_BATCH // lanes + 2)
    yard.turn()
    assert all(len(worker.leases) == 1 for worker in yard.core.workers.values())
    return statistics.median(yard.turn()[0] / 1000 for _ in range(ROUNDS))


def choice(lanes: int) -> tuple[float, float]:
    """Microseconds of a choice by the heaps, and by looking at every lane."""
    from batchyard.broker.policy import choose
    from batchyard.tests.unit.broker.test_waiting import scanned

    yard = Yard(1)
    yard.fill(lanes, each=2)
    (worker,) = yard.core.workers.values()
    waiting = yard.core.policy
    assert choose(waiting, worker, yard.now_ns) == scanned(waiting.lanes, worker, yard.now_ns)
    found = []
    for choosing in (
        lambda: choose(waiting, worker, yard.now_ns),
        lambda: scanned(waiting.lanes, worker, yard.now_ns),
    ):
        times = []
        for _ in range(max(5, SCANS // lanes)):
            began_ns = time.perf_counter_ns()
            choosing()
            times.append((time.perf_counter_ns() - began_ns) / 1000)
        found.append(statistics.median(times))
    return found[0], found[1]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=numbers, default=[1, 8, 58, 1000])
    parser.add_argument("--workers", type=numbers, default=[1, 8])
    parser.add_argument("--turns-only", action="store_true", help="runs on a core that scans, too")
    options = parser.parse_args()
    print(f"{'lanes':>6} {'workers':>7} {'come, us':>9} {'lend, us':>9} {'all busy, us':>13}")
    for workers in options.workers:
        for lanes in options.lanes:
            found = coming(lanes, workers), lending(lanes, workers), busy(lanes, workers)
            print(f"{lanes:6} {workers:7} {found[0]:9.1f} {found[1]:9.1f} {found[2]:13.1f}")
    if options.turns_only:
        return
    print(f"\n{'lanes':>6} {'heaps, us':>10} {'scan, us':>10} {'scan / heaps':>13}")
    for lanes in options.lanes:
        heaps_us, scan_us = choice(lanes)
        print(f"{lanes:6} {heaps_us:10.2f} {scan_us:10.2f} {scan_us / heaps_us:13.1f}")


if __name__ == "__main__":
    main()
