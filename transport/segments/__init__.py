"""segments/: memory that two processes see. The interface, and the choice of a backend.

A segment is plain payload: no lock, flag or pointer lives in it, and which process may touch which
bytes moves in messages alone. Two backends beside each other, held by one conformance suite:

    memfd    Linux. Nameless and sealed: cannot shrink under a reader, dies with its last process.
    named    elsewhere, and where processes share only /dev/shm. A random name, mode 0600.

Views are made with `numpy.frombuffer(segment.buffer, ...)`: it pins the mapping, so that `close()`
sees it. `np.ndarray(buffer=...)` does not, and reading such an array after close() is a SIGSEGV.
"""

from __future__ import annotations

import mmap
import os
import sys
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import msgspec

from ..errors import InvalidRequest, SegmentRefused, shown

SEGMENT_BYTES_MAX = 1 << 46  # half of a 47-bit address space: larger is a typing error, not a wish

# Linux 5.14; not in the mmap module. Faults the pages in for writing, so the hot path never does.
_MADV_POPULATE_WRITE = 23
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # the same address; memory only for pages that are written
_MADV_REMOVE = 9  # a hole in the file: on Linux, in memfd and in /dev/shm


class SegmentHandle(msgspec.Struct, array_like=True, frozen=True):
    """How a peer finds a segment: `name` is the descriptor in its owner's process and the inode
    (memfd: "7:1234"), or the shared memory's name (named). A claim: `attach` checks what it finds."""

    backend: str
    name: str
    nbytes: int


class Segment(ABC):
    """A mapped piece of shared memory.

    `buffer` is the writable mapping, `nbytes` its size (whole pages). The creating process owns
    the segment: it alone may `commit`, and its `close()` ends the segment for new peers.
    """

    def __init__(self, buffer: mmap.mmap, nbytes: int, handle: SegmentHandle, owner_fd: int | None) -> None:
        self.buffer = buffer
        self.nbytes = nbytes
        self.handle = handle
        self._owner_fd = owner_fd  # None where this process attached, and on Windows
        self._released = False

    @property
    def descriptor(self) -> int | None:
        """Of a memfd that this process made: it can be passed to another one. It stays the segment's."""
        return self._owner_fd if self.handle.backend == "memfd" else None

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called: no other process can map it any more."""
        return self._released

    @property
    def is_whole(self) -> bool:
        """Whether all of it can be read still: a named one may have been shrunk by its owner."""
        return True

    def unwatch(self) -> None:  # noqa: B027  # most have nothing to give back
        """Nobody will ask `is_whole`."""

    def commit(self, offset: int, nbytes: int) -> None:
        """Make the pages under [offset, offset + nbytes) exist; OSError when there is no memory.

        ftruncate promises more than there is, and the first write past it would be a SIGBUS.
        Only the owner commits. Where the system has no such call, sizes are honest at creation.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"[{offset}, {offset} + {nbytes}) is outside a segment of {self.nbytes} bytes")
        if self._owner_fd is None or nbytes == 0 or not hasattr(os, "posix_fallocate"):
            return
        os.posix_fallocate(self._owner_fd, offset, nbytes)
        self.populate(offset, nbytes)  # on an older kernel the first touch maps them

    def populate(self, offset: int, nbytes: int) -> bool:
        """Map the pages under [offset, offset + nbytes) for writing. False if the system can't."""
        page_start = offset & -mmap.PAGESIZE
        try:
            self.buffer.madvise(_MADV_POPULATE_WRITE, page_start, offset + nbytes - page_start)
        except OSError:
            return False
        return True

    def release(self, offset: int, nbytes: int) -> bool:
        """Let the whole pages within [offset, offset + nbytes) go; they are zeros until they are committed
        again. False where the system can't: then they stay. Only the owner releases."""
        start = (offset + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        stop = (offset + nbytes) & -mmap.PAGESIZE
        if self._owner_fd is None or stop <= start or sys.platform != "linux":
            return False
        try:
            self.buffer.madvise(_MADV_REMOVE, start, stop - start)
        except (OSError, ValueError):
            return False
        return True

    def make_private(self) -> bool:
        """In a forked child: a page that it writes to is its own from then on. False if the system can't."""
        if self._owner_fd is None or self._released or sys.platform != "linux":
            return False
        import ctypes

        remap = ctypes.CDLL(None, use_errno=True).mmap
        remap.restype = ctypes.c_void_p
        remap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        made = remap(address, self.nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._owner_fd, 0)
        return bool(made == address)

    def close(self) -> bool:
        """Release the descriptor or name, and unmap. False while a view is alive: the mapping then
        stays, and ends with the last view or with another `close()`. Idempotent."""
        if not self._released:
            self._released = True
            self._release()
        try:
            self.buffer.close()
        except BufferError:
            return False
        return True

    @abstractmethod
    def _release(self) -> None:
        """Give back everything but the mapping. Called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_backend() -> str:
    """memfd on Linux, named elsewhere."""
    return "memfd" if sys.platform == "linux" else "named"


def create(nbytes: int, backend: str | None = None) -> Segment:
    """A new, zeroed segment of at least `nbytes` bytes (rounded up to whole pages), owned by us.

    No page exists until `commit`. Raises InvalidRequest for a size or backend that cannot be, and
    OSError when the system refuses.
    """
    if not 0 < nbytes <= SEGMENT_BYTES_MAX:
        raise InvalidRequest(f"a segment has 1 to {SEGMENT_BYTES_MAX:,} bytes, not {nbytes:,}")
    nbytes = (nbytes + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    chosen = backend or default_backend()
    if chosen == "memfd" and sys.platform == "linux":
        from . import memfd

        return memfd.create(nbytes)
    if chosen == "named":
        from . import named

        return named.create(nbytes)
    allowed = ("memfd", "named", "frames") if sys.platform == "linux" else ("named", "frames")
    text = f"no segment backend {shown(chosen)} on {sys.platform}"
    raise InvalidRequest(f"{text}: segment is one of {', '.join(allowed)}")


def attach(handle: SegmentHandle, owner_pid: int, owner_uid: int | None = None) -> Segment:
    """Map the segment that the process `owner_pid` offers with `handle`, after checking it.

    `owner_uid` is the user that must own it (None: not checked for memfd, our own for named).
    Raises SegmentRefused; the text names nothing that belongs to another process.
    """
    if handle.backend == "memfd" and sys.platform == "linux":
        from . import memfd

        return memfd.attach_from(owner_pid, handle, owner_uid)
    if handle.backend == "named":
        from . import named

        return named.attach(handle, owner_uid)
    raise SegmentRefused(f"this process cannot attach segments of the backend {handle.backend[:16]!r}")
