"""`batchyard models`: what a yard serves, how it batches, and which workers run it."""

from __future__ import annotations

import json
from typing import Any

from ..client import Client
from ..transport import dtypes
from ..transport.messages import ModelInfo, ModelState
from ..transport.tensors import TensorSpec
from .arguments import add_yard, parser
from .text import duration, plural, table

EXAMPLES = """examples:
  batchyard models
  batchyard models --url ipc:///tmp/yard --json"""
HEADING = ("MODEL", "STATE", "REVISION", "BATCHING", "WORKERS")


def main(argv: list[str]) -> int:
    """0 when the yard answered, whatever state its models are in."""
    arguments = parser("models", "What a yard serves: states, inputs, outputs, batching, workers.", EXAMPLES)
    add_yard(arguments)
    arguments.add_argument("--json", action="store_true", help="for programs: a list of objects")
    options = arguments.parse_args(argv)
    with Client(options.url, keys=options.keys, segment="frames") as client:
        models = client.models()
    if options.json:
        print(json.dumps([as_json(model) for model in models], indent=2))
    else:
        print("\n".join(as_text(models)))
    return 0


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
        "workers": [
            {
                "worker": worker.worker,
                "pid": worker.pid,
                "provider": worker.provider,
                "placement": worker.placement,
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
    details += [f"input    {spec}" for spec in model.inputs]
    details += [f"output   {spec}" for spec in model.outputs]
    if model.state == ModelState.READY and not model.batchable:
        details.append(f"alone    {model.alone_reason or 'its configuration says so'}")
    for worker in model.workers:
        where = f"process {worker.pid}, {worker.provider} ({worker.placement})"
        details.append(f"worker   {worker.worker}: {where}")
        if worker.warmup_ns:
            runs = (f"{rows}: {duration(run_ns)}" for rows, run_ns in sorted(worker.warmup_ns.items()))
            details.append(f"  time of a run by rows  {', '.join(runs)}")
    return details


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": dtypes.name_of(spec.dtype), "shape": spec.shape}
