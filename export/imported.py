"""A model that is ONNX already: its graph, its inputs, and its answers, which are the reference for its
variants. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest
from . import axes, naming, runtime
from .sources import first_line
from .specs import Array, Feeds, InputSpec, unique
from .tracing import Traced


def is_onnx(model: Any) -> bool:
    """Whether `model` is the path of an .onnx file."""
    return isinstance(model, str | Path) and Path(model).suffix == ".onnx"


def read(
    path: Path, given: Sequence[InputSpec] | None, dynamic: axes.Dynamic | None, bytes_max: int
) -> Traced:
    """The file's graph and its inputs: the `given` ones, under the file's names, or the file's own. Free axes
    keep their names, unless `dynamic` has others.

    Weights in a second file are read as well. Raises InvalidRequest for a file that is not a model, is larger
    than `bytes_max`, or takes other inputs than `given`.
    """
    proto = load(path, bytes_max)
    specs = described(path, proto) if given is None else tuple(given)
    if len(specs) == len(proto.graph.input):
        names = [value.name for value in proto.graph.input]
        specs = unique(tuple(replace(spec, name=name) for spec, name in zip(specs, names, strict=True)))
    naming.check_inputs(path.name, proto, specs)
    free = axes.parse(dynamic, specs)
    wanted = tuple(
        replace(spec, axes=tuple(free.names_of(spec).get(axis, "") for axis in range(len(spec.shape))))
        for spec in specs
    )
    found, fixed = naming.settle(proto, wanted)
    if fixed:
        raise InvalidRequest(f"{path.name}: {fixed[0]}")
    session = runtime.session(proto.SerializeToString(), runtime.AS_WRITTEN)

    def reference(feeds: Any) -> list[Array]:
        answers: Feeds = dict(feeds)
        return runtime.run(session, answers)

    return Traced(proto, reference, found)


def load(path: Path, bytes_max: int) -> Any:
    """The onnx.ModelProto with all its weights. Raises InvalidRequest."""
    import onnx
    from onnx import external_data_helper, helper

    try:
        nbytes = path.stat().st_size
        proto = onnx.load(str(path), load_external_data=False) if nbytes <= bytes_max else None
        if proto is not None:
            nbytes += sum(
                prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
                for tensor in proto.graph.initializer
                if external_data_helper.uses_external_data(tensor)
            )
        if proto is None or nbytes > bytes_max:
            raise InvalidRequest(too_large(path.name, nbytes, bytes_max))
        external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except InvalidRequest:
        raise
    except FileNotFoundError as error:
        raise InvalidRequest(f"there is no file {error.filename or str(path)!r}") from None
    except Exception as error:  # protobuf's and onnx's own kinds
        raise InvalidRequest(f"{path} is no readable ONNX file: {first_line(error)}") from None
    return proto


def too_large(name: str, nbytes: int, bytes_max: int) -> str:
    """The error text for weights that do not fit into one file."""
    return (
        f"{name} has {nbytes / 1e9:.2f} GB of weights, and one ONNX file holds {bytes_max / 1e9:.2f} GB "
        "(a limit of protobuf); weights in a second file are not written"
    )


def described(path: Path, proto: Any) -> tuple[InputSpec, ...]:
    """The inputs as the file declares them, with one row on a free batch axis."""
    from onnx import helper

    specs = []
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        free = [index for index, dim in enumerate(dims) if index and not dim.dim_value]
        if not dims or free:
            raise InvalidRequest(
                f"{path.name}'s input {value.name!r} has no fixed shape: say one with --input"
            )
        shape = (dims[0].dim_value or 1, *(dim.dim_value for dim in dims[1:]))
        specs.append(InputSpec(value.name, shape, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
    return unique(tuple(specs))
