"""The publishing gate of the batch axis: what is no batch is never published as one. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export import InputSpec, export_to_onnx

FLOAT = 1
QUICK_S = 0.001


def exported(source: Path, folder: Path, *shapes: tuple[int, ...], **options: Any) -> Any:
    specs = [InputSpec(f"input_{index}", shape) for index, shape in enumerate(shapes)]
    return export_to_onnx(source, folder / "out.onnx", specs or None, measure_s=QUICK_S, **options)


def test_rows_that_are_independent_are_a_batch_and_the_reason_has_the_figure(
    onnx_models: Any, tmp_path: Path
) -> None:
    report = exported(onnx_models.affine("independent", 8, 4), tmp_path)
    assert (report.batch["inputs"], report.batch["outputs"]) == ({"x": 0}, {"y": 0})
    assert "in another order differ by" in report.batch["reason"]
    assert report.dynamic_batch
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["batch"] == report.batch
    inside = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert json.loads(inside.get_modelmeta().custom_metadata_map["batchyard.batch"]) == report.batch


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("softmax", [("Softmax", ["x"], ["y"], {"axis": 0})]),
        ("cumulated", [("CumSum", ["x", "zero"], ["y"], {})]),
        ("normed", [("ReduceMean", ["x", "axis"], ["m"], {"keepdims": 1}), ("Sub", ["x", "m"], ["y"], {})]),
    ],
)
def test_axis_0_that_is_no_batch_is_published_free_and_is_not_called_one(
    name: str, nodes: Any, onnx_models: Any, tmp_path: Path
) -> None:
    constants = {"zero": np.int64(0), "axis": np.int64([0])}
    used = {key: value for key, value in constants.items() if key in nodes[0][1]}
    ends = [("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 4])]
    report = exported(onnx_models.save(f"no_batch_{name}", nodes, *ends, used), tmp_path, (6, 4))
    assert (report.dynamic_batch, report.batch["inputs"]) == (False, {})
    assert "of the largest value of output 'y'" in report.batch["reason"]
    assert any(line.startswith("  batch axis: none (") for line in report.lines())
    assert [part["shape"] for part in (*report.inputs, *report.outputs)] == [["x_0", 4], ["x_0", 4]]
    assert len(report.checked["x_0"]) > 3, "it is free, and was tried at other sizes"


def test_the_batch_is_found_on_another_axis(onnx_models: Any, tmp_path: Path) -> None:
    axes = ["sequence", "batch", 3]
    path = onnx_models.save(
        "sequence_first", [("Softmax", ["x"], ["y"], {"axis": 0})], [("x", FLOAT, axes)], [("y", FLOAT, axes)]
    )
    report = exported(path, tmp_path, (7, 2, 3))
    assert report.batch["inputs"] == {"x": 1}
    assert report.inputs[0]["shape"] == axes
    assert report.variants[0].difference.batch_sizes == (1, 2, 7, 32, 64), "rows are counted where they are"
    assert 7 in report.checked["sequence"]


def test_two_things_that_are_counted_are_not_one_batch(onnx_models: Any, tmp_path: Path) -> None:
    """CLIP: images on one axis of the answer, texts on the other; both called `batch` by its exporter."""
    path = onnx_models.save(
        "clip",
        [("Transpose", ["text"], ["t"], {"perm": [1, 0]}), ("MatMul", ["image", "t"], ["logits"], {})],
        [("image", FLOAT, ["batch", 4]), ("text", FLOAT, ["batch", 4])],
        [("logits", FLOAT, ["batch", "batch"])],
    )
    report = exported(path, tmp_path, (2, 4), (3, 4))
    assert report.batch["inputs"] in ({"image": 0}, {"text": 0}), "one of them, with the other one shared"
    shapes = [part["shape"] for part in (*report.inputs, *report.outputs)]
    assert shapes == [["batch", 4], ["text_0", 4], ["batch", "text_0"]]
    assert len(report.checked["text_0"]) > 2, "the other one is free, and is another size"


def test_an_output_without_rows_is_no_batchs(onnx_models: Any, tmp_path: Path) -> None:
    path = onnx_models.save(
        "total",
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})],
        [("x", FLOAT, ["batch", 4])],
        [("y", FLOAT, [])],
    )
    report = exported(path, tmp_path, (3, 4))
    assert report.batch["inputs"] == {}
    assert "no axes" in report.batch["reason"]
