"""A real yard on a device: the answers are the CPU's, and deaths, swaps, and a missing device are survived."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import ModelInfo, serve
from batchyard.client import Yard
from batchyard.gpuworker import providers

from .conftest import HARDWARE

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
MAX_BATCH = 8
BUCKETS = [1, 2, 4, 8]
PATIENCE_S = 60.0  # software computes and compiles here
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
INPUT = {"digits": "image", "cnn": "x"}
WITHOUT_DEVICE = {"webgpu": "adapter", "openvino": "lists none of intel's gpus or processors"}


@dataclass
class Models:
    """Files in one folder, rows to ask them with, and what the CPU answers."""

    folder: Path
    reference: Any
    scans: Any

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def draw(self, name: str, rows: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        if name == "digits":
            return self.scans[rng.integers(0, len(self.scans), rows)]
        return rng.standard_normal((rows, 3, 12, 12)).astype(np.float32)

    def check(self, name: str, x: Any, y: Any, file: str = "") -> None:
        (expected,) = self.reference(self[file or name], **{INPUT[name]: x})
        np.testing.assert_allclose(y, expected, **CLOSE)


def save_cnn(onnx_models: Any, name: str, seed: int) -> Path:
    """Two convolutions, pools, and a product: float32[n, 3, 12, 12] -> float32[n, 5]."""
    rng = np.random.default_rng(seed)
    shapes = {"k1": (8, 3, 3, 3), "b1": (8,), "k2": (16, 8, 3, 3), "b2": (16,), "w": (16, 5), "b": (5,)}
    same = {"pads": [1, 1, 1, 1]}
    path: Path = onnx_models.save(
        name,
        [
            ("Conv", ["x", "k1", "b1"], ["c1"], same),
            ("Relu", ["c1"], ["r1"], {}),
            ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", ["p1", "k2", "b2"], ["c2"], same),
            ("Relu", ["c2"], ["r2"], {}),
            ("GlobalAveragePool", ["r2"], ["g"], {}),
            ("Flatten", ["g"], ["f"], {}),
            ("Gemm", ["f", "w", "b"], ["y"], {}),
        ],
        [("x", 1, ["n", 3, 12, 12])],
        [("y", 1, ["n", 5])],
        {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()},
    )
    return path


@pytest.fixture(scope="module")
def models(onnx_models: Any, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("providers")
    for path in (EXAMPLES / "digits.onnx", save_cnn(onnx_models, "cnn", 1), save_cnn(onnx_models, "cnn2", 2)):
        shutil.copy(path, folder)
    return Models(folder, reference, np.load(EXAMPLES / "digits_test.npz")["images"])


@pytest.fixture(scope="module")
def yard(provider: str, models: Models) -> Iterator[Yard]:
    files = {name: models[name] for name in INPUT}
    with serve(files, workers=2, max_batch=MAX_BATCH, threads=1, timeout=PATIENCE_S) as made:
        yield made


def served(yard: Yard, name: str, tools: Any, workers: int = 2) -> ModelInfo:
    """The model, when so many workers serve it."""

    def found() -> ModelInfo | None:
        with yard.client() as client:
            (info,) = [info for info in client.models() if info.name == name]
        return info if len(info.workers) == workers else None

    info: ModelInfo = tools.until(found, PATIENCE_S, f"{workers} workers for {name}")
    return info


class Traffic:
    """A thread for each model that asks all the time, with rows of every bucket, so that no request is cut
    in two; `asked` are its replies."""

    def __init__(self, yard: Yard, models: Models) -> None:
        self.asked: list[tuple[str, Any, Any]] = []  # model, input, reply
        self.failures: list[BaseException] = []
        self._yard = yard
        self._models = models
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in INPUT]

    def _ask(self, name: str) -> None:
        count = 0
        try:
            with self._yard.client() as client:
                while not self._stop.is_set():
                    count += 1
                    x = self._models.draw(name, BUCKETS[count % len(BUCKETS)], count)
                    self.asked.append((name, x, client.request(name, x, timeout=PATIENCE_S)))
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert self.failures == []


@pytest.mark.parametrize("name", INPUT)
def test_every_batch_size_is_answered_as_the_cpu_answers_it(
    name: str, yard: Yard, models: Models, provider: str, tools: Any
) -> None:
    for worker in served(yard, name, tools).workers:
        assert worker.provider == provider
        assert worker.placement.startswith(f"{providers.PROVIDERS[provider].EXECUTION_PROVIDER} ")
        assert "CPU" not in worker.placement
        assert worker.fallback_reason == ""
        assert list(worker.warmup_ns) == BUCKETS
    with yard.client() as client:
        for rows in range(1, MAX_BATCH + 1):
            x = models.draw(name, rows, seed=rows)
            reply = client.request(name, x, timeout=PATIENCE_S)
            models.check(name, x, reply.value)
            assert reply.receipt.provider == provider


def test_requests_that_wait_are_run_together_and_both_workers_run_them(
    yard: Yard, models: Models, tools: Any
) -> None:
    for name in INPUT:
        served(yard, name, tools)
    with yard.client() as client:
        inputs = [(name, models.draw(name, 1 + n % 3, n)) for n in range(24) for name in INPUT]
        futures = [client.submit(name, x, timeout=PATIENCE_S) for name, x in inputs]
        for (name, x), future in zip(inputs, futures, strict=True):
            models.check(name, x, future.result(PATIENCE_S))
    receipts = [future.reply.receipt for future in futures]
    assert max(receipt.rows for receipt in receipts) > 3
    assert len({receipt.worker for receipt in receipts}) == 2


def test_a_killed_child_costs_no_request_and_its_successor_is_on_the_device_again(
    yard: Yard, models: Models, provider: str, tools: Any
) -> None:
    before = {worker.pid for worker in served(yard, "cnn", tools).workers}
    lost = yard.snapshot()["workers_lost"]
    with Traffic(yard, models) as traffic:
        tools.until(lambda: len(traffic.asked) > 4, PATIENCE_S)
        tools.kill(min(before))
        tools.until(lambda: yard.snapshot()["workers_lost"] == lost + 1, PATIENCE_S)
        workers = served(yard, "cnn", tools).workers
        served(yard, "digits", tools)
        assert len({worker.pid for worker in workers} - before) == 1
        assert [(worker.provider, worker.fallback_reason) for worker in workers] == [(provider, "")] * 2
        count = len(traffic.asked)
        tools.until(lambda: len(traffic.asked) > count + 4, PATIENCE_S)
    for name, x, reply in traffic.asked:
        models.check(name, x, reply.value)


def test_a_swap_under_load_fails_nobody_though_one_session_at_a_time_may_use_the_device(
    yard: Yard, models: Models, provider: str, tools: Any
) -> None:
    for name in INPUT:
        served(yard, name, tools)
    lost = yard.snapshot()["workers_lost"]
    first = served(yard, "cnn", tools).revision
    files = {first: "cnn"}
    with Traffic(yard, models) as traffic:
        for file in ("cnn2", "cnn"):
            tools.until(lambda: len(traffic.asked) > 4, PATIENCE_S)
            changed = yard.operator.swap("cnn", f"{file}.onnx", timeout=PATIENCE_S)
            assert changed.difference > 0.1, "the other file's answers are others"
            files[changed.revision] = file
            count = len(traffic.asked)
            tools.until(lambda: len(traffic.asked) > count + 4, PATIENCE_S)  # noqa: B023
    assert len(files) == 3
    for name, x, reply in traffic.asked:
        models.check(name, x, reply.value, files[reply.receipt.revision] if name == "cnn" else "")
        assert reply.receipt.provider == provider
    assert {reply.receipt.revision for name, _, reply in traffic.asked if name == "cnn"} == set(files)
    assert yard.snapshot()["workers_lost"] == lost


# ---- no device --------------------------------------------------------------------------------------


@pytest.fixture
def no_device(provider: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """From now on no process finds one: a Vulkan loader without drivers, another maker's processor. The sentence."""
    if provider == "openvino":
        if sys.executable == HARDWARE:
            pytest.skip("this machine's own processor is Intel's")
        monkeypatch.setattr(sys, "executable", HARDWARE)
    elif sys.platform != "linux":
        pytest.skip("drivers are hidden as the Vulkan loader finds them on Linux")
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(name, os.devnull)
    return WITHOUT_DEVICE[provider]


def test_without_a_device_the_worker_serves_on_the_cpu_and_says_why(
    no_device: str, provider: str, models: Models, tools: Any
) -> None:
    with serve(models["digits"], threads=1, timeout=PATIENCE_S) as yard, yard.client() as client:
        (worker,) = served(yard, "digits", tools, workers=1).workers
        assert worker.provider == "cpu"
        assert worker.fallback_reason.startswith(f"{provider} does not work here: ")
        assert no_device in worker.fallback_reason.lower()
        x = models.draw("digits", 3, seed=0)
        reply = client.request("digits", x)
        models.check("digits", x, reply.value)
        assert reply.receipt.provider == "cpu"


def test_a_worker_that_shall_use_the_device_alone_ends_with_a_sentence_without_one(
    no_device: str, provider: str, run_folder: Path
) -> None:
    worker = [sys.executable, "-m", "batchyard.gpuworker", "--provider", provider]
    done = subprocess.run(
        [*worker, "-q", "--url", f"ipc://{run_folder}/nobody"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"worker: {provider} was asked for and does not work here: ")
    assert no_device in last.lower()
    assert "Traceback" not in done.stderr
