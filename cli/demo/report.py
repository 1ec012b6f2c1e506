"""What the demo prints: latencies by priority, throughput, accuracy, equality, and the verdict."""

from __future__ import annotations

import numpy as np

from ..arguments import PRIORITIES
from ..text import GAP, plural, table
from .client import DEADLINE_S, STREAMS
from .tally import TOLERANCE, Tally


def figures(total: Tally) -> list[str]:
    """The table of latencies, as the clients saw them, by priority."""
    rows: list[tuple[str, ...]] = [("priority", "requests", "scans in each", "p50", "p99")]
    for priority, name in enumerate(PRIORITIES):
        latencies_ms = np.array(total.latencies_ns[priority]) / 1e6
        quantiles = np.percentile(latencies_ms, (50, 99)) if len(latencies_ms) else ()
        shown = [f"{quantile:.2f} ms" for quantile in quantiles] or ["-", "-"]
        rows.append((name.upper(), f"{len(latencies_ms):,}", str(STREAMS[priority].images), *shown))
    return [GAP + line for line in table(rows, right=(1, 2, 3, 4))]


def findings(total: Tally, batch: float) -> list[str]:
    """Throughput, accuracy, and how the answers compare."""
    rows = max(1, total.rows_total)
    took_s = max(1e-9, total.ended_s - total.began_s)
    identical = f"{total.identical / rows:.4%}".replace(".0000%", "%")
    lines = [
        f"throughput  {rows / took_s:,.0f} scans and {total.requests / took_s:,.0f} requests per second; "
        f"{batch:.1f} scans in a batch on average",
        f"accuracy    {total.right / rows:.1%} of the answers are right "
        f"({int(total.seen.sum())} different scans)",
        f"equality    {rows - total.unequal:,} of {rows:,} answers equal the direct run, "
        f"{identical} bit for bit",
    ]
    if total.difference:
        lines.append(f"            largest difference {total.difference:.1e} of an answer's largest score")
    if any(total.refused):
        lines.append(
            f"refused     {by_priority(total.refused, 'time')}: there was more to do than time; "
            "the programs waited as long as the yard said, and asked again"
        )
    if any(total.late):
        lines.append(
            f"late        {by_priority(total.late, 'request')}: dropped at the deadline of {DEADLINE_S:g} s"
        )
    return [GAP + line for line in lines]


def by_priority(counts: list[int], noun: str) -> str:
    """`12 requests (NORMAL 2, LOW 10)`."""
    parts = (f"{name.upper()} {n:,}" for name, n in zip(PRIORITIES, counts, strict=True) if n)
    return f"{plural(sum(counts), noun)} ({', '.join(parts)})"


def verdict(total: Tally) -> str:
    """The last sentence: passed or failed."""
    if total.unequal:
        return (
            f"FAILED: {plural(total.unequal, 'answer')} differed from the direct run by more than "
            f"{TOLERANCE:g} of the answer's largest score."
        )
    if not total.seen.all():
        missing = plural(int((~total.seen).sum()), "scan")
        if not total.passed:
            return f"FAILED: {missing} never came back; try more --seconds."
        return (
            "Passed: every answer is the one that onnxruntime gives by itself; "
            f"{missing} had none (try more --seconds)."
        )
    return "Passed: every answer is the one that onnxruntime gives by itself."


def step(name: str, text: str) -> None:
    tell(f"{GAP}{name:<9}{text}")


def tell(text: str) -> None:
    print(text, flush=True)
