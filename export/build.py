"""One model from PyTorch to files: trace, optimize, vary, validate, measure, publish.

Nothing is written before fp32 agrees with PyTorch; a variant is written only when the gate lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from . import gate, imported, metadata, passes, runtime, sources, timing, tracing, validation, variants
from .calibration import Data, rows_of
from .publish import publish
from .report import FP32, Report, Variant
from .specs import Feeds, InputSpec, Shapes, sample, specs_of

BATCHES_TIMED = (1, 8)
UNSURE_MAX = 1.25  # a little slower than allowed is measured again, AGAIN times as long
AGAIN = 3
BYTES_MAX = 2**31 - 1  # protobuf's own limit; beyond it weights would have to lie in a second file

Say = Callable[[str], None]
Quiet = Callable[[], AbstractContextManager[None]]


def export_to_onnx(
    model: Any,
    path: str | Path,
    input_shape: Shapes | None = None,
    *,
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
    tolerances: Mapping[str, gate.Tolerance] | None = None,
    provider: str = runtime.CPU,
    provider_options: Mapping[str, str] | None = None,
    measure_s: float = timing.BUDGET_S,
    quiet: Quiet = nullcontext,
    say: Say = lambda line: None,
) -> Report:
    """Export `model` to `path` (fp32), publish variants beside it, and report what was found.

    model: a torch.nn.Module, `"module:factory"`, or a torch.export program's .pt2. Pickles are refused.
        Or an .onnx file, whose own answers on the CPU stand for PyTorch's; opset and batch are its own.
    input_shape: one shape, `{name: shape}`, or InputSpecs with dtypes; axis 0 is the batch. An .onnx file
        says its own where its shapes are fixed.
    quantize: True or "best" publishes the cheapest variant that passes the gate, "all" every one that
        does, names ("dynamic", "static", "fp16-storage", "int8-storage") those.
    calibration: real rows for "static": .npy, .npz, arrays, or a callable that yields batches.
    calibration_method: "minmax", "entropy" or "percentile".
    validation_data: real rows to compare with PyTorch; without, the calibration's. fp32 is compared on
        random rows besides, a variant on random rows only where there are no real ones.
    dynamic_batch, batch_max: axis 0 symbolic, traced for 1..batch_max rows; else the shape's own size.
    weights: a state dict for a module, read with weights_only=True.
    provider: what variants are compared and timed on, `"webgpu"` or as onnxruntime calls it, with
        `provider_options`.
    measure_s: seconds per batch size and variant. quiet: a context in which nothing else works; what is
        timed is timed in it. say: is told what goes on, a line at a time.

    Raises InvalidRequest where what was given can't be right, ModelFailed where the model cannot be
    exported or its fp32 file differs from its source by more than 1e-4. Nothing is written then.
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
    if imported.is_onnx(model):
        name = Path(model).name
        if Path(model).resolve() == path.resolve():
            raise InvalidRequest(f"{path} would be written over what it is made of: choose another name")
        traced, specs = imported.read(Path(model), specs, BYTES_MAX)
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
            opset=opset,
            dynamic_batch=dynamic_batch,
            batch_max=batch_max,
            output_names=output_names,
        )
    data = None if calibration is None else rows_of(calibration, specs)
    given = data if validation_data is None else rows_of(validation_data, specs)

    proto, ran = traced.proto, list[passes.Pass]()
    nodes_raw = passes.nodes(proto)
    if optimize:
        say(f"optimizing {nodes_raw} nodes")
        proto, ran = passes.optimize(proto)

    fixed = None if traced.dynamic_batch else specs[0].shape[0]
    judge = Judge(specs, traced.reference, given, fixed, batch_max, where, measure_s, quiet)
    judge.fp32(proto, name)
    inputs, outputs = metadata.signature(proto)
    report = Report(
        path=path,
        source=name,
        opset=metadata.opset(proto),
        dynamic_batch=fixed is None,
        nodes_raw=nodes_raw,
        nodes=passes.nodes(proto),
        passes=tuple(ran),
        variants=(judge.base,),
        metadata=record,
        inputs=inputs,
        outputs=outputs,
        asked=() if quantize is True or quantize in (variants.BEST, variants.ALL) else wanted,
    )
    protos = {FP32: proto}
    for name in wanted:
        say(f"trying {name}")
        try:
            made = variants.make(name, proto, data, calibration_method, fixed)
            judged = judge.variant(name, made, (tolerances or {}).get(name, gate.TOLERANCES[name]))
        except ModelFailed as error:  # this variant's end, not the model's
            judged, made = Variant(name, 0, float("nan"), (), None, (str(error),)), None
        report = replace(report, variants=(*report.variants, judged))
        if not judged.refused:
            protos[name] = made
    if quantize is True or quantize == variants.BEST:
        report, protos = only_best(report, protos)
    return publish(report, protos, stale)


def only_best(report: Report, protos: dict[str, Any]) -> tuple[Report, dict[str, Any]]:
    """fp32 and the cheapest of the variants that may be published; the others say why not."""
    passed = [variant for variant in report.variants if variant.name in protos]
    best = min(passed, key=lambda variant: variant.cost)
    kept = {FP32, best.name}
    found = tuple(
        replace(variant, refused=(f"{best.name} is better",))
        if variant.name in protos and variant.name not in kept
        else variant
        for variant in report.variants
    )
    return replace(report, variants=found), {name: protos[name] for name in kept}


class Judge:
    """Holds a model's cases and its fp32 session, and measures files against them."""

    def __init__(
        self,
        specs: tuple[InputSpec, ...],
        reference: Callable[[Mapping[str, Any]], list[Any]],
        given: Feeds | None,
        fixed: int | None,
        batch_max: int,
        where: runtime.Target,
        measure_s: float,
        quiet: Quiet,
    ) -> None:
        def sizes(of: Sequence[int]) -> list[int]:
            return [size for size in of if size <= batch_max] if fixed is None else [fixed]

        self.where = where
        self.measure_s = measure_s
        self.quiet = quiet
        # Noise is no fair judge of a variant that was calibrated for real rows: its ranges end there.
        rows = given or sample(specs, validation.ROWS_JUDGED, validation.SEED)
        at_once = fixed or min(validation.ROWS_AT_ONCE, batch_max)
        self.cases = validation.given_cases(rows, reference, at_once)
        self.cases_all = validation.random_cases(specs, reference, sizes(validation.BATCHES)) + self.cases
        self.timed = {size: sample(specs, size, validation.SEED) for size in sizes(BATCHES_TIMED)}
        self.base: Variant
        self.session: Any = None

    def fp32(self, proto: Any, name: str) -> None:
        """Take `proto` for what variants are compared with. Raises ModelFailed unless it is as PyTorch."""
        content = proto.SerializeToString()
        self.session = runtime.session(content, self.where)
        difference = validation.compare(self.cases_all, lambda feeds: runtime.run(self.session, feeds))
        refusal = gate.fp32_refusal(difference)
        if refusal:
            raise ModelFailed(f"{name} {refusal}")
        # Against itself: its times, and a ratio that shows how noisy this machine is.
        self.base = Variant(FP32, len(content), 1.0, self.times(self.session, self.measure_s), difference)

    def variant(self, name: str, proto: Any, tolerance: gate.Tolerance) -> Variant:
        """Figures, and every reason against it."""
        content = proto.SerializeToString()
        session = runtime.session(content, self.where)
        ratio = len(content) / self.base.nbytes
        difference = validation.compare(self.cases, lambda feeds: runtime.run(session, feeds))
        timings = self.times(session, self.measure_s)
        if gate.SLOWER_MAX < max(timing.ratio for timing in timings) < UNSURE_MAX:
            timings = self.times(session, AGAIN * self.measure_s)  # a neighbour's noise refuses nobody
        reasons = gate.refusals(ratio, timings, difference, tolerance)
        return Variant(name, len(content), ratio, timings, difference, tuple(reasons))

    def times(self, session: Any, budget_s: float) -> tuple[timing.Timing, ...]:
        with self.quiet():
            return tuple(
                timing.interleaved(
                    lambda feeds=feeds: runtime.run(self.session, feeds),  # type: ignore[misc]
                    lambda feeds=feeds: runtime.run(session, feeds),  # type: ignore[misc]
                    rows,
                    self.where.provider,
                    budget_s=budget_s,
                )
                for rows, feeds in self.timed.items()
            )
