"""Another scheduling policy is one file, and one line where it is listed: nothing else knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker import events as e
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.policy import POLICIES
from batchyard.tests.sim.world import run
from batchyard.transport import messages as m
from batchyard.transport.tensors import Tensor, TensorSpec

from .first_come import FirstCome

SEEDS = 25


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "first come", FirstCome)


def test_it_decides_which_request_goes_first() -> None:
    spec = [TensorSpec("x", 1, ["n", 4])]
    first = {}
    for order in ("first come", "virtual deadlines"):
        core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"), 1)}), 1, 2, order)
        core.handle(e.ArenaOpened(1, 4096), 0)
        core.handle(e.ClientJoined(1, 1), 0)
        core.handle(e.WorkerJoined(1, 4711), 0)
        core.handle(e.WorkerSaid(1, m.Loaded("net", 1, spec, spec, True, "", 1, "cpu", "", {})), 0)
        for number, priority in ((1, m.Priority.LOW), (2, m.Priority.URGENT)):
            message = m.Submit(number, "net", priority, 0, [Tensor(1, [1, 4], 0)], [])
            core.handle(e.Submitted(1, 1, message), number)
        core.handle(e.Turn(), 3)
        batch = next(iter(core.batches.values()))
        first[order] = batch.parts[0].request.id
    assert first == {"first come": 1, "virtual deadlines": 2}


def test_the_yard_keeps_its_promises_with_it() -> None:
    """All but those on order, which are the default policy's own."""
    for seed in range(SEEDS):
        run(seed, "first come")
