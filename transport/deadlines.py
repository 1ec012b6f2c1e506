"""A heap of deadlines over things that mostly end long before theirs.

Ended things stay behind until their time comes up, or until they are the majority: a steady load
with a deadline of 30 s would otherwise keep everything of the last 30 s in memory. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from .heaps import AT_ONCE_MAX, tidy

SWEEP_MIN = 1024
PEELED_MAX = 4  # ended things taken off the top at one look
SLEEP_MAX_MS = 3_600_000  # poll() takes no more than 2**31 - 1, and a deadline may be years away

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things by the time at which they are due; `is_over` says which no longer matter."""

    def __init__(self, is_over: Callable[[T], bool]) -> None:
        self._is_over = is_over
        self._heap: list[tuple[int, int, T]] = []
        self._sequence = 0
        self._sweep_at = SWEEP_MIN
        self._cursor = 0

    def __len__(self) -> int:
        """Entries held, ended ones included."""
        return len(self._heap)

    def add(self, due_ns: int, thing: T) -> None:
        self._sequence += 1
        heappush(self._heap, (due_ns, self._sequence, thing))
        if len(self._heap) > AT_ONCE_MAX:
            self._cursor = tidy(self._heap, self._cursor, self._is_entry_over)
        elif len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if not self._is_over(entry[2])]
            heapify(self._heap)
            self._sweep_at = max(SWEEP_MIN, 2 * len(self._heap))

    def _is_entry_over(self, entry: tuple[int, int, T]) -> bool:
        return self._is_over(entry[2])

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
        """(due time, thing) of everything that still matters, in the order of addition."""
        entries = sorted((sequence, due_ns, thing) for due_ns, sequence, thing in self._heap)
        return [(due_ns, thing) for _, due_ns, thing in entries if not self._is_over(thing)]

    def due(self, now_ns: int, most: int = sys.maxsize) -> Iterator[T]:
        """Yield the things that are due and still matter, and take them out, `most` entries at most.

        An entry goes when the next thing is asked for: an exception amid what is done about one (a signal's
        handler may raise anywhere) leaves it due.
        """
        while most > 0 and (heap := self._heap) and (heap[0][0] <= now_ns or self._is_over(heap[0][2])):
            most -= 1
            _, sequence, thing = heap[0]
            if not self._is_over(thing):
                yield thing
            heap = self._heap  # whoever was given the thing may have added others
            if heap and heap[0][1] == sequence:
                heappop(heap)


def sleep_ms(due_ns: int | None, now_ns: int) -> int:
    """How long a poll may sleep: up to the deadline, rounded up, and never too long for poll()."""
    if due_ns is None:
        return SLEEP_MAX_MS
    return min(SLEEP_MAX_MS, max(0, (due_ns - now_ns) // 1_000_000 + 1))
