"""`batchyard export --all DIR OUT --benchmark`: exports, times, and ranks candidates.

Owns the options, the table, and the plot; batchyard.export.benchmark does the work.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..transport import extras
from ..transport.arguments import count, counts, seconds
from ..transport.errors import InvalidRequest
from .text import size, table

OPTIONS = ("evaluate", "batches", "baseline", "jobs", "limit", "plot", "force")  # only with --benchmark


def add_options(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("with --all and --benchmark")
    add = group.add_argument
    add("--benchmark", action="store_true", help="time all against each other, and rank them")
    figure = "labelled .npz, or module:function: how good a candidate is (without: latency and size alone)"
    add("--evaluate", metavar="WHAT", help=figure)
    add("--batches", type=counts, metavar="ROWS", help="rows to time; the first are ranked by (1,8)")
    add("--baseline", metavar="NAME", help="what times are relative to (the first candidate)")
    add("--jobs", type=count, metavar="N", help="exports at once; nothing is timed beside them (1)")
    add("--limit", type=seconds, metavar="S", help="seconds that one export may take (600)")
    add("--plot", type=Path, metavar="FILE", help="where to draw them, .png or .svg (OUT/pareto.png)")
    add("--force", action="store_true", help="export and time again even what has not changed")


def main(options: argparse.Namespace, common: dict[str, Any], say: Callable[[str], None]) -> int:
    """Return 1 if any candidate failed."""
    from ..export.benchmark import Plan, benchmark

    out = Path(options.places[0])
    picture = options.plot or out / "pareto.png"
    if picture.suffix not in (".png", ".svg"):
        raise InvalidRequest(f"{picture} must end in .png or .svg")
    given = {
        "evaluate": options.evaluate,
        "batches": options.batches,
        "baseline": options.baseline,
        "jobs": options.jobs,
        "limit_s": options.limit,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    found = benchmark(Plan(options.all, out, common, force=options.force, **chosen), say)
    print("\n".join(lines(found)))
    plot(found, picture, say)
    failed = failures(found)
    print(f"{len(found['candidates']) - len(failed)} ranked, {len(failed)} failed; {out / 'benchmark.json'}")
    return 1 if failed else 0


def failures(found: dict[str, Any]) -> dict[str, str]:
    """The candidates that failed, each with the reason."""
    wrong = {}
    for candidate in found["candidates"]:
        errors = [candidate["export_error"], *(part.get("error") for part in candidate["files"])]
        if any(errors):
            wrong[candidate["name"]] = next(error for error in errors if error)
    return wrong


def lines(found: dict[str, Any]) -> list[str]:
    """The table, best first, and the ranking criterion."""
    from ..export.benchmark.order import ranked

    batches = found["batches"]
    rows = [["", "model", "variant", "accuracy", *(f"batch {rows}" for rows in batches), "ratio", "size"]]
    for name, part in ranked(found):
        if part.get("front") is None:
            continue
        mark = "*" if part["front"] == 0 else ""
        accuracy = "-" if part["accuracy"] is None else f"{part['accuracy']:.4g}"
        times = [f"{one['ms']:.3f} ms" for one in part["latencies"]]
        ratio = f"{part['latencies'][0]['ratio']:.2f}x"
        rows.append([mark, name, part["variant"], accuracy, *times, ratio, size(part["bytes"])])
    said = table(rows, right=range(3, len(rows[0]))) if len(rows) > 1 else []
    said += [f"failed: {name}: {error}" for name, error in failures(found).items()]
    if len(rows) > 1:
        missing = "latency and size: accuracy is missing (--evaluate)"
        by = "accuracy and latency" if found["evaluate"] else missing
        beside = f"{found['baseline']['file']} at batch {batches[0]}"
        said.append(f"* Pareto front by {by}; on {found['provider']}, one thread, relative to {beside}")
    return said


def plot(found: dict[str, Any], path: Path, say: Callable[[str], None]) -> None:
    """Accuracy over latency, or size over latency."""
    from ..export.benchmark.order import ranked
    from ..export.benchmark.plot import Point, draw

    is_evaluated = bool(found["evaluate"])
    points = [
        Point(
            Path(part["file"]).stem,
            part["latencies"][0]["ms"],
            part["accuracy"] if is_evaluated else part["bytes"] / 1e6,
            part["front"] == 0,
        )
        for _, part in ranked(found)
        if part.get("front") is not None
    ]
    if not points:
        return
    x_label = f"p50 at batch {found['batches'][0]} (ms), {found['provider']}, one thread"
    title = f"{len(points)} files of {len(found['candidates'])} candidates"
    try:
        draw(path, points, x_label, "accuracy" if is_evaluated else "size (MB)", title)
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] != "matplotlib":
            raise
        say(f"no plot: {extras.missing('matplotlib')}")
    else:
        print(f"plotted in {os.fspath(path)}")
