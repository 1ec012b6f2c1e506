"""From a torch module to a raw ONNX graph, and the function that answers as PyTorch does.

The only file that traces. Nothing is optimized here: the raw graph is what passes are measured against.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from .sources import Source, first_line
from .specs import Array, InputSpec, sample

Reference = Callable[[Mapping[str, Array]], list[Array]]  # the outputs, in order

OPSET = 18
ROWS_TRACED = 2  # with one row, the exporter takes the axis for a constant


@dataclass(frozen=True)
class Traced:
    """`proto`: the raw onnx.ModelProto; `reference`: what PyTorch answers to the same inputs."""

    proto: Any
    reference: Reference
    dynamic_batch: bool


def trace(
    source: Source,
    specs: Sequence[InputSpec],
    *,
    opset: int = OPSET,
    dynamic_batch: bool = True,
    batch_max: int = 64,
    output_names: Sequence[str] | None = None,
) -> Traced:
    """Trace in eval mode; axis 0 of every input is `batch`, 1..batch_max, unless `dynamic_batch` is off.

    Raises ModelFailed where the model can't be traced, with the exporter's first words.
    """
    import torch

    rows = ROWS_TRACED if dynamic_batch else specs[0].shape[0]
    feeds = {name: torch.from_numpy(array) for name, array in sample(specs, rows, seed=0).items()}
    with quiet(), evaluating(source.model):
        try:
            program = source.model
            if isinstance(program, torch.nn.Module):
                axis = {0: torch.export.Dim("batch", min=1, max=batch_max)} if dynamic_batch else {}
                shapes = tuple(dict(axis) for _ in specs)
                program = torch.export.export(program, tuple(feeds.values()), dynamic_shapes=shapes)
            outputs = names(len(program.graph_signature.user_outputs), output_names)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                input_names=[spec.name for spec in specs],
                output_names=outputs,
                verbose=False,
            )
        except InvalidRequest:
            raise
        except Exception as error:  # the exporter raises what the model raises
            raise ModelFailed(f"{source.name} cannot be exported: {first_line(error)}") from error
    proto = exported.model_proto
    got = next(one.version for one in proto.opset_import if not one.domain)
    if got != opset:  # the exporter goes on with what it can
        raise InvalidRequest(f"{source.name} cannot be exported to opset {opset}, but to {got}")
    scrub(proto)
    symbolic = named_batch(proto)
    check_inputs(source.name, proto, specs)
    return Traced(proto, answers(source), symbolic)


def check_inputs(name: str, proto: Any, specs: Sequence[InputSpec]) -> None:
    """A saved program has its own inputs: raises InvalidRequest where `specs` are others."""
    from onnx import helper

    given = [(spec.dtype, list(spec.shape)) for spec in specs]
    taken = []
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        sizes = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
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


def names(count: int, given: Sequence[str] | None) -> list[str]:
    """The outputs' names: the given ones, or `output`, or `output_0`, `output_1`, ..."""
    if given is None:
        return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    if len(given) != count:
        raise InvalidRequest(f"the model has {count} outputs, and {len(given)} names were given")
    return list(given)


def named_batch(proto: Any) -> bool:
    """Call the symbolic axis 0 `batch` everywhere; False where some input's or output's is fixed.

    torch names it after a symbol of its own (`s31`), and expressions of it where outputs have more rows.
    """
    values = [*proto.graph.input, *proto.graph.output]
    firsts = [value.type.tensor_type.shape.dim[:1] for value in values]
    symbols = {dim[0].dim_param for dim in firsts if dim and dim[0].dim_param}
    if len(symbols) == 1:
        (symbol,) = symbols
        for value in (*values, *proto.graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param == symbol:
                    dim.dim_param = "batch"
    return all(dim and dim[0].dim_param == "batch" for dim in firsts)


def scrub(proto: Any) -> None:
    """Take out the exporter's notes: stack traces with the paths of whoever exported."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ClearField("metadata_props")


def answers(source: Source) -> Reference:
    """PyTorch itself as a function of NumPy arrays. It raises ModelFailed with the model's first words."""
    import torch
    from torch.utils._pytree import tree_leaves

    model = source.model
    module = model if isinstance(model, torch.nn.Module) else model.module()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        tensors = [torch.from_numpy(array) for array in feeds.values()]
        try:
            with torch.no_grad(), evaluating(model):
                return [leaf.numpy() for leaf in tree_leaves(module(*tensors))]
        except Exception as error:  # such as a saved program's bounds on its batch
            rows = len(tensors[0])
            raise ModelFailed(
                f"{source.name} cannot run {rows} rows in PyTorch: {first_line(error)}"
            ) from error

    return run


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode for a while: the caller's module is his, and may go on training."""
    training = bool(getattr(model, "training", False))
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's remarks about itself (torchvision, deprecations in its own code) off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
