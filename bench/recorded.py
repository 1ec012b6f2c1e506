"""A run of `bench load`, from its arguments to its folder; and two such folders compared."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..transport import extras
from . import schedule
from .load import WARM_UP_S, play, plot, summary, table
from .load import compare as compared
from .main import say
from .report import machine, machine_line
from .target import Targets

SUMMARY = "summary.json"


def load(options: argparse.Namespace) -> int:
    """Play the rounds, leave the folder, print the table. 1 when no round counts, or a request failed."""
    extras.require("bench load", "hdrh", "matplotlib")
    if options.trace is not None:
        with options.trace.open(encoding="utf-8") as lines:
            arrivals = schedule.recorded(lines, options.mix, options.seed)
        seconds = max(arrivals[-1].at_ns / 1e9 - WARM_UP_S, 0.001)
    else:
        seconds = options.seconds
        arrivals = schedule.poisson(options.rate, WARM_UP_S + seconds, options.mix, options.seed)
    rounds = []
    with Targets(options.url, options.workers, options.threads).open(options.model) as target:
        url = options.url or target.yard.url  # type: ignore[union-attr]
        for number in range(options.rounds):
            rounds.append(play(url, options.model, arrivals, options.processes, seconds))
            late = f", void: {rounds[-1].late_sends:,} sends were late" if rounds[-1].is_void else ""
            say(f"round {number + 1} of {options.rounds}: {rounds[-1].sent:,} requests{late}")
    facts = machine()
    about = {"machine": facts, "arguments": {name: str(value) for name, value in vars(options).items()}}
    found = summary(rounds, seconds, about)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / SUMMARY).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(machine_line(facts))
    print("\n".join(table(found)))
    counts = [each for each in rounds if not each.is_void]
    if counts:
        plot(found, options.out)
    failed = sum(sum(each.errors.values()) for each in rounds)
    if failed:
        print(f"FAILED: {failed} requests; {options.out / SUMMARY} says of what")
    return 0 if counts and not failed else 1


def compare(a: Path, b: Path) -> int:
    first, second = (json.loads((folder / SUMMARY).read_text(encoding="utf-8")) for folder in (a, b))
    print(f"{b} to {a}: ratio of the medians of rounds, and where it lies with 95 % confidence")
    print("\n".join(compared(first, second)))
    return 0
