"""`batchyard export SOURCE model.onnx`: convert PyTorch to ONNX, and publish only what passes the checks.

Owns the command line and its tables. batchyard.export does the work and is loaded late.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..transport import extras
from ..transport.arguments import count, seconds
from ..transport.errors import InvalidRequest
from . import export_benchmark
from .arguments import pair, parser
from .text import size, table

EXAMPLES = """SOURCE is module:factory, a function without arguments that returns a torch.nn.Module (the
current folder is searched first), a torch.export program (.pt2), or an .onnx file, which needs no torch.
Pickles (.pt, .pth) are refused.

examples:
  batchyard export zoo:cnn out/cnn.onnx --input 1,3,32,32                         # zoo.py is here
  batchyard export zoo:resnet18 resnet18.onnx --input 1,3,32,32 --quantize best
  batchyard export zoo:bert bert.onnx --input ids=int64:1,128:30000 --input mask=1,128 --quantize all
  batchyard export zoo:cnn cnn.onnx --input 1,3,32,32 --quantize static --calibration images.npy
  batchyard export model.pt2 model.onnx --input image=1,3,32,32
  batchyard export zoo:bert bert.onnx --input ids=int64:1,128:30000 --dynamic ids:1=sequence
  batchyard export zoo:lstm lstm.onnx --input x=20,4,64 --dynamic x:0=sequence --dynamic x:1=batch
  batchyard export plain.onnx out/small.onnx --quantize fp16-storage,int8-storage --provider webgpu
  batchyard export --all models.toml out/          # [models.NAME] source = "zoo:cnn", input = "1,3,32,32"
  batchyard export --all factories/ out/           # one .py per model: model() and INPUT = "1,3,32,32"
  batchyard export --all candidates/ out/ --benchmark --evaluate labelled.npz

A variant is published (model.VARIANT.onnx) only if it is smaller than fp32, not slower here, and near
enough to PyTorch; else it is refused with its figures. model.json has all figures."""

EXTRAS = "cpu,export"
NO_TORCH = "an .onnx source needs no torch: pip install onnx onnxscript"
FOR_ONNX = ("onnx", "onnxscript", "onnx_ir")
NEEDED = ("torch", "onnxruntime", *FOR_ONNX)


def main(argv: list[str]) -> int:
    """Return 0 if everything requested was published; raises BatchyardError otherwise."""
    arguments = _parser()
    options = arguments.parse_args(argv)
    try:
        if not options.benchmark:
            for name in export_benchmark.OPTIONS:
                if getattr(options, name):
                    raise InvalidRequest(f"--{name} goes with --benchmark")
        elif not options.all:
            raise InvalidRequest("--benchmark goes with --all: name a folder or list of candidates")
        if not options.all:
            return _one(options)
        status = _many(options)
        if status and find_spec("torch") is None:  # each that failed for it says so, and not what to do
            _progress(f"torch is not installed, which models from PyTorch need: {extras.install(EXTRAS)}")
        return status
    except ModuleNotFoundError as missing:
        name = (missing.name or "").split(".")[0]
        if name in NEEDED:
            is_onnx = not options.all and options.places[0].endswith(".onnx")
            how = NO_TORCH if is_onnx and name in FOR_ONNX else extras.install(EXTRAS)
            raise InvalidRequest(f"{missing.name} is not installed: {how}") from None
        raise


def _one(options: argparse.Namespace) -> int:
    from ..export import export_to_onnx
    from ..export.many import importable
    from ..export.specs import parse_all

    if len(options.places) != 2:
        raise InvalidRequest("give SOURCE and the file to write, such as zoo:cnn cnn.onnx")
    source, target = options.places
    if not options.input and not source.endswith(".onnx"):
        raise InvalidRequest("give --input for every input, such as --input 1,3,32,32")
    with importable(Path.cwd()):
        report = export_to_onnx(
            source,
            target,
            parse_all(options.input) if options.input else None,
            dynamic=options.dynamic,
            calibration=options.calibration,
            validation_data=options.validation,
            output_names=options.outputs.split(",") if options.outputs else None,
            weights=options.weights,
            say=_progress,
            **_common(options),
        )
    print("\n".join(report.lines()))
    if report.missing:
        names = ", ".join(variant.name for variant in report.missing)
        print(f"batchyard: {names} refused; {report.path} (fp32) is published", file=sys.stderr)
    return 1 if report.missing else 0


def _many(options: argparse.Namespace) -> int:
    from ..export import entries, export_many
    from ..export.many import importable, sentence

    if len(options.places) != 1:
        raise InvalidRequest("give the folder to write into, such as --all models.toml out/")
    single = ("input", "dynamic", "outputs", "calibration", "validation", "weights")
    given = [name for name in single if getattr(options, name)]
    if given:
        raise InvalidRequest(f"--{given[0]} is for one model: write it into {options.all}")
    if options.benchmark:
        return export_benchmark.main(options, _common(options), _progress)
    found = entries(options.all)
    with importable(options.all):
        outcomes = export_many(found, Path(options.places[0]), _progress, **_common(options))
    rows = [["model", "fp32", "off by", "best", "size", "time", "nodes", ""]]
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            rows.append([outcome.name, *"------", sentence(outcome)])
            continue
        best, nodes = report.best, f"{report.nodes_raw} -> {report.nodes}"
        size_ratio, time_ratio = f"{best.size_ratio:.0%}", f"{best.time_ratio:.2f}x"
        end = sentence(outcome) if outcome.failed else "published"
        fp32 = report.variants[0]
        off = f"{fp32.difference.scaled_max:.0e}" if fp32.difference else "-"
        head = [outcome.name, size(fp32.nbytes), off]
        rows.append([*head, best.name, size_ratio, time_ratio, nodes, end])
    print("\n".join(table(rows, right=(1, 2, 4, 5, 6))))
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{len(outcomes) - failed} published, {failed} failed")
    return 1 if failed else 0


def _common(options: argparse.Namespace) -> dict[str, Any]:
    quantize = options.quantize
    return {
        "optimize": options.optimize,
        "quantize": quantize.split(",") if quantize and "," in quantize else quantize,
        "calibration_method": options.calibration_method,
        "task": options.task,
        "dynamic_batch": options.dynamic_batch,
        "batch_max": options.batch_max,
        "opset": options.opset,
        "measure_s": options.measure,
        "provider": options.provider,
        "provider_options": dict(options.provider_option),
    }


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    purpose = "Export PyTorch models to ONNX: optimized, quantized where that pays, checked against PyTorch."
    arguments = parser("export", purpose, EXAMPLES)
    add = arguments.add_argument
    places = "SOURCE and the .onnx file to write; with --all, the folder to write into"
    add("places", nargs="+", metavar="SOURCE FILE", help=places)
    add(
        "--all",
        type=Path,
        metavar="LIST",
        help="many models: a TOML list, or a folder of .py, .pt2, .onnx and lists",
    )
    syntax = "1,3,32,32 or NAME=DTYPE:1,128[:BELOW]; once per input, in order"
    add("--input", action="append", default=[], metavar="SHAPE", help=syntax)
    free = "a free axis besides the batch, or the batch: ids:1=sequence, x:1=batch; repeatable"
    add("--dynamic", action="append", default=[], metavar="AXIS=NAME", help=free)
    add("--outputs", metavar="NAMES", help="the outputs' names, with commas between them")
    add("--optimize", action=argparse.BooleanOptionalAction, default=True, help="run the passes (default)")
    variants = "variants to make: best, all, or of fp16-storage, int8-storage, dynamic, static, with commas"
    add("--quantize", metavar="VARIANTS", nargs="?", const="best", help=variants)
    rows = "rows for static: .npy, .npz by input name, or module:function that yields batches"
    add("--calibration", metavar="FILE", help=rows)
    methods = ("minmax", "entropy", "percentile")
    chosen = "how static finds the ranges (%(default)s)"
    add("--calibration-method", choices=methods, default="minmax", help=chosen)
    add("--validation", metavar="FILE", help="rows to compare with PyTorch, besides random ones")
    compared = "what variants are compared by besides their error: top-1, cosine, nothing (%(default)s)"
    tasks = ("auto", "classification", "embedding", "regression")
    add("--task", choices=tasks, default="auto", help=compared)
    add("--weights", type=Path, metavar="FILE", help="a state dict for SOURCE; only tensors are read from it")
    fixed = "keep the input's own number of rows, instead of 1..batch-max"
    add("--fixed-batch", dest="dynamic_batch", action="store_false", help=fixed)
    add("--batch-max", type=count, default=64, metavar="ROWS", help="most rows of a free batch (%(default)s)")
    add("--opset", type=count, default=18, metavar="N", help="ONNX operator set (%(default)s)")
    judge = "cpu, webgpu, directml, cuda: what variants are run and must not be slower on (%(default)s)"
    add("--provider", default="cpu", metavar="NAME", help=judge)
    own = "an option of the provider, such as powerPreference=high-performance; repeatable"
    add("--provider-option", type=pair, action="append", default=[], metavar="KEY=VALUE", help=own)
    each = "seconds to measure each variant and batch size (%(default)g)"
    add("--measure", type=seconds, default=1.0, metavar="S", help=each)
    export_benchmark.add_options(arguments)
    return arguments
