"""What batchyard.toml says of one model besides its file, said to `serve`, to `Operator`, and to the verbs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import InvalidRequest, ModelInfo, serve
from batchyard.client import Yard

BATCHYARD = [sys.executable, "-m", "batchyard.cli.main"]
X = np.ones((3, 4), np.float32)


@pytest.fixture(scope="module")
def files(neg_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("options")
    shutil.copy(neg_model, folder / "neg.onnx")
    return folder


@pytest.fixture(scope="module")
def yard(files: Path) -> Iterator[Yard]:
    said = {"alone": {"batchable": False}, "net": {"max_batch": 6, "buckets": [2, 6], "warmup": False}}
    both = {"net": files / "neg.onnx", "alone": files / "neg.onnx"}
    with serve(both, threads=1, options=said, limits={"client_rows_max": 9}) as made:
        yield made


def info(yard: Yard, name: str) -> ModelInfo:
    with yard.client(segment="frames") as client:
        (found,) = [model for model in client.models() if model.name == name]
    return found


def test_serve_tells_each_model_its_own(yard: Yard) -> None:
    assert info(yard, "alone").alone_reason == "its configuration says batchable = false"
    net = info(yard, "net")
    assert (net.batchable, net.max_batch, net.workers[0].warmup_ns) == (True, 6, {})
    with yard.client() as client:
        assert np.array_equal(client.infer("net", X), -X)
        assert client.request("net", X[:1]).receipt.rows == 1


def test_serve_sets_limits(yard: Yard) -> None:
    with yard.client() as client:
        assert client.infer("net", np.ones((9, 4), np.float32)).shape == (9, 4)
        with pytest.raises(InvalidRequest, match=r"exceed the 9 allowed \(client_rows_max\)"):
            client.infer("net", np.ones((10, 4), np.float32))


def test_an_order_tells_a_new_model_and_a_swap_what_changes(yard: Yard) -> None:
    yard.operator.load("more", "neg.onnx", options={"batch_axis": 0, "trusted": True, "max_batch": 3})
    more = info(yard, "more")
    assert (more.max_batch, "vouches" in more.evidence) == (3, True)
    yard.operator.swap("more", options={"trusted": False})
    more = info(yard, "more")
    assert (more.max_batch, "differ by" in more.evidence) == (3, True)
    with pytest.raises(InvalidRequest, match=r"models\.more\.max_batsh: unknown key, did you mean"):
        yard.operator.swap("more", options={"max_batsh": 3})
    with pytest.raises(InvalidRequest, match="options are plain values"):
        yard.operator.swap("more", options={"max_batch": object()})
    yard.operator.unload("more")


def test_what_serve_is_told_wrongly_is_refused_in_the_same_words(files: Path) -> None:
    with (
        pytest.raises(InvalidRequest, match=r"options\.neg\.warmup: expected true or false, found 3"),
        serve(files / "neg.onnx", options={"neg": {"warmup": 3}}),
    ):
        pass
    with (
        pytest.raises(InvalidRequest, match=r"limits\.client_rows_max: expected an integer from 1 to"),
        serve(files / "neg.onnx", limits={"client_rows_max": 0}),
    ):
        pass


def verb(yard: Yard, *words: str) -> Any:
    command = [*BATCHYARD, "models", "--url", yard.url, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_verbs_take_the_same_entries(yard: Yard) -> None:
    done = verb(yard, "load", "third", "neg.onnx", "--set", "batchable=false", "--set", "warmup=false")
    assert (done.returncode, done.stdout.strip()) == (0, "third: loaded, revision 1")
    assert info(yard, "third").alone_reason == "its configuration says batchable = false"
    refused = verb(yard, "swap", "third", "--set", "buckets=[3, 1]")
    assert (refused.returncode, "models.third.buckets: expected rising" in refused.stderr) == (1, True)
    assert verb(yard, "swap", "third", "--set", "nothing").returncode == 2
    yard.operator.unload("third")
