"""A broker's core in virtual time. The invariants are checked after every event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchyard.broker import events as e
from batchyard.broker.config import Limits, ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.tests.sim import invariants
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.messages import Priority
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MS = 1_000_000
EPOCH = 77
ARENA_BYTES = 1 << 20
ROW_BYTES = 16  # of the model "net", in and out: float32[batch, 4]
URGENT, HIGH, NORMAL, LOW = Priority


class World:
    """A core, its clock, and what it has said."""

    def __init__(self, models: Sequence[str] = ("net",), max_batch: int = 4, **limits: int) -> None:
        configs = {name: ModelConfig(name, Path(f"/models/{name}.onnx"), max_batch) for name in models}
        self.core = Core(YardConfig(configs, Limits(**limits)), EPOCH, 4710)
        self.now_ns = 1_000 * MS
        self.closed: list[int] = []
        self.lent: dict[int, list[m.Batch]] = {}  # by worker, in the order in which they were sent
        self.told: dict[int, list[Any]] = {}  # messages to each client, oldest first
        self._arena_sequence = 0

    def do(self, event: e.Event) -> list[e.Action]:
        actions = self.core.handle(event, self.now_ns)
        self.core.counters.tally()
        invariants.check(self.core)
        for action in actions:
            if isinstance(action, e.CloseArena):
                self.closed.append(action.arena)
            elif isinstance(action, e.ToClient):
                self.told.setdefault(action.conn, []).append(action.message)
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                self.lent.setdefault(action.worker, []).append(action.message)
        return actions

    def turn(self, later_ns: int = 0) -> list[m.Batch]:
        """Let time pass, and the loop come to the end of its turn. The batches that it lends."""
        self.now_ns += later_ns
        actions = self.do(e.Turn())
        return [a.message for a in actions if isinstance(a, e.ToWorker) and isinstance(a.message, m.Batch)]

    def client(self, conn: int, arena: int | None = None) -> int:
        """Join; the number of the client's arena."""
        if arena is None:
            self._arena_sequence += 1
            arena = self._arena_sequence
            self.do(e.ArenaOpened(arena, ARENA_BYTES))
        self.do(e.ClientJoined(conn, arena))
        return arena

    def worker(self, worker: int, *loaded: m.Loaded) -> None:
        self.do(e.WorkerJoined(worker, 5000 + worker))
        for message in loaded or (net(),):
            self.say(worker, message)

    def say(self, worker: int, message: Any, frames: Sequence[Any] = ()) -> list[e.Action]:
        return self.do(e.WorkerSaid(worker, message, frames))

    def submit(
        self,
        conn: int,
        number: int,
        rows: int = 1,
        priority: Priority = NORMAL,
        deadline_ns: int = 0,
        model: str = "net",
        arena: int = 1,
        slots: bool = True,
    ) -> None:
        """A good request; its handles tell which request they belong to (row `number` * 64)."""
        at = number * 64 * ROW_BYTES
        outputs = [Slot(at, rows * ROW_BYTES)] if slots else []
        message = m.Submit(number, model, priority, deadline_ns, [Tensor(1, [rows, 4], at)], outputs)
        self.do(e.Submitted(conn, arena, message))

    def cancel(self, conn: int, *numbers: int) -> None:
        self.do(e.CancelAsked(conn, m.Cancel(list(numbers))))

    def done(self, worker: int, batch: m.Batch, **changed: Any) -> None:
        fields = {"epoch": EPOCH, "compute_ns": 250_000, "inline_outputs": []} | changed
        frames = fields.pop("frames", ())
        self.say(
            worker,
            m.Done(fields["epoch"], batch.batch, 1, fields["compute_ns"], 1, 0, fields["inline_outputs"]),
            frames,
        )

    def failed(self, worker: int, batch: m.Batch, item: int = -1) -> None:
        self.say(worker, m.BatchFailed(EPOCH, batch.batch, Code.MODEL_FAILED, "it broke", item))

    def outcomes(self, conn: int) -> dict[int, str]:
        """How each request ended; a second outcome is an error."""
        ended: dict[int, str] = {}
        for message in self.told.get(conn, ()):
            if isinstance(message, m.Completed):
                numbers, text = message.requests, "ok"
            elif isinstance(message, m.Answer):
                numbers, text = [message.request], "ok"
            elif isinstance(message, m.Failed):
                numbers, text = [message.request], Code(message.code).name
            else:
                continue
            for number in numbers:
                assert number not in ended, f"request {number} ended twice"
                ended[number] = text
        return ended

    def last(self, conn: int) -> Any:
        return self.told[conn][-1]


def net(max_batch: int = 4, **changed: Any) -> m.Loaded:
    """`net`: float32[batch, 4] -> float32[batch, 4]."""
    fields: dict[str, Any] = {
        "model": "net",
        "revision": 1,
        "inputs": [TensorSpec("x", 1, ["batch", 4])],
        "outputs": [TensorSpec("y", 1, ["batch", 4])],
        "batchable": True,
        "alone_reason": "",
        "max_batch": max_batch,
        "provider": "cpu",
        "placement": "CPUExecutionProvider",
        "warmup_ns": {},
    } | changed
    return m.Loaded(**fields)


def numbers(batch: m.Batch) -> list[int]:
    """Which requests are in a batch (see World.submit)."""
    return [item.inputs[0].offset // (64 * ROW_BYTES) for item in batch.apart()]
