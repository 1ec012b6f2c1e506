"""`python3 run measure monitoring`: what a sidecar costs the requests, in whatever state it is.

One yard, `tiny` with one request in flight; in alternating slices there is no sidecar, one that is scraped
once a second, one that is stopped while it is scraped, and one that is killed half-way. All of it on
this machine, the scraper as well, as it would be beside a Prometheus.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial

from ..bench import models
from ..bench.compare import Comparison, Contender, Slice, interleave
from ..bench.loops import closed_loop
from ..bench.report import Finding, Line
from ..bench.statistics import Measured, format_ratio, format_time, percentile
from ..bench.target import Target, Targets
from .served import free_port, wait_for

SLICES = 2  # in a round: a scrape a second needs slices of seconds
NONE = "no sidecar"
STATES = ("scraped", *(("stopped",) if hasattr(signal, "SIGSTOP") else ()), "killed")
PERCENTS = (50.0, 99.0, 99.9)


def monitoring(targets: Targets, rounds: int, seconds: float, say: Callable[[str], None]) -> Finding:
    """p50, p99 and p99.9 with a sidecar in each of its states, to those without one in the same round."""
    with targets.open("tiny") as target:
        target.client.infer("tiny", models.sample("tiny"))
        contenders = [Contender(state, partial(_open, target, state)) for state in (NONE, *STATES)]
        comparison = interleave(contenders, rounds, seconds, slices=SLICES, say=say)
    return _finding(comparison)


@contextmanager
def _open(target: Target, state: str) -> Iterator[Slice]:
    def run(duration_s: float) -> Measured:
        with nullcontext() if state == NONE else _watched(target.where, state, duration_s):
            return closed_loop(target.client, "tiny", [models.sample("tiny")], 1, duration_s)

    yield run


@contextmanager
def _watched(where: Sequence[str], state: str, duration_s: float) -> Iterator[None]:
    """A sidecar in this state, and who scrapes it; both gone afterwards."""
    port = free_port()
    page = f"http://127.0.0.1:{port}/metrics"
    module = [sys.executable, "-m"]
    sidecar = subprocess.Popen([*module, "batchyard.sidecar", *where, "--port", str(port), "-q"])
    scraper = None
    killer = threading.Timer(duration_s / 2, sidecar.kill)
    try:
        wait_for(page, sidecar, "the sidecar")
        scraper = subprocess.Popen([*module, "batchyard.tools.scraper", page], stdout=subprocess.PIPE)
        assert scraper.stdout is not None
        scraper.stdout.readline()
        if state == "stopped":
            os.kill(sidecar.pid, signal.SIGSTOP)
        elif state == "killed":
            killer.start()
        yield
    finally:
        killer.cancel()
        for process in (scraper, sidecar):
            if process is not None:
                process.kill()
                process.communicate()


def _percentile(percent: float, measured: Measured) -> float:
    return percentile(sorted(measured.latencies_ns), percent)


def _finding(comparison: Comparison) -> Finding:
    finding = Finding("monitoring", figures={"ratios": {}, "pooled": {}})
    pooled = {name: sorted(measured.latencies_ns) for name, measured in comparison.pooled.items()}
    for measured in comparison.pooled.values():
        finding.count_errors(measured)
    for state in STATES:
        for percent in PERCENTS:
            ratio = comparison.ratio(state, NONE, partial(_percentile, percent))
            finding.figures["ratios"][f"p{percent:g}, {state}"] = asdict(ratio)
            finding.lines.append(
                Line(
                    f"tiny, sidecar {state}: p{percent:g}",
                    format_time(percentile(pooled[state], percent)),
                    NONE,
                    format_time(percentile(pooled[NONE], percent)),
                    f"{format_ratio(ratio)} the time",
                )
            )
    for name, latencies_ns in pooled.items():
        finding.figures["pooled"][name] = {
            f"p{percent:g}_ns": percentile(latencies_ns, percent) for percent in PERCENTS
        }
    return finding
