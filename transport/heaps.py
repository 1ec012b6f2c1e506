"""Heaps in which most things end before their turn: what is over is taken out bit by bit. Pure.

A heap that is long is never made anew in one go: that is a pause of milliseconds. For every thing that ends,
a few entries are looked at, and at most a quarter of the heap is over in the long run.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Any, TypeVar

AT_ONCE_MAX = 2048  # a heap up to this length may be made anew: a millisecond at most
LOOKS = 4  # at entries, for one that ended
TOP_LOOKS = 2  # at the first ones, which mostly end first

Entry = TypeVar("Entry", bound=tuple[Any, ...])


def tidy(heap: list[Entry], cursor: int, is_over: Callable[[Entry], bool]) -> int:
    """Look at a few entries, and take out those that are over. Where to go on the next time; begin with 0."""
    for _ in range(TOP_LOOKS):
        if not heap or not is_over(heap[0]):
            break
        heappop(heap)
    for _ in range(LOOKS):
        if not heap:
            return 0
        cursor = cursor - 1 if 0 < cursor <= len(heap) else len(heap) - 1
        if is_over(heap[cursor]):
            remove(heap, cursor)
    return cursor


def remove(heap: list[Entry], index: int) -> None:
    """Take out the entry there."""
    entry = heap.pop()
    if index == len(heap):
        return
    # The last one takes its place: down to where both children are later, or up.
    end = len(heap)
    start = index
    while (child := 2 * index + 1) < end:
        if child + 1 < end and heap[child + 1] < heap[child]:
            child += 1
        if not heap[child] < entry:
            break
        heap[index] = heap[child]
        index = child
    if index == start:
        while index and entry < heap[(index - 1) >> 1]:
            heap[index] = heap[(index - 1) >> 1]
            index = (index - 1) >> 1
    heap[index] = entry
