"""The snapshot of a broker that has done something, made by the broker's own core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.transport import messages as m
from batchyard.transport.messages import Priority
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MS = 1_000_000


@pytest.fixture
def counters() -> dict[str, Any]:
    """`net` has answered 3 HIGH requests after 5 ms, refused one; a row of LOW waits; as on the wire."""
    core = Core(YardConfig({"net": ModelConfig("net", Path("net.onnx"), 4)}), 7, 4711)
    spec = [TensorSpec("x", 1, ["n", 4])]
    core.handle(e.ArenaOpened(1, 1 << 20), 0)
    core.handle(e.ClientJoined(1, 1), 0)
    core.handle(e.WorkerJoined(1, 4712), 0)
    core.handle(e.WorkerSaid(1, m.Loaded("net", 1, spec, spec, True, "", 4, "cpu", "CPU", {})), 0)

    def submit(number: int, priority: Priority, model: str = "net") -> None:
        at = number * 64
        message = m.Submit(number, model, priority, 0, [Tensor(1, [1, 4], at)], [Slot(at, 16)])
        core.handle(e.Submitted(1, 1, message), 0)

    for number in range(3):
        submit(number, Priority.HIGH)
    submit(3, Priority.NORMAL, "nonesuch")
    (batch,) = [action.message for action in core.handle(e.Turn(), 1 * MS) if isinstance(action, e.ToWorker)]
    core.handle(e.WorkerSaid(1, m.Done(7, batch.batch, 10, 2 * MS, 10, 96, [])), 5 * MS)
    submit(4, Priority.LOW)
    rooms = {"version": "0.1.0", "arenas": 1, "arena_bytes": 1 << 20, "arena_committed_bytes": 1 << 16}
    return gauges.snapshot(core) | rooms | {"inline_copied_bytes": 0, "inline_used_bytes": 0}
