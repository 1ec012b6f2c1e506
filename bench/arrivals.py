"""`batchyard bench open`: what users feel at a given load, by priority, on a schedule that doesn't wait.

Owns the choice of the rate and the table of an open loop; the loop itself is loops.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from . import models
from .loops import closed_loop, open_loop
from .report import Finding, Line
from .statistics import Summary, format_rate, format_time, rate_per_s, summarize, summary_of
from .target import Targets

CAPACITY_IN_FLIGHT = 16
CAPACITY_S = 2.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of arrivals: so many per second, or a share of what the yard does in a closed loop."""

    value: float
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`250` is 250 requests per second, `0.8x` is 80 % of the yard's own capacity. Raises ValueError."""
        is_share = text.endswith("x")
        value = float(text.removesuffix("x"))
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"a rate must be above 0, such as 250 or 0.8x, not {text!r}")
        return cls(value, is_share)


def arrivals(
    targets: Targets,
    model: str,
    rate: Rate,
    seconds: float,
    seed: int,
    priorities: tuple[str, ...],
    max_batch: int,
    say: Callable[[str], None],
) -> Finding:
    """Poisson arrivals at `rate` for `seconds`; latency from the intended send time, by priority."""
    from ..client import Priority

    finding = Finding("open-loop")
    x = models.sample(model)
    with targets.open(model, max_batch) as target:
        target.client.infer(model, x)
        per_s = rate.value
        if rate.is_share:
            say(f"capacity: {CAPACITY_IN_FLIGHT} in flight for {CAPACITY_S:.0f} s")
            closed = closed_loop(target.client, model, [x], CAPACITY_IN_FLIGHT, CAPACITY_S)
            finding.count_errors(closed)
            if not closed.latencies_ns:  # then `errors` says why
                return finding
            capacity_per_s = rate_per_s(closed)
            per_s *= capacity_per_s
            finding.figures["capacity_per_s"] = capacity_per_s
            finding.lines.append(
                Line(f"{model}, {CAPACITY_IN_FLIGHT} in flight: capacity", format_rate(capacity_per_s))
            )
        say(f"open loop: {per_s:,.0f}/s for {seconds:g} s")
        classes: list[Any] = [Priority[name] for name in priorities]
        measured = open_loop(target.client, model, [x], per_s, seconds, seed, priorities=classes)
    finding.count_errors(measured)
    finding.figures |= {
        "rate_per_s": per_s,
        "seed": seed,
        "all": asdict(summary_of(measured)),
        "late_sends": measured.late_sends,
        "late_worst_ns": measured.late_worst_ns,
    }
    title = f"{model}, open loop at {format_rate(per_s)}"
    finding.lines.append(_line(title, "all", summary_of(measured)))
    for name in priorities:
        summary = summarize(measured.by_priority_ns.get(name, []), measured.elapsed_ns)
        finding.figures[name] = asdict(summary)
        finding.lines.append(_line("", name, summary))
    late = f"{measured.late_sends:,} of {len(measured.latencies_ns):,}"
    finding.lines.append(
        Line("", f"sent over 1 ms late: {late}, worst {format_time(measured.late_worst_ns)}")
    )
    return finding


def _line(title: str, name: str, summary: Summary) -> Line:
    times = ", ".join(
        f"{label} {format_time(value_ns)}"
        for label, value_ns in (
            ("p50", summary.p50_ns),
            ("p90", summary.p90_ns),
            ("p99", summary.p99_ns),
            ("max", summary.max_ns),
        )
    )
    return Line(title, f"{name}: {times}")
