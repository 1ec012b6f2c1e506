"""Names in a raw graph: axes, inputs, outputs, and what lies between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from batchyard.export.naming import Fixed, free, name_values, output_names, settle, symbols
from batchyard.export.specs import InputSpec
from batchyard.transport.errors import InvalidRequest

FLOAT = 1


def loaded(path: Any) -> Any:
    import onnx

    return onnx.load(str(path))


def shapes(proto: Any) -> list[list[Any]]:
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]


@pytest.fixture
def joined(onnx_models: Any) -> Any:
    """As torch names it: two axes of which a third is the sum, and one that it has fixed."""
    return loaded(
        onnx_models.save(
            "joined",
            [("Concat", ["past", "x"], ["y"], {"axis": 1})],
            [("past", FLOAT, ["s1", "s7", "8"]), ("x", FLOAT, ["s1", "s2", "8"])],
            [("y", FLOAT, ["s1", "s7 + s2", "8"])],
        )
    )


def specs(past: tuple[str, ...], x: tuple[str, ...]) -> list[InputSpec]:
    return [InputSpec("past", (1, 7, 8), axes=past), InputSpec("x", (1, 2, 8), axes=x)]


def test_axes_get_the_users_names_in_sums_too(joined: Any) -> None:
    given = specs(("batch", "cache", ""), ("batch", "sequence", ""))
    assert symbols(joined, given, "batch") == {"past": "s1", "x": "s1"}
    found, fixed = settle(joined, given)
    assert shapes(joined) == [
        ["batch", "cache", 8],
        ["batch", "sequence", 8],
        ["batch", "cache + sequence", 8],
    ]
    assert ([spec.axes for spec in found], fixed) == ([spec.axes for spec in given], [])


def test_an_axis_that_the_graph_fixes_is_told_and_can_be_freed(joined: Any) -> None:
    found, fixed = settle(joined, specs(("batch", "cache", "width"), ("batch", "sequence", "")))
    assert fixed == [Fixed("past", 2, "width", 8)]
    assert found[0].axes == ("batch", "cache", "")
    free(joined, fixed)
    assert shapes(joined)[0] == ["batch", "cache", "width"]
    assert shapes(joined)[2] == ["batch", "cache + sequence", 0], "what may follow from it is not said"


def test_two_names_for_one_size_are_refused(joined: Any) -> None:
    with pytest.raises(InvalidRequest, match="rows and batch are one size"):
        settle(joined, specs(("rows", "cache", ""), ("batch", "sequence", "")))


def test_free_axes_that_nobody_named_keep_the_graphs_names(onnx_models: Any) -> None:
    path = onnx_models.unary("unnamed_axes", "Neg", ["batch.size", "s3", ""])
    proto = loaded(path)
    found, _ = settle(proto, [InputSpec("x", (1, 2, 3))])
    assert found[0].axes == ("batch_size", "s3", "x_2")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a"], "2 outputs, and 1 names"),
        (["a", "a"], "would be called 'a'"),
        (["a", "x"], "would be called 'x'"),
        (["a", " "], "cannot be empty"),
    ],
)
def test_names_of_outputs_that_cannot_be_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        output_names(2, given, ["x"])


def test_outputs_without_names_are_numbered() -> None:
    assert output_names(1, None, ["x"]) == ["output"]
    assert output_names(2, None, ["x"]) == ["output_0", "output_1"]
    assert output_names(2, ["a ", "b"], ["x"]) == ["a", "b"]


def test_what_lies_inside_gives_way_to_the_names_of_inputs_and_outputs(onnx_models: Any) -> None:
    """Inner values and weights that have the names, an output that is an input, and one that stands twice."""
    import onnx_ir

    path = onnx_models.save(
        "crowded",
        [
            ("Add", ["x", "w"], ["relu"], {}),
            ("Relu", ["relu"], ["relu.0"], {}),
            ("Neg", ["relu.0"], ["y"], {}),
        ],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2]), ("x", FLOAT, ["n", 2]), ("y", FLOAT, ["n", 2])],
        {"w": np.float32([1, -3])},
    )
    model = onnx_ir.serde.deserialize_model(loaded(path))
    name_values(model, ["w"], ["relu", "relu.0", "x"])
    proto = onnx_ir.serde.serialize_model(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["relu", "relu.0", "x"]
    x = np.float32([[1, 2]])
    found = session.run(None, {"w": x})
    for got, wanted in zip(found, ([[-2, 0]], [[1, 2]], [[-2, 0]]), strict=True):
        assert got.tolist() == wanted
