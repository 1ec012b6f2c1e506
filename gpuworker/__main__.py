"""`python -m batchyard.gpuworker`: a worker: the supervisor of one child that owns the sessions."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from ..transport import endpoints, extras, lifeline
from ..transport.errors import BatchyardError
from ..transport.flag import Flag
from ..transport.processes import open_standard_streams
from . import providers
from .ladder import Ladder
from .providers import TOLERANCE
from .supervisor import Supervisor


def main(argv: list[str] | None = None) -> int:
    """Keep a child running until SIGTERM or SIGINT. 0 then, 1 with a sentence on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.gpuworker",
        description="Run models for a broker: one supervised process with its own onnxruntime sessions.",
        epilog="example: python -m batchyard.gpuworker --url ipc:///tmp/yard --provider webgpu",
    )
    parser.add_argument("--url", default=None, help="the broker's (default: $BATCHYARD_URL, else local)")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="CURVE keys, if the broker has them")
    parser.add_argument(
        "--provider", default="auto", help=f"auto: the best that works here; or {', '.join(providers.LADDER)}"
    )
    parser.add_argument(
        "--device", type=int, metavar="N", help="which GPU, from 0 (worker N takes the N-th, in turn)"
    )
    parser.add_argument(
        "--whole", action="store_true", help="refuse models with operators that the GPU's provider lacks"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="T",
        help="of a GPU's answers, in parts of the CPU's greatest (%(default)g; inf: any)",
    )
    parser.add_argument(
        "--threads", type=int, default=None, help="intra-op threads (default: cores / $BATCHYARD_WORKERS)"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does (the starter died)")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    open_standard_streams()
    arguments = parser.parse_args(argv)
    level = logging.WARNING if arguments.quiet else logging.INFO
    logging.basicConfig(level=level, format="worker: %(message)s", stream=sys.stderr)
    try:
        url = arguments.url or endpoints.default_url()
        endpoints.require_own(endpoints.Endpoint.parse(url))
        rungs = _rungs(arguments.provider)
    except BatchyardError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    threads = arguments.threads or _fair_threads(os.environ.get("BATCHYARD_WORKERS", ""))
    child = ["--url", url, "--threads", str(threads), "--tolerance", str(arguments.tolerance)]
    if arguments.whole:
        child.append("--whole")
    if arguments.quiet:
        child.append("--quiet")
    if arguments.keys is not None:
        child += ["--keys", str(arguments.keys)]
    stop = Flag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if arguments.lifeline:
        lifeline.hold(stop.set)
    insist = arguments.provider != "auto"
    try:
        Supervisor(Ladder(rungs), child, stop, insist, arguments.device, _worker_number()).run()
    except BatchyardError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


def _fair_threads(workers: str) -> int:
    """This worker's share of the cores that it may use; a starter says how many workers there are."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Windows and macOS
        cores = os.cpu_count() or 1
    return max(1, cores // int(workers) if workers.isdecimal() and int(workers) else cores)


def _worker_number() -> int:
    """This worker's number among its like, from 1: by whoever started it, honcho (`-c worker=2`) included."""
    named = os.environ.get("BATCHYARD_WORKER", "") or os.environ.get("HONCHO_PROCESS_NAME", "")
    number = named.rpartition(".")[2]
    return int(number) if number.isdecimal() and int(number) else 1


def _rungs(choice: str) -> list[str]:
    """The providers to try, best first. Raises BatchyardError where there is none."""
    if find_spec("onnxruntime") is None:
        raise BatchyardError(f"{extras.missing('onnxruntime')} (or another runtime, but only one)")
    found = providers.installed()
    if "cpu" not in found:  # a runtime that somebody built, under another name
        found = [*found, "cpu"]
    if choice == "auto":
        return found
    if choice not in providers.LADDER:
        names = ", ".join(("auto", *providers.LADDER))
        raise BatchyardError(f"no provider is called {choice!r}; there is: {names}")
    below = providers.LADDER[providers.LADDER.index(choice) + 1 :]
    return [choice, *(name for name in below if name in found)]


if __name__ == "__main__":
    sys.exit(main())
