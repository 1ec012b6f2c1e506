"""Requests of one engine that wait for room in their session's memory. Pure.

The line itself is the memory's (memory.py), because all engines of a client stand in it. Here is what one
engine does about it: when to look, and when to give up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .memory import SlotMemory
from .request import Request

LOOK_NS = 10_000_000  # how often the first in line looks, though no bell has rung
TURN_LOOK_NS = 100_000_000  # and those behind it
# How long room is waited for when no request is under way that will give any: results are dropped, too.
STUCK_NS = 100_000_000


class Room:
    """`look_ns`: when to call `serve`. `why`: why the first in line has none. `bell`: see memory.py."""

    def __init__(self, bell: Callable[[], None]) -> None:
        self.look_ns = 0
        self.why = ""
        self._bell = bell
        self.wants: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self.wants)

    def waiting(self) -> list[Request]:
        return [request for request in self.wants if request.want is not None]

    def wait(self, request: Request, memory: SlotMemory) -> None:
        """Let a request that could not be placed stand in line."""
        assert request.layout is not None
        request.want = memory.wait(request.layout[2], self._bell)
        self.wants.append(request)
        self.look_ns = 0

    def serve(self, memory: SlotMemory, now_ns: int) -> list[tuple[Request, list[int]]]:
        """Who has been given room, and where. `is_stuck` is asked next."""
        self.why = memory.serve()
        granted = []
        wants = self.wants
        while wants:
            request = wants[0]
            want = request.want
            if want is not None:
                if want.offsets is None:
                    break
                granted.append((request, want.offsets))
                request.want = None
            wants.popleft()
        self.look_ns = now_ns + LOOK_NS
        return granted

    def stuck(self, memory: SlotMemory, now_ns: int) -> Request | None:
        """Whom nobody will ever give room to: the first in line, when nothing has been owed for a while."""
        if not self.wants:
            return None
        request = self.wants[0]
        assert request.want is not None
        if not memory.is_first(request.want):
            self.look_ns = now_ns + TURN_LOOK_NS  # its bell will ring
        elif memory.is_owed:
            memory.stuck_ns = 0
        elif not memory.stuck_ns:
            memory.stuck_ns = now_ns
        elif now_ns - memory.stuck_ns >= STUCK_NS:
            return request
        return None

    @staticmethod
    def leave(request: Request, memory: SlotMemory | None) -> None:
        """A request waits no longer."""
        want, request.want = request.want, None
        if want is not None and memory is not None:
            memory.leave(want)

    def clear(self) -> None:
        self.wants.clear()
