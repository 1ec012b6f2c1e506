"""A heap of deadlines over things that mostly end long before theirs.

Ended things stay behind until their time comes up, or until they are the majority: a steady load
with a deadline of 30 s would otherwise keep everything of the last 30 s in memory. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

SWEEP_MIN = 1024
PEELED_MAX = 4  # ended things taken off the top at one look
SLEEP_MAX_MS = 3_600_000  # poll() takes no more than 2**31 - 1, and a deadline may be years away

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things by the time at which they are due; `is_over` tells of those that no longer matter."""

    def __init__(self, is_over: Callable[[T], bool]) -> None:
        self._is_over = is_over
        self._heap: list[tuple[int, int, T]] = []
        self._sequence = 0
        self._sweep_at = SWEEP_MIN

    def __len__(self) -> int:
        """Entries held, ended ones included."""
        return len(self._heap)

    def add(self, due_ns: int, thing: T) -> None:
        self._sequence += 1
        heappush(self._heap, (due_ns, self._sequence, thing))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if not self._is_over(entry[2])]
            heapify(self._heap)
            self._sweep_at = max(SWEEP_MIN, 2 * len(self._heap))

    def next_ns(self) -> int | None:
        """When to look again: no later than the earliest that still matters is due; None: never.

        It may be the time of something that is over: taking every such thing out here cost a
        busy broker 0.5 us a request, and one look too many in half a minute costs nothing.
        """
        heap = self._heap
        for _ in range(PEELED_MAX):
            if not heap or not self._is_over(heap[0][2]):
                break
            heappop(heap)
        return heap[0][0] if heap else None

    def living(self) -> list[tuple[int, T]]:
        """(when it is due, what), of everything that still matters; as they were added."""
        found = sorted((sequence, due_ns, thing) for due_ns, sequence, thing in self._heap)
        return [(due_ns, thing) for _, due_ns, thing in found if not self._is_over(thing)]

    def due(self, now_ns: int) -> Iterator[T]:
        """Take out and yield what still matters and is due."""
        heap = self._heap
        while heap and (heap[0][0] <= now_ns or self._is_over(heap[0][2])):
            thing = heappop(heap)[2]
            if not self._is_over(thing):
                yield thing


def sleep_ms(due_ns: int | None, now_ns: int) -> int:
    """How long a poll may sleep: up to the deadline, rounded up, and never too long for poll()."""
    if due_ns is None:
        return SLEEP_MAX_MS
    return min(SLEEP_MAX_MS, max(0, (due_ns - now_ns) // 1_000_000 + 1))
