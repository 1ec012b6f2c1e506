"""Storage variants: weights are small in the file, and become float32 again when it is loaded.

    fp16-storage   weight = Cast(fp16)
    int8-storage   weight = Mul(Cast(int8), scale[channel]), scale = max |channel| / 127

With every provider, the runtime folds Cast and Mul of constants while it loads, so a run costs as much as
with fp32. DequantizeLinear would need one node less, but it is folded only in a session with
`session.disable_quant_qdq=1`, which spoils static int8; unfolded, it ran 24 % slower. Pure: onnx, NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .specs import Array

ELEMENTS_MIN = 1024  # a bias or a small kernel saves less than its two nodes and its scale cost
FP16_MAX = 65504.0
LEVELS = 127.0

# (weight's name, its values, its channel axis) -> nodes and initializers that yield it, or nothing
Recipe = Callable[[str, Array, int], tuple[list[Any], list[Any]] | None]


def fp16_storage(proto: Any) -> Any:
    """A copy of `proto` (onnx.ModelProto) whose float32 weights are stored as float16."""
    return _stored(proto, _half)


def int8_storage(proto: Any) -> Any:
    """A copy of `proto` whose float32 matrices are stored as int8 with a float32 scale per channel."""
    return _stored(proto, _quarter)


def _half(name: str, weight: Array, _: int) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    if not np.abs(weight).max() <= FP16_MAX:  # it would become infinite; NaN stays as it is, too
        return None
    cast = helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.load", to=TensorProto.FLOAT)
    return [cast], [numpy_helper.from_array(weight.astype(np.float16), f"{name}.fp16")]


def _quarter(name: str, weight: Array, axis: int) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    if weight.ndim < 2 or not np.isfinite(weight).all():
        return None
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / LEVELS
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    levels = np.clip(np.rint(weight / scale), -LEVELS, LEVELS).astype(np.int8)
    nodes = [
        helper.make_node(
            "Cast", [f"{name}.int8"], [f"{name}.levels"], name=f"{name}.load", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{name}.levels", f"{name}.scale"], [name], name=f"{name}.rescale"),
    ]
    stored: dict[str, Array] = {f"{name}.int8": levels, f"{name}.scale": scale}
    return nodes, [numpy_helper.from_array(array, key) for key, array in stored.items()]


def _stored(proto: Any, recipe: Recipe) -> Any:
    from onnx import TensorProto, numpy_helper

    found = type(proto)()
    found.CopyFrom(proto)
    axes = _channel_axes(found.graph)
    loads, kept = [], []
    given = {value.name for value in found.graph.input}  # an initializer that callers may replace
    for weight in found.graph.initializer:
        made = None
        if weight.data_type == TensorProto.FLOAT and weight.name not in given:
            values = numpy_helper.to_array(weight)
            if values.size >= ELEMENTS_MIN:
                made = recipe(weight.name, values, axes.get(weight.name, 0))
        if made is None:
            kept.append(weight)
        else:
            loads += made[0]
            kept += made[1]
    nodes = [*loads, *found.graph.node]
    for field, parts in (("initializer", kept), ("node", nodes)):
        copies = [type(part).FromString(part.SerializeToString()) for part in parts]
        found.graph.ClearField(field)
        getattr(found.graph, field).extend(copies)
    return found


def _channel_axes(graph: Any) -> dict[str, int]:
    """The axis of each weight along which scales differ: output channels, or an embedding's rows."""
    axes = {}
    for node in graph.node:
        if node.op_type == "MatMul" and len(node.input) == 2:
            axes[node.input[1]] = -1
        elif node.op_type == "Gemm":
            transposed = any(part.name == "transB" and part.i for part in node.attribute)
            axes[node.input[1]] = 0 if transposed else -1
        elif node.op_type == "ConvTranspose":
            axes[node.input[1]] = 1
    return axes
