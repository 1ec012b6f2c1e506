"""`batchyard bench load`: one yard under many clients' load, round by round, and two such runs compared.

Owns the client processes (sender.py), what their histograms are together, and the folder that a run leaves:
summary.json, latency.png and latency.svg. A round in which more than 1 % of the sends were late is void: the
clients were the limit, and not the yard. Void rounds are in no figure, and a run of none but those fails.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .. import BatchyardError
from .schedule import Arrival, divided
from .sender import histogram
from .statistics import format_time, quotient

WARM_UP_S = 0.5
LATE_SHARE_MAX = 0.01
BEGIN_S = 0.5  # from "all are ready" to the first arrival
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(slots=True)
class Round:
    sent: int = 0
    late_sends: int = 0
    late_worst_ns: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Any] = field(default_factory=dict)  # by class

    @property
    def is_void(self) -> bool:
        return self.late_sends > LATE_SHARE_MAX * self.sent

    def add(self, found: dict[str, Any], decode: Callable[[str], Any]) -> None:
        """Add the measurements of one client process."""
        self.sent += found["sent"]
        self.late_sends += found["late_sends"]
        self.late_worst_ns = max(self.late_worst_ns, found["late_worst_ns"])
        self.errors.update(found["errors"])
        for name, text in found["histograms"].items():
            if name in self.histograms:
                self.histograms[name].add(decode(text))
            else:
                self.histograms[name] = decode(text)

    def figures(self, seconds: float) -> dict[str, dict[str, float]]:
        """Microseconds and requests/s of each class, and of all."""
        every = histogram()
        for each in self.histograms.values():
            every.add(each)
        named = {"all": every, **self.histograms}
        return {
            name: {f"p{p:g}": each.get_value_at_percentile(p) for p in PERCENTILES}
            | {"max": each.get_max_value(), "rate": each.get_total_count() / seconds}
            for name, each in named.items()
        }


def play(url: str, model: str, arrivals: Sequence[Arrival], processes: int, seconds: float) -> Round:
    """One round: so many client processes send these arrivals. Raises BatchyardError when one fails."""
    from hdrh.histogram import HdrHistogram

    names = sorted({arrival.name for arrival in arrivals})
    begin_s = time.monotonic() + BEGIN_S + 0.5 * processes
    command = [sys.executable, "-m", "batchyard.bench.sender", str(begin_s)]
    senders = []
    for part in divided(arrivals, processes):
        sends = [[each.at_ns, names.index(each.name), each.deadline_s] for each in part]
        about: dict[str, Any] = {"url": url, "model": model, "priorities": names, "sends": sends}
        about |= {"seconds": seconds, "warm_up_s": WARM_UP_S}
        sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert sender.stdin is not None
        sender.stdin.write(json.dumps(about))
        sender.stdin.close()
        senders.append(sender)
    round_ = Round()
    for sender in senders:
        assert sender.stdout is not None
        lines = sender.stdout.read().splitlines()
        if sender.wait() or len(lines) != 2:
            raise BatchyardError("a client process failed; its message is above")
        round_.add(json.loads(lines[1]), HdrHistogram.decode)
    return round_


def summary(rounds: Sequence[Round], seconds: float, about: dict[str, Any]) -> dict[str, Any]:
    """summary.json: every round's figures, and the histograms as hdrhistogram encodes them."""
    return about | {
        "rounds": [
            {
                "void": each.is_void,
                "sent": each.sent,
                "late_sends": each.late_sends,
                "late_worst_us": each.late_worst_ns / 1e3,
                "errors": dict(each.errors),
                "figures": each.figures(seconds),
                "histograms": {name: h.encode().decode() for name, h in each.histograms.items()},
            }
            for each in rounds
        ]
    }


def table(found: dict[str, Any]) -> list[str]:
    """The medians of the valid rounds, as text."""
    rounds = valid(found)
    lines = [f"{len(rounds)} rounds of {len(found['rounds'])} count"]
    for name in rounds[0]["figures"] if rounds else ():
        figures = [each["figures"][name] for each in rounds if name in each["figures"]]
        times = {key: median(each[key] for each in figures) * 1e3 for key in ("p50", "p99", "p99.9")}
        cells = [f"{key} {format_time(time_ns)}" for key, time_ns in times.items()]
        lines.append(f"{name:<8} {', '.join(cells)}, {median(each['rate'] for each in figures):,.0f}/s")
    return lines


def valid(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in found["rounds"] if not each["void"]]


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """B to A, figure by figure: the ratio of the medians, and where it lies with CONFIDENCE."""
    if not valid(a) or not valid(b):
        raise BatchyardError("a run without a round that counts can't be compared")
    lines = []
    for name in a["rounds"][0]["figures"]:
        for figure in ("p50", "p99", "rate"):
            values = [
                [each["figures"][name][figure] for each in valid(run) if name in each["figures"]]
                for run in (a, b)
            ]
            if all(values):
                ratio = quotient(median(values[1]), median(values[0]))
                low, high = interval(values[0], values[1])
                lines.append(f"{name:<8} {figure:<5} {ratio:.2f}x ({low:.2f}-{high:.2f})")
    return lines


def interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Where the ratio of the medians lies, by the bootstrap: from rounds drawn anew from those there are."""
    draw = random.Random(seed)
    ratios = sorted(
        quotient(median(draw.choices(b, k=len(b))), median(draw.choices(a, k=len(a))))
        for _ in range(RESAMPLES)
    )
    beyond = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return ratios[beyond], ratios[-1 - beyond]


def plot(found: dict[str, Any], folder: Path) -> None:
    """Draw latency by percentile for each class, over all valid rounds."""
    from hdrh.histogram import HdrHistogram
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    percents = [100 * (1 - 10 ** (-step / 10)) for step in range(1, 41)]
    pooled: dict[str, Any] = {}
    for each in valid(found):
        for name, text in each["histograms"].items():
            pooled.setdefault(name, histogram()).add(HdrHistogram.decode(text))
    for name, each in pooled.items():
        times_ms = [each.get_value_at_percentile(percent) / 1e3 for percent in percents]
        axes.plot([100 / (100 - percent) for percent in percents], times_ms, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([2, 10, 100, 1_000, 10_000], ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"])
    axes.set_ylabel("ms, from the intended send time")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "latency.png", dpi=150)
    figure.savefig(folder / "latency.svg", metadata={"Date": None})
