"""Ready means ready, over HTTP and gRPC: not while a model is loading, not with one that has failed, not
without a worker, and not when the broker stands still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
import tritonclient.grpc as triton_grpc
from batchyard.client.embedded import begin
from batchyard.client.yard import Yard

from .gateways import Gateway, starting

FUNCTIONS = """
import time, pathlib, batchyard
batched = batchyard.model(inputs={"x": "float32[n]"}, outputs={"y": "float32[n]"})

@batched
def quick(batch):
    return {"y": batch["x"]}

@batched
class Slow:
    def __init__(self):
        while not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.02)
    def __call__(self, batch):
        return {"y": batch["x"]}

@batched
def broken(batch):
    raise ValueError("weights missing")
"""
PATIENCE_S = 30.0


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Callable[..., Yard]]:
    """yard(*names): one that has begun to load these functions."""
    (tmp_path / "m.py").write_text(FUNCTIONS)
    made: list[Yard] = []

    def start(*names: str) -> Yard:
        made.append(begin({name.lower(): f"{tmp_path}/m.py:{name}" for name in names}, threads=1)[0])
        made[-1].wait_for_broker(PATIENCE_S)
        return made[-1]

    yield start
    for each in made:
        each.close()


def answers(served: Gateway, *models: str) -> list[bool] | None:
    """What HTTP and gRPC say, of the server and of each model; None where they differ: something has changed
    between the two."""
    paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in models)]
    by_http = [served.ask("GET", path)[0] == 200 for path in paths]
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        by_grpc = [client.is_server_ready(), *(client.is_model_ready(name) for name in models)]
    return by_http if by_http == by_grpc else None


def eventually(says: Callable[[], Any], expected: list[bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while says() != expected:
        assert time.monotonic() < give_up_s, says()
        time.sleep(0.05)


def test_a_yard_is_ready_when_all_of_its_models_are(yard: Callable[..., Yard], tmp_path: Path, tools: Any) -> None:
    loading = yard("quick", "Slow")
    with starting(loading.url, tools.free_port()) as served:
        eventually(lambda: answers(served, "quick", "slow"), [False, True, False])
        _, refusal, _ = served.ask("GET", "/v2/health/ready")
        assert refusal["code"] == "NOT_READY"
        assert "'slow' cannot be served: it is still loading" in refusal["error"]
        (tmp_path / "go").touch()
        eventually(lambda: answers(served, "quick", "slow"), [True, True, True])


def test_a_model_that_has_failed_keeps_a_yard_from_being_ready_unless_any_is_enough(
    yard: Callable[..., Yard], tools: Any
) -> None:
    half = yard("quick", "broken")
    with starting(half.url, tools.free_port()) as served:
        eventually(lambda: answers(served, "quick", "broken"), [False, True, False])
        assert "weights missing" in served.ask("GET", "/v2/health/ready")[1]["error"]
    with starting(half.url, tools.free_port(), "--ready", "any") as served:
        eventually(lambda: answers(served, "quick", "broken"), [True, True, False])


def test_without_a_worker_and_before_a_broker_that_stands_still_nothing_is_ready(
    yard: Callable[..., Yard], tools: Any
) -> None:
    stopped = yard("quick")
    with starting(stopped.url, tools.free_port()) as served:
        eventually(lambda: answers(served, "quick"), [True, True])
        with stopped.client() as client:
            client.infer("quick", np.ones(1, np.float32))
            broker, worker = (process.pid for process in stopped.processes)
            os.kill(broker, signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                status, refusal, _ = served.ask("GET", "/v2/health/ready")
                assert status == 503
                assert "has not answered within 1 s" in refusal["error"]
                assert time.monotonic() - began_s < 10  # whoever waited for the broker would wait for ever
            finally:
                os.kill(broker, signal.SIGCONT)
            eventually(lambda: answers(served, "quick"), [True, True])
            os.kill(worker, signal.SIGSTOP)  # its supervisor: nobody starts the child again
            try:
                (child,) = client.models()[0].workers
                os.kill(child.pid, signal.SIGKILL)
                eventually(lambda: answers(served, "quick"), [False, False])
            finally:
                os.kill(worker, signal.SIGCONT)
            eventually(lambda: answers(served, "quick"), [True, True])
