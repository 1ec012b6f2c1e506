"""Who may use a connection next: at most so many at once, and of those who wait the most urgent first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count


class Turns:
    """Of one event loop."""

    def __init__(self, turns_max: int) -> None:
        self._free = turns_max
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    @asynccontextmanager
    async def turn(self, priority: int) -> AsyncIterator[None]:
        """One turn; 0 goes first."""
        if self._free:
            self._free -= 1
        else:
            bell = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (priority, next(self._numbers), bell))
            try:
                await bell
            except asyncio.CancelledError:
                if not bell.cancelled():  # it was given the turn in the same moment
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            bell = heappop(self._waiting)[2]
            if not bell.done():
                bell.set_result(None)
                return
        self._free += 1
