"""`batchyard models`: show what a yard serves, how it batches and which workers run it; or change it."""

from __future__ import annotations

import argparse
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from ..client import Client, ModelChanged, Operator
from ..client.operator import TIMEOUT_S
from ..transport import dtypes
from ..transport.arguments import add_yard, count, seconds
from ..transport.errors import UnknownModel
from ..transport.messages import ModelInfo, ModelState, Provenance
from ..transport.tensors import TensorSpec
from . import watch
from .arguments import difference, order, parser, seconds_or_none, setting
from .text import duration, plural, table

ORDER_EXAMPLES = {
    "show": "batchyard models show resnet18",
    "load": "batchyard models load resnet18 resnet18.onnx --max-batch 16 --set warmup=false",
    "swap": "batchyard models swap resnet18 resnet18-int8.onnx --tolerance 0.5",
    "unload": "batchyard models unload resnet18",
    "watch": "batchyard models watch models/",
}
EXAMPLES = "\n  ".join(
    (
        "examples:",
        "batchyard models",
        "batchyard models --json --url ipc:///tmp/yard",
        *ORDER_EXAMPLES.values(),
    )
)
HEADING = ("MODEL", "STATE", "REVISION", "BATCHING", "WORKERS")


def main(argv: list[str]) -> int:
    """Return 0 if the yard answered (whatever its models' states) or made the change."""
    options = _parser().parse_args(argv)
    if options.order in (None, "show"):
        return _show(options)
    operator = Operator(options.url, options.keys)
    if options.order == "watch":
        watch.listing(options.folder)  # raises what is wrong with it
        watch.check_root(options.folder, operator)
        served = partial(watch.served_from, options.folder, operator)
        print(f"following {options.folder}; Ctrl-C ends it", flush=True)
        watch.follow(options.folder, served, operator, threading.Event().wait, partial(print, flush=True))
    elif options.order == "load":
        loaded = operator.load(
            options.name,
            options.file,
            options.max_batch,
            options.timeout,
            dict(options.set),
            run_seconds_max=options.run_seconds_max,
        )
        said_of("loaded", loaded)
    elif options.order == "swap":
        swapped = operator.swap(
            options.name,
            options.file,
            options.tolerance,
            options.timeout,
            dict(options.set),
            run_seconds_max=options.run_seconds_max,
        )
        said_of("swapped", swapped)
    else:
        said_of("unloaded", operator.unload(options.name, options.timeout))
    return 0


def said_of(done: str, changed: ModelChanged) -> None:
    canary = f"; a canary's answers differ by up to {changed.difference:.3g}" if changed.difference else ""
    print(f"{changed.model}: {done}, revision {changed.revision}{canary}")


def _parser() -> argparse.ArgumentParser:
    purpose = "Show what a yard serves (states, inputs, outputs, batching, workers), or change it."
    arguments = parser("models", purpose, EXAMPLES)
    add_yard(arguments)
    arguments.add_argument("--json", action="store_true", help="print a JSON list")
    orders = arguments.add_subparsers(dest="order", metavar="ORDER")

    def order_of(name: str, purpose: str) -> argparse.ArgumentParser:
        return order(orders, name, purpose, f"example:\n  {ORDER_EXAMPLES[name]}")

    show = order_of("show", "show one model with its file's variant, digest, checks and times")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    load = order_of("load", "serve another model from a file inside models_root")
    load.add_argument("name", metavar="NAME")
    load.add_argument("file", metavar="FILE", help="relative to models_root; file.py:function where allowed")
    load.add_argument("--max-batch", type=count, metavar="ROWS", help="largest batch (default: the yard's)")
    swap = order_of(
        "swap", "switch a model to another file; no request fails, and a bad file changes nothing"
    )
    swap.add_argument("name", metavar="NAME")
    swap.add_argument(
        "file", metavar="FILE", nargs="?", help="the new file (default: read the current one again)"
    )
    swap.add_argument(
        "--tolerance",
        type=difference,
        metavar="D",
        help="largest allowed difference between old and new answers (default: any)",
    )
    unload = order_of("unload", "stop serving a model once its waiting requests have run")
    unload.add_argument("name", metavar="NAME")
    follow = order_of(
        "watch", "follow a folder: load, swap and unload models as its .onnx files appear, change and vanish"
    )
    follow.add_argument("folder", metavar="FOLDER", type=Path, help="the yard's models_root")
    load.add_argument(
        "--run-seconds-max",
        type=seconds,
        metavar="S",
        help="kill a worker whose batch runs longer (default: no limit)",
    )
    swap.add_argument(
        "--run-seconds-max",
        type=seconds_or_none,
        metavar="S",
        help="kill a worker whose batch runs longer; 0: no limit (default: unchanged)",
    )
    for each in (show, load, swap, unload, follow):
        add_yard(each, argparse.SUPPRESS)
    for each in (load, swap):
        each.add_argument(
            "--set",
            type=setting,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="any key of the model's table in batchyard.toml, such as batch_axis=0 (repeatable)",
        )
    for each in (load, swap, unload):
        each.add_argument(
            "--timeout",
            type=seconds,
            default=TIMEOUT_S,
            metavar="S",
            help="seconds to wait until it is done (%(default)g)",
        )
    return arguments


def _show(options: argparse.Namespace) -> int:
    with Client(options.url, keys=options.keys, segment="frames") as client:
        models = client.models()
    if options.order == "show":
        found = [model for model in models if model.name == options.name]
        if not found:
            names = ", ".join(model.name for model in models) or "none"
            raise UnknownModel(f"no model is called {options.name!r}; this yard has: {names}")
        files = Operator(options.url, options.keys).snapshot().get("model_files", {})
        file = files.get(options.name, "")
        if options.json:
            print(json.dumps(as_json(found[0]) | {"file": file}, indent=2))
        else:
            lines = [*as_text(found), f"  file     {file}"]
            is_function = any(worker.provider == "python" for worker in found[0].workers)
            told = origin_lines(found[0].origin, is_function)
            lines += [line for line in map("  {}".format, told) if line not in lines]
            print("\n".join(lines))
    elif options.json:
        print(json.dumps([as_json(model) for model in models], indent=2))
    else:
        print("\n".join(as_text(models)))
    return 0


def origin_lines(origin: Provenance | None, is_function: bool = False) -> list[str]:
    """The file's facts, and the metadata it carries. `is_function`: it is Python's source, which has none."""
    if origin is None:
        return []
    lines = [f"sha256   {origin.sha256}"]
    if is_function:
        return lines
    if not (origin.variant or origin.source or origin.figures or origin.measured_ns):
        return [*lines, "it says nothing of where it comes from: `batchyard export` did not write it"]
    lines.append(f"variant  {origin.variant or '-'}, of {origin.source or 'an unknown source'}")
    figures = (f"{name} {value:.3g}" for name, value in origin.figures.items())
    lines.append(f"checked  {', '.join(figures) or '-'}")
    for provider, times in origin.measured_ns.items():
        runs = (f"{rows}: {duration(run_ns)}" for rows, run_ns in sorted(times.items()))
        lines.append(f"claimed  {provider}, time of a run by rows  {', '.join(runs)}")
    return lines


def as_text(models: list[ModelInfo]) -> list[str]:
    """A line for each model under a heading, and its details below it."""
    if not models:
        return ["this yard serves no model"]
    heads = table([HEADING, *(_head(model) for model in models)])
    lines = [heads[0]]
    for head, model in zip(heads[1:], models, strict=True):
        lines += [head, *(f"  {detail}" for detail in _details(model))]
    return lines


def as_json(model: ModelInfo) -> dict[str, Any]:
    """Plain values; every name is that of the message's field."""
    workers = [
        structs.asdict(worker) | {"warmup_ns": dict(sorted(worker.warmup_ns.items()))}
        for worker in model.workers
    ]
    return structs.asdict(model) | {
        "state": state(model),
        "inputs": [_spec(spec) for spec in model.inputs],
        "outputs": [_spec(spec) for spec in model.outputs],
        "origin": None if model.origin is None else structs.asdict(model.origin),
        "workers": workers,
    }


def state(model: ModelInfo) -> str:
    """`loading`, `ready` or `failed`."""
    return ModelState(model.state).name.lower()


def batching(model: ModelInfo) -> str:
    """How many rows share a run; unknown until a worker has loaded the model."""
    if model.state != ModelState.READY:
        return "-"
    return f"up to {plural(model.max_batch, 'row')}" if model.batchable else "alone"


def _head(model: ModelInfo) -> tuple[str, ...]:
    return model.name, state(model), str(model.revision), batching(model), str(len(model.workers))


def _details(model: ModelInfo) -> list[str]:
    details = [f"reason   {model.reason}"] if model.state == ModelState.FAILED and model.reason else []
    if model.origin is not None and model.origin.variant:
        details.append(f"variant  {model.origin.variant}, of {model.origin.source}")
    details += [f"input    {spec}" for spec in model.inputs]
    details += [f"output   {spec}" for spec in model.outputs]
    if model.state == ModelState.READY and not model.batchable:
        details.append(f"alone    {model.alone_reason or 'its configuration says so'}")
    elif model.evidence:
        details.append(f"batches  {model.evidence}")
    if model.padded_axes:
        share = f"; {model.padding / model.elements:.1%} of what ran was padding" if model.elements else ""
        details.append(f"pads     {', '.join(model.padded_axes)}: {model.pad_reason}{share}")
    elif model.pad_reason:
        details.append(f"no padding, though it is asked for: {model.pad_reason}")
    for worker in model.workers:
        where = f"process {worker.pid}, {worker.provider} ({worker.placement})"
        details.append(f"worker   {worker.worker}: {where}")
        if worker.fallback_reason:
            details.append(f"  on no better provider  {worker.fallback_reason}")
        if not worker.warmup_ns:
            details.append("  not measured at load: its times are learned from requests")
        else:
            runs = (f"{rows}: {duration(run_ns)}" for rows, run_ns in sorted(worker.warmup_ns.items()))
            details.append(f"  time of a run by rows  {', '.join(runs)}")
    return details


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": dtypes.name_of(spec.dtype), "shape": spec.shape}
