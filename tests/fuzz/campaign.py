"""Millions of inputs on every core. A chunk of inputs is a function of its target and its number."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice

from . import targets
from .mutations import Mutator

CHUNK = 20_000  # inputs
CPU_MAX_NS = 100_000_000  # of one input; they have at most 64 kB
SLOW_TRIES = 3  # an input that is slow is slow every time; a garbage collection is slow once
GROWTH_MAX_BYTES = 64 << 20  # of the process's peak, over one chunk
REPLAY = ".venv/bin/python -m batchyard.tests.fuzz {name} {hex}"


@dataclass
class Played:
    """What became of a target's inputs. `broken`: sentences that say how to see it again."""

    inputs: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    slowest_ns: int = 0
    growth_bytes: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, other: Played) -> None:
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.slowest_ns = max(self.slowest_ns, other.slowest_ns)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)
        self.broken += other.broken


def judge(name: str, payload: bytes) -> tuple[str, int, str]:
    """(what became of the input, CPU time in ns, how it broke a promise or "")."""
    outcome, took_ns, broken = _try(name, payload)
    for _ in range(SLOW_TRIES - 1):
        if took_ns <= CPU_MAX_NS:
            break
        took_ns = min(took_ns, _try(name, payload)[1])
    if took_ns > CPU_MAX_NS:
        broken = broken or f"it took {took_ns / 1e6:.0f} ms of CPU time"
    return outcome, took_ns, broken


def _try(name: str, payload: bytes) -> tuple[str, int, str]:
    check = targets.target(name).check
    began_ns = time.thread_time_ns()
    try:
        outcome, broken = check(payload), ""
    except BaseException as error:  # also what is no Exception: nothing but the documented is allowed
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        outcome, broken = "broken", f"{type(error).__name__}: {error}"
    return outcome, time.thread_time_ns() - began_ns, broken


def report(name: str, payload: bytes, broken: str) -> str:
    return f"{name}: {broken}\n  input   {payload.hex()}\n  replay  {REPLAY.format(name=name, hex=payload.hex())}"


def play(name: str, number: int, inputs: int = CHUNK) -> Played:
    """One chunk: the first `inputs` that the target's mutator makes from this number."""
    mutate = Mutator(targets.target(name).seeds, random.Random(f"{name} {number}"))
    played = Played()
    accepted = 0
    before_bytes = _peak_bytes()
    for _ in range(inputs):
        payload = mutate()
        outcome, took_ns, broken = judge(name, payload)
        accepted += outcome == targets.ACCEPTED
        played.slowest_ns = max(played.slowest_ns, took_ns)
        if broken:
            played.broken.append(report(name, payload, broken))
    played.inputs[name] = inputs
    played.accepted[name] = accepted
    played.growth_bytes = _peak_bytes() - before_bytes
    if played.growth_bytes > GROWTH_MAX_BYTES:
        text = f"{name}: chunk {number} made the process {played.growth_bytes:,} bytes larger"
        played.broken.append(
            f"{text}\n  replay  .venv/bin/python -m batchyard.tests.fuzz {name} --chunk {number}"
        )
    return played


def campaign(seconds: float, cores: int, first: int = 0) -> Played:
    """Chunks of every target in turn, from number `first` on, until the time is used up."""
    total = Played()
    give_up_s = time.monotonic() + seconds
    todo = ((name, number) for number in count(first) for name in targets.NAMES)
    with ProcessPoolExecutor(cores) as pool:
        while time.monotonic() < give_up_s and not total.broken:
            batch = list(islice(todo, 4 * cores))
            for played in pool.map(play, *zip(*batch, strict=True)):
                total.add(played)
    return total


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
