"""A model's weights in files of their own, wherever in the graph they are used, and files that are no models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from batchyard.cli import weights
from batchyard.cli.weights import files_of
from onnx import TensorProto, helper, numpy_helper


def tensor(name: str, location: str = "") -> onnx.TensorProto:
    found = numpy_helper.from_array(np.ones(3, np.float32), name)
    if location:
        onnx.external_data_helper.set_external_data(found, location, offset=0, length=12)
        found.ClearField("raw_data")
    return found


def save(folder: Path, *nodes: onnx.NodeProto, weights: list[onnx.TensorProto], functions: tuple[onnx.FunctionProto, ...] = ()) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "m", ends[:1], ends[1:], weights)
    file = folder / "model.onnx"
    file.write_bytes(helper.make_model(graph, ir_version=9, functions=functions).SerializeToString())
    return file


def test_a_model_in_one_file_has_no_others(tmp_path: Path) -> None:
    file = save(tmp_path, helper.make_node("Mul", ["x", "w"], ["y"]), weights=[tensor("w")])
    assert files_of(file) == {"model.onnx": file.stat().st_size}


def test_weights_are_found_in_folders_and_behind_links_and_each_file_counts_once(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(bytes(5000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").symlink_to("../blobs/1")
    (tmp_path / "v.bin").write_bytes(bytes(70))
    file = save(
        tmp_path,
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "v"], ["y"]),
        weights=[tensor("w", "data/w.bin"), tensor("w2", "data/w.bin"), tensor("v", "v.bin"), tensor("gone", "gone.bin")],
    )
    assert files_of(file) == {"model.onnx": file.stat().st_size, "data/w.bin": 5000, "v.bin": 70}


def test_weights_of_constants_branches_and_functions_count(tmp_path: Path) -> None:
    for number, name in enumerate(("constant", "branch", "function"), 1):
        (tmp_path / name).write_bytes(bytes(number))
    branch = helper.make_graph([helper.make_node("Identity", ["b"], ["o"])], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [3])], [tensor("b", "branch")])
    inner = helper.make_node("Constant", [], ["c"], value=tensor("c", "function"))
    file = save(
        tmp_path,
        helper.make_node("Constant", [], ["k"], value=tensor("k", "constant")),
        helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch),
        weights=[],
        functions=(helper.make_function("my", "F", [], ["c"], [inner], [helper.make_opsetid("", 18)]),),
    )
    assert files_of(file) == {"model.onnx": file.stat().st_size, "constant": 1, "branch": 2, "function": 3}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x3a\xff", b"\xff" * 100_000, b"PK\x03\x04" * 9])
def test_what_is_no_model_has_its_own_size(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(content)
    assert files_of(file) == {"x.onnx": len(content)}


def test_a_damaged_model_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(bytes(70))
    file = save(tmp_path, helper.make_node("Mul", ["x", "v"], ["y"]), weights=[tensor("v", "v.bin")])
    whole = file.read_bytes()
    for seed in range(500):
        rng = random.Random(seed)
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        assert files_of(file)["model.onnx"] == len(content)
    nested = b""
    for tag in (b"\x32", b"\x2a", b"\x0a") * 3000 + (b"\x3a",):  # a graph in an attribute of a node of a graph ...
        size, length = len(nested), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        nested = tag + length + bytes([size]) + nested
    file.write_bytes(nested)
    assert list(files_of(file)) == ["model.onnx"]


def test_a_message_that_claims_more_than_its_parent_has_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the work doubles with each level of a few bytes."""
    looks = 0

    def counted(*arguments: Any) -> tuple[int, int]:
        nonlocal looks
        looks += 1
        return varint(*arguments)

    varint = weights._varint
    monkeypatch.setattr(weights, "_varint", counted)
    level = bytes([1 << 3 | 2, 120, 5 << 3 | 2, 120, 6 << 3 | 2, 120])  # a node, an attribute, a graph
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes([7 << 3 | 2, 120]) + level * 10)
    assert files_of(file) == {"model.onnx": 62}
    assert looks <= 62
