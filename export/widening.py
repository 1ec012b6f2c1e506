"""Turns bfloat16 arithmetic into float32, for providers without bfloat16 kernels.

onnxruntime's CPU provider cannot multiply bfloat16, and before opset 22 operators such as Conv do not accept
it. Weights keep 2 bytes in the file, followed by a Cast that the runtime folds when it loads. Inputs and
outputs keep their type. The arithmetic between them is float32, which rounds less than the model did. Pure:
onnx.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def has_bfloat16(proto: Any) -> bool:
    """Whether a tensor of the graph is bfloat16."""
    from onnx import TensorProto

    ends = (*proto.graph.input, *proto.graph.output)
    if any(value.type.tensor_type.elem_type == TensorProto.BFLOAT16 for value in ends):
        return True
    return any(
        tensor.data_type == TensorProto.BFLOAT16
        for graph in graphs(proto.graph)
        for tensor in (*graph.initializer, *_constants(graph))
    )


def widened(proto: Any) -> Any:
    """A copy of `proto` (onnx.ModelProto) that computes in float32 instead of bfloat16."""
    from onnx import TensorProto, helper

    narrow, wide = TensorProto.BFLOAT16, TensorProto.FLOAT
    found = type(proto)()
    found.CopyFrom(proto)
    del found.graph.value_info[:]
    for graph in graphs(found.graph):
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                is_type = node.op_type == "Cast" and attribute.name == "to"
                if (is_type or attribute.name in ("dtype", "output_dtype")) and attribute.i == narrow:
                    attribute.i = wide
        for tensor in _constants(graph):
            if tensor.data_type == narrow:
                _as_float(tensor)
        loads = []
        for weight in graph.initializer:
            if weight.data_type == narrow:
                stored = f"{weight.name}.bf16"
                loads.append(
                    helper.make_node("Cast", [stored], [weight.name], name=f"{stored}.load", to=wide)
                )
                weight.name = stored
        nodes = [*loads, *graph.node]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        graph.ClearField("node")
        graph.node.extend(copies)
    _cast_ends(found.graph, narrow, wide)
    return found


def _cast_ends(graph: Any, narrow: int, wide: int) -> None:
    """Keep the types of inputs and outputs: a Cast follows each input and precedes each output."""
    from onnx import helper

    names: dict[str, str] = {}
    first, last = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type == narrow:
            names[value.name] = f"{value.name}.float"
            first.append(helper.make_node("Cast", [value.name], [names[value.name]], to=wide))
    for value in graph.output:
        if value.type.tensor_type.elem_type == narrow:
            names[value.name] = f"{value.name}.float"
            last.append(helper.make_node("Cast", [names[value.name]], [value.name], to=narrow))
    for part in graphs(graph):
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in part.output if part is not graph else ():
            value.name = names.get(value.name, value.name)
    nodes = [type(node).FromString(node.SerializeToString()) for node in (*first, *graph.node, *last)]
    graph.ClearField("node")
    graph.node.extend(nodes)
    for part in graphs(graph):
        if part is not graph:
            for value in (*part.input, *part.output):
                if value.type.tensor_type.elem_type == narrow:
                    value.type.tensor_type.elem_type = wide


def graphs(graph: Any) -> Iterator[Any]:
    """The graph and the graphs inside its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def _constants(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _as_float(tensor: Any) -> None:
    import numpy as np
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
