"""Shared memory without segments: the real allocators and checks over plain bytearrays.

Every slot that a client frees is held against what it was given and against what workers may still
touch. Buffers live as long as the run, so that a bug writes into the wrong bytes and is found,
instead of ending the process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from batchyard.broker.inline import InlineTensors
from batchyard.client.memory import SlotMemory
from batchyard.gpuworker.memory import MappedArena, Memory
from batchyard.transport.arena import Arena
from batchyard.transport.segments import SegmentHandle

if TYPE_CHECKING:
    from .world import World


class SimSegment:
    """What code of ours uses of a Segment."""

    def __init__(self, name: str, nbytes: int, buffer: bytearray | None = None) -> None:
        self.nbytes = nbytes
        self.buffer = bytearray(nbytes) if buffer is None else buffer
        self.handle = SegmentHandle("memfd", name, nbytes)
        self.closed = False

    def commit(self, offset: int, nbytes: int) -> None:
        assert 0 <= offset <= offset + nbytes <= self.nbytes

    def close(self) -> bool:
        self.closed = True
        return True


class _Dead(deque[Any]):
    """Leases whose arrays are gone; `is_over` is told of each, in the destructor: what it raises is swallowed."""

    def __init__(self, is_over: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = is_over

    def append(self, lease: Any) -> None:
        self._tell(lease.offset)
        super().append(lease)


class ClientMemory(SlotMemory):
    """A client's SlotMemory whose every slot is watched."""

    def __init__(self, world: World, nbytes: int) -> None:
        self.world = world
        self.segment = world.new_segment(nbytes)  # type: ignore[assignment]
        self.bytes_copied = 0
        self._arena = Arena(nbytes, self.segment.commit)
        self._view = memoryview(self.segment.buffer)
        self._address = int(np.frombuffer(self.segment.buffer, np.uint8).ctypes.data)
        self._end = self._address + nbytes
        self._lock = threading.Lock()
        self._freed = deque()
        self._leases = {}
        self._dead = _Dead(self._is_over)
        self._bells = []
        self._line = deque()
        self.stuck_ns = 0
        self._live: dict[int, int] = {}

    def _alloc_all(self, sizes: Sequence[int]) -> list[int]:
        offsets = super()._alloc_all(sizes)
        self._live.update(zip(offsets, sizes, strict=True))
        return offsets

    def free(self, *offsets: int) -> None:
        for offset in offsets:
            self._is_over(offset)
        super().free(*offsets)

    def _is_over(self, offset: int) -> None:
        nbytes = self._live.pop(offset, None)
        if nbytes is None:
            self.world.violated(f"slot {offset} of {self.segment.handle.name} was freed twice")
        else:
            self.world.slot_freed(self.segment.handle.name, offset, offset + nbytes)


class WorkerMemory(Memory):
    """A worker's Memory that maps the world's segments."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def attach(self, number: int, handle: SegmentHandle, broker_pid: int) -> None:
        if number in self._arenas:
            self._world.violated(f"arena {number} was attached twice")
        whole = self._world.segments[handle.name]
        mapped = SimSegment(handle.name, whole.nbytes, whole.buffer)
        self._arenas[number] = MappedArena(mapped)  # type: ignore[arg-type]

    @property
    def attached(self) -> list[int]:
        return sorted(self._arenas)


class SimArenas:
    """The broker's Arenas, by segment name."""

    def __init__(self, world: World) -> None:
        self.open_names: dict[int, str] = {}
        self._world = world
        self._sequence = 0

    def open(
        self, handle: SegmentHandle, pid: int, uid: int | None, descriptor: int | None = None
    ) -> tuple[int, bool]:
        for number, name in self.open_names.items():
            if name == handle.name:
                return number, False
        return self._add(handle.name), True

    def add_own(self, segment: SimSegment) -> int:
        return self._add(segment.handle.name)

    def _add(self, name: str) -> int:
        self._sequence += 1
        self.open_names[self._sequence] = name
        return self._sequence

    def handle(self, number: int) -> SegmentHandle:
        return self._world.segments[self.open_names[number]].handle

    def read(self, number: int, offset: int, nbytes: int) -> Any:
        segment = self._world.segments[self.open_names[number]]
        if nbytes < 0 or offset + nbytes > segment.nbytes:
            return None
        return bytes(segment.buffer[offset : offset + nbytes])

    def close(self, number: int) -> None:
        if self.open_names.pop(number, None) is None:
            self._world.violated(f"arena {number} was closed twice")


class SimInline(InlineTensors):
    """Tensors that come as frames, laid into a small arena whose every slot is watched."""

    def __init__(self, world: World, register: Any, nbytes: int) -> None:
        super().__init__(register)
        self._world = world
        self._bytes = nbytes

    @property
    def arena(self) -> int:
        if self._segment is None:
            segment = self._world.new_segment(self._bytes)
            self._segment = segment  # type: ignore[assignment]
            self._arena = Arena(segment.nbytes, segment.commit)
            self._number = self._register(segment)
        return self._number

    def _free(self, offsets: list[int]) -> None:
        assert self._arena is not None
        assert self._segment is not None
        for offset in offsets:
            stride = self._arena._live.get(offset, 0)
            self._world.slot_freed(self._segment.handle.name, offset, offset + stride)
        super()._free(offsets)
