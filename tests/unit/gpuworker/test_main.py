"""What a worker makes of its arguments and surroundings: its rungs, and its share of the GPUs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from batchyard.gpuworker import __main__ as worker
from batchyard.gpuworker import probe, providers
from batchyard.gpuworker.device import Turns
from batchyard.gpuworker.probe import look
from batchyard.transport.errors import BatchyardError


@pytest.mark.parametrize(
    ("installed", "asked", "rungs"),
    [
        (["cpu"], "auto", ["cpu"]),
        (["directml", "cpu"], "auto", ["directml", "cpu"]),
        (["directml", "webgpu", "cpu"], "webgpu", ["webgpu", "cpu"]),
        (["directml", "webgpu", "cpu"], "directml", ["directml", "webgpu", "cpu"]),
        (["directml", "cpu"], "cpu", ["cpu"]),
        (["cpu"], "cuda", ["cuda", "cpu"]),  # its probe says what is missing
        ([], "auto", ["cpu"]),  # a runtime that somebody built, under another name
        (["webgpu"], "auto", ["webgpu", "cpu"]),  # the same, and a plugin
    ],
)
def test_a_worker_tries_what_was_asked_for_and_what_is_below_it(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], asked: str, rungs: list[str]
) -> None:
    monkeypatch.setattr(providers, "installed", lambda: installed)
    assert worker._rungs(asked) == rungs


def test_an_unknown_provider_and_a_missing_runtime_are_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BatchyardError, match="there is: auto, directml, webgpu, cuda, openvino, cpu"):
        worker._rungs("vulkan")
    monkeypatch.setattr(worker, "find_spec", lambda name: None)
    with pytest.raises(BatchyardError, match="onnxruntime is not installed: "):
        worker._rungs("auto")


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 1),
        ({"HONCHO_PROCESS_NAME": "worker.3"}, 3),
        ({"HONCHO_PROCESS_NAME": "worker"}, 1),
        ({"BATCHYARD_WORKER": "2", "HONCHO_PROCESS_NAME": "web.7"}, 2),
        ({"BATCHYARD_WORKER": "0"}, 1),
    ],
)
def test_a_worker_knows_its_number_by_who_started_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], number: int
) -> None:
    for name in ("BATCHYARD_WORKER", "HONCHO_PROCESS_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert worker._worker_number() == number


@pytest.mark.parametrize(
    ("number", "asked", "device"), [(1, None, 0), (2, None, 1), (3, None, 0), (4, None, 1), (1, 1, 1)]
)
def test_workers_take_the_gpus_in_turn_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, number: int, asked: int | None, device: int
) -> None:
    class Refused(ValueError):
        pass

    def recipe(name: str, threads: int, device: int) -> Any:
        raise Refused(f"device {device}")

    monkeypatch.setattr(providers.PROVIDERS["directml"], "devices", lambda: 2)
    monkeypatch.setattr(providers, "recipe", recipe)
    assert look("directml", asked, number) == probe.Probed(False, text=f"device {device}")


def test_who_waits_for_the_device_is_next_even_if_the_other_asks_again_at_once() -> None:
    turns = Turns()
    order = []

    def serve() -> None:
        with turns:
            order.append("serves")

    turns.__enter__()
    waiter = threading.Thread(target=serve)
    waiter.start()
    while not turns._next.locked():  # until it waits
        pass
    turns.__exit__()
    with turns:
        order.append("loads")
    waiter.join()
    assert order == ["serves", "loads"]
