"""`python -m batchyard.tests.campaigns.reliability.crowd URL TRUTH RECORDS SECONDS SEED STREAM...`

One process of an open loop: arrivals that wait for nobody. A stream is PRIORITY:RATE:DEADLINE, in
requests per second and seconds, with Poisson arrivals of its own. What became of every request is
written to RECORDS, row by row:

| field       | what                                                              |
|-------------|-------------------------------------------------------------------|
| priority    | 0 URGENT to 3 LOW                                                 |
| outcome     | index into OUTCOMES                                               |
| intended_ns | when it should have been sent; a latency as users feel it starts here |
| sent_ns     | when it was; the deadline starts here                             |
| ended_ns    | when its outcome was known; 0: never                              |

The process says "ready" when it is connected, and starts when a line comes.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from batchyard.bench.loops import poisson_schedule
from batchyard.client import Client

from .proc import until
from .truth import INPUTS, MODEL, Truth

OUTCOMES = ("none", "ok", "wrong", "Overloaded", "late while queued", "late while running", "other")
NONE, OK, WRONG, REFUSED, LATE_QUEUED, LATE_RUNNING, OTHER = range(len(OUTCOMES))
RECORD = np.dtype(
    [("priority", "u1"), ("outcome", "u1"), ("intended_ns", "i8"), ("sent_ns", "i8"), ("ended_ns", "i8")]
)
ARENA_BYTES = 1 << 30  # pages are committed when they are used; a full arena would hold arrivals back
SWITCH_S = 0.0005  # the thread that sends must not keep the one that reads answers waiting: 5 ms by default
DRAIN_S = 10.0  # beyond the longest deadline


class Stream(NamedTuple):
    """Arrivals of one class."""

    priority: int
    rate_per_s: float
    deadline_s: float

    @classmethod
    def parse(cls, text: str) -> Self:
        priority, rate, deadline = text.split(":")
        return cls(int(priority), float(rate), float(deadline))

    def __str__(self) -> str:
        return f"{self.priority}:{self.rate_per_s}:{self.deadline_s}"


def main(argv: list[str]) -> int:
    """Connect, wait for the word, send, drain, write."""
    url, truth_file, records_file, seconds, seed, *texts = argv
    streams = [Stream.parse(text) for text in texts]
    truth = Truth.load(Path(truth_file))
    sys.setswitchinterval(SWITCH_S)
    with Client(url, arena_bytes=ARENA_BYTES) as client:
        client.submit(MODEL, truth.inputs[0]).result()
        print("ready", flush=True)
        sys.stdin.readline()
        records = arrive(client, truth, streams, float(seconds), int(seed))
    np.save(records_file, records)
    return 0


def arrive(client: Client, truth: Truth, streams: list[Stream], seconds: float, seed: int) -> Any:
    """Send every stream's arrivals at their times, and return the records: RECORD[arrivals]."""
    arrivals = sorted(
        (offset_ns, number)
        for number, stream in enumerate(streams)
        for offset_ns in poisson_schedule(stream.rate_per_s, seconds, seed + number)
    )
    records = np.zeros(len(arrivals), RECORD)
    inputs = [_in_arena(client, x) for x in truth.inputs]  # copied once: the crowd has to stay light
    start_ns = time.monotonic_ns()
    for row, (offset_ns, number) in enumerate(arrivals):
        stream = streams[number]
        intended_ns = start_ns + offset_ns
        while (early_ns := intended_ns - time.monotonic_ns()) > 0:
            time.sleep(early_ns / 1e9)  # no spinning: it would take a core from the yard
        records[row] = (stream.priority, NONE, intended_ns, time.monotonic_ns(), 0)
        index = row % INPUTS
        try:
            future = client.submit(MODEL, inputs[index], priority=stream.priority, deadline=stream.deadline_s)
        except Exception as error:
            _note(records, row, _kind(error))
        else:
            future.add_done_callback(partial(_settle, truth, records, row, index))
    try:
        patience_s = max(stream.deadline_s for stream in streams) + DRAIN_S
        until(lambda: bool(records["outcome"].all()), patience_s, "every outcome")
    except TimeoutError:
        pass  # the records show it
    return records


def _in_arena(client: Client, x: Any) -> Any:
    placed = client.empty(x.shape, x.dtype)
    placed[:] = x
    return placed


def _settle(truth: Truth, records: Any, row: int, index: int, future: Any) -> None:
    try:
        answer = future.result()
    except Exception as error:
        _note(records, row, _kind(error))
    else:
        records["ended_ns"][row] = time.monotonic_ns()  # before the comparison, which is not the yard's
        records["outcome"][row] = OK if truth.right(index, answer) else WRONG


def _note(records: Any, row: int, outcome: int) -> None:
    records["ended_ns"][row] = time.monotonic_ns()
    records["outcome"][row] = outcome


def _kind(error: Exception) -> int:
    name = type(error).__name__
    if name == "Overloaded":
        return REFUSED
    if name == "DeadlineExceeded":  # the broker's sentence says where it was when its time was up
        return LATE_RUNNING if "running" in str(error) else LATE_QUEUED
    return OTHER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
