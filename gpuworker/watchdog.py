"""The child's own watch over a run: a batch that is not done long after its lease ends the process.

The broker kills a hung worker that it knows. This is for the others: the broker died meanwhile, or
may not kill (over tcp a process's number is only a claim). The supervisor then starts a new child.
"""

from __future__ import annotations

import logging
import os
import threading
import time

LOOK_S = 0.5
GRACE_NS = 1_000_000_000  # the broker, where it can, is first
EXIT_CODE = 4  # "hung": told apart in the supervisor's log

log = logging.getLogger("batchyard.gpuworker")


class Watchdog:
    """`start` before a run, `stop` after it; both cost a fraction of a microsecond."""

    def __init__(self) -> None:
        self._until_ns = 0  # 0: nothing runs
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def start(self, lease_ns: int) -> None:
        if lease_ns:
            self._until_ns = time.monotonic_ns() + lease_ns + GRACE_NS

    def stop(self) -> None:
        self._until_ns = 0

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            until_ns = self._until_ns
            if until_ns and time.monotonic_ns() > until_ns:
                log.error("a run has not ended long after its lease; this process ends")
                os._exit(EXIT_CODE)
