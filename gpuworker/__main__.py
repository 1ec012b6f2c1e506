"""`python -m batchyard.gpuworker`: a worker: the supervisor of one child that owns the sessions."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from ..transport import endpoints, lifeline
from ..transport.errors import BatchyardError
from ..transport.processes import Backoff, ChildProcess
from . import providers

POLL_S = 0.05  # how soon a dead child is seen

log = logging.getLogger("batchyard.gpuworker")


def main(argv: list[str] | None = None) -> int:
    """Keep a child running until SIGTERM or SIGINT. 0 then, 1 with a sentence on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.gpuworker",
        description="Run models for a broker: one supervised process with its own onnxruntime sessions.",
        epilog="example: python -m batchyard.gpuworker --url ipc:///tmp/yard --threads 1",
    )
    parser.add_argument("--url", default=None, help="the broker's (default: $BATCHYARD_URL, else local)")
    parser.add_argument("--keys", type=Path, metavar="FOLDER", help="CURVE keys, if the broker has them")
    parser.add_argument("--provider", default=None, help="default: the best that this machine has")
    parser.add_argument(
        "--threads", type=int, default=None, help="intra-op threads (default: cores / $BATCHYARD_WORKERS)"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when stdin does (the starter died)")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what went wrong")
    arguments = parser.parse_args(argv)
    level = logging.WARNING if arguments.quiet else logging.INFO
    logging.basicConfig(level=level, format="worker: %(message)s", stream=sys.stderr)
    try:
        url = arguments.url or endpoints.default_url()
        endpoints.Endpoint.parse(url)
        provider = arguments.provider or _best_provider()
    except BatchyardError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    threads = arguments.threads or _fair_threads(os.environ.get("BATCHYARD_WORKERS", ""))
    command = [sys.executable, "-m", "batchyard.gpuworker.child"]
    command += ["--url", url, "--provider", provider, "--threads", str(threads)]
    if arguments.quiet:
        command.append("--quiet")
    if arguments.keys is not None:
        command += ["--keys", str(arguments.keys)]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if arguments.lifeline:
        lifeline.hold(stop.set)
    supervise(ChildProcess(command, name="session child"), stop)
    return 0


def supervise(child: ChildProcess, stop: threading.Event) -> None:
    """Start the child, and start it again whenever it dies, until `stop`; then end it."""
    backoff = Backoff()
    backoff.next_delay_s(time.monotonic())  # the first start is not a restart
    try:
        child.start()
        while not stop.wait(POLL_S):
            status = child.poll()
            if status is None:
                continue
            delay_s = backoff.next_delay_s(time.monotonic())
            log.warning("the session child ended with status %s; again in %.1f s", status, delay_s)
            if stop.wait(delay_s):
                break
            child.start()
    finally:
        child.terminate()


def _fair_threads(workers: str) -> int:
    """This worker's share of the cores that it may use; a starter says how many workers there are."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Windows and macOS
        cores = os.cpu_count() or 1
    return max(1, cores // int(workers) if workers.isdecimal() and int(workers) else cores)


def _best_provider() -> str:
    try:
        found = providers.available()
    except ImportError:
        raise BatchyardError(
            "onnxruntime is not installed here: pip install onnxruntime (or another runtime, but only one)"
        ) from None
    if not found:
        raise BatchyardError("this onnxruntime has no provider that batchyard knows; run `batchyard doctor`")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
