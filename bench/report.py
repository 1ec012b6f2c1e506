"""How findings are shown: one table for people, one JSON file for programs, and the machine they hold on.

Owns layout and the description of the machine. Measures nothing.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..transport import extras
from .statistics import Measured

RUNTIMES = ("onnxruntime", "onnxruntime-directml", "onnxruntime-webgpu")  # one of them owns the import name


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table, in its columns' order; a column may be empty."""

    benchmark: str
    ours: str
    against: str = ""
    theirs: str = ""
    ratio: str = ""


HEADER = Line("benchmark", "batchyard", "against", "theirs", "ours / theirs: median (min-max) of rounds")


@dataclass(slots=True)
class Finding:
    """What one benchmark found: lines to show, figures to keep, and the requests that failed."""

    name: str
    lines: list[Line] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def count_errors(self, measured: Measured) -> None:
        """Take over what failed in `measured`: class -> how often, and its first text."""
        for kind, count in measured.errors.items():
            text = measured.error_texts.get(kind, "")
            self.errors[kind] = f"{count} requests, the first: {text}" if text else f"{count} requests"


def table(findings: Sequence[Finding]) -> str:
    """All lines under one header; what failed is listed below them, never left out."""
    lines = [HEADER, *(line for finding in findings for line in finding.lines)]
    rows = [(line.benchmark, line.ours, line.against, line.theirs, line.ratio) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    text.insert(1, "  ".join("-" * width for width in widths))
    for finding in findings:
        text += [f"FAILED in {finding.name}: {kind}: {what}" for kind, what in finding.errors.items()]
    return "\n".join(text)


def machine() -> dict[str, Any]:
    """The facts that figures depend on: processor, usable cores, versions, date."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": next((f"{name} {found}" for name in RUNTIMES if (found := _version(name))), None),
        "pyzmq": _version("pyzmq"),
        "batchyard": _version("batchyard"),
        "code": extras.code(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def machine_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']}, {facts['cores']} cores; {facts['system']}; Python {facts['python']}, "
        f"{facts['onnxruntime'] or 'no onnxruntime'}, pyzmq {facts['pyzmq']}; "
        f"batchyard {facts['code']}; {facts['date']}"
    )


def write_json(
    path: Path, facts: dict[str, Any], arguments: dict[str, Any], findings: Sequence[Finding]
) -> None:
    """Every figure of the run, with the machine and the arguments that it was run with."""
    content = {
        "machine": facts,
        "arguments": arguments,
        "benchmarks": {finding.name: asdict(finding) for finding in findings},
    }
    path.write_text(json.dumps(without_nan(content), indent=2, allow_nan=False, default=str) + "\n")


def without_nan(value: Any) -> Any:
    """`value` with NaN as null: JSON has no NaN, and an unknown figure is not 0."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
