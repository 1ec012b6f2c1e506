"""How busy this node is, as ORCA writes it: `endpoint-load-metrics` on an answer whose request asks for it by
`endpoint-load-metrics-format: text` or `json`.

Pure but for the question to the yard, whose counters are a little old at most.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .. import BatchyardError
from .yard import Yard

FORMAT = "endpoint-load-metrics-format"
HEADER = "endpoint-load-metrics"


def figures(snapshot: dict[str, Any]) -> dict[str, float]:
    """By ORCA's names, flat. `application_utilization`: the share of the workers that run a batch now."""
    busy = sum(1 for *_, batches in snapshot["leases"] if batches)
    return {
        "application_utilization": busy / max(1, snapshot["workers"]),
        "named_metrics.rows_waiting": float(sum(sum(rows) for *_, rows, _ in snapshot["models"])),
        "named_metrics.rows_under_way": float(snapshot["rows_under_way"]),
    }


def written(snapshot: dict[str, Any], form: str) -> str:
    """The header's value, as text unless JSON is asked for."""
    found = figures(snapshot)
    if form.lower() != "json":
        return "TEXT " + ", ".join(f"{name}={value:g}" for name, value in found.items())
    nested: dict[str, Any] = {}
    for name, value in found.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[outer] = value
    return "JSON " + msgspec.json.encode(nested).decode()


async def header(yard: Yard, form: str | None) -> dict[str, str]:
    """The header for an answer; none where nobody asked for it, or the broker does not say."""
    if form is None:
        return {}
    try:
        return {HEADER: written(await yard.snapshot(), form)}
    except BatchyardError:
        return {}
