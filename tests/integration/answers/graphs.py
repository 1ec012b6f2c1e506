"""Models in onnx's own text form: `graph("(float[n,4] x) => (float[n,4] y) { y = Relu (x) }")`.

A name among the inputs that is also given as a constant becomes one: weights need no text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 10

Array = np.ndarray[Any, Any]


def graph(text: str, *, opset: int = OPSET, checked: bool = True, **constants: Any) -> ModelProto:
    """The model that the text says; `constants` are its weights by name, whether the text lists them or not."""
    head = f'<ir_version: {IR_VERSION}, opset_import: ["" : {opset}, "ai.onnx.ml" : 3]>'
    model = onnx.parser.parse_model(f"{head}\nmain {text}")
    kept = [info for info in model.graph.input if info.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    if checked:
        onnx.checker.check_model(model)
    return model


def unary(operator: str, element: int, axes: Any, opset: int = OPSET) -> ModelProto:
    """One operator from `x` to `y`, of any element type."""
    return _one(helper.make_node(operator, ["x"], ["y"]), element, element, axes, opset)


def cast(element: int, to: int, axes: Any, opset: int = OPSET) -> ModelProto:
    """`y` is `x` as another type."""
    return _one(helper.make_node("Cast", ["x"], ["y"], to=to), element, to, axes, opset)


def _one(node: Any, element: int, to: int, axes: Any, opset: int) -> ModelProto:
    infos = [helper.make_tensor_value_info(name, kind, axes) for name, kind in (("x", element), ("y", to))]
    made = helper.make_graph([node], "main", infos[:1], infos[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def weights(*shape: int, seed: int = 0) -> Array:
    """float32, of about unit variance a column."""
    fan = shape[-2] if len(shape) > 1 else 1
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
