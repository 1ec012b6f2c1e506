"""Who goes first when shared memory has room again: jobs, by priority and age."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class Room:
    """Jobs that wait for room in shared memory, the most urgent first, then the oldest."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap

    def number(self) -> int:
        """A number for a job, for all its waits."""
        return next(self._numbers)

    async def wait(self, priority: int, number: int, timeout_s: float) -> bool:
        """Wait until there may be room and no job is ahead of this one; False if that takes too long."""
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (priority, number, waiter))
        try:  # not by wait_for, which forgets a cancellation that comes with the result (Python 3.11)
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            in_time = not waiter.cancel()
        return in_time

    def wake(self) -> None:
        """Let the first job try again."""
        while self._waiters:
            _, _, waiter = heapq.heappop(self._waiters)
            if not waiter.done():
                waiter.set_result(None)
                return
