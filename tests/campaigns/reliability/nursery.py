"""`python -m batchyard.tests.campaigns.reliability.nursery URL TRUTH IN_FLIGHT`: clients that live to be killed.

A line on stdin makes one: a fork, so that a client costs milliseconds and not the imports of a fresh
interpreter. When its first answer has come and the rest is under way, its pid is a line on stdout. Nobody
outlives the nursery, and that ends with its stdin.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from batchyard.client import Client

from .ledger import Ledger
from .load import Load
from .truth import MODEL, Truth

DEADLINE_S = 60.0
ARENA_BYTES = 32 << 20


def main(argv: list[str]) -> int:
    """Fork for every line, until there are no more."""
    url, truth_file, in_flight = argv
    truth = Truth.load(Path(truth_file))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    lifeline, kept = os.pipe()
    for _ in sys.stdin.buffer:
        if os.fork() == 0:
            os.close(kept)
            threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
            _live(url, truth, int(in_flight))
    return 0


def _end_with(lifeline: int) -> NoReturn:
    """End when the nursery does: it alone holds the other end."""
    os.read(lifeline, 1)
    os._exit(0)


def _live(url: str, truth: Truth, in_flight: int) -> NoReturn:
    try:
        client = Client(url, arena_bytes=ARENA_BYTES)
        client.infer(MODEL, truth.inputs[0])
        with Load(client, truth, Ledger(), in_flight, DEADLINE_S):
            client.infer(MODEL, truth.inputs[0])
            os.write(1, b"%d\n" % os.getpid())
            threading.Event().wait()
    finally:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
