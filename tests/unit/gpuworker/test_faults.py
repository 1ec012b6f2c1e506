"""A broken file's fault in a sentence: each one is made, and read by the real onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from batchyard.gpuworker import providers
from batchyard.gpuworker.faults import explain, plain
from onnx import TensorProto, helper, numpy_helper

RELU = [("Relu", ["x"], ["y"])]


def made(
    nodes: list[tuple[Any, ...]] = RELU,
    opset: int = 17,
    ir: int = 9,
    kind: int = TensorProto.FLOAT,
    weights: Any = None,
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node(operator, inputs, outputs, name="n1", domain=domain)
            for operator, inputs, outputs in nodes
        ],
        "m",
        [helper.make_tensor_value_info("x", kind, ["n", 4])],
        [helper.make_tensor_value_info("y", kind, ["n", None])],
        [] if weights is None else [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def fault(file: Path, content: onnx.ModelProto | bytes | None) -> str:
    """What is said of a file with this content."""
    if content is not None:
        data = content if isinstance(content, bytes) else content.SerializeToString()
        file.write_bytes(data)
    recipe = providers.recipe("cpu", 1)
    with pytest.raises(Exception) as caught:  # noqa: PT011  # onnxruntime has a dozen kinds
        recipe.session(str(file), {})
    text = explain(caught.value, str(file))
    assert str(file.parent) not in text
    assert "\n" not in text
    return text


def without_opset() -> onnx.ModelProto:
    model = made()
    del model.opset_import[:]
    return model


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: made(opset=99), "it uses opset 99 of ai.onnx, and onnxruntime"),
        (lambda: made(ir=99), "its file has IR version 99, and onnxruntime"),
        (lambda: made([("Frob", ["x"], ["y"])]), "the operator Frob, which opset 17 does not have"),
        (lambda: made([("Frob", ["x"], ["y"])], domain="com.acme"), "the operator Frob of com.acme, which"),
        (lambda: made(kind=TensorProto.INT16), "no implementation of Relu (of opset 14) for the types"),
        (lambda: made([("Identity", ["x"], ["y"])], kind=TensorProto.COMPLEX64), "tensors of complex64, which onnxruntime does not run"),
        (
            lambda: made([("MatMul", ["x", "w"], ["y"])], kind=TensorProto.INT8, weights=np.ones((4, 4), np.int8)),
            "its operator MatMul does not take int8, which 'x' is",
        ),
        (without_opset, "it does not say of which opset its operators are"),
        (lambda: made([("Add", ["x", "gone"], ["y"])]), "Node input 'gone' is not a graph input"),
        (
            lambda: made([("MatMul", ["x", "w"], ["y"])], weights=np.ones((5, 4), np.float32)),
            "Incompatible dimensions for matrix multiplication",
        ),
        (lambda: b"", "the file is empty"),
        (lambda: b"hello, I am no model", "it is no ONNX file, or it was not copied"),
        (lambda: made().SerializeToString()[:-20], "it is no ONNX file, or it was not copied"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        (lambda: b"PK\3\4" + b"a" * 20, "a zip archive (as PyTorch saves models)"),
        (lambda: b"<!doctype html><html>", "a page of HTML"),
        (lambda: None, "there is no such file"),
    ],
)
def test_the_fault_of_a_file_is_named(
    tmp_path: Path, content: Callable[[], onnx.ModelProto | bytes | None], said: str
) -> None:
    text = fault(tmp_path / "model.onnx", content())
    assert said in text
    assert "ONNXRuntimeError" not in text
    assert "/onnxruntime_src" not in text


def external(folder: Path) -> Path:
    """A model whose weights lie beside it, in w.bin."""
    file = folder / "model.onnx"
    model = made([("MatMul", ["x", "w"], ["y"])], weights=np.ones((4, 400), np.float32))
    onnx.save_model(model, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    return file


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    file = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    assert fault(file, None) == "its weights lie in a file beside it, 'w.bin', and that is missing"


def test_weights_behind_a_link_that_leads_nowhere_are_missing_too(tmp_path: Path) -> None:
    file = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").symlink_to("../nowhere/blob")
    assert fault(file, None) == "its weights lie in a file beside it, 'w.bin', and that is missing"


def test_weights_outside_the_models_folder_are_named_as_such(tmp_path: Path) -> None:
    inner = tmp_path / "models"
    inner.mkdir()
    file = external(inner)
    (inner / "w.bin").rename(tmp_path / "w.bin")
    (inner / "w.bin").symlink_to("../w.bin")
    text = fault(file, None)
    assert text.startswith("its external data, 'w.bin', lies outside the model's own folder")
    assert str(tmp_path) not in text


def test_weights_that_are_named_from_the_root_on_are_named(tmp_path: Path) -> None:
    file = external(tmp_path)
    model = onnx.load(file, load_external_data=False)
    location = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    location.value = str(tmp_path / "w.bin")
    file.write_bytes(model.SerializeToString())
    text = fault(file, None)
    assert text.startswith("its external data (of 'w') is named by an absolute path: ")
    assert str(tmp_path) not in text


def test_weights_that_end_too_early_are_named(tmp_path: Path) -> None:
    file = external(tmp_path)
    (tmp_path / "w.bin").write_bytes(b"1234")
    assert "the file with its weights is shorter than the model says (tensor 'w')" in fault(file, None)


def test_a_language_that_the_machine_does_not_have_is_named() -> None:
    text = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: string_normalizer.cc:235 "
        "onnxruntime::StringNormalizer::Locale::Locale(const std::string&)::<lambda()> Failed to construct "
        "locale with name:en_US.UTF-8:locale::facet::_S_create_c_locale name not valid:Please, install it"
    )
    said = "its operator StringNormalizer wants the locale en_US.UTF-8, which this machine does not have"
    assert explain(RuntimeError(text), "x") == said


def test_what_is_not_known_is_passed_on_without_places_and_folders() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Load model from /home/me/models/a b.onnx failed:"
        "/onnxruntime_src/onnxruntime/core/graph/x.cc:12 void a::b(int, char) Something new at "
        "/home/me/models/c.bin\nmore of it"
    )
    assert plain(text) == "Something new at c.bin"
    assert explain(RuntimeError(""), "x") == "RuntimeError"
