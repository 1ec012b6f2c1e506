"""How long to poll for the next message before sleeping: waking up is the largest cost of a small request.

Polling pays only on a core that no other thread wants. So the number of runnable threads is looked at now and
then: while there are more of them than cores, the loop sleeps at once. Where the system does not
say, it polls, and yields the processor between polls.
"""

from __future__ import annotations

import os

RUNNABLE = "/proc/loadavg"  # "0.20 0.18 0.12 2/345 8901": two threads are runnable; proc(5)
LOOK_BYTES = 128
WEIGHT = 0.25  # of one look
WANTED = 0.5  # of the latest looks found more runnable threads than cores: don't poll


class Spinning:
    """`spin_ns`: for how long to poll now. `path`: where the runnable threads are counted."""

    def __init__(self, spin_ns: int, path: str = RUNNABLE, cores: int | None = None) -> None:
        self._most_ns = spin_ns
        self.spin_ns = spin_ns
        self._cores = cores or os.cpu_count() or 1
        self._wanted = 0.0
        self._file = -1
        if spin_ns:
            try:
                self._file = os.open(path, os.O_RDONLY)
            except OSError:
                pass  # not counted here
        self.give_way = getattr(os, "sched_yield", lambda: None)  # not on Windows

    def look(self) -> None:
        """Find out whether more threads are runnable than there are cores. Costs some 4 us."""
        if self._file < 0:
            return
        try:
            runnable = int(os.pread(self._file, LOOK_BYTES, 0).split()[3].partition(b"/")[0])
        except (OSError, ValueError, IndexError):
            return
        self._wanted += ((runnable > self._cores) - self._wanted) * WEIGHT
        self.spin_ns = 0 if self._wanted > WANTED else self._most_ns

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
