"""Names in a raw graph: of free axes, inputs and outputs; and whether its inputs are those that were given.

Knows onnx protos and onnx_ir models; loads neither torch nor a runtime.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..transport.errors import InvalidRequest
from .specs import COMPLEX, InputSpec, size_of

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Fixed:
    """An axis that was to be free, and has one size in the graph."""

    input: str
    axis: int
    name: str
    size: int

    def __str__(self) -> str:
        return f"axis {self.axis} of {self.input} is fixed at one size in its graph"


def settle(proto: Any, specs: Sequence[InputSpec]) -> tuple[tuple[InputSpec, ...], list[Fixed]]:
    """Call the graph's free axes what `specs` call them, in the graph; and return the specs as the graph has
    them, with the axes that were to be free and are not. Axes that only the graph leaves free keep its name.

    Raises InvalidRequest where the graph makes two names one size.
    """
    for dim in dims(proto):
        if dim.dim_param.isdigit():  # what torch writes for an axis that its tracer has fixed
            dim.dim_value = int(dim.dim_param)
    names: dict[str, str] = {}
    for value, spec in zip(proto.graph.input, specs, strict=True):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim[: len(spec.shape)]):
            wanted = spec.axes[axis] if spec.axes else ""
            if dim.dim_value:
                continue
            if not dim.dim_param:
                dim.dim_param = wanted or f"{spec.name}_{axis}"
            lone = size_of(dim.dim_param, None) is None or _SYMBOL.fullmatch(dim.dim_param)
            if lone and wanted:
                other = names.setdefault(dim.dim_param, wanted)
                if other != wanted:
                    raise InvalidRequest(
                        f"{other} and {wanted} are one size in this model: give them one name; or, if they "
                        "only happen to be equal in the given shapes, give shapes in which they differ"
                    )
            elif lone:
                names.setdefault(dim.dim_param, re.sub(r"\W", "_", dim.dim_param))
    for value in proto.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (
                dim.dim_param
                and not _SYMBOL.fullmatch(dim.dim_param)
                and size_of(dim.dim_param, None) is None
            ):
                names.setdefault(
                    dim.dim_param, f"{value.name}_{axis}"
                )  # ((height - 1)//2) + 1, and longer ones
    for dim in dims(proto):
        if dim.dim_param:
            dim.dim_param = names.get(dim.dim_param) or _SYMBOL.sub(
                lambda found: names.get(found[0], found[0]), dim.dim_param
            )
    found, fixed = [], []
    for value, spec in zip(proto.graph.input, specs, strict=True):
        axes = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim[: len(spec.shape)]):
            axes.append(dim.dim_param)
            if dim.dim_value and spec.axes and spec.axes[axis]:
                fixed.append(Fixed(spec.name, axis, spec.axes[axis], dim.dim_value))
        found.append(replace(spec, axes=tuple(axes)))
    return tuple(found), fixed


def dims(proto: Any) -> Iterator[Any]:
    """Every axis of every tensor whose shape the graph states."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        yield from value.type.tensor_type.shape.dim


def symbols(proto: Any, specs: Sequence[InputSpec], name: str) -> dict[str, str]:
    """What a raw graph calls the axes that `specs` call `name`, by input."""
    found = {}
    for value, spec in zip(proto.graph.input, specs, strict=True):
        if name in spec.axes:
            dim = value.type.tensor_type.shape.dim[spec.axes.index(name)]
            found[spec.name] = dim.dim_param
    return found


def free(proto: Any, axes: Sequence[Fixed]) -> None:
    """Say that these axes are free after all, and nothing any more of shapes that may follow from them."""
    places = {(one.input, one.axis): one.name for one in axes}
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (value.name, axis) in places:
                dim.dim_param = places[value.name, axis]
    del proto.graph.value_info[:]
    sizes = {one.size for one in axes}
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value in sizes:
                dim.Clear()


def check_inputs(name: str, proto: Any, specs: Sequence[InputSpec]) -> None:
    """A saved program has its own inputs: raises InvalidRequest where `specs` are others."""
    from onnx import helper

    given = [_as_onnx(spec) for spec in specs]
    taken = []
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        sizes = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
        taken.append((str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes))

    def fits(one: tuple[str, list[Any]], other: tuple[str, list[int]]) -> bool:
        same = len(one[1]) == len(other[1])
        sizes = zip(one[1], other[1], strict=False)
        return one[0] == other[0] and same and all(isinstance(a, str) or a == b for a, b in sizes)

    if len(taken) != len(given) or not all(map(fits, taken, given)):
        said = [
            "; ".join(f"{dtype}{sizes}".replace("'", "") for dtype, sizes in part) for part in (taken, given)
        ]
        raise InvalidRequest(f"{name} takes {said[0]}, and {said[1]} was given")


def _as_onnx(spec: InputSpec) -> tuple[str, list[int]]:
    """The exporter writes complex numbers as pairs: one axis more, of 2."""
    if spec.dtype in COMPLEX:
        return ("float32" if spec.dtype == COMPLEX[0] else "float64"), [*spec.shape, 2]
    return spec.dtype, list(spec.shape)


def output_names(
    count: int, given: Sequence[str] | None, inputs: Sequence[str], keys: Sequence[str] = ()
) -> list[str]:
    """The outputs' names: the given ones, or the keys under which the model returns them, or `output`, or
    `output_0`, `output_1`, ... Raises InvalidRequest where they can't be."""
    if given is None:
        own = [re.sub(r"\W", "_", key) for key in keys]
        if len(set(own) - {"", *inputs}) == count == len(own):
            return own
        return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    names = [name.strip() for name in given]
    if len(names) != count:
        raise InvalidRequest(f"the model has {count} outputs, and {len(names)} names were given")
    if not all(names):
        raise InvalidRequest("an output's name cannot be empty")
    twice = [name for index, name in enumerate(names) if name in names[:index] or name in inputs]
    if twice:
        raise InvalidRequest(f"two inputs or outputs would be called {twice[0]!r}")
    return names


def name_values(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of an onnx_ir.Model. What lies inside gives way where it has such a name,
    and an output that is an input, a weight, or another output as well, gets a value of its own."""
    import onnx_ir

    graph = model.graph
    seen = {*graph.inputs, *graph.initializers.values()}
    for index, value in enumerate(graph.outputs):
        if value in seen:
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(value)
    ends = [*graph.inputs, *graph.outputs]
    taken = {*inputs, *outputs}
    inner = [value for value in graph.initializers.values() if value not in ends]
    for node in graph.all_nodes():
        inner += [value for value in node.outputs if value not in ends]
        inner += [value for part in _subgraphs(node) for value in part.inputs]
    used = taken | {value.name for value in inner}
    for value in inner:
        if value.name in taken:
            number = next(number for number in range(len(used) + 1) if f"{value.name}.{number}" not in used)
            value.name = f"{value.name}.{number}"
            used.add(value.name)
    for index, value in enumerate(ends):  # in two steps, so that none meets a name that another gives up
        value.name = f"batchyard.end.{index}"
    for value, name in zip(ends, (*inputs, *outputs), strict=True):
        value.name = name


def _subgraphs(node: Any) -> Iterator[Any]:
    import onnx_ir

    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.value
