"""Processes with a page beside the yard under test, started as a user would and gone afterwards."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import BatchyardError

START_WITHIN_S = 30.0
END_WITHIN_S = 15.0
LOOK_S = 0.05


@contextmanager
def gateway(where: Sequence[str], *arguments: str) -> Iterator[int]:
    """The port of a gateway of the yard that `where` (`Target.where`) names; gRPC listens at the next one.
    Raises BatchyardError when it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "batchyard.gateway", *where, "--port", str(port), "-q", *arguments]
    process = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}/v2/health/ready", process, "the gateway")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], what: str) -> None:
    """Return when the page is there. Raises BatchyardError when `process` has ended, or time is over."""
    give_up_s = time.monotonic() + START_WITHIN_S
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > give_up_s:
            raise BatchyardError(f"{what} did not start; its messages are above")
        time.sleep(LOOK_S)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            answer.read()
            return bool(answer.status == 200)
    except OSError:  # urllib's own among them
        return False


def free_port() -> int:
    """The first of two free ports in a row."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise BatchyardError("no two free ports in a row")
