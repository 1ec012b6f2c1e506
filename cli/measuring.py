"""`python -m batchyard.cli.measuring`: loads a model as a worker would and prints one JSON object per line.
It is a separate process because a bad model or driver may crash it; check.py reads the lines.

    {"described": {...}}    inputs and outputs, whether and why it batches, and the shapes that are measured
                            (null: it does not run on any invented input)
    {"pads": [...]}         named axes on which padding was tried
    {"measured": {...}}     one batch size: time of a run, memory of this process so far
    {"failed": "sentence"}  why it can't be served
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ..evidence import padding
from ..evidence.words import first_line
from ..gpuworker import providers
from ..gpuworker.backends.onnx import ServedModel
from ..gpuworker.device import DeviceLost
from ..gpuworker.faults import CannotServe
from ..gpuworker.warmup import doubling
from ..transport import dtypes, lifeline
from ..transport.messages import Load, Pad
from ..transport.tensors import TensorSpec

SIZE_S = 0.25  # of runs, for one batch size
RUNS = (3, 25)  # for one batch size: least, most
PADDED_NAMES_MAX = 4
PAD_TO = ([16, 32, 64, 128], [128, 256, 512])  # the second where the model runs on none of the first


def main(argv: list[str] | None = None) -> int:
    """Return 0 if the report is complete, even if the model can't be served."""
    parser = argparse.ArgumentParser(prog="python -m batchyard.cli.measuring")
    parser.add_argument("--model", required=True)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    try:
        recipe = providers.recipe(arguments.provider, arguments.threads)
        before_bytes = resident_bytes()
        began_ns = time.perf_counter_ns()
        load = Load("model", 1, arguments.model, arguments.max_batch, None, True)
        model = ServedModel(load, recipe)
        took_ns = time.perf_counter_ns() - began_ns
        say("described", describe(model, took_ns, max(0, resident_bytes() - before_bytes)))
        if recipe.reference is None:
            say("pads", paddable(model))
        measure(model, arguments.seconds)
    except (CannotServe, DeviceLost, ValueError, ImportError, RuntimeError, OSError, MemoryError) as error:
        say("failed", first_line(error))
    return 0


def say(what: str, value: Any) -> None:
    """Print one line for the starting process."""
    print(json.dumps({what: value}), flush=True)


def describe(model: ServedModel, load_ns: int, load_bytes: int) -> dict[str, Any]:
    drawn = model.canary(1)
    shapes = None if drawn is None else {name: list(value.shape) for name, value in drawn.items()}
    return {
        "inputs": [as_json(spec) for spec in model.inputs],
        "outputs": [as_json(spec) for spec in model.outputs],
        "batchable": model.batchable,
        "batch_axes": model.batch_axes or [],
        "why": model.evidence or model.alone_reason,
        "measured_with": shapes,
        "placement": model.placement,
        "load_ns": load_ns,
        "load_bytes": load_bytes,
        "sha256": model.origin.sha256 if model.origin is not None else "",
        "providers": providers.available(),
    }


def as_json(spec: TensorSpec) -> dict[str, Any]:
    found = {"name": spec.name, "dtype": dtypes.name_of(spec.dtype), "shape": spec.shape}
    return found | {"optional": True} if spec.optional else found


def measure(model: ServedModel, seconds: float) -> None:
    """Measure 1, 2, 4 ... rows until the time is used up."""
    give_up_s = time.monotonic() + seconds
    took_s = 0.0
    for rows in model.buckets or doubling(model.max_batch):
        if model.canary(1) is None or time.monotonic() + 2 * took_s > give_up_s:
            return
        began_s = time.monotonic()
        try:
            run_ns = run_time(model, rows)
        except DeviceLost:
            raise
        except Exception as error:  # a size that fails is not used, as in a worker's warm-up
            say("measured", {"rows": rows, "failed": first_line(error)})
            return
        took_s = time.monotonic() - began_s
        say("measured", {"rows": rows, "run_ns": run_ns, "memory_bytes": resident_bytes(peak=True)})


def run_time(model: ServedModel, rows: int) -> int:
    """The median time of a run without the first ones, which also allocate."""
    feeds = model.canary(rows)
    assert feeds is not None
    times: list[int] = []
    model.answers(feeds, rows)
    give_up_s = time.monotonic() + SIZE_S
    while len(times) < RUNS[0] or (len(times) < RUNS[1] and time.monotonic() < give_up_s):
        began_ns = time.perf_counter_ns()
        model.answers(feeds, rows)
        times.append(time.perf_counter_ns() - began_ns)
    return int(statistics.median(times))


def paddable(model: ServedModel) -> list[dict[str, Any]]:
    """Other named free axes, and whether padding lets requests of different sizes share a run."""
    if model.batch_axes is None:
        return []
    names = dict.fromkeys(
        axis
        for spec, batch_axis in zip(model.inputs, model.batch_axes, strict=False)
        for index, axis in enumerate(spec.shape or [])
        if isinstance(axis, str) and axis != "?" and index != batch_axis
    )
    found = []
    for name in list(names)[:PADDED_NAMES_MAX]:
        for sizes in PAD_TO:  # a window, or a kernel, may be larger than the first
            try:
                verdict = padding.judge(
                    model.inputs,
                    model.outputs,
                    lambda feeds: model.answers(feeds, 1),
                    model._drawing,
                    model.batch_axes,
                    {name: Pad(sizes)},
                )
                is_harmless, why = verdict.inputs is not None, verdict.reason
            except ValueError as error:
                is_harmless, why = False, str(error)
            if is_harmless or not why.startswith(padding.TOO_SMALL):
                break
        found.append({"axis": name, "harmless": is_harmless, "why": why, "to": sizes})
    return found


def resident_bytes(peak: bool = False) -> int:
    """This process's memory, now or at its peak; 0 if the system does not report it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


if __name__ == "__main__":
    lifeline.hold()
    status = main()
    sys.stdout.flush()
    os._exit(status)  # what a driver does while it is unloaded is no part of the answer
