"""The mapped arenas of clients, and the check of every handle into them."""

from __future__ import annotations

import numpy as np

from ..transport import segments
from ..transport.errors import InvalidRequest
from ..transport.segments import Segment, SegmentHandle
from ..transport.tensors import check_range


class MappedArena:
    """One client's memory. `address` is its start in this process; slices of `view` copy. `lends`: a large
    frame may be lent."""

    __slots__ = ("address", "lends", "nbytes", "segment", "view")

    def __init__(self, segment: Segment, lends: bool = False) -> None:
        self.segment = segment
        self.lends = lends
        self.nbytes = segment.nbytes
        self.view = memoryview(segment.buffer)
        self.address = int(np.frombuffer(segment.buffer, np.uint8).ctypes.data)


class Memory:
    """Mapped arenas by number. An item that names another one is refused."""

    def __init__(self, lends: bool = False) -> None:
        self._lends = lends
        self._arenas: dict[int, MappedArena] = {}
        self._refused: dict[int, str] = {}
        self._leaving: list[Segment] = []
        self.may_shrink: dict[int, Segment] = {}  # the named ones of these

    def attach(self, number: int, handle: SegmentHandle, broker_pid: int) -> None:
        """Map an arena. If its segment can't be mapped, its requests fail and the worker goes on."""
        try:
            segment = segments.attach(handle, broker_pid)
            self._arenas[number] = MappedArena(segment, self._lends)
        except (OSError, ValueError) as error:
            self._refused[number] = (
                f"{error} (a worker of another user, or in another PID namespace than the broker, maps none: "
                'clients use segment="frames" there)'
            )
            return
        if handle.backend == "named":
            self.may_shrink[number] = segment

    def shrunken(self) -> list[int]:
        """Arenas whose clients have made them smaller: to touch what is gone would end this process."""
        return [number for number, segment in self.may_shrink.items() if not segment.is_whole]

    def refuse(self, number: int, reason: str) -> None:
        """Unmap an arena, as `detach`; its requests fail."""
        self.detach(number)
        self._refused[number] = reason

    def detach(self, number: int) -> None:
        """Unmap an arena; the caller has dropped every binding into it."""
        self._refused.pop(number, None)
        self.may_shrink.pop(number, None)
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
        """The bytes at an address of this process; None: the address is in no arena. They stay mapped as long
        as the view lives."""
        for arena in self._arenas.values():
            offset = address - arena.address
            if 0 <= offset <= arena.nbytes - nbytes:
                return arena.view[offset : offset + nbytes]
        return None
