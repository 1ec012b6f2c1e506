"""Heaps that are tidied bit by bit."""

from __future__ import annotations

import random
from heapq import heappop, heappush

from batchyard.transport.heaps import AT_ONCE_MAX, LOOKS, TOP_LOOKS, remove, tidy


def test_whatever_is_taken_out_the_rest_comes_in_order() -> None:
    rng = random.Random(1)
    for _ in range(300):
        heap: list[tuple[int, int]] = []
        for number in range(rng.randrange(1, 60)):
            heappush(heap, (rng.randrange(20), number))
        rest = sorted(heap)
        for _ in range(rng.randrange(len(heap) + 1)):
            index = rng.randrange(len(heap))
            rest.remove(heap[index])
            remove(heap, index)
        assert [heappop(heap) for _ in range(len(heap))] == rest


def test_a_look_is_short_and_what_is_over_does_not_pile_up() -> None:
    """In whatever order they end."""
    for order in ("first", "last", "any"):
        rng = random.Random(2)
        numbers = list(range(2 * AT_ONCE_MAX))
        heap = [(number, number) for number in numbers]
        ends = {"first": numbers[:], "last": numbers[::-1], "any": rng.sample(numbers, len(numbers))}[order]
        over: set[int] = set()
        looked = 0
        cursor = 0

        def is_over(entry: tuple[int, int]) -> bool:
            nonlocal looked
            looked += 1
            return entry[1] in over  # noqa: B023

        for count, number in enumerate(ends[:-1], 1):
            over.add(number)
            before = looked
            cursor = tidy(heap, cursor, is_over)
            assert looked - before <= LOOKS + TOP_LOOKS
            living = len(numbers) - count
            assert len(heap) <= 2 * living + 64, order
        assert {entry[1] for entry in heap} >= {ends[-1]}
