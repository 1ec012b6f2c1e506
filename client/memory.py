"""The client's shared memory: slots in its arena, the line of those who wait for some, and arrays whose last
view gives the slot back.

One process allocates (this one), so a plain lock serves its threads. A slot comes back through a deque that a
destructor may append to, and is freed by whoever allocates next. No code of ours runs in the destructor, or a
signal's exception there would be lost, and the slot with it; only a bell may ring.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from errno import EMFILE, ENFILE
from math import prod
from typing import Any

import numpy as np

from ..transport import machine, segments
from ..transport.arena import Arena
from ..transport.errors import ArenaExhausted, no_descriptors
from . import idle
from .signature import Array

FIXED_BYTES = 64 << 20
RESERVED_SHARE = 4  # an arena may grow to this part of the memory
MEMCPY_MAX_BYTES = 1 << 16  # below it a slice assignment is quicker than numpy's machinery


def reserved_bytes(backend: str) -> int:
    """The size of an arena that nobody has chosen. Of a memfd only address space is reserved: pages come as
    they are needed, and go when they are idle. Other memory is there in full, or can't be given back."""
    return max(FIXED_BYTES, machine.memory_bytes() // RESERVED_SHARE) if backend == "memfd" else FIXED_BYTES


class _Lease(weakref.ref[Any]):
    """A weak reference to the array that owns a slot."""

    __slots__ = ("offset",)
    offset: int


class Want:
    """Slots that somebody waits for. `offsets` when they have been given. `bell` is rung when they have, and
    when there may be room; it may be rung from a destructor, on any thread."""

    __slots__ = ("bell", "offsets", "sizes")

    def __init__(self, sizes: Sequence[int], bell: Callable[[], None]) -> None:
        self.sizes = sizes
        self.bell = bell
        self.offsets: list[int] | None = None


class SlotMemory:
    """An arena of `nbytes`, mapped. `bytes_copied` counts what was copied in; zero-copy keeps it still.
    Raises ArenaExhausted when the system has no such memory."""

    def __init__(self, nbytes: int, backend: str | None = None) -> None:
        try:
            self.segment = segments.create(nbytes, backend)
        except OSError as error:
            if error.errno in (EMFILE, ENFILE):
                raise no_descriptors(error) from error
            raise ArenaExhausted(
                f"the system gives no shared memory of {nbytes:,} bytes ({error.strerror}): ask for fewer "
                "arena_bytes, or give it more"
            ) from error
        self.bytes_copied = 0
        _note(self)
        self._arena = Arena(self.segment.nbytes, _watching(self), self.segment.release)
        self._idle_looks: dict[int, int] = {}  # slab -> at how many looks in a row it was free
        self._view = memoryview(self.segment.buffer)
        self._address = int(np.frombuffer(self.segment.buffer, np.uint8).ctypes.data)
        self._end = self._address + self.segment.nbytes
        self._lock = threading.Lock()
        self._freed: deque[int] = deque()
        self._leases: dict[int, _Lease] = {}
        self._dead: deque[Any] = deque()  # leases whose arrays are gone
        self._bells: list[Any] = []  # of arrays that are alive while somebody waits
        self._line: deque[Want] = deque()  # in the order in which they came
        self.stuck_ns = 0  # since when the first in line waits and nothing is owed; an engine's to set

    def become_private(self) -> None:
        """In a forked child: the arrays that it has inherited are its own, and the parent keeps the parent's.
        No lock: the thread that held it may not be here."""
        if not self.segment.make_private():
            return
        for offset in list(self._leases):
            nbytes = self._arena.nbytes_of(offset)
            if self.segment.populate(offset, nbytes):
                continue
            pages = np.frombuffer(self.segment.buffer, np.uint8, nbytes, offset)
            for touched in (pages[:: mmap.PAGESIZE], pages[-1:]):
                np.bitwise_or(touched, 0, out=touched)  # a write: now the page is ours

    def alloc(self, nbytes: int) -> int:
        """The offset of a free slot, ahead of those who wait. Raises ArenaExhausted."""
        with self._lock:
            return self._alloc_all((nbytes,))[0]

    def take(self, sizes: Sequence[int]) -> list[int] | None:
        """A slot for each size; None when there is no room, or others came first. Raises ArenaExhausted for
        more than the whole arena."""
        with self._lock:
            if not self._line:
                try:
                    return self._alloc_all(sizes)
                except ArenaExhausted:
                    if sum(sizes) > self.segment.nbytes:
                        raise
        return None

    def trim(self) -> bool:
        """Give back the pages of slabs that have been idle for a while. Whether there may be more."""
        with self._lock:
            self._alloc_all(())
            arena = self._arena
            if self.segment.is_closed or arena.committed_bytes <= idle.KEPT_BYTES:
                self._idle_looks.clear()
                return False
            looks = {slab: self._idle_looks.get(slab, 0) + 1 for slab in arena.idle_slabs()}
            due = [slab for slab, count in looks.items() if count >= idle.IDLE_LOOKS]
            arena.give_back(due)
            self._idle_looks = {slab: count for slab, count in looks.items() if count < idle.IDLE_LOOKS}
        return True

    def _alloc_all(self, sizes: Sequence[int]) -> list[int]:
        """A slot for each size, or none and ArenaExhausted. Under the lock."""
        arena = self._arena
        freed = self._freed
        while freed:
            arena.free(freed.popleft())
        dead = self._dead
        while dead:
            offset = dead.popleft().offset
            del self._leases[offset]
            arena.free(offset)
        return arena.alloc_all(sizes)

    def wait(self, sizes: Sequence[int], bell: Callable[[], None]) -> Want:
        """Stand in line for slots; `serve` gives them."""
        want = Want(sizes, bell)
        with self._lock:
            if not self._line:
                self.stuck_ns = 0
                self._bells = []
                for lease in list(self._leases.values()):
                    self._hang_bell(lease())
            self._line.append(want)
        return want

    def _hang_bell(self, owner: Any) -> None:
        """Ring for the first in line when this array ends."""
        if owner is not None:
            self._bells.append(weakref.ref(owner, lambda _: self._ring()))

    def serve(self) -> str:
        """Give slots to those who wait, in order, as far as there is room. Why the first of them gets none;
        "" when nobody waits any more."""
        bells = []
        why = ""
        with self._lock:
            line = self._line
            while line:
                try:
                    line[0].offsets = self._alloc_all(line[0].sizes)
                except ArenaExhausted as error:
                    why = str(error)
                    break
                bells.append(line.popleft().bell)
                self.stuck_ns = 0
            if not line:
                self._bells = []
        for bell in bells:
            bell()
        return why

    def leave(self, want: Want) -> None:
        """Wait no longer. Slots that were given go back."""
        with self._lock:
            if want in self._line:
                self._line.remove(want)
        offsets, want.offsets = want.offsets, None
        if offsets is not None:
            self.free(*offsets)
        elif self._line:
            self._ring()  # who comes next may want less

    def is_first(self, want: Want) -> bool:
        """Whether it is first in line."""
        try:
            return self._line[0] is want
        except IndexError:
            return False

    @property
    def is_owed(self) -> bool:
        """Whether slots will come back by themselves: those of requests, which no array holds."""
        with self._lock:  # leases that are dead are among the others
            return self._arena.allocated_count > len(self._leases) + len(self._freed)

    def free(self, *offsets: int) -> None:
        """Give slots back. Safe from any thread and from destructors."""
        self._freed.extend(offsets)
        if self._line:
            self._ring()

    def _ring(self) -> None:
        try:
            self._line[0].bell()
        except IndexError:
            pass  # it was served meanwhile

    @property
    def used_bytes(self) -> int:
        with self._lock:
            self._alloc_all(())
            return self._arena.used_bytes

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array over a slot; the slot is freed when the array and every view of it are gone."""
        count = prod(shape)
        if not count:
            self.free(offset)
            return np.empty(shape, dtype)
        # frombuffer pins the mapping; every view made from `owner` has it as its base.
        owner = np.frombuffer(self.segment.buffer, dtype, count, offset)
        lease = _Lease(owner, self._dead.append)
        lease.offset = offset
        self._leases[offset] = lease
        if self._line:
            self._hang_bell(owner)
        return owner.reshape(shape)

    def view(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array to read at an offset. It keeps the mapping alive, but no slot."""
        count = prod(shape)
        if not count:
            return np.empty(shape, dtype)
        return np.frombuffer(self.segment.buffer, dtype, count, offset).reshape(shape)

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
        # Of a type that numpy does not have itself, an array gives no buffer.
        if nbytes <= MEMCPY_MAX_BYTES and array.flags.c_contiguous and array.dtype.isbuiltin == 1:
            if nbytes:
                self._view[offset : offset + nbytes] = array.data.cast("B")
            return
        target = np.frombuffer(self.segment.buffer, array.dtype, array.size, offset)
        np.copyto(target.reshape(array.shape), array)

    def close(self) -> None:
        """Let go: no peer can map it any more. Arrays that are still alive stay readable, and other
        threads may be in the middle of a call: the mapping ends with this object and the last of them."""
        self.segment.close()


def _watching(memory: SlotMemory) -> Callable[[int, int], None]:
    """Its segment's `commit`; once there is much of it, idle.py looks after it. Holds only the segment: a
    mapping ends with the last array, and not when a garbage collection finds a cycle."""
    segment, found = memory.segment, weakref.ref(memory)

    def commit(offset: int, nbytes: int) -> None:
        segment.commit(offset, nbytes)
        holder = found()
        if holder is not None and offset + nbytes > idle.KEPT_BYTES:
            idle.watch(holder)

    return commit


_memories: deque[weakref.ref[SlotMemory]] = deque()  # no WeakSet: its destructors run Python


def _note(memory: SlotMemory) -> None:
    while _memories and _memories[0]() is None:
        try:
            _memories.popleft()
        except IndexError:
            break  # another thread was faster
    _memories.append(weakref.ref(memory))


def _after_fork() -> None:
    for found in list(_memories):
        memory = found()
        if memory is not None:
            memory.become_private()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
