"""From a torch module to a raw ONNX graph, and the function that answers as PyTorch does.

The only file that traces. Nothing is optimized here: the raw graph is what passes are measured against.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from . import axes, naming, recurrent, sources
from .quiet import quiet
from .sources import Source, cause
from .specs import BATCH, Array, InputSpec, numpy_dtype, sample

Reference = Callable[[Mapping[str, Array]], list[Array]]  # the outputs, in order

OPSET = 18
ROWS_TRACED = 2  # with one row, the exporter takes the axis for a constant
EAGER = "eager"


@dataclass(frozen=True)
class Traced:
    """What came of a model.

    proto: the raw onnx.ModelProto. reference: what PyTorch answers to the same inputs. specs: the inputs
    with the free axes that the graph has. no_batch: why axis 0 is no free axis `batch` after all. doubtful:
    axes that the tracer had fixed and that were made free all the same, for the comparison to decide.
    symbols: what the tracer called the axis `batch` of each input. notes: what else the user should know.
    """

    proto: Any
    reference: Reference
    specs: tuple[InputSpec, ...]
    no_batch: str = ""
    doubtful: tuple[naming.Fixed, ...] = ()
    symbols: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def trace(
    source: Source,
    specs: Sequence[InputSpec],
    free_axes: axes.FreeAxes,
    *,
    opset: int = OPSET,
    dynamic_batch: bool = True,
    output_names: Sequence[str] | None = None,
) -> Traced:
    """Trace in eval mode, with the axes free that the user names, and axis 0 of every input as the batch
    where nothing else is said of it.

    Raises ModelFailed where the model can't be traced, with the cause; InvalidRequest where what was given
    can't be right.
    """
    import torch

    sources.refuse_packed(source)
    reference = answers(source)
    left_out = ("its cache of keys (use_cache) was left out",) if cached(source.model) else ()
    wanted, no_batch = axes.labelled(specs, free_axes, dynamic_batch), ""
    if isinstance(source.model, torch.nn.Module):
        wanted, no_batch = runnable(wanted, free_axes, reference)
    proto, notes = written(source, wanted, opset, output_names)
    symbols = naming.symbols(proto, wanted, BATCH)
    found, fixed = naming.settle(proto, wanted)
    silent = [one for one in fixed if not _is_requested(one, free_axes)]
    if silent and isinstance(source.model, torch.nn.Module):
        # It was traced with ROWS_TRACED rows, and would keep them.
        no_batch = no_batch or "; ".join(map(str, silent[:1]))
        wanted, _ = runnable(
            without_batch(wanted, free_axes, {one.input for one in silent}), free_axes, reference
        )
        proto, notes = written(source, wanted, opset, output_names)
        symbols = naming.symbols(proto, wanted, BATCH)
        found, fixed = naming.settle(proto, wanted)
    elif silent:
        no_batch = str(silent[0])
    naming.check_inputs(source.name, proto, specs)
    requested = tuple(one for one in fixed if _is_requested(one, free_axes))
    if requested and not isinstance(source.model, torch.nn.Module):
        raise InvalidRequest(f"{source.name}: {requested[0]}; save the program with it free")
    if requested:
        naming.free(proto, requested)
        found, _ = naming.settle(proto, wanted)
    return Traced(proto, reference, found, no_batch, requested, symbols, (*left_out, *notes))


def _is_requested(one: naming.Fixed, free_axes: axes.FreeAxes) -> bool:
    return one.axis in free_axes.names.get(one.input, {})


def without_batch(
    specs: Sequence[InputSpec], free_axes: axes.FreeAxes, of: set[str] | None = None
) -> tuple[InputSpec, ...]:
    """No batch on axis 0 of these inputs (of all) where it was only supposed to be there."""
    found = []
    for spec in specs:
        if (
            (of is None or spec.name in of)
            and spec.axes[:1] == (BATCH,)
            and 0 not in free_axes.names_of(spec)
        ):
            spec = replace(spec, axes=("", *spec.axes[1:]))
        found.append(spec)
    return tuple(found)


def runnable(
    specs: tuple[InputSpec, ...], free_axes: axes.FreeAxes, reference: Reference
) -> tuple[tuple[InputSpec, ...], str]:
    """`specs` as PyTorch runs them, before minutes of tracing, and why not with another number of rows.
    Raises ModelFailed where it runs them in no way."""
    try:
        reference(sample(specs, axes.traced_sizes(specs, ROWS_TRACED), seed=0))
    except ModelFailed as error:
        plain = without_batch(specs, free_axes)
        try:
            if plain == specs:
                raise
            reference(sample(plain, axes.traced_sizes(plain, ROWS_TRACED), seed=0))
        except ModelFailed as last:
            raise ModelFailed(f"{last}{axes.perhaps_batch(specs, free_axes)}") from error
        return plain, f"with {ROWS_TRACED} rows on axis 0, {error}"
    return specs, ""


def written(
    source: Source, specs: Sequence[InputSpec], opset: int, output_names: Sequence[str] | None
) -> tuple[Any, tuple[str, ...]]:
    """The raw graph, its inputs and outputs named, and what had to be done for it."""
    try:
        return _written(source, specs, opset, output_names), ()
    except InvalidRequest:
        raise
    except Exception as error:  # the exporter raises what the model raises
        failed = ModelFailed(f"{source.name} cannot be exported: {cause(error)}")
        failed.__cause__ = error
    # transformers' "sdpa" views tensors that are not contiguous: torch 2.13 can't decompose it (T5, Swin).
    with eager_attention(source.model) as is_changed:
        if not is_changed:
            raise failed
        try:
            return _written(source, specs, opset, output_names), (
                "its attention was written as `eager`, because as it was it could not be exported",
            )
        except Exception:
            raise failed from None


def _written(
    source: Source, specs: Sequence[InputSpec], opset: int, output_names: Sequence[str] | None
) -> Any:
    import torch

    sizes = axes.traced_sizes(specs, ROWS_TRACED)
    feeds = tuple(tensor_of(array) for array in sample(specs, sizes, seed=0).values())
    inputs = [spec.name for spec in specs]
    with quiet(), evaluating(source.model):
        program = source.model
        if isinstance(program, torch.nn.Module):
            # AUTO: what a model can't leave free is fixed, and seen afterwards in the graph.
            free = tuple(
                {axis: torch.export.Dim.AUTO for axis, name in enumerate(spec.axes) if name} for spec in specs
            )
            named = by_name(program, inputs)
            if named and not set(inputs) <= set(inspect.signature(program.forward).parameters):
                program, named = positional(program, inputs), False
            program = torch.export.export(
                program,
                () if named else feeds,
                dict(zip(inputs, feeds, strict=True)) if named else None,
                dynamic_shapes=shapes_of(program, dict(zip(inputs, free, strict=True)), named),
            )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            custom_translation_table=recurrent.translations(source.name, program),
        )
    count = len(exported.model.graph.outputs)
    outputs = naming.output_names(count, output_names, inputs, keys_of(program))
    taken = {value.name: value for value in exported.model.graph.inputs}
    if set(taken) == set(inputs):  # given by name, they come in forward's order
        exported.model.graph.inputs[:] = [taken[name] for name in inputs]
    if len(taken) == len(inputs):  # else check_inputs says what it takes
        naming.name_values(exported.model, inputs, outputs)
    proto = exported.model_proto
    got = next(one.version for one in proto.opset_import if not one.domain)
    if got != opset:  # the exporter goes on with what it can
        raise InvalidRequest(f"{source.name} cannot be exported to opset {opset}, but to {got}")
    scrub(proto)
    if len(proto.graph.input) != len(specs):
        naming.check_inputs(source.name, proto, specs)
    return proto


def keys_of(program: Any) -> list[str]:
    """The keys of a saved program's outputs where it returns a mapping: those that are tensors."""
    from torch.utils import _pytree

    spec = program.call_spec.out_spec
    found = _pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [path for path, _ in _pytree.tree_flatten_with_path(found)[0]]
    outputs = [one for one in program.graph_signature.output_specs if one.kind.name == "USER_OUTPUT"]
    if not all(path and isinstance(path[0], _pytree.MappingKey) for path in paths):
        return []
    keys = ["_".join(str(getattr(part, "key", getattr(part, "idx", ""))) for part in path) for path in paths]
    return [
        key for key, one in zip(keys, outputs, strict=False) if getattr(one.arg, "value", one) is not None
    ]


def by_name(model: Any, inputs: Sequence[str]) -> bool:
    """Whether forward takes the inputs by name, because it does not take them in this order."""
    import torch

    if not isinstance(model, torch.nn.Module):
        return False
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {one.kind for one in parameters}
    ordered = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    named = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} | set(ordered)
    if list(inputs) == ordered[: len(inputs)]:
        return False
    too_few = inspect.Parameter.VAR_POSITIONAL not in kinds and len(ordered) < len(inputs)
    return set(inputs) <= named or (too_few and inspect.Parameter.VAR_KEYWORD in kinds)


def positional(model: Any, names: Sequence[str]) -> Any:
    """`model` as a module that takes these inputs in order: torch.export frees no axes in `**kwargs`."""
    import torch

    class InOrder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(names, values, strict=True)))

    return InOrder()


def shapes_of(model: Any, free: Mapping[str, Any], named: bool) -> Any:
    """`free` as torch.export wants it: what goes to `*args` lies one deeper."""
    if named:
        return free
    parameters = inspect.signature(model.forward).parameters.values()
    count = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    axes = tuple(free.values())
    return (*axes[:count], axes[count:]) if len(axes) > count else axes


def scrub(proto: Any) -> None:
    """Take out the exporter's notes: stack traces with the paths of whoever exported."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ClearField("metadata_props")


def answers(source: Source) -> Reference:
    """PyTorch itself as a function of NumPy arrays; complex answers as pairs, as the exporter writes them.
    It raises ModelFailed with the cause."""
    import torch
    from torch.utils._pytree import tree_leaves

    model = source.model
    module = model if isinstance(model, torch.nn.Module) else model.module()

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        tensors = {name: tensor_of(array) for name, array in feeds.items()}
        try:
            with torch.no_grad(), quiet(), evaluating(model):
                named = by_name(model, list(feeds))
                found = module(**tensors) if named else module(*tensors.values())
                leaves = [leaf for leaf in tree_leaves(found) if leaf is not None]
        except RecursionError as error:
            raise ModelFailed(f"{source.name} calls itself without end: {cause(error)}") from None
        except (Exception, SystemExit) as error:  # such as a saved program's bounds on its batch
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise ModelFailed(f"{source.name} cannot run {shapes} in PyTorch: {cause(error)}") from error
        strange = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
        if strange:
            kind = type(strange[0]).__name__
            raise ModelFailed(f"{source.name} returns a value of type {kind}: let it return tensors alone")
        try:
            return [array_of(leaf) for leaf in leaves]
        except ModelFailed as error:
            raise ModelFailed(f"{source.name}: {error}") from None

    return run


def tensor_of(array: Array) -> Any:
    """A torch tensor of the same values, in memory of its own: a model may write into its inputs."""
    import torch

    if array.dtype.kind == "V":  # of ml_dtypes: torch takes the bits
        bits = torch.from_numpy(array.view(f"u{array.itemsize}").copy())
        return bits.view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array.copy())


def array_of(tensor: Any) -> Array:
    """A NumPy array of the same values; complex numbers as pairs. Raises ModelFailed for a tensor that is
    none of plain numbers."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        tensor = tensor.resolve_neg().contiguous()
        if kind == "bfloat16" or kind.startswith("float8"):  # NumPy has them from ml_dtypes
            bits = torch.uint16 if kind == "bfloat16" else torch.uint8
            return tensor.view(bits).numpy().view(numpy_dtype(kind))  # type: ignore[no-any-return]
        return tensor.numpy()  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantized, on the device "meta"
        where = f"{kind}, {str(tensor.layout).removeprefix('torch.')}, on {tensor.device}"
        raise ModelFailed(f"it returns a tensor that cannot be written as numbers ({where})") from None


@contextlib.contextmanager
def eager_attention(model: Any) -> Iterator[bool]:
    """transformers' models with their plain attention for a while; whether there is one that had another."""
    parts = model.modules() if hasattr(model, "modules") else ()
    changed = []
    for part in parts:
        before = getattr(getattr(part, "config", None), "_attn_implementation", None)
        if hasattr(part, "set_attn_implementation") and isinstance(before, str) and before != EAGER:
            try:
                part.set_attn_implementation(EAGER)
            except Exception:  # it has none: the first failure stands
                continue
            changed.append((part, before))
    try:
        yield bool(changed)
    finally:
        for part, before in reversed(changed):
            part.set_attn_implementation(before)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode for a while, and without the cache of keys that transformers' models return beside their
    tensors. The caller's module is his, and may go on training."""
    training = bool(getattr(model, "training", False))
    configs = cached(model)
    if training:
        model.eval()
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = True
        if training:
            model.train()


def cached(model: Any) -> list[Any]:
    """The configurations of a transformers' model that ask for a cache of keys."""
    parts = model.modules() if hasattr(model, "modules") else ()
    configs = {id(config): config for part in parts if (config := getattr(part, "config", None)) is not None}
    return [config for config in configs.values() if getattr(config, "use_cache", False) is True]
