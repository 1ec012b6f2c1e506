"""Never waiting beside deferring: the broker's policy and Symphony's (arXiv 2308.07470), on the same traces.

`python -m batchyard.tests.campaigns.deferring [--seconds S] [--seeds N] [--slo-ms MS] [--workers N]`. The real core,
in virtual time: Poisson arrivals over one model or twenty, every request with the same deadline; workers whose
runs take a time of their own and a time for each row. Load is a share of what full batches would allow.
The figures: requests answered in time, of all that were sent; the median latency of those; rows of a batch.
Ours twice: as the broker is, and without its admission, so that what is too late ends in the queue. Deferring
has none: a forecast of the queue would count what waits on purpose.

Deferring: an idle worker takes a batch only when one more row would make its earliest request late, or when
the batch is full. Of several, the one that has to start first. What can't be in time any more is not run.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path

from batchyard.broker import events as e
from batchyard.broker import policy
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.lanes import Lane
from batchyard.broker.policy import Batch
from batchyard.broker.requests import NEVER_NS
from batchyard.broker.serving import Worker
from batchyard.broker.taking import take_rows
from batchyard.transport import messages as m
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MS = 1_000_000
EPOCH = 7
MAX_BATCH = 32
SPEC = [TensorSpec("x", 1, ["n", 4])]
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)
SIDES = ((policy.DEFAULT, True), (policy.DEFAULT, False), ("deferring", False))  # and whether admission refuses
SHAPES = {"flat": (8.0, 0.1), "steep": (1.0, 0.5)}  # a run's own milliseconds, and those of each row


class Deferring:
    """For one class and one shape a model, which is what is played here."""

    def __init__(self, budgets_ns: Sequence[int]) -> None:
        self.lanes: dict[Lane, None] = {}

    def place_ns(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        return deadline_ns

    def add(self, lane: Lane) -> None:
        self.lanes[lane] = None

    def drop(self, lane: Lane) -> None:
        self.lanes.pop(lane, None)

    def next_batch(self, worker: Worker, now_ns: int) -> Batch | int:
        if worker.leases:
            return NEVER_NS
        due_ns = NEVER_NS
        best: tuple[int, Lane, int] | None = None
        for lane in list(self.lanes):
            if lane.is_empty():
                self.drop(lane)
                continue
            timing = worker.timing(lane)
            assert timing is not None
            for heap in lane.heaps:
                while heap and (heap[0][2].is_over or heap[0][0] < now_ns + timing.predict_ns(1)):
                    entry = heappop(heap)
                    if not entry[2].is_over:
                        heappush(lane.late, entry)  # it is too late, and runs no more: its deadline ends it
            heads = [heap[0][0] for heap in lane.heaps if heap]
            if not heads:
                continue
            rows = timing.rows_within(min(MAX_BATCH, lane.rows), min(heads) - now_ns)
            starts_ns = min(heads) - timing.predict_ns(rows)
            frontrun_ns = min(heads) - timing.predict_ns(rows + 1)
            if rows < MAX_BATCH and frontrun_ns > now_ns:
                due_ns = min(due_ns, frontrun_ns)
                continue
            if best is None or starts_ns < best[0]:
                best = starts_ns, lane, rows
        if best is None:
            return due_ns
        _, lane, rows = best
        parts = take_rows(lane, max(1, rows), now_ns, worker.timing(lane))
        if lane.is_empty():
            self.drop(lane)
        return (lane, parts) if parts else due_ns


class Play:
    """One trace under one policy."""

    def __init__(
        self, order: str, refuses: bool, models: int, workers: int, shape: tuple[float, float], slo_ns: int
    ) -> None:
        own_ms, row_ms = shape
        self.run_ns = {rows: int((own_ms + row_ms * rows) * MS) for rows in range(1, MAX_BATCH + 1)}
        self.names = [f"m{number}" for number in range(models)]
        configured = {name: ModelConfig(name, Path("/net.onnx"), MAX_BATCH) for name in self.names}
        self.core = Core(YardConfig(configured), EPOCH, 1, order)
        if not refuses:
            self.core.admission.check = lambda *arguments: None  # type: ignore[method-assign]
        self.slo_ns = slo_ns
        self.now_ns = 1_000 * MS
        self.events: list[tuple[int, int, int]] = []  # when, worker, batch
        self.came_ns: dict[int, int] = {}
        self.in_time_ns: list[int] = []
        self.batches: list[int] = []
        self.act(e.ArenaOpened(1, 1 << 30))
        self.act(e.ClientJoined(1, 1))
        for worker in range(1, workers + 1):
            self.act(e.WorkerJoined(worker, 5000 + worker))
            for name in self.names:
                revision = self.core.models[name].revision
                loaded = m.Loaded(name, revision, SPEC, SPEC, True, "", MAX_BATCH, "cpu", "", self.run_ns)
                self.act(e.WorkerSaid(worker, loaded))
        self.free_ns = dict.fromkeys(range(1, workers + 1), 0)

    def act(self, event: e.Event) -> None:
        for action in self.core.handle(event, self.now_ns):
            if isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                batch = action.message
                begins_ns = max(self.now_ns, self.free_ns[action.worker])
                ends_ns = self.free_ns[action.worker] = begins_ns + self.run_ns[batch.rows]
                self.batches.append(batch.rows)
                heappush(self.events, (ends_ns, action.worker, batch.batch))
            elif isinstance(action, e.ToClient) and isinstance(action.message, m.Completed):
                for number in action.message.requests:
                    took_ns = self.now_ns - self.came_ns[number]
                    if took_ns <= self.slo_ns:
                        self.in_time_ns.append(took_ns)

    def play(self, arrivals: list[tuple[int, int]]) -> None:
        """`arrivals`: nanoseconds from the start, and the model."""
        start_ns, index, number = self.now_ns, 0, 0
        while index < len(arrivals) or self.events:
            comes_ns = start_ns + arrivals[index][0] if index < len(arrivals) else NEVER_NS
            ends_ns = self.events[0][0] if self.events else NEVER_NS
            turn_ns = self.core.next_deadline_ns() or NEVER_NS
            self.now_ns = max(self.now_ns, min(comes_ns, ends_ns, turn_ns))
            if self.now_ns >= ends_ns:
                _, worker, batch = heappop(self.events)
                took_ns = self.run_ns[self.core.batches[batch].rows]
                self.act(e.WorkerSaid(worker, m.Done(EPOCH, batch, 0, took_ns, 0, 0, [])))
            elif self.now_ns >= comes_ns:
                number += 1
                self.came_ns[number] = self.now_ns
                name = self.names[arrivals[index][1]]
                index += 1
                submit = m.Submit(number, name, 2, self.slo_ns, [Tensor(1, [1, 4], 0)], [Slot(64, 16)])
                self.act(e.Submitted(1, 1, submit))
            self.act(e.Turn())


def trace(rate_per_s: float, models: int, seconds: float, seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + draw.expovariate(rate_per_s)) < seconds:
        arrivals.append((int(at_s * 1e9), draw.randrange(models)))
    return arrivals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of virtual time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slo-ms", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", nargs="*", choices=tuple(SHAPES), default=tuple(SHAPES), help="(both)")
    options = parser.parse_args()
    policy.POLICIES["deferring"] = Deferring
    slo_ns = int(options.slo_ms * MS)
    each = "ours | no admission | deferring"
    print(f"| run | models | load | in time: {each} | p50: {each} | rows: {each} |\n|{'---|' * 12}")
    for shape in options.runs:
        times = SHAPES[shape]
        capacity = options.workers * MAX_BATCH / (times[0] + times[1] * MAX_BATCH) * 1e3
        for models in (1, 20):
            for load in LOADS:
                cells: list[list[str]] = []
                for order, refuses in SIDES:
                    found: list[tuple[float, float, float]] = []
                    for seed in range(options.seeds):
                        arrivals = trace(load * capacity, models, options.seconds, seed)
                        play = Play(order, refuses, models, options.workers, times, slo_ns)
                        play.play(arrivals)
                        share = len(play.in_time_ns) / len(arrivals)
                        p50_ms = statistics.median(play.in_time_ns or [0]) / MS
                        found.append((share, p50_ms, statistics.fmean(play.batches)))
                    share, p50_ms, rows = (statistics.median(each) for each in zip(*found, strict=True))
                    cells.append([f"{share:.1%}", f"{p50_ms:.1f} ms", f"{rows:.1f}"])
                mixed = [text for texts in zip(*cells, strict=True) for text in texts]
                print(f"| {shape} | {models} | {load:g} | {' | '.join(mixed)} |", flush=True)


if __name__ == "__main__":
    main()
