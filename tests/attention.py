"""A small model of texts, as sentence encoders are made: tokens that attend to each other under a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = 200
HIDDEN, POOLED = "hidden", "pooled"


def write(
    path: Path, outputs: tuple[str, ...] = (HIDDEN,), masked: bool = True, width: int = 8, longest: int = 0
) -> Path:
    """`hidden` is [batch, sequence, width], `pooled` their mean, [batch, width]. `masked` False: the mask is
    an input and not heeded. `longest`: it has positions for so many tokens, and fails on more; 0: none."""
    rng = np.random.default_rng(width)

    def constant(name: str, values: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values), name)

    table = rng.standard_normal((WORDS, width)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(table, "table"),
        constant("one", np.float32(1)),
        constant("low", np.float32(-1e4)),
        constant("axis1", np.array([1], np.int64)),
        constant("axis2", np.array([2], np.int64)),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("Cast", ["mask"], ["counted"], to=TensorProto.FLOAT),
    ]
    if not masked:
        nodes += [
            helper.make_node("Mul", ["counted", "zero"], ["none"]),
            helper.make_node("Add", ["none", "one"], ["counts"]),
        ]
        initializers.append(constant("zero", np.float32(0)))
    else:
        nodes.append(helper.make_node("Identity", ["counted"], ["counts"]))
    if longest:
        positions = rng.standard_normal((longest, width)).astype(np.float32)
        initializers.append(numpy_helper.from_array(positions, "positions"))
        initializers.append(constant("zero64", np.int64(0)))
        initializers.append(constant("one64", np.int64(1)))
        initializers.append(constant("index1", np.int64(1)))
        nodes += [
            helper.make_node("Shape", ["ids"], ["shape"]),
            helper.make_node("Gather", ["shape", "index1"], ["length"]),
            helper.make_node("Range", ["zero64", "length", "one64"], ["places"]),
            helper.make_node("Gather", ["positions", "places"], ["placed"]),
            helper.make_node("Add", ["words", "placed"], ["x"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["words"], ["x"]))
    nodes += [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"]),
        helper.make_node("Sub", ["one", "counts"], ["left_out"]),
        helper.make_node("Mul", ["left_out", "low"], ["lowered"]),
        helper.make_node("Unsqueeze", ["lowered", "axis1"], ["bias"]),
        helper.make_node("Add", ["scores", "bias"], ["biased"]),
        helper.make_node("Softmax", ["biased"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "x"], [HIDDEN]),
        helper.make_node("Unsqueeze", ["counts", "axis2"], ["each"]),
        helper.make_node("Mul", [HIDDEN, "each"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis1"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["counts", "axis1"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], [POOLED]),
    ]
    shapes = {HIDDEN: ["batch", "sequence", width], POOLED: ["batch", width]}
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("ids", "mask")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def request(rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """So many texts of one length."""
    rng = np.random.default_rng([rows, length, seed])
    return {
        "ids": rng.integers(1, WORDS, (rows, length)),
        "mask": np.ones((rows, length), np.int64),
    }
