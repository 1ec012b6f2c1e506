"""`swaps`: a model is swapped under load every two seconds; no request fails, and few wait longer.

Two sets of weights take turns. Every answer is compared with what the revision in its receipt should
say, so a request that was run by the wrong one, or by half of each, would be seen. The load arrives at a
fixed rate below what the yard can do: what a swap costs is then not hidden by a queue that is there anyway.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchyard.bench.loops import closed_loop
from batchyard.bench.statistics import percentile, rate_per_s

from .campaign import Campaign, Say, demand
from .field import Field, opened
from .truth import INPUTS, MODEL, Truth
from .verdict import Figure, outcomes

FACTOR_MAX = 1.5  # promised: p99 while it is swapped, against p99 while it is not
CAPACITY_S = 2.0
OTHER = "other.onnx"
OTHER_SCALE = 1.25  # of the last layer's weights: another answer to every input


@dataclass(frozen=True, slots=True)
class Demand:
    seconds: float = demand(60.0, "of load with swaps; as long without, half before and half after")
    every_s: float = demand(2.0, "one swap")
    share: float = demand(0.4, "of the measured capacity arrive")
    threads: int = demand(4, "that call `request`, one after the other")
    workers: int = demand(2, "workers of the yard")


def run(demand: Demand, say: Say) -> list[Figure]:
    with opened(demand.workers, rows=1) as field:
        truths = (field.truth, _other(field))
        inputs = list(field.truth.inputs)
        capacity = rate_per_s(closed_loop(field.client, MODEL, inputs, demand.threads, CAPACITY_S))
        rate = capacity * demand.share / demand.threads
        load = _Load(field, truths, demand.threads, rate)
        phases: dict[bool, list[int]] = {False: [], True: []}
        differences = []
        with load:
            for swapping, seconds in ((False, 0.5), (True, 1.0), (False, 0.5)):
                load.latencies_ns = phases[swapping]
                began_s = time.monotonic()
                if swapping:
                    for number in range(int(demand.seconds / demand.every_s)):
                        time.sleep(max(0.0, began_s + number * demand.every_s - time.monotonic()))
                        file = (OTHER, f"{MODEL}.onnx")[number % 2]
                        changed = field.yard.operator.swap(MODEL, file)
                        differences.append(changed.difference or 0.0)
                time.sleep(max(0.0, began_s + seconds * demand.seconds - time.monotonic()))
                say(f"{'swapped' if swapping else 'steady'}: {len(phases[swapping]):,} requests")
    steady_ns, swapped_ns = (percentile(sorted(phases[key]), 99) for key in (False, True))
    return [
        Figure("capacity, requests/s", capacity),
        Figure("arrivals, requests/s", rate * demand.threads),
        Figure("swaps", len(differences), at_least=int(demand.seconds / demand.every_s)),
        Figure("a canary's answers differ by", max(differences, default=0.0)),
        Figure("requests", sum(load.ended.values())),
        *outcomes("ended as", load.ended),
        Figure("requests that failed", sum(load.ended.values()) - load.ended["ok"], at_most=0),
        Figure("steady: p50", percentile(sorted(phases[False]), 50), "ns"),
        Figure("steady: p99", steady_ns, "ns"),
        Figure("swapped: p50", percentile(sorted(phases[True]), 50), "ns"),
        Figure("swapped: p99", swapped_ns, "ns"),
        Figure("p99, swapped / steady", swapped_ns / steady_ns, "x", at_most=FACTOR_MAX),
    ]


def _other(field: Field) -> Truth:
    """Other weights beside the model's file, and the right answers of that model."""
    import onnx
    from onnx import numpy_helper

    path = field.truth_file.with_name(f"{MODEL}.onnx")
    model = onnx.load(path)
    (matrix,) = [weight for weight in model.graph.initializer if weight.name == "matrix"]
    scaled = numpy_helper.to_array(matrix) * OTHER_SCALE
    matrix.CopyFrom(numpy_helper.from_array(scaled.astype("float32"), matrix.name))
    other: Path = path.with_name(OTHER)
    onnx.save_model(model, other)
    return Truth.of(other, 1)


class _Load:
    """Threads that ask at a fixed rate; a context manager. `latencies_ns` is where they write."""

    def __init__(self, field: Field, truths: tuple[Truth, Truth], threads: int, rate_per_s: float) -> None:
        self.ended: Counter[str] = Counter()
        self.latencies_ns: list[int] = []
        self._client = field.client
        self._truths = truths
        self._gap_s = 1 / rate_per_s
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"load.{number}")
            for number in range(threads)
        ]

    def _run(self, number: int) -> None:
        due_s = time.monotonic() + self._gap_s * number / len(self._threads)
        while not self._stopping.is_set():
            due_s = max(due_s + self._gap_s, time.monotonic() - self._gap_s)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))
            number = (number + 1) % INPUTS
            began_ns = time.monotonic_ns()
            outcome = self._ask(number)
            self.latencies_ns.append(time.monotonic_ns() - began_ns)
            self.ended[outcome] += 1

    def _ask(self, index: int) -> str:
        try:
            reply: Any = self._client.request(MODEL, self._truths[0].inputs[index])
        except Exception as error:
            return type(error).__name__
        # Revision 1 is the first file, 2 the other one, and so on: every swap succeeds, or has raised.
        truth = self._truths[(reply.receipt.revision - 1) % 2]
        return "ok" if truth.right(index, reply.value) else "wrong"

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


CAMPAIGN = Campaign(
    "swaps",
    "a model is swapped every 2 s; no request fails, and few wait longer",
    Demand(),
    Demand(seconds=4.0, every_s=0.5),
    run,
)
