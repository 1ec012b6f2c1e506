"""Frigate's detector with a real YOLO out of a wheel, asked as Frigate's plugin asks: a REQ socket for each
camera, 200 ms of patience, no answer taken for nothing seen."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import zmq
from batchyard.adapters.frigate.detections import yolo

from ...camera import SIDE, Camera, frames

YOLO = "nudenet/320n.onnx"
START_S = 60.0


@pytest.fixture
def context() -> Iterator[Any]:
    with zmq.Context() as made:
        yield made
        made.destroy(linger=0)


@pytest.fixture
def detector(run_folder: Path) -> Iterator[Callable[..., str]]:
    """detector(*arguments): its endpoint, when it listens."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> str:
        path = run_folder / f"frigate-{secrets.token_hex(4)}"
        command = [sys.executable, "-m", "batchyard.cli.main", "frigate", *arguments]
        command += ["--endpoint", f"ipc://{path}", "--threads", "1"]
        running.append(subprocess.Popen(command))
        give_up_s = time.monotonic() + START_S
        while not path.exists():
            assert running[-1].poll() is None
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
        return f"ipc://{path}"

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(10) for process in running] == [0] * len(running)


class Plain:
    """onnxruntime and NumPy alone."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def rows(self, pixels: Any) -> Any:
        return yolo(self.session.run(None, {"images": pixels.astype(np.float32)}), SIDE, SIDE)


def test_every_row_of_many_cameras_equals_the_plain_run(
    models_folder: Path, detector: Callable[..., str], context: Any
) -> None:
    path = models_folder / YOLO
    endpoint = detector("--model", str(path), "--model-type", "yolo-generic", "--timeout-ms", "20000")
    plain = Plain(path)
    differences: list[float] = []
    boxes: list[int] = []

    def watch(number: int) -> None:
        camera = Camera(context, endpoint, 20_000)
        for pixels in frames(number, 6):
            rows, expected = camera.detect(pixels), plain.rows(pixels)
            boxes.append(int((expected[:, 1] > 0).sum()))
            differences.append(float(np.abs(rows - expected).max()))

    cameras = [threading.Thread(target=watch, args=(number,)) for number in range(8)]
    for each in cameras:
        each.start()
    for each in cameras:
        each.join()
    assert len(differences) == 48
    assert max(differences) < 1e-4
    assert sum(boxes) > 0, "no frame shows anything: this test could not fail"


def test_the_plugins_questions_are_answered_and_mistakes_have_a_sentence(
    models_folder: Path, detector: Callable[..., str], context: Any
) -> None:
    endpoint = detector("--model", str(models_folder / YOLO), "--model-type", "yolo-generic")
    camera = Camera(context, endpoint, 5_000)

    def asked(head: dict[str, Any], *content: bytes) -> Any:
        return json.loads(camera.ask(json.dumps(head).encode(), *content)[0])

    known = {"model_available": True, "model_loaded": True}
    assert asked({"model_request": True, "model_name": "320n.onnx"}) == known
    unknown = {"model_available": False, "model_loaded": False}
    assert asked({"model_request": True, "model_name": "other.onnx"}) == unknown
    refused = asked({"model_data": True, "model_name": "other.onnx"}, b"not a model")
    assert (refused["model_saved"], refused["model_loaded"]) == (False, False)
    assert f"--accept {hashlib.sha256(b'not a model').hexdigest()}" in refused["error"]
    (pixels,) = frames(0, 1)
    assert not camera.detect(pixels, "ssd").any()
    assert "Frigate takes the model for 'ssd'" in camera.error
    assert not camera.detect(pixels[0]).any()
    assert "a frame has shape" in camera.error
    assert not camera.detect(pixels.transpose(0, 2, 3, 1).copy()).any()
    assert camera.error
    assert camera.ask(b"\x80\x04.")[1] == bytes(480)
    assert camera.detect(pixels).shape == (20, 6)
    assert camera.error == ""


def test_a_model_that_the_operator_has_named_is_taken_and_served(
    models_folder: Path, detector: Callable[..., str], context: Any, tmp_path: Path
) -> None:
    content = (models_folder / YOLO).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    endpoint = detector("--accept", digest, "--models", str(tmp_path / "models"))
    camera = Camera(context, endpoint, 30_000)
    head = {"model_data": True, "model_name": "sent.onnx"}
    assert json.loads(camera.ask(json.dumps(head).encode(), content)[0]) == {"model_saved": True, "model_loaded": True}
    (pixels,) = frames(0, 1)
    rows = camera.detect(pixels)
    assert camera.error == ""
    assert np.abs(rows - Plain(models_folder / YOLO).rows(pixels)).max() < 1e-4
    assert os.listdir(tmp_path / "models") == ["sent.onnx"]


def test_a_yard_that_serves_others_may_be_the_detector_as_well(
    models_folder: Path, context: Any, run_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "batchyard.toml"
    config.write_text(f'models_root = "{models_folder / "nudenet"}"\n[models.yolo]\nfile = "320n.onnx"\n')
    folder = run_folder / secrets.token_hex(4)
    endpoint = f"ipc://{folder}/detector"
    command = [sys.executable, "-m", "batchyard.cli.main", "up", "--config", str(config), "--threads", "1"]
    command += ["--url", f"ipc://{folder}/yard", "--frigate", "yolo", "--frigate-endpoint", endpoint]
    process = subprocess.Popen(command)
    try:
        camera = Camera(context, endpoint, int(START_S * 1000))
        (pixels,) = frames(0, 1)
        rows = camera.detect(pixels)
        assert np.abs(rows - Plain(models_folder / YOLO).rows(pixels)).max() < 1e-4
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
