"""What `bench load` sends, and when: Poisson arrivals or a recorded trace, mixed in priorities and deadlines.

Pure: no clock, no client.

    mix     URGENT:1:0.05,NORMAL:8,LOW:1     class, its share, and its deadline in seconds, if it has one
    trace   a line for each arrival: seconds[,class[,deadline]]; the mix draws what a line leaves out
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .loops import poisson_schedule

PRIORITIES = ("URGENT", "HIGH", "NORMAL", "LOW")


class Class(NamedTuple):
    """A part of the load."""

    name: str
    share: float
    deadline_s: float | None


class Arrival(NamedTuple):
    at_ns: int
    name: str
    deadline_s: float | None


def parse_mix(text: str) -> list[Class]:
    """The classes of a mix. Raises ValueError with a sentence."""
    mix = []
    for part in text.split(","):
        name, *numbers = part.split(":")
        if name not in PRIORITIES or len(numbers) > 2:
            raise ValueError(f"{part!r} is not CLASS:SHARE[:DEADLINE]; classes: {', '.join(PRIORITIES)}")
        share = _positive(numbers[0]) if numbers else 1.0
        mix.append(Class(name, share, _positive(numbers[1]) if len(numbers) > 1 else None))
    return mix


def poisson(rate_per_s: float, duration_s: float, mix: Sequence[Class], seed: int) -> list[Arrival]:
    times_ns = poisson_schedule(rate_per_s, duration_s, seed)
    return [Arrival(at_ns, *drawn) for at_ns, drawn in zip(times_ns, _draws(mix, seed), strict=False)]


def recorded(lines: Iterable[str], mix: Sequence[Class], seed: int) -> list[Arrival]:
    """The arrivals of a trace, in order, from its first. Raises ValueError with the line that is wrong."""
    rows = [row for row in csv.reader(lines) if row and not row[0].lstrip().startswith("#")]
    arrivals = []
    for number, (row, (name, deadline_s)) in enumerate(zip(rows, _draws(mix, seed), strict=False), 1):
        try:
            at_s = float(row[0])
            if not math.isfinite(at_s):
                raise ValueError("a time must be a number")
            if len(row) > 1 and row[1].strip():
                (drawn,) = parse_mix(row[1].strip())
                name, deadline_s = drawn.name, None
            if len(row) > 2 and row[2].strip():
                deadline_s = _positive(row[2])
        except ValueError as error:
            raise ValueError(f"line {number} of the trace: {error}") from None
        arrivals.append(Arrival(int(at_s * 1e9), name, deadline_s))
    if not arrivals:
        raise ValueError("the trace has no arrivals")
    arrivals.sort()
    first_ns = arrivals[0].at_ns
    return [arrival._replace(at_ns=arrival.at_ns - first_ns) for arrival in arrivals]


def divided(arrivals: Sequence[Arrival], processes: int) -> list[list[Arrival]]:
    """Deal the arrivals out to the processes in turn."""
    return [list(arrivals[index::processes]) for index in range(processes)]


def _draws(mix: Sequence[Class], seed: int) -> Iterable[tuple[str, float | None]]:
    random = np.random.default_rng([seed, 1])
    shares = np.array([each.share for each in mix])
    while True:
        for index in random.choice(len(mix), 1024, p=shares / shares.sum()):
            yield mix[index].name, mix[index].deadline_s


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not above 0")
    return value
