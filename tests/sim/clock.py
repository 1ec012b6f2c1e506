"""Virtual time: one clock and one heap of what happens next. Nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000


class Clock:
    """Runs actions in the order of their times; those of one time in the order in which they were set."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, due_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._heap, (due_ns, self._sequence, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, action)

    def leap(self, passed_ns: int) -> None:
        """The machine slept: time has passed, and nothing has happened in it."""
        self.now_ns += passed_ns

    def step(self) -> bool:
        """Do what is next. False: nothing is."""
        if not self._heap:
            return False
        due_ns, _, action = heappop(self._heap)
        self.now_ns = max(self.now_ns, due_ns)  # after a leap, what is late happens now
        action()
        return True
