"""The client's shared memory: slots in its arena, and arrays whose last view gives the slot back.

One process allocates (this one), so a plain lock serves its threads. A slot comes back through a
queue that may be put into from a destructor, and is freed by whoever allocates next.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from math import prod
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..transport import segments
from ..transport.arena import Arena
from ..transport.errors import ArenaExhausted
from .signature import Array

ROOM_LOOK_S = 0.05  # how often a caller that waits for room looks at the arena itself
MEMCPY_MAX_BYTES = 1 << 16  # below it a slice assignment is quicker than numpy's machinery


class _Lease(weakref.ref[Any]):
    """A weak reference to the array that owns a slot."""

    __slots__ = ("offset",)
    offset: int


class SlotMemory:
    """An arena of `nbytes`, mapped. `bytes_copied` counts what was copied in; zero-copy keeps it still.
    Raises ArenaExhausted when the system has no such memory."""

    def __init__(self, nbytes: int, backend: str | None = None) -> None:
        try:
            self.segment = segments.create(nbytes, backend)
        except OSError as error:
            raise ArenaExhausted(
                f"the system gives no shared memory of {nbytes:,} bytes ({error.strerror}): ask for fewer "
                "arena_bytes, or give it more"
            ) from error
        self.bytes_copied = 0
        self._arena = Arena(self.segment.nbytes, self.segment.commit)
        self._view = memoryview(self.segment.buffer)
        self._address = int(np.frombuffer(self.segment.buffer, np.uint8).ctypes.data)
        self._end = self._address + self.segment.nbytes
        self._lock = threading.Lock()
        self._freed: SimpleQueue[int] = SimpleQueue()
        self._leases: dict[int, _Lease] = {}

    def alloc(self, nbytes: int) -> int:
        """Offset of a free slot. Raises ArenaExhausted."""
        return self._alloc_all((nbytes,))[0]

    def _alloc_all(self, sizes: Sequence[int]) -> list[int]:
        """A slot for each size, or none and ArenaExhausted."""
        arena = self._arena
        offsets: list[int] = []
        with self._lock:
            self._take_freed()
            try:
                for nbytes in sizes:
                    offsets.append(arena.alloc(nbytes))  # noqa: PERF401  # what is there goes back
            except ArenaExhausted:
                for offset in offsets:
                    arena.free(offset)
                raise
        return offsets

    def _take_freed(self) -> None:
        freed = self._freed
        while not freed.empty():
            try:
                self._arena.free(freed.get_nowait())
            except Empty:
                return  # a waiting thread, which holds no lock, was faster

    def alloc_within(self, sizes: Sequence[int], timeout_s: float) -> list[int]:
        """A slot for each size, waiting up to `timeout_s` for slots to come back; all or none."""
        give_up_s = time.monotonic() + timeout_s if timeout_s > 0 else 0.0
        while True:
            try:
                return self._alloc_all(sizes)
            except ArenaExhausted:
                left_s = give_up_s - time.monotonic() if give_up_s else 0.0
                if left_s <= 0:
                    raise
            try:
                # In slices: whoever else allocates takes slots out of the queue and into the arena.
                offset = self._freed.get(timeout=min(left_s, ROOM_LOOK_S))
            except Empty:
                continue
            with self._lock:
                self._arena.free(offset)

    def free(self, offset: int) -> None:
        """Give a slot back. Safe from any thread and from destructors."""
        self._freed.put(offset)

    @property
    def used_bytes(self) -> int:
        with self._lock:
            self._take_freed()
            return self._arena.used_bytes

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array over a slot; the slot is freed when the array and every view of it are gone."""
        count = prod(shape)
        if not count:
            self.free(offset)
            return np.empty(shape, dtype)
        # frombuffer pins the mapping; every view made from `owner` has it as its base.
        owner = np.frombuffer(self.segment.buffer, dtype, count, offset)
        lease = _Lease(owner, self._expired)
        lease.offset = offset
        self._leases[offset] = lease
        return owner.reshape(shape)

    def view(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """What lies at an offset, to be read; keeps the mapping, but no slot."""
        count = prod(shape)
        if not count:
            return np.empty(shape, dtype)
        return np.frombuffer(self.segment.buffer, dtype, count, offset).reshape(shape)

    def _expired(self, lease: Any) -> None:
        self._leases.pop(lease.offset, None)
        self._freed.put(lease.offset)

    def offset_of(self, array: Array) -> int | None:
        """Where the array lies in the arena; None when it lies elsewhere or is not C-contiguous."""
        if array.base is None:
            return None
        address = array.__array_interface__["data"][0]
        if not self._address <= address < self._end or not array.flags.c_contiguous:
            return None
        return int(address - self._address)

    def write(self, offset: int, array: Array) -> None:
        """Copy an array into a slot, in C order."""
        nbytes = array.nbytes
        self.bytes_copied += nbytes
        if nbytes <= MEMCPY_MAX_BYTES and array.flags.c_contiguous and array.dtype.kind in "fiub":
            if nbytes:
                self._view[offset : offset + nbytes] = array.data.cast("B")
            return
        target = np.frombuffer(self.segment.buffer, array.dtype, array.size, offset)
        np.copyto(target.reshape(array.shape), array)

    def close(self) -> None:
        """Let go: no peer can map it any more. Arrays that are still alive stay readable, and other
        threads may be in the middle of a call: the mapping ends with this object and the last of them."""
        self.segment.close()
