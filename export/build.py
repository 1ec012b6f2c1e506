"""One model from PyTorch to files: trace, optimize, prove, vary, validate, measure, publish.

Nothing is written before the plain file agrees with PyTorch; a variant is written only if it passes the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from . import (
    axes,
    gate,
    imported,
    kinds,
    metadata,
    passes,
    runtime,
    sources,
    timing,
    tracing,
    variants,
    widening,
)
from .calibration import ROWS_AT_ONCE, Data, batches, rows_of
from .judge import Judge
from .publish import publish
from .report import Report, Variant
from .rows import Rows, disowned, name_outputs, proved
from .specs import Feeds, InputSpec, Shapes, specs_of

BYTES_MAX = 2**31 - 1  # protobuf's own limit; beyond it weights would have to lie in a second file

Say = Callable[[str], None]
Quiet = Callable[[], AbstractContextManager[None]]


def export_to_onnx(
    model: Any,
    path: str | Path,
    input_shape: Shapes | None = None,
    *,
    dynamic: axes.Dynamic | None = None,
    optimize: bool = True,
    quantize: variants.Asked = False,
    calibration: Data | None = None,
    calibration_method: str = "minmax",
    validation_data: Data | None = None,
    dynamic_batch: bool = True,
    batch_max: int = 64,
    opset: int = 18,
    output_names: Sequence[str] | None = None,
    weights: str | Path | None = None,
    task: str = kinds.AUTO,
    tolerances: Mapping[str, gate.Tolerance] | None = None,
    provider: str = runtime.CPU,
    provider_options: Mapping[str, str] | None = None,
    measure_s: float = timing.BUDGET_S,
    quiet: Quiet = nullcontext,
    say: Say = lambda line: None,
) -> Report:
    """Export `model` to `path` (its own precision), publish variants beside it, and report what was found.

    model: a torch.nn.Module, `"module:factory"`, or a torch.export program's .pt2. Pickles are refused.
        Or an .onnx file, whose own answers on the CPU stand for PyTorch's; opset and free axes are its own.
    input_shape: one shape, `{name: shape}`, or InputSpecs with dtypes; axis 0 is the batch, unless `dynamic`
        says otherwise. An .onnx file says its own where its shapes are fixed.
    dynamic: axes that are free besides the batch, or where the batch is: `{"ids": {1: "sequence"}}`, or texts
        such as `"ids:1=sequence"`; see axes.py.
    quantize: True or "best" publishes the cheapest variant that passes the gate, "all" every one that
        does, names ("dynamic", "static", "fp16-storage", "int8-storage") those.
    calibration: real rows for "static": .npy, .npz, arrays, or a callable that yields batches.
    calibration_method: "minmax", "entropy" or "percentile".
    validation_data: real rows to compare with PyTorch; without, the calibration's. The plain file is compared
        on random rows besides, a variant on random rows only where there are no real ones.
    dynamic_batch, batch_max: axis 0 free, checked with 1..batch_max rows; else the shape's own size.
    weights: a state dict for a module, read with weights_only=True.
    task: what variants are compared by besides their error: "classification" (top-1), "embedding" (cosine),
        "regression" (nothing), or "auto", which looks at the graph's end.
    provider: what variants are compared and timed on, `"webgpu"` or as onnxruntime calls it, with
        `provider_options`.
    measure_s: seconds per batch size and variant. quiet: a context in which nothing else works; what is
        timed is timed in it. say: is told what goes on, a line at a time.

    Raises InvalidRequest where what was given can't be right, ModelFailed where the model cannot be
    exported or its plain file differs from its source by more than rounding. Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InvalidRequest(f"{path} must end in .onnx")
    if input_shape is None and not imported.is_onnx(model):
        raise InvalidRequest("give input_shape (--input): one shape, such as (1, 3, 32, 32), or named ones")
    specs = None if input_shape is None else specs_of(input_shape)
    where = runtime.target(provider, provider_options)
    record = path.with_suffix(".json")
    stale = metadata.earlier(record)
    wanted = variants.asked(quantize, calibration is not None)
    kinds.named(task)
    if imported.is_onnx(model):
        name = Path(model).name
        if Path(model).resolve() == path.resolve():
            raise InvalidRequest(f"{path} would be written over what it is made of: choose another name")
        if output_names is not None:
            raise InvalidRequest(f"{name} has names for its outputs: others (--outputs) are for PyTorch's")
        traced = imported.read(Path(model), specs, dynamic, BYTES_MAX)
    else:
        assert specs is not None
        source = sources.find(model, None if weights is None else Path(weights))
        name = source.name
        nbytes = sources.weights_nbytes(source)
        if nbytes > BYTES_MAX:  # before minutes of tracing
            raise InvalidRequest(imported.too_large(name, nbytes, BYTES_MAX))
        say("tracing")
        traced = tracing.trace(
            source,
            specs,
            axes.parse(dynamic, specs),
            opset=opset,
            dynamic_batch=dynamic_batch,
            output_names=output_names,
        )
    free = axes.parse(dynamic, traced.specs)
    graph = Graph(name, traced, by_name=not imported.is_onnx(model), dynamic_batch=dynamic_batch)
    graph.prepare(where, optimize, say)

    data = None if calibration is None else rows_of(calibration, graph.specs)
    given = data if validation_data is None else rows_of(validation_data, graph.specs)
    judge = Judge(
        graph.specs, traced.reference, given, free, batch_max, where, measure_s, quiet, task, graph.is_fixed
    )
    judge.plain(graph.proto, name, graph.precision, traced.doubtful)
    if judge.nan_share:
        graph.notes += (
            f"{100 * judge.nan_share:.2g} % of its answers to random inputs are NaN, and the file's are, too",
        )
    inputs, outputs = metadata.signature(graph.proto)
    report = Report(
        path=path,
        source=name,
        opset=metadata.opset(graph.proto),
        dynamic_batch=bool(graph.rows.inputs),
        nodes_raw=graph.nodes_raw,
        nodes=passes.nodes(graph.proto),
        passes=tuple(graph.passes),
        variants=(judge.base,),
        metadata=record,
        inputs=inputs,
        outputs=outputs,
        asked=() if quantize is True or quantize in (variants.BEST, variants.ALL) else wanted,
        batch={
            "inputs": dict(graph.rows.inputs),
            "outputs": dict(graph.rows.outputs),
            "reason": graph.rows.reason,
        },
        sizes=axes.own_sizes(graph.specs),
        checked=judge.checked,
        notes=(*traced.notes, *graph.notes),
    )
    protos = {judge.base.name: graph.proto}
    calibrated = None if data is None else batches(data, graph.specs, ROWS_AT_ONCE)
    for variant in wanted:
        say(f"trying {variant}")
        tolerance = (tolerances or {}).get(variant, gate.TOLERANCES[variant])
        judged, made = tried(variant, graph.proto, calibrated, calibration_method, judge, tolerance)
        report = replace(report, variants=(*report.variants, judged))
        if not judged.refused:
            protos[variant] = made
    if quantize is True or quantize == variants.BEST:
        report, protos = only_best(report, protos)
    return publish(report, protos, stale)


def tried(
    name: str, proto: Any, data: list[Feeds] | None, method: str, judge: Judge, tolerance: gate.Tolerance
) -> tuple[Variant, Any]:
    """A variant's figures and its graph. If it fails, the model goes on without it."""
    try:
        made = variants.make(name, proto, data, method)
        return judge.variant(name, made, tolerance), made
    except ModelFailed as error:
        return Variant(name, 0, float("nan"), (), None, (str(error),)), None


@dataclass
class Graph:
    """The plain graph on its way from the tracer to the judge, and what is found out about it meanwhile."""

    name: str
    traced: tracing.Traced
    by_name: bool  # the batch is where the axis `batch` is; else where the file's own names suggest
    dynamic_batch: bool
    proto: Any = None
    specs: tuple[InputSpec, ...] = ()
    rows: Rows = field(default_factory=Rows)
    precision: str = "float32"
    nodes_raw: int = 0
    passes: list[passes.Pass] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether axis 0 is a batch of one fixed size, as the user wants."""
        return not self.dynamic_batch

    def prepare(self, where: runtime.Target, optimize: bool, say: Say) -> None:
        """Widen it where the provider can't run it, optimize it, and put its batch axis to the proof. Raises
        ModelFailed."""
        self.proto, self.specs = self.traced.proto, self.traced.specs
        self.precision = precision(self.proto)
        self.nodes_raw = passes.nodes(self.proto)
        if widening.has_bfloat16(self.proto):
            self._widen(where)
        if optimize:
            say(f"optimizing {self.nodes_raw} nodes")
            try:
                self.proto, self.passes = passes.optimize(self.proto)
            except Exception as error:  # onnxscript's, onnx_ir's and onnxruntime's share no base
                raise ModelFailed(
                    f"{self.name} cannot be optimized: {sources.cause(error)}; "
                    "--no-optimize leaves it as it is"
                ) from error
        self._prove(where, say)

    def _widen(self, where: runtime.Target) -> None:
        try:
            runtime.session(self.proto.SerializeToString(), where)
        except ModelFailed:
            self.proto = widening.widened(self.proto)
            self.notes += (
                f"{where.provider} cannot run its bfloat16 arithmetic: it is float32 in the file, "
                "weights, inputs and outputs stay bfloat16",
            )

    def _prove(self, where: runtime.Target, say: Say) -> None:
        if self.by_name and not self.dynamic_batch:
            self.rows = Rows(reason=f"fixed at {self.specs[0].shape[0]}, as was asked for")
        elif self.traced.no_batch and not any(spec.batch_axis is not None for spec in self.specs):
            self.rows = Rows(reason=self.traced.no_batch)
        else:
            say("checking that rows are independent")
            session = runtime.session(self.proto.SerializeToString(), where)
            self.rows, self.specs = proved(self.proto, session, self.specs, self.by_name)
        if not self.rows.inputs:
            self.specs = disowned(self.proto, self.specs, self.traced.symbols)
            if self.by_name and self.dynamic_batch:
                self.notes += ("if its batch is on another axis, say so: --dynamic INPUT:AXIS=batch",)
        name_outputs(self.proto, runtime.session(self.proto.SerializeToString(), where), self.specs)


def precision(proto: Any) -> str:
    """The least exact type that a graph computes in, as far as its ends and weights show it."""
    from onnx import TensorProto

    ends = (*proto.graph.input, *proto.graph.output)
    found = {value.type.tensor_type.elem_type for value in ends}
    found |= {tensor.data_type for tensor in proto.graph.initializer}
    if TensorProto.BFLOAT16 in found:
        return "bfloat16"
    return "float16" if TensorProto.FLOAT16 in found else "float32"


def only_best(report: Report, protos: dict[str, Any]) -> tuple[Report, dict[str, Any]]:
    """The plain file and the cheapest of the variants that may be published; the others say why not."""
    passed = [variant for variant in report.variants if variant.name in protos]
    best = min(passed, key=lambda variant: variant.cost)
    kept = {report.variants[0].name, best.name}
    found = tuple(
        replace(variant, refused=(f"{best.name} is better",))
        if variant.name in protos and variant.name not in kept
        else variant
        for variant in report.variants
    )
    return replace(report, variants=found), {name: protos[name] for name in kept}
