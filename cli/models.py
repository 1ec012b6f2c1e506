"""`batchyard models`: what a yard serves, how it batches, and which workers run it; and how to change it."""

from __future__ import annotations

import argparse
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from ..client import Client, ModelChanged, Operator
from ..client.admin import TIMEOUT_S
from ..transport import dtypes
from ..transport.errors import UnknownModel
from ..transport.messages import ModelInfo, ModelState, Origin
from ..transport.tensors import TensorSpec
from . import watch
from .arguments import add_yard, count, difference, order, parser, seconds
from .text import duration, plural, table

ORDER_EXAMPLES = {
    "show": "batchyard models show resnet18",
    "load": "batchyard models load resnet18 resnet18.onnx --max-batch 16",
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
    """0 when the yard answered, whatever state its models are in, or has made the change."""
    options = _parser().parse_args(argv)
    if options.order in (None, "show"):
        return _show(options)
    operator = Operator(options.url, options.keys)
    if options.order == "watch":
        served = partial(_served, options)
        served()  # whatever is wrong with the folder or the yard is told at once
        print(f"following {options.folder}; Ctrl-C ends it", flush=True)
        watch.follow(options.folder, served, operator, threading.Event().wait, partial(print, flush=True))
    elif options.order == "load":
        said_of("loaded", operator.load(options.name, options.file, options.max_batch, options.timeout))
    elif options.order == "swap":
        said_of("swapped", operator.swap(options.name, options.file, options.tolerance, options.timeout))
    else:
        said_of("unloaded", operator.unload(options.name, options.timeout))
    return 0


def _served(options: argparse.Namespace) -> dict[str, str]:
    """Files of the watched folder whose models the yard has, by name. Raises OSError."""
    files = watch.listing(options.folder)
    with Client(options.url, keys=options.keys, segment="frames") as client:
        names = {model.name for model in client.models()}
    return {file: name for file in files if (name := file.removesuffix(watch.SUFFIX)) in names}


def said_of(done: str, changed: ModelChanged) -> None:
    """One line about a change."""
    canary = f"; a canary's answers differ by up to {changed.difference:.3g}" if changed.difference else ""
    print(f"{changed.model}: {done}, revision {changed.revision}{canary}")


def _parser() -> argparse.ArgumentParser:
    purpose = "What a yard serves: states, inputs, outputs, batching, workers; and how to change it."
    arguments = parser("models", purpose, EXAMPLES)
    add_yard(arguments)
    arguments.add_argument("--json", action="store_true", help="for programs: a list of objects")
    orders = arguments.add_subparsers(dest="order", metavar="ORDER")

    def order_of(name: str, purpose: str) -> argparse.ArgumentParser:
        return order(orders, name, purpose, f"example:\n  {ORDER_EXAMPLES[name]}")

    show = order_of("show", "one model, with its file's variant, digest, checks and times")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")
    load = order_of("load", "serve one more model, from a file inside the yard's models_root")
    load.add_argument("name", metavar="NAME")
    load.add_argument("file", metavar="FILE", help="relative to models_root; file.py:function where allowed")
    load.add_argument("--max-batch", type=count, metavar="ROWS", help="in one run (the yard's default)")
    swap = order_of("swap", "serve it from another file; no request fails, and a bad file changes nothing")
    swap.add_argument("name", metavar="NAME")
    swap.add_argument("file", metavar="FILE", nargs="?", help="(the file that it has, read anew)")
    swap.add_argument(
        "--tolerance", type=difference, metavar="D", help="greatest difference of a canary's answers (any)"
    )
    unload = order_of("unload", "serve it no longer; what waits for it is still run")
    unload.add_argument("name", metavar="NAME")
    follow = order_of("watch", "load, swap and unload as the .onnx files of a folder do")
    follow.add_argument("folder", metavar="FOLDER", type=Path, help="the yard's models_root")
    for each in (show, load, swap, unload, follow):
        add_yard(each, argparse.SUPPRESS)
    for each in (load, swap, unload):
        each.add_argument("--timeout", type=seconds, default=TIMEOUT_S, metavar="S", help="(%(default)g s)")
    return arguments


def _show(options: argparse.Namespace) -> int:
    with Client(options.url, keys=options.keys, segment="frames") as client:
        models = client.models()
    if options.order == "show":
        found = [model for model in models if model.name == options.name]
        if not found:
            names = ", ".join(model.name for model in models) or "none"
            raise UnknownModel(f"no model is called {options.name!r}; this yard has: {names}")
        lines = [*as_text(found), *(f"  {line}" for line in origin_lines(found[0].origin))]
        print(json.dumps(as_json(found[0]), indent=2) if options.json else "\n".join(lines))
    elif options.json:
        print(json.dumps([as_json(model) for model in models], indent=2))
    else:
        print("\n".join(as_text(models)))
    return 0


def origin_lines(origin: Origin | None) -> list[str]:
    """What is known of the file, and what it says of itself."""
    if origin is None:
        return []
    lines = [f"sha256   {origin.sha256}"]
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
    return {
        "name": model.name,
        "state": state(model),
        "reason": model.reason,
        "revision": model.revision,
        "inputs": [_spec(spec) for spec in model.inputs],
        "outputs": [_spec(spec) for spec in model.outputs],
        "batchable": model.batchable,
        "alone_reason": model.alone_reason,
        "max_batch": model.max_batch,
        "idempotent": model.idempotent,
        "origin": None if model.origin is None else structs.asdict(model.origin),
        "workers": [
            {
                "worker": worker.worker,
                "pid": worker.pid,
                "provider": worker.provider,
                "placement": worker.placement,
                "fallen": worker.fallen,
                "warmup_ns": {str(rows): run_ns for rows, run_ns in sorted(worker.warmup_ns.items())},
            }
            for worker in model.workers
        ],
    }


def state(model: ModelInfo) -> str:
    """`loading`, `ready` or `failed`."""
    return ModelState(model.state).name.lower()


def batching(model: ModelInfo) -> str:
    """How many rows go into one run; nothing is known of a model that no worker has loaded."""
    if model.state != ModelState.READY:
        return "-"
    return f"up to {plural(model.max_batch, 'row')}" if model.batchable else "alone"


def _head(model: ModelInfo) -> tuple[str, ...]:
    return model.name, state(model), str(model.revision), batching(model), str(len(model.workers))


def _details(model: ModelInfo) -> list[str]:
    details = [f"reason   {model.reason}"] if model.state == ModelState.FAILED and model.reason else []
    if model.origin is not None and model.origin.variant:
        details.append(f"file     {model.origin.variant}, of {model.origin.source}")
    details += [f"input    {spec}" for spec in model.inputs]
    details += [f"output   {spec}" for spec in model.outputs]
    if model.state == ModelState.READY and not model.batchable:
        details.append(f"alone    {model.alone_reason or 'its configuration says so'}")
    for worker in model.workers:
        where = f"process {worker.pid}, {worker.provider} ({worker.placement})"
        details.append(f"worker   {worker.worker}: {where}")
        if worker.fallen:
            details.append(f"  on no better provider  {worker.fallen}")
        if worker.warmup_ns:
            runs = (f"{rows}: {duration(run_ns)}" for rows, run_ns in sorted(worker.warmup_ns.items()))
            details.append(f"  time of a run by rows  {', '.join(runs)}")
    return details


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": dtypes.name_of(spec.dtype), "shape": spec.shape}
