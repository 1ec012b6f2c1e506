"""A device that is lost under its batches: no request is, and the worker steps down, and up again."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard.client.yard import REFUSED_STATUS, Yard
from batchyard.transport.processes import ChildProcess

ROOT = Path(__file__).resolve().parents[2]
BREAKING = Path(__file__).with_name("breaking_device.py")
PATIENCE_S = 40.0


@pytest.fixture
def broker() -> Iterator[str]:
    """A broker of the digits model; its url."""
    with tempfile.TemporaryDirectory(prefix="yt-") as folder:
        url = f"ipc://{folder}/y"
        model = f"digits={ROOT / 'examples' / 'digits.onnx'}"
        process = ChildProcess(
            [
                sys.executable,
                "-m",
                "batchyard.broker",
                "--url",
                url,
                "--model",
                model,
                "--lifeline",
                "--quiet",
            ]
        )
        process.start()
        yield url
        process.terminate()


def test_a_provider_that_was_asked_for_and_is_not_here_ends_the_start_at_once(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("wb") as log,
        pytest.raises(batchyard.InvalidRequest, match="a worker failed to start"),
    ):
        batchyard.serve(ROOT / "examples" / "digits.onnx", provider="directml", log=log)
    said = (tmp_path / "log").read_text()
    assert "directml was asked for and does not work here" in said
    assert "directml comes with onnxruntime-directml" in said


def test_what_runs_beside_a_yard_and_cannot_start_is_no_worker_that_cannot(
    tmp_path: Path, tools: Any
) -> None:
    arguments = ["--model", f"digits={ROOT / 'examples' / 'digits.onnx'}"]
    beside = {"gateway": ["batchyard.nowhere"]}  # ends with status 1, as one whose port is taken
    with (
        (tmp_path / "log").open("wb") as log,
        Yard(arguments, 1, 1, log=log, quiet=True, companions=beside) as yard,
        yard.client() as client,
    ):
        tools.until(lambda: yard.processes[2].status == REFUSED_STATUS, PATIENCE_S)
        yard.wait_for_broker(PATIENCE_S)
        yard.wait_ready(client, "digits", time.monotonic() + PATIENCE_S)


def test_no_request_is_lost_with_a_device_and_the_worker_falls_to_the_cpu_and_comes_back(
    broker: str, tmp_path: Path, tools: Any, reference: Any
) -> None:
    scans = np.load(ROOT / "examples" / "digits_test.npz")["images"][:16]
    (expected,) = reference(ROOT / "examples" / "digits.onnx", image=scans)
    worker = ChildProcess(
        [
            sys.executable,
            str(BREAKING),
            "worker",
            str(tmp_path),
            "--url",
            broker,
            "--threads",
            "1",
            "--lifeline",
        ]
    )
    worker.start()
    try:
        with batchyard.Client(broker) as client:
            client.wait_ready("digits", PATIENCE_S)

            def serving() -> tuple[str, str]:
                """(provider, why on no better one) of the worker, while it sends requests to it."""
                futures = [
                    client.submit("digits", scans[at : at + 1], timeout=PATIENCE_S) for at in range(16)
                ]
                for at, future in enumerate(futures):
                    np.testing.assert_allclose(
                        future.result(PATIENCE_S)[0], expected[at], rtol=1e-4, atol=1e-4
                    )
                (model,) = client.models()
                return (model.workers[0].provider, model.workers[0].fallback_reason) if model.workers else ("", "")

            assert serving()[1] == ""
            tools.until(lambda: serving()[0] == "cpu", PATIENCE_S)
            counters = batchyard.Operator(broker).snapshot()
            assert counters["workers_left"] == 2, "one strike is no reason to step down"
            ((_, fallen),) = counters["workers_fallen"]
            assert "webgpu is in quarantine" in fallen
            assert client.models()[0].workers[0].fallback_reason == fallen

            (tmp_path / "healed").touch()
            tools.until(lambda: serving() == ("webgpu", ""), PATIENCE_S)
            counters = batchyard.Operator(broker).snapshot()
            assert counters["workers_fallen"] == []
            assert counters["workers_left"] == 3
            failed = [entry for entry in counters["requests"] if entry[2] != "ok"]
            assert failed == []
    finally:
        assert worker.terminate() == 0
