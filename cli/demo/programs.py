"""The programs that load a demo's yard: their number and duration, their start and end, their tallies."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np

from ...client import Yard
from ...transport.arguments import count, seconds
from ...transport.errors import BatchyardError
from ...transport.processes import ChildProcess, module
from .client import DEADLINE_S
from .report import step
from .tally import Array, Tally

SECONDS_DEFAULT = 8.0
SECONDS_MAX = 45.0  # the whole demo ends in under a minute
CLIENTS_DEFAULT = 4
CLIENTS_MAX = 32
TOO_MUCH = f"at most {SECONDS_MAX:g} seconds and {CLIENTS_MAX} clients; `batchyard bench` does more"
GRACE_S = 10.0 + DEADLINE_S  # for a client to start, to end, and to write its tally
LOOK_S = 0.05
LOG_LINES = 20  # of what the processes said, when something failed


@dataclass(frozen=True, slots=True)
class Load:
    """So many client programs, for so long."""

    seconds: float
    clients: int

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--seconds",
            type=seconds,
            default=SECONDS_DEFAULT,
            metavar="S",
            help="seconds of load (%(default)g)",
        )
        add(
            "--clients",
            type=count,
            default=CLIENTS_DEFAULT,
            metavar="N",
            help="client programs (%(default)s)",
        )

    @classmethod
    def of(cls, parser: argparse.ArgumentParser, options: argparse.Namespace) -> Self:
        """The load on the command line; too much of it is an error."""
        if options.seconds > SECONDS_MAX or options.clients > CLIENTS_MAX:
            parser.error(TOO_MUCH)
        return cls(options.seconds, options.clients)


@dataclass(frozen=True, slots=True)
class Scans:
    """What clients send, and the answers: images, float32[n, ...]; expected, float32[n, classes]; labels."""

    images: Array
    labels: Array
    expected: Array

    @classmethod
    def answered(cls, model: Path, images: Array, labels: Array) -> Self:
        """Expect the logits of onnxruntime in this process, without batchyard."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (name,) = (value.name for value in session.get_inputs())
        logits = np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
        return cls(images, labels, logits)

    @property
    def right(self) -> float:
        """The share of the labels that the model alone gets right."""
        return float((self.expected.argmax(1) == self.labels).mean())


@contextmanager
def logged() -> Iterator[IO[bytes]]:
    """A log for processes; its last lines are added to any error that leaves the block."""
    with tempfile.TemporaryFile() as log:
        try:
            yield log
        except BatchyardError as error:
            raise BatchyardError(f"{error}{_said(log)}") from None


def run(yard: Yard, model: str, scans: Scans, load: Load, log: IO[bytes]) -> Tally:
    """Run the client programs, print a line each second, and return the merged tally."""
    with tempfile.TemporaryDirectory(prefix="batchyard-demo-") as name:
        folder = Path(name)
        np.savez(folder / "data.npz", images=scans.images, expected=scans.expected, labels=scans.labels)
        total = Tally(scans.expected, scans.labels)
        for path in _tallies(yard, model, folder, load, log):
            total.merge(Tally.load(path, scans.expected, scans.labels))
        return total


def _tallies(yard: Yard, model: str, folder: Path, load: Load, log: IO[bytes]) -> list[Path]:
    tallies = [folder / f"tally-{number}.npz" for number in range(load.clients)]
    processes = []
    for number, tally in enumerate(tallies):
        command = [*module("batchyard.cli.demo.client"), *yard.where]
        command += ["--model", model, "--seconds", str(load.seconds), "--number", str(number)]
        command += ["--data", str(folder / "data.npz"), "--tally", str(tally)]
        processes.append(ChildProcess(command, name=f"client {number + 1}", stdout=log, stderr=log))
    try:
        for process in processes:
            process.start()
        _watch(yard, processes, load.seconds)
    finally:
        for process in processes:
            process.terminate()
    return tallies


def _watch(yard: Yard, processes: list[ChildProcess], load_s: float) -> None:
    began_s = time.monotonic()
    step("second", f"{'scans':>9}  {'per second':>10}  {'scans in a batch':>16}")
    second, rows_before, batches_before = 1, 0, 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            if process.poll():
                raise BatchyardError(f"{process.name} ended with status {process.poll()}")
        now_s = time.monotonic() - began_s
        if now_s > load_s + GRACE_S:
            raise BatchyardError(f"the clients did not end within {now_s:.0f} s")
        if second <= now_s < load_s:
            counters = yard.snapshot()
            rows, batches = counters["rows"], counters["batches"]
            batch = (rows - rows_before) / max(1, batches - batches_before)
            step(str(second), f"{rows:>9,}  {rows - rows_before:>10,}  {batch:>16.1f}")
            second, rows_before, batches_before = second + 1, rows, batches
        time.sleep(LOOK_S)
    for process in processes:
        if process.poll():
            raise BatchyardError(f"{process.name} ended with status {process.poll()}")


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return "".join(f"\n  {line}" for line in lines)
