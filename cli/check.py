"""`batchyard check model.onnx`: what a newcomer runs first. Shows whether a model can be served, its inputs
and outputs, whether its requests share runs and why, its time and memory by batch size, and TOML to paste.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from ..client.signature import Signature
from ..client.states import find
from ..transport import dtypes
from ..transport.arguments import count, seconds
from ..transport.errors import BatchyardError, InvalidRequest, ModelFailed
from ..transport.messages import ModelInfo, ModelState
from ..transport.processes import ChildProcess, module
from ..transport.tensors import TensorSpec
from . import toml
from .arguments import parser
from .text import duration, plural, size, table
from .weights import files_of

EXAMPLES = """examples:
  batchyard check model.onnx
  batchyard check model.onnx --write           # adds it to batchyard.toml in this folder
  batchyard check model.onnx --json --provider cpu"""
CHILD = module("batchyard.cli.measuring")
MAX_BATCH = 32
GOOD_ENOUGH = 0.95  # of the best rate: a larger batch than that gains nothing
PATIENCE_S = 600.0  # for one provider, beside the time that is measured
NAME_CHARS_MAX = 255
SIZES_SHOWN_MAX = 4  # inputs
FILES_SHOWN_MAX = 3


def main(argv: list[str]) -> int:
    """Return 0 if some provider here can serve the model."""
    options = _parser().parse_args(argv)
    try:
        report = check(options)
        if options.write is not None:
            pads = harmless(report)
            target = toml.add(options.write, report["name"], options.model, report["max_batch"], pads)
            report["written"] = str(target)
    except BatchyardError as error:
        if not options.json:
            raise
        print(json.dumps({"file": str(options.model), "error": str(error)}, indent=2))
        return 1
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(as_text(report, options.write is not None)))
    return 0


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Examine the model. Raises InvalidRequest for a wrong file, ModelFailed if the model is at fault."""
    file: Path = options.model
    if file.suffix == ".py":
        raise InvalidRequest(f"{file} is Python, and `check` examines ONNX files; see docs/python-models.md")
    if file.is_dir():
        raise InvalidRequest(f"{file} is a folder, not an ONNX file")
    if not file.is_file():
        raise InvalidRequest(f"there is no file {file}")
    files = files_of(file)
    report: dict[str, Any] = {
        "file": str(file),
        "name": options.name or name_of(file),
        "bytes": sum(files.values()),
        "files": files,
        "runs": {},
        "providers_that_fail": {},
    }
    first = options.provider or "cpu"
    others = run(options, first, report)
    described = report.get("model")
    if described is None:
        raise ModelFailed(f"{file} can't be served: {report['providers_that_fail'][first]}")
    for provider in [] if options.provider else [name for name in others if name != first]:
        run(options, provider, report)
    report["states"] = states(report)
    report["max_batch"] = best(report["runs"]) if described["batchable"] else None
    report["toml"] = toml.table_of(report["name"], file.name, report["max_batch"], harmless(report))
    return report


def run(options: argparse.Namespace, provider: str, report: dict[str, Any]) -> list[str]:
    """Measure on one provider in a separate process; return the providers that are available."""
    show = Progress(f"{provider}: loading")
    arguments = ["--model", str(options.model.absolute()), "--provider", provider]
    arguments += ["--threads", str(options.threads), "--max-batch", str(options.max_batch)]
    arguments += ["--seconds", str(options.seconds)]
    others: list[str] = []
    runs: list[dict[str, Any]] = []
    failed = ""
    with tempfile.TemporaryFile() as errors:  # the runtime's own lines: a model that is fine has them, too
        child = ChildProcess([*CHILD, *arguments], name="check", stdout=subprocess.PIPE, stderr=errors)
        child.start()
        patience_s = PATIENCE_S + options.seconds
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            child.ask_to_end()

        watch = threading.Timer(patience_s, give_up)
        watch.daemon = True
        watch.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                what, value = next(iter(json.loads(line).items()))
                if what == "described":
                    report.setdefault("model", value)
                    others = value["providers"]
                    show.now(f"{provider}: loaded, measuring")
                elif what == "pads":
                    report["pads"] = value
                elif what == "measured":
                    runs.append(value)
                    show.now(f"{provider}: {plural(value['rows'], 'row')} measured")
                elif what == "failed":
                    failed = value
            status = child.wait(5.0)
            if given_up.is_set():
                failed = failed or f"it was not done within {patience_s:g} s, and was ended"
        finally:
            watch.cancel()
            child.terminate(grace_s=0.5)
            show.end()
        if status and not failed:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()
            failed = died(status, bool(runs), last[-1] if last else "")
    if runs:
        report["runs"][provider] = runs
    if failed:
        report["providers_that_fail"][provider] = failed
    return others


def died(status: int, was_loaded: bool, last: str) -> str:
    """The error text for a process that ended without a result."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    when = "while it was run" if was_loaded else "while it was loaded"
    said = f"; its last words: {last[:200]}" if last else ""
    return f"the process ended with {how} {when}: so would a worker{said}"


class Progress:
    """One status line that is overwritten on a terminal; prints nothing elsewhere."""

    def __init__(self, text: str) -> None:
        self._shows = sys.stderr.isatty()
        self._width = 0
        self.now(text)

    def now(self, text: str) -> None:
        if self._shows:
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def end(self) -> None:
        if self._shows:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)


def name_of(file: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem).lstrip("_.-")[:NAME_CHARS_MAX]
    return name or "model"


def best(runs: dict[str, list[dict[str, Any]]]) -> int | None:
    """On the fastest provider, the smallest batch with nearly the best throughput."""
    rates = {
        provider: {run["rows"]: run["rows"] / run["run_ns"] for run in measured if run.get("run_ns")}
        for provider, measured in runs.items()
    }
    if not any(rates.values()):
        return None
    quickest = max(rates.values(), key=lambda each: max(each.values(), default=0.0))
    most = max(quickest.values())
    good: int = min(rows for rows, rate in quickest.items() if rate >= GOOD_ENOUGH * most)
    return good


def harmless(report: dict[str, Any]) -> dict[str, list[int]]:
    """The axes that can be padded, and to which sizes."""
    return {pad["axis"]: pad["to"] for pad in report.get("pads", []) if pad["harmless"]}


def states(report: dict[str, Any]) -> dict[str, str]:
    """State input -> the output with its next value, by name; empty if there is no state."""
    model = report["model"]
    inputs, outputs = ([_spec(value) for value in model[key]] for key in ("inputs", "outputs"))
    batches = model["batchable"]
    axes = model["batch_axes"] if batches else []
    info = ModelInfo(
        report["name"], ModelState.READY, "", 1, inputs, outputs, batches, "", 1, [], batch_axes=axes
    )
    try:
        return find(Signature(info), None)
    except InvalidRequest:
        return {}


def _spec(value: dict[str, Any]) -> TensorSpec:
    code = dtypes.BY_NAME[value["dtype"]].code
    return TensorSpec(value["name"], code, value["shape"], value.get("optional", False))


def as_text(report: dict[str, Any], is_written: bool) -> list[str]:
    model = report["model"]
    lines = [
        f"{report['file']}: can be served; {size(report['bytes'])}{in_files(report)}, "
        f"loaded and warm in {duration(model['load_ns'])}"
        + (f" into {size(model['load_bytes'])}" if model["load_bytes"] else "")
    ]
    lines += [f"  input    {_spec(value)}" for value in model["inputs"]]
    lines += [f"  output   {_spec(value)}" for value in model["outputs"]]
    lines.append(f"  {'batches' if model['batchable'] else 'alone  '}  {model['why']}")
    if model["batchable"]:
        lines.append(f"  rows     {rows_where(model)}")
    for pad in report.get("pads", []):
        lines.append(f"  padding  {pad['axis']}: {'harmless' if pad['harmless'] else 'no'}; {pad['why']}")
    if report["states"]:
        pairs = ", ".join(f"{output} is the next {name}" for name, output in report["states"].items())
        lines.append(f"  state    {pairs}: client.sequence({report['name']!r}) keeps it")
    if model["measured_with"] is None:
        lines.append("  time     not measured: it runs on none of the inputs that were invented for it")
    elif free := sizes_of(model):
        lines.append(f"  sizes    measured with {free}")
    lines += ["", *_times(report)] if report["runs"] else []
    for provider, why in report["providers_that_fail"].items():
        lines += ["", f"{provider}: {why}"]
    if is_written:
        return [*lines, "", f"added to {report['written']}"]
    return [*lines, "", "For batchyard.toml (or --write):", "", *report["toml"].rstrip().splitlines()]


def in_files(report: dict[str, Any]) -> str:
    """` in 2 files (model.onnx 1.2 MB, model.onnx_data 480 MB)`; empty if there is one."""
    files = report["files"]
    if len(files) == 1:
        return ""
    shown = [f"{name} {size(nbytes)}" for name, nbytes in list(files.items())[:FILES_SHOWN_MAX]]
    more = ", ..." if len(files) > FILES_SHOWN_MAX else ""
    return f" in {len(files)} files ({', '.join(shown)}{more})"


def rows_where(model: dict[str, Any]) -> str:
    """`axis 0 of x, axis 1 of state; sr is shared`."""
    axes = model["batch_axes"]
    tensors = [*model["inputs"], *model["outputs"]]
    if not axes:
        return "axis 0 of every tensor"
    counted = ", ".join(
        f"axis {axis} of {value['name']}" for value, axis in zip(tensors, axes, strict=False) if axis >= 0
    )
    shared = [value["name"] for value, axis in zip(tensors, axes, strict=False) if axis < 0]
    return counted + (f"; one {', '.join(shared)} for all rows of a batch" if shared else "")


def sizes_of(model: dict[str, Any]) -> str:
    """The sizes chosen for free axes other than the rows: `x[1, 3, 64, 64]`."""
    axes = model["batch_axes"] or [0] * len(model["inputs"])
    found = []
    for value, batch_axis in zip(model["inputs"], axes, strict=False):
        shape = model["measured_with"].get(value["name"])
        free = [
            index
            for index, axis in enumerate(value["shape"] or [])
            if isinstance(axis, str) and not (model["batchable"] and index == batch_axis)
        ]
        if free and shape is not None:
            found.append(f"{value['name']}{shape}")
    return ", ".join(found[:SIZES_SHOWN_MAX]) + (", ..." if len(found) > SIZES_SHOWN_MAX else "")


def _times(report: dict[str, Any]) -> list[str]:
    rows = [("PROVIDER", "ROWS", "A RUN", "A ROW", "ROWS/S", "MEMORY")]
    for provider, measured in report["runs"].items():
        for run in measured:
            if "failed" in run:
                rows.append((provider, str(run["rows"]), f"fails: {run['failed']}", "", "", ""))
                continue
            row_ns = run["run_ns"] / run["rows"]
            memory = size(run["memory_bytes"]) if run["memory_bytes"] else "-"
            rows.append(
                (
                    provider,
                    str(run["rows"]),
                    duration(run["run_ns"]),
                    duration(row_ns),
                    f"{1e9 / row_ns:,.0f}",
                    memory,
                )
            )
    return table(rows, right=(1, 4, 5))


def _parser() -> argparse.ArgumentParser:
    purpose = (
        "Show whether a model can be served, how it batches and why, how fast it is, and the TOML to paste."
    )
    arguments = parser("check", purpose, EXAMPLES)
    arguments.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file")
    arguments.add_argument("--name", help="what clients will call it (the file's name)")
    arguments.add_argument(
        "--provider", help="check this provider only (default: every provider that works here)"
    )
    arguments.add_argument(
        "--threads", type=count, default=1, metavar="N", help="threads per run (%(default)s)"
    )
    arguments.add_argument(
        "--max-batch", type=count, default=MAX_BATCH, metavar="ROWS", help="largest batch tried (%(default)s)"
    )
    arguments.add_argument(
        "--seconds",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds to measure on each provider (%(default)g)",
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=Path("batchyard.toml"),
        metavar="TOML",
        help="add the model to this file (default: batchyard.toml); the rest stays unchanged",
    )
    return arguments
