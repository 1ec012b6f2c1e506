"""What one message costs the broker at once: its longest round, over every kind of dear message.

    python -m batchyard.tests.campaigns.envelopes

The broker's sides, its core, and its loop are real; the wire is pretended, so a round is all that other
clients wait for. The bound is 5 ms (docs/reliability.md).
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from ...broker import events as e
from ...broker.clients import Client
from ...broker.config import Limits, ModelConfig
from ...broker.models import Model
from ...transport import codec
from ...transport import messages as m
from ...transport.segments import SegmentHandle
from ...transport.tensors import Slot, Tensor, TensorSpec
from ..unit.broker.wires import Broker, FakePeer

SPEC = [TensorSpec("x", 1, ["n", "wide"])]
ARENA, CONN = 7, 7
MANY = 100_000  # requests of one client, where limits allow so many
SHAPES = 16_384
MODELS = 1_000
REPEATS = 3


class Yard(Broker):
    """A broker with a client that has greeted, a worker, and so many models; its clock is ours."""

    def __init__(self, models: int = 1, **options: Any) -> None:
        super().__init__(Arenas(), max_batch=1024, **options)
        for number in range(1, models):
            config = ModelConfig(f"net{number}", Path("/net.onnx"))
            self.core.models[config.name] = Model(config)
        wide = Limits(queue_rows_max=1 << 20, client_rows_max=1 << 20)
        self.core.admission.__init__(wide, self.core.models, self.core.workers)  # type: ignore[misc]
        self.now_ns = 1
        self.longest_ns = self.rounds = 0
        self.peer, self.worker = FakePeer(), FakePeer()
        self.core.handle(e.ArenaOpened(ARENA, 1 << 40), 0)
        self.core.handle(e.ClientJoined(CONN, ARENA), 0)
        client = self.clients.known[self.peer] = Client(self.peer, CONN, ARENA, False)
        self.clients._by_conn[CONN] = client

    def work(self, max_batch: int = 1024) -> None:
        """A worker joins, and serves every model."""
        loaded = [
            m.Loaded(name, 1, SPEC, SPEC, True, "", max_batch, "cpu", "", {1: 10**6, max_batch: 1_100_000})
            for name in self.core.models
        ]
        self.reported.arrivals.append((self.worker, [codec.encode([m.Register(4711, ["cpu"])])]))
        self.settle()
        for first in range(0, len(loaded), 100):
            self.reported.arrivals.append((self.worker, [codec.encode(loaded[first : first + 100])]))
            self.settle()

    def settle(self) -> None:
        """Rounds until nothing is left to be done; the longest is remembered. Time of the processor, because
        a loaded machine would be measured otherwise."""
        while True:
            started_ns = time.thread_time_ns()
            self.loop.round(self.now_ns)
            self.longest_ns = max(self.longest_ns, time.thread_time_ns() - started_ns)
            self.rounds += 1
            for peer in (self.peer, self.worker):
                peer.sent.clear()
            self.now_ns += 1
            if self.loop.sleep_ms(self.now_ns):
                return

    def submit(self, count: int, deadline_ns: int = 0, shapes: int = 1) -> None:
        """So many requests wait."""
        for first in range(0, count, 4096):
            messages = [
                m.Submit(
                    number, "net", 2, deadline_ns, [Tensor(1, [1, 4 + number % shapes], 0)], [Slot(64, 16)]
                )
                for number in range(first, min(first + 4096, count))
            ]
            self.said.arrivals.append((self.peer, [codec.encode(messages)]))
        self.settle()


class Arenas:
    """Whose segments nobody opens."""

    def handle(self, arena: int) -> SegmentHandle:
        return SegmentHandle("memfd", "1:1", 1 << 40)

    def close(self, arena: int) -> None:
        pass

    def snapshot(self) -> dict[str, int]:
        return {}


def envelope(*messages: Any) -> bytes:
    return msgpack.packb([m.PROTOCOL_VERSION, list(messages)])


TENSOR = [1, [1, 4], 0, 0]
ENVELOPES: dict[str, bytes] = {
    "4096 requests": envelope(*([2, i, "net", 2, 0, [TENSOR], [[64, 16]]] for i in range(4096))),
    "16 columns of requests": envelope(
        *(
            [2, first, "net", 2, 0, [TENSOR], [[64, 16]], [
                list(range(first + 1, first + m.MORE_MAX)),
                [0] * (m.MORE_MAX - 1),
                [0, 64] * (m.MORE_MAX - 1),
            ]]
            for first in range(0, 16 * m.MORE_MAX, m.MORE_MAX)
        )
    ),
    "4096 requests of no model": envelope(*([2, i, "nope", 2, 0, [], []] for i in range(4096))),
    "1 MB of tensors": envelope(*([2, i, "net", 2, 0, [[1, [], 0, 0]] * 4000, []] for i in range(50))),
    "1 MB of sizes": envelope(*([2, i, "net", 2, 0, [[1, [1] * 64, 0, 0]] * 2800, []] for i in range(5))),
    "1 MB of numbers that are cancelled": envelope(*([3, [1] * 4000] for _ in range(250))),
    "4096 questions": envelope(*([4, i, ""] for i in range(4096))),
    "4 MB, refused": bytes(codec.PAYLOAD_BYTES_MAX),
}


def message(payload: bytes) -> Callable[[], Yard]:
    def run() -> Yard:
        yard = Yard()
        yard.work()
        yard.longest_ns = yard.rounds = 0
        yard.said.arrivals.append((yard.peer, [payload]))
        yard.settle()
        return yard

    return run


def cancelled() -> Yard:
    """4096 requests that wait, by one message each 4096 numbers."""
    yard = Yard()
    yard.work(1)
    yard.submit(MANY)
    yard.longest_ns = yard.rounds = 0
    for first in range(0, MANY, 4096):
        numbers = list(range(first, min(first + 4096, MANY)))
        yard.said.arrivals.append((yard.peer, [codec.encode([m.Cancel(numbers)])]))
    yard.settle()
    return yard


def expired() -> Yard:
    yard = Yard()
    yard.work(1)
    yard.submit(MANY, 10**12)
    yard.longest_ns = yard.rounds = 0
    yard.now_ns += 2 * 10**12
    yard.settle()
    return yard


def gone() -> Yard:
    yard = Yard()
    yard.work(1)
    yard.submit(MANY)
    yard.longest_ns = yard.rounds = 0
    yard.said.arrivals.append((yard.peer, None))
    yard.settle()
    return yard


def done() -> Yard:
    """A batch of 1024 requests has run."""
    yard = Yard()
    yard.work()
    yard.submit(4096)
    yard.longest_ns = yard.rounds = 0
    for number, batch in list(yard.core.batches.items())[:1]:
        assert len(batch.parts) > 100, len(batch.parts)
        yard.reported.arrivals.append((yard.worker, [codec.encode([m.Done(1, number, 1, 1, 1, 0, [])])]))
    yard.settle()
    return yard


def asked() -> Yard:
    """An operator's message with as many questions as it may have, over a thousand models."""
    yard = Yard(MODELS)
    yard.work()
    yard.submit(SHAPES, shapes=SHAPES)
    yard.longest_ns = yard.rounds = 0
    yard.asked.arrivals.append((FakePeer(), [codec.encode([m.Snapshot()] * 16)]))
    yard.settle()
    return yard


def described() -> Yard:
    yard = Yard(MODELS)
    yard.work()
    yard.longest_ns = yard.rounds = 0
    yard.said.arrivals.append((yard.peer, [codec.encode([m.Describe(1, "")])]))
    yard.settle()
    return yard


def waited() -> Yard:
    """A thousand questions of one client wait for a model; it is loaded."""
    yard = Yard()
    yard.said.arrivals.append((yard.peer, [codec.encode([m.Describe(i, "net") for i in range(1024)])]))
    yard.settle()
    yard.longest_ns = yard.rounds = 0
    yard.work()
    return yard


def lost() -> Yard:
    """A worker dies under two batches of 1024 requests."""
    yard = Yard()
    yard.work()
    yard.submit(4096)
    yard.longest_ns = yard.rounds = 0
    yard.workers._gone(1)
    yard.settle()
    return yard


def shapes() -> Yard:
    """Each request of a shape of its own."""
    yard = Yard()
    yard.work()
    yard.longest_ns = yard.rounds = 0
    yard.submit(SHAPES, shapes=SHAPES)
    return yard


def late() -> Yard:
    """Requests that can't be in time any more, while a worker is busy: a hundred rounds."""
    yard = Yard()
    yard.work()
    yard.submit(1)
    for worker in yard.core.workers.values():
        worker.busy_until_ns = yard.now_ns + 10**11
    yard.longest_ns = yard.rounds = 0
    yard.submit(SHAPES, 10**10)
    for _ in range(10):
        yard.loop._due_ns = 0
        yard.settle()
    return yard


def shared() -> Yard:
    """Identical requests, which wait for one run's result; it comes."""
    yard = Yard(join=True)
    yard.work()
    request = [Tensor(1, [1, 4], 0)], [Slot(64, 16)]
    for first in range(0, SHAPES, 200):
        for number in range(first, first + 200):
            submit = m.Submit(number, "net", 2, 0, *request)
            yard.core.handle(e.Submitted(CONN, ARENA, submit, b"d" * 16), yard.now_ns)
    yard.loop._due_ns = 0
    yard.settle()
    yard.longest_ns = yard.rounds = 0
    for number, batch in list(yard.core.batches.items()):
        assert len(batch.parts) == 1
        outputs = [m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 1)])]
        yard.reported.arrivals.append(
            (yard.worker, [codec.encode([m.Done(1, number, 1, 1, 1, 0, outputs)]), bytes(16)])
        )
    yard.settle()
    return yard


def cases() -> Iterator[tuple[str, Callable[[], Yard]]]:
    for name, payload in ENVELOPES.items():
        yield name, message(payload)
    yield f"{MANY:,} requests are cancelled", cancelled
    yield f"{MANY:,} requests expire at once", expired
    yield f"a client goes with {MANY:,} requests", gone
    yield "a batch of 1,024 requests is done", done
    yield "a worker dies under two of these", lost
    yield f"{SHAPES:,} requests of as many shapes", shapes
    yield f"{SHAPES:,} requests that will be late wait", late
    yield f"{SHAPES:,} identical requests are answered", shared
    yield "1,024 questions that waited", waited
    yield f"one question about {MODELS:,} models", described
    yield f"16 snapshots of {MODELS:,} models and {SHAPES:,} shapes", asked


def main() -> None:
    logging.disable(logging.ERROR)  # of a clock that jumps
    for name, run in cases():
        longest_ms = min(measured(run) for _ in range(REPEATS))
        print(f"{name:50} longest round {longest_ms:6.1f} ms", flush=True)


def measured(run: Callable[[], Yard]) -> float:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 125, 1000)  # as the broker does
    yard = run()
    return yard.longest_ns / 1e6


if __name__ == "__main__":
    main()
