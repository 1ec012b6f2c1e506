"""The programs of examples/programs/ that people start from, with one yard for all of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
import batchyard
import numpy as np
from batchyard.examples.programs import policy, webcam

EXAMPLES = Path(batchyard.__file__).parent / "examples"
ENVIRONMENTS = 64


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[batchyard.Yard]:
    """Each example's models; the policy's weights lie where its workers inherit it from us."""
    weights = tmp_path_factory.mktemp("policy") / "weights.npy"
    np.save(weights, np.zeros(4, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(policy.WEIGHTS, str(weights))
        # By its file, as where the example is a program: a module is read anew only by a new process.
        models = {**webcam.MODELS, "policy": f"{EXAMPLES / 'programs' / 'policy.py'}:Policy"}
        with batchyard.serve(models, threads=1, max_batch=ENVIRONMENTS) as started:
            yield started


def test_a_cameras_frames_go_from_model_to_model_without_a_copy(yard: batchyard.Yard) -> None:
    with yard.client() as client:
        right, copied = webcam.watch(client, 10)
    assert copied == 0
    assert right >= 9


def test_environments_step_on_while_the_weights_of_their_policy_are_swapped(yard: batchyard.Yard) -> None:
    rounds = asyncio.run(policy.learn(yard, 3, ENVIRONMENTS))
    assert [revision for revision, _ in rounds] == [2, 3, 4]
    assert all(1 <= mean <= policy.STEPS_MAX for _, mean in rounds)


def test_forked_web_processes_share_the_yard(yard: batchyard.Yard, tools: Any) -> None:
    port = tools.free_port()
    environment = {**os.environ, "BATCHYARD_URL": yard.url, "PORT": str(port)}
    with np.load(EXAMPLES / "digits_test.npz") as scans:
        pixels, labels = (scans["images"][:8] * 16).reshape(8, 64).tolist(), scans["labels"][:8].tolist()

    def ask(body: object) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    processes = set()

    def several_answer() -> bool:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, pixels))
        assert [answer["digit"] for answer in answers] == labels
        processes.update(answer["process"] for answer in answers)
        return len(processes) > 1

    command = [sys.executable, str(EXAMPLES / "programs" / "web.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as web:
        try:
            assert web.stdout is not None
            assert "processes answer" in web.stdout.readline()  # it listens
            tools.until(several_answer, 60)
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask("no pixels")
        finally:
            web.terminate()
    assert web.returncode == 0


def test_the_processes_of_a_data_loader_share_the_yard(yard: batchyard.Yard) -> None:
    pytest.importorskip("torch")
    from batchyard.examples.programs import dataloader

    first, *_, last = dataloader.learn(yard.url, epochs=3, workers=2)
    assert last < first / 2
