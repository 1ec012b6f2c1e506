"""A probe of a provider: the tiny model that it serves, and what its process's end is taken for."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker import probe
from batchyard.gpuworker.probe import MODEL, Probe, Probed, look, outcome

PATIENCE_S = 60.0


def made(onnx_models: Any) -> Path:
    """The model that is committed as probe.onnx: what a GPU gets wrong first, in a kilobyte."""
    kernels = np.sin(np.arange(36, dtype=np.float32)).reshape(4, 1, 3, 3)
    weights = np.cos(np.arange(40, dtype=np.float32)).reshape(4, 10)
    path: Path = onnx_models.save(
        "probe",
        [
            ("Conv", ["image", "kernels"], ["maps"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["maps"], ["kept"], {}),
            ("GlobalAveragePool", ["kept"], ["means"], {}),
            ("Flatten", ["means"], ["row"], {}),
            ("Gemm", ["row", "weights"], ["scores"], {}),
        ],
        [("image", 1, ["batch", 1, 8, 8])],
        [("scores", 1, ["batch", 10])],
        {"kernels": kernels, "weights": weights},
    )
    return path


def found(asked: Probe) -> Probed:
    assert asked._child.wait(PATIENCE_S) is not None
    said = asked.poll(time.monotonic())
    assert said is not None
    return said


def test_the_committed_model_is_the_one_that_is_described_here(onnx_models: Any) -> None:
    assert MODEL.read_bytes() == made(onnx_models).read_bytes()


def test_the_cpu_answers_a_probe_of_its_own_process() -> None:
    said = found(Probe("cpu", None, 1, time.monotonic()))
    assert said == Probed(True, 0, 1, "CPUExecutionProvider")


def test_a_provider_that_this_runtime_lacks_is_refused_with_a_sentence() -> None:
    said = look("directml", 0, 1)
    assert not said.works
    assert said.text.endswith("; directml comes with onnxruntime-directml")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.abort()", "its probe ended with status -6"),
        ("print('Segmentation fault'); raise SystemExit(139)", "its probe ended with status 139: Segmentation fault"),
        ("pass", "its probe ended with status 0"),
        ("print('[1]')", "its probe ended with status 0: [1]"),
    ],
)
def test_a_provider_that_breaks_the_process_does_not_work(
    monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    monkeypatch.setattr(probe, "COMMAND", [sys.executable, "-c", code])
    assert found(Probe("webgpu", 0, 1, time.monotonic())) == Probed(False, text=text)


def test_a_provider_that_hangs_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "COMMAND", [sys.executable, "-c", "import threading; threading.Event().wait()"])
    asked = Probe("webgpu", 0, 1, now_s=100.0)
    assert asked.poll(100.0 + probe.TIMEOUT_S - 1) is None
    said = asked.poll(100.0 + probe.TIMEOUT_S)
    assert said == Probed(False, text="its probe hung, and was ended after 60 s")


def test_what_a_library_prints_before_the_answer_is_no_part_of_it() -> None:
    answer = json.dumps({"works": True, "device": 1, "devices": 2, "text": "DmlExecutionProvider 5 nodes"})
    assert outcome(0, ["Warning: loader", answer]) == Probed(True, 1, 2, "DmlExecutionProvider 5 nodes")
