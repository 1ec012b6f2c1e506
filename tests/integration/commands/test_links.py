"""Models behind links, as the Hugging Face cache and Kubernetes volumes lay them out: external data lies
beside the name that is asked for, not beside the file to which it leads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from batchyard import InvalidRequest, ModelFailed, serve
from batchyard.cli import watch
from onnx import TensorProto, helper, numpy_helper

X = np.ones((1, 4), np.float32)
BATCHYARD = [sys.executable, "-m", "batchyard.cli.main"]


def save(file: Path, factor: float, data: str = "model.onnx_data") -> None:
    """`y = factor * sum(x)`, its weights in a file of their own beside it."""
    weights = numpy_helper.from_array(np.full((4, 300), factor, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 300])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=0
    )


def answer(yard: Any) -> float:
    with yard.client() as client:
        return float(client.infer("model", X)[0, 0]) / 4


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """models--x/snapshots/{r1,r2}, of the Hugging Face cache; every file a link into blobs."""
    hub = tmp_path / "models--x"
    blobs = hub / "blobs"
    blobs.mkdir(parents=True)
    for revision, factor in (("r1", 1.0), ("r2", 2.0)):
        snapshot = hub / "snapshots" / revision
        snapshot.mkdir(parents=True)
        save(tmp_path / "model.onnx", factor)
        for name in ("model.onnx", "model.onnx_data"):
            blob = hashlib.sha256(f"{revision} {name}".encode()).hexdigest()
            os.rename(tmp_path / name, blobs / blob)
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return hub


def volume(root: Path, version: int) -> None:
    """A Kubernetes volume at a version: its names lead into ..data, which leads to the version's folder."""
    folder = root / f"..2026_{version}"
    folder.mkdir(parents=True)
    save(folder / "model.onnx", float(version))
    (root / "..new").symlink_to(folder.name)
    os.replace(root / "..new", root / "..data")
    for name in ("model.onnx", "model.onnx_data"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"..data/{name}")


def test_a_snapshot_of_the_hugging_face_cache_is_served(cache: Path) -> None:
    with serve(cache / "snapshots" / "r1" / "model.onnx", threads=1) as yard:
        assert answer(yard) == 1
        assert yard.operator.swap("model").revision == 2  # the same, read anew
        assert answer(yard) == 1
        with pytest.raises(InvalidRequest, match="inside models_root"):
            yard.operator.swap("model", "../../../model.onnx")


def test_a_snapshot_is_swapped_for_the_next_inside_models_root(cache: Path) -> None:
    first = cache / "snapshots" / "r1" / "model.onnx"
    with serve(first, threads=1, models_root=cache) as yard:
        yard.operator.swap("model", "snapshots/r2/model.onnx")
        assert answer(yard) == 2
        yard.operator.load("again", "snapshots/r1/model.onnx")
        yard.operator.swap("model", "snapshots/r1/model.onnx")
        assert answer(yard) == 1


def test_data_that_is_missing_from_a_snapshot_is_named_without_where_files_lie(cache: Path) -> None:
    file = cache / "snapshots" / "r1" / "model.onnx"
    os.unlink((file.parent / "model.onnx_data").resolve())
    with pytest.raises(ModelFailed, match=r"model\.onnx_data") as caught, serve(file, threads=1):
        pass
    assert str(cache) not in str(caught.value)


def test_a_kubernetes_volume_is_served_and_its_next_version_is_read_anew(tmp_path: Path) -> None:
    volume(tmp_path, 1)
    with serve(tmp_path / "model.onnx", threads=1) as yard:
        assert answer(yard) == 1
        before = watch.listing(tmp_path)
        volume(tmp_path, 2)
        assert watch.listing(tmp_path) != before
        yard.operator.swap("model")
        assert answer(yard) == 2


def test_check_counts_the_weights_behind_the_links(cache: Path) -> None:
    file = cache / "snapshots" / "r1" / "model.onnx"
    command = [*BATCHYARD, "check", file, "--json", "--provider", "cpu", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["files"] == {"model.onnx": file.stat().st_size, "model.onnx_data": 4 * 4 * 300}
    assert report["bytes"] == sum(report["files"].values())


def test_a_followed_volume_is_known_by_its_names(tmp_path: Path, tools: Any) -> None:
    """What the configuration serves from behind a link is not loaded a second time."""
    volume(tmp_path, 1)
    config = tmp_path / "yard.toml"
    config.write_text('[models.net]\nfile = "model.onnx"\n')
    url = f"ipc://{tmp_path}/y"
    log = tmp_path / "log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [*BATCHYARD, "up", "--config", config, "--url", url, "--watch"], stdout=out, stderr=out
        )
    try:
        tools.until(lambda: "following" in log.read_text(), 60, "it is up")
        (tmp_path / "other.onnx").symlink_to("..data/model.onnx")
        tools.until(lambda: "other: loaded, revision 1" in log.read_text(), 30, "it has looked")
        volume(tmp_path, 3)
        tools.until(lambda: "net: swapped, revision 2" in log.read_text(), 30, "the next version")
        assert "model: loaded" not in log.read_text()
        assert "refused" not in log.read_text()
    finally:
        up.terminate()
        assert up.wait(30) == 0
