"""What onnxruntime says of a model's tensors, as specs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.evidence.axes import UNNAMED
from batchyard.evidence.specs import spec_of, specs_of
from batchyard.transport.dtypes import BY_NAME
from batchyard.transport.tensors import RANK_MAX, TensorSpec


def node(kind: str, *shape: Any) -> Any:
    return SimpleNamespace(name="x", type=kind, shape=list(shape))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_type_of_the_table_is_known_by_onnxruntimes_name(name: str) -> None:
    theirs = {"float32": "float", "float64": "double"}.get(name, name)
    assert spec_of(node(f"tensor({theirs})", "n", 4)) == TensorSpec("x", BY_NAME[name].code, ["n", 4])


@pytest.mark.parametrize("axis", [None, "", -1])
def test_an_axis_without_a_name_is_free_and_unnamed(axis: Any) -> None:
    assert spec_of(node("tensor(float)", axis, 3)).shape == [UNNAMED, 3]


def test_no_axes_are_any_axes() -> None:
    assert spec_of(node("tensor(float)")).shape is None


@pytest.mark.parametrize(
    "kind", ["seq(tensor(float))", "map(int64,tensor(float))", "optional(tensor(float))", "sparse_tensor(float)", "tensor(float6)"]
)
def test_what_no_client_can_hold_is_refused_by_its_type(kind: str) -> None:
    with pytest.raises(ValueError, match="batchyard carries tensors of float32") as refused:
        spec_of(node(kind, "n"))
    assert str(refused.value).startswith(f"'x' is of type {kind};")


def test_a_classifier_of_scikit_learn_has_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"convert it with options=\{'zipmap': False\}"):
        spec_of(node("seq(map(int64,tensor(float)))"))


def test_more_axes_than_an_array_has_are_refused() -> None:
    with pytest.raises(ValueError, match=f"has {RANK_MAX + 1} axes"):
        spec_of(node("tensor(float)", *[1] * (RANK_MAX + 1)))


def test_inputs_with_a_default_come_last_and_may_be_left_out(onnx_models: Any) -> None:
    import numpy as np
    import onnxruntime

    path = onnx_models.save(
        "scaled", [("Mul", ["x", "scale"], ["y"], {})], [("x", 1, ["n", 3])], [("y", 1, ["n", 3])],
        {"scale": np.ones(3, np.float32)},
    )  # fmt: skip
    inputs, outputs = specs_of(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    assert [spec.optional for spec in inputs] in ([False], [False, True])  # as the file's version says
    assert inputs[0] == TensorSpec("x", 1, ["n", 3])
    assert outputs == [TensorSpec("y", 1, ["n", 3])]
