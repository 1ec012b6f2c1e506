"""The arenas that the broker told this worker of, mapped; and the check of every handle into them."""

from __future__ import annotations

import numpy as np

from ..transport import segments
from ..transport.errors import InvalidRequest
from ..transport.segments import Segment, SegmentHandle
from ..transport.tensors import check_range


class MappedArena:
    """One client's memory. `address` is where it begins in this process; `view` copies by slices."""

    __slots__ = ("address", "nbytes", "segment", "view")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.nbytes = segment.nbytes
        self.view = memoryview(segment.buffer)
        self.address = int(np.frombuffer(segment.buffer, np.uint8).ctypes.data)


class Memory:
    """Mapped arenas by number. A batch that names another one is refused by that item."""

    def __init__(self) -> None:
        self._arenas: dict[int, MappedArena] = {}
        self._refused: dict[int, str] = {}
        self._leaving: list[Segment] = []

    def attach(self, number: int, handle: SegmentHandle, broker_pid: int) -> None:
        """Map an arena. A segment that can't be mapped makes its requests fail, not the worker."""
        try:
            self._arenas[number] = MappedArena(segments.attach(handle, broker_pid))
        except (OSError, ValueError) as error:
            self._refused[number] = str(error)

    def detach(self, number: int) -> None:
        """Unmap an arena; the caller has dropped every binding into it."""
        self._refused.pop(number, None)
        arena = self._arenas.pop(number, None)
        if arena is not None:
            arena.view.release()
            self._leaving.append(arena.segment)
        self._leaving = [segment for segment in self._leaving if not segment.close()]

    def detach_all(self) -> None:
        for number in list(self._arenas):
            self.detach(number)
        self._refused.clear()

    def range(self, number: int, offset: int, nbytes: int) -> MappedArena:
        """The arena in which [offset, offset + nbytes) lies; raises InvalidRequest otherwise."""
        arena = self._arenas.get(number)
        if arena is None:
            reason = self._refused.get(number, "it was never announced")
            raise InvalidRequest(f"the request's arena is not mapped here: {reason}")
        check_range(offset, nbytes, arena.nbytes)
        return arena

    def view(self, address: int, nbytes: int) -> memoryview | None:
        """The bytes of a checked range by where they begin in this process; None: in no arena. While the
        view lives, they stay mapped."""
        for arena in self._arenas.values():
            offset = address - arena.address
            if 0 <= offset <= arena.nbytes - nbytes:
                return arena.view[offset : offset + nbytes]
        return None
