"""The child's own watch over a run: one that is hung ends the process.

The broker says how long a batch may run (its broker/leases.py: slow is not hung), and kills a hung worker
that it knows. This is for the others: the broker may not kill (over tcp a process's number is only a
claim), or it died meanwhile. In that case nobody can have the answer any more, however long the run was
allowed to take. The supervisor then starts a new child.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time

LOOK_S = 0.5
GRACE_NS = 1_000_000_000  # the broker, where it can, is first
ORPHAN_NS = 5_000_000_000  # what a run whose broker has died may have taken by then: it may be about to end
EXIT_CODE = 4  # "hung": told apart in the supervisor's log
ORPHAN_EXIT_CODE = 6  # its broker died: no strike against the device
HAS_PIDFD = hasattr(os, "pidfd_open")

log = logging.getLogger("batchyard.gpuworker")


class Watchdog:
    """`start` before a run, `stop` after it; both cost a fraction of a microsecond."""

    def __init__(self) -> None:
        self._began_ns = 0  # 0: nothing runs
        self._until_ns = 0  # 0: for as long as its broker lives
        self._broker = -1  # a pidfd; -1: its death can't be seen from here
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def follow(self, broker_pid: int) -> None:
        """What is run from now on, is run for the broker that is this process of this machine."""
        former, self._broker = self._broker, -1
        if former >= 0:
            os.close(former)
        if HAS_PIDFD:
            try:
                self._broker = os.pidfd_open(broker_pid)
            except OSError:  # it is not to be seen from here: another namespace's number
                pass

    def start(self, lease_ns: int) -> None:
        """A run begins. `lease_ns`: what it may take; 0: there is no limit."""
        now_ns = time.monotonic_ns()
        self._until_ns = now_ns + lease_ns + GRACE_NS if lease_ns else 0
        self._began_ns = now_ns

    def stop(self) -> None:
        self._began_ns = 0

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            began_ns, until_ns = self._began_ns, self._until_ns
            if not began_ns:
                continue
            now_ns = time.monotonic_ns()
            if until_ns and now_ns > until_ns:
                log.error("a run has not ended long after its lease; this process ends")
                os._exit(EXIT_CODE)
            if now_ns > began_ns + ORPHAN_NS and self._is_orphan():
                log.error("a run goes on and on, and its broker has died; this process ends")
                os._exit(ORPHAN_EXIT_CODE)

    def _is_orphan(self) -> bool:
        if self._broker < 0:
            return False
        look = select.poll()
        look.register(self._broker, select.POLLIN)
        return any(event & select.POLLIN for _, event in look.poll(0))
