"""What a request costs the broker as a yard grows: more clients, more that waits, more models, more workers.

`python -m batchyard.tests.campaigns.scale [--requests N] [--rounds N] [--plot scale.svg]`. The core alone, with
messages encoded and decoded as on the wire: no sockets, no processes. What is held steady waits all the time: as
a batch is done, as many requests come. Processor time, the best of the rounds, in turns; the ratio is to the
first size of its kind. And the memory of a request that waits, and of a client. The last line is one turn with
58 shapes waiting and 8 idle workers.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker import events as e
from batchyard.broker.config import Limits, ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.tests.campaigns import lanes as turns
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.extras import code
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MAX_BATCH = 8
EPOCH = 7
MS = 1_000_000
SPEC = [TensorSpec("x", 1, ["n", 4])]
SIZES = {
    "clients": (1, 4, 16, 64, 256),
    "queued": (10, 100, 1_000, 10_000, 100_000),
    "models": (1, 8, 50, 200),
    "workers": (1, 4, 8, 32),
}
MEMORY_OF = 10_000
GC_THRESHOLD = (20_000, 125, 1000)  # as broker/__main__.py has it
LIMIT = 1 << 30  # beyond what is measured


@dataclass(frozen=True)
class Size:
    clients: int = 4
    queued: int = 64
    models: int = 1
    workers: int = 2

    def __str__(self) -> str:
        return f"{self.clients} clients, {self.queued} queued, {self.models} models, {self.workers} workers"


class Yard:
    def __init__(self, size: Size) -> None:
        self.size = size
        names = [f"m{number}" for number in range(size.models)]
        models = {name: ModelConfig(name, Path("/net.onnx"), MAX_BATCH) for name in names}
        limits = Limits(LIMIT, LIMIT, LIMIT, LIMIT, LIMIT)
        self.core = Core(YardConfig(models, limits), EPOCH, 1)
        self.names = names
        self.now_ns = 1_000 * MS
        self.number = 0
        for client in range(size.clients):
            self.core.handle(e.ArenaOpened(client, 1 << 30), self.now_ns)
            self.core.handle(e.ClientJoined(client, client), self.now_ns)
        for worker in range(size.workers):
            self.core.handle(e.WorkerJoined(worker, 5000 + worker), self.now_ns)
            for name in names:
                revision = self.core.models[name].revision
                times = {1: MS, MAX_BATCH: 2 * MS}
                loaded = m.Loaded(name, revision, SPEC, SPEC, True, "", MAX_BATCH, "cpu", "", times)
                self.core.handle(e.WorkerSaid(worker, loaded), self.now_ns)
        self.lent: list[tuple[int, int, int]] = []  # worker, batch, its rows
        self.come(size.queued + size.workers * MAX_BATCH)
        self.turn()

    def come(self, count: int) -> None:
        """So many requests, as their messages: one each, of all clients and models in turn."""
        decode = codec.client_to_broker.decode
        for _ in range(count):
            number = self.number = self.number + 1
            client = number % self.size.clients
            # Models change with every round over the clients, and classes with every round over both.
            name = self.names[number // self.size.clients % self.size.models]
            submit = m.Submit(number, name, number % 4, 0, [Tensor(1, [1, 4], 0)], [Slot(64, 16)])
            for message in decode(codec.encode([submit])):
                self.core.handle(e.Submitted(client, client, message), self.now_ns)

    def turn(self) -> None:
        for action in self.core.handle(e.Turn(), self.now_ns):
            if isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                codec.encode([action.message])
                self.lent.append((action.worker, action.message.batch, action.message.rows))

    def step(self) -> int:
        """The oldest batch is done, its clients send again, and its worker is lent another. Its requests."""
        worker, batch, rows = self.lent.pop(0)
        self.now_ns += MS
        for message in codec.worker_to_broker.decode(codec.encode([m.Done(EPOCH, batch, 1, MS, 1, 0, [])])):
            answers = self.core.handle(e.WorkerSaid(worker, message), self.now_ns)
        codec.encode([answer.message for answer in answers if isinstance(answer, e.ToClient)])
        self.come(rows)
        self.turn()
        self.core.counters.tally()
        self.core.next_deadline_ns()
        return rows

    def cost_us(self, requests: int) -> float:
        """Processor time of one request."""
        began_ns, done = time.process_time_ns(), 0
        while done < requests:
            done += self.step()
        return (time.process_time_ns() - began_ns) / 1000 / done


def allocated(make: Callable[[], object]) -> int:
    """The bytes that are there after it, and were not before."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    nbytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return nbytes


def memory() -> tuple[float, float]:
    """Bytes of a request that waits, and of a client that has nothing under way."""
    base = allocated(lambda: Yard(Size()))
    queued = allocated(lambda: Yard(Size(queued=64 + MEMORY_OF)))
    clients = allocated(lambda: Yard(Size(clients=4 + MEMORY_OF)))
    return (queued - base) / MEMORY_OF, (clients - base) / MEMORY_OF


def costs(requests: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of a request, by kind, in the order of SIZES."""
    found: dict[str, list[float]] = {kind: [float("inf")] * len(sizes) for kind, sizes in SIZES.items()}
    for _ in range(rounds):
        for kind, sizes in SIZES.items():
            for index, size in enumerate(sizes):
                yard = Yard(Size(**{kind: size}))
                yard.cost_us(requests // 4)
                found[kind][index] = min(found[kind][index], yard.cost_us(requests))
    return found


def plot(found: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for place, (kind, sizes) in enumerate(SIZES.items(), 1):
        axes = figure.add_subplot(1, len(SIZES), place)
        axes.semilogx(sizes, found[kind], marker="o")
        axes.set_ylim(0, 2.2 * max(each[0] for each in found.values()))
        axes.set_xlabel(kind)
        axes.grid(alpha=0.3)
        if place == 1:
            axes.set_ylabel("broker, us a request")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    found = costs(options.requests, options.rounds)
    print(f"batchyard {code()}; otherwise {Size()}")
    print(f"\n| {'kind':<8} | {'size':>7} | us a request | ratio |\n|---|---|---|---|")
    for kind, sizes in SIZES.items():
        for size, cost_us in zip(sizes, found[kind], strict=True):
            print(f"| {kind:<8} | {size:>7,} | {cost_us:.2f} | {cost_us / found[kind][0]:.2f} |")
    request, client = memory()
    print(f"\na request that waits: {request:,.0f} bytes; a client: {client:,.0f} bytes")
    print(f"58 lanes waiting, 8 idle workers: {turns.lending(58, 8):.1f} us for each batch lent")
    print(f"58 lanes waiting, all 8 workers busy: {turns.busy(58, 8):.1f} us for one turn")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
