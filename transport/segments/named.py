"""named segments: shared memory with a name, for Windows, macOS and containers that share /dev/shm.

Owns the names, who may attach, and who removes what a dead yard left. On POSIX we open the memory
ourselves instead of through `SharedMemory`: before Python 3.13 that registers every process which
merely attaches with its resource tracker, and the tracker unlinks the live segment when that
process ends (gh-82300). Here the creator alone is registered, as a net under a killed process.

    made     shm_open(O_EXCL, 0600), flock(LOCK_SH) held for life (Linux)
    closed   by the creator: unlinked; by others: unmapped only
    killed   the creator's resource tracker unlinks; where that was killed too, `sweep()` does:
             an exclusive lock on the file succeeds only when no creator is alive

Not sealed: a peer of the same user can shrink it under a reader (SIGBUS). Prefer memfd on Linux.
"""

from __future__ import annotations

import base64
import mmap
import os
import re
import secrets
import stat
import sys

from ..errors import SegmentRefused
from . import SEGMENT_BYTES_MAX, Segment, SegmentHandle

_PREFIX = "batchyard-"
_NAME_PATTERN = re.compile(r"batchyard-[0-9a-f]{32}|by-[a-z2-7]{26}")
_SHM_FOLDER = "/dev/shm"  # where glibc and musl keep shm_open's files: what sweep() reads


def _new_name() -> str:
    """128 random bits. macOS has about 30 usable characters in a name, so base32 there: 3 + 26."""
    if sys.platform == "darwin":
        return "by-" + base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()
    return _PREFIX + secrets.token_hex(16)


def _checked_name(handle: SegmentHandle) -> str:
    if not _NAME_PATTERN.fullmatch(handle.name):
        raise SegmentRefused("the name of a shared memory is 'batchyard-' and 32 hexadecimal digits")
    if not 0 < handle.nbytes <= SEGMENT_BYTES_MAX:
        raise SegmentRefused(f"a segment cannot have {handle.nbytes} bytes")
    return handle.name


if sys.platform == "win32":
    # A section dies with its last handle, so there is nothing to unlink, lock or sweep, and its
    # pages are promised by the page file at creation, so there is nothing to commit.
    from multiprocessing.shared_memory import SharedMemory

    class NamedSegment(Segment):
        """A mapped section of the page file."""

        def _release(self) -> None:
            pass

    def create(nbytes: int) -> NamedSegment:
        """A new section under a random name, mapped."""
        name = _new_name()
        return NamedSegment(
            mmap.mmap(-1, nbytes, tagname=name), nbytes, SegmentHandle("named", name, nbytes), None
        )

    def attach(handle: SegmentHandle, uid: int | None = None) -> NamedSegment:
        """Map the section `handle` names, which must exist; the session's rights stand for `uid`."""
        name = _checked_name(handle)
        try:
            probe = SharedMemory(name)  # mmap alone would create a section that is not there
        except OSError as error:
            raise SegmentRefused("there is no such shared memory") from error
        try:
            if probe.size < handle.nbytes:  # sizes are rounded up to pages here
                raise SegmentRefused(f"the shared memory has fewer than {handle.nbytes:,} bytes")
            buffer = mmap.mmap(-1, handle.nbytes, tagname=name)
        except OSError as error:
            raise SegmentRefused(f"the shared memory cannot be mapped: {error}") from error
        finally:
            probe.close()
        return NamedSegment(buffer, handle.nbytes, handle, None)

    def sweep(dry_run: bool = False) -> list[str]:
        """Nothing outlives its processes on Windows."""
        return []

else:
    import _posixshmem  # type: ignore[import-not-found,unused-ignore]
    import fcntl
    from multiprocessing import resource_tracker

    class NamedSegment(Segment):
        """A mapped POSIX shared memory; the creator's `close()` removes the name."""

        peer_fd: int | None = None  # of one that we have attached

        @property
        def is_whole(self) -> bool:
            return self.peer_fd is None or os.fstat(self.peer_fd).st_size >= self.nbytes

        def unwatch(self) -> None:
            if self.peer_fd is not None:
                os.close(self.peer_fd)
                self.peer_fd = None

        def _release(self) -> None:
            self.unwatch()
            if self._owner_fd is None:
                return
            # Unlink before the lock goes with the descriptor: sweep() must never see it unlocked.
            _unlink(self.handle.name)
            resource_tracker.unregister(f"/{self.handle.name}", "shared_memory")
            os.close(self._owner_fd)
            self._owner_fd = None

    def create(nbytes: int) -> NamedSegment:
        """A new shared memory of `nbytes` (whole pages) under a random name, mode 0600, mapped."""
        name, fd = _make()
        try:
            os.ftruncate(fd, nbytes)
            buffer = mmap.mmap(fd, nbytes)
            resource_tracker.register(f"/{name}", "shared_memory")  # starts the tracker: may fail
        except BaseException:
            _unlink(name)
            os.close(fd)
            raise
        return NamedSegment(buffer, nbytes, SegmentHandle("named", name, nbytes), fd)

    def _make() -> tuple[str, int]:
        while True:
            name = _new_name()
            fd = _posixshmem.shm_open(f"/{name}", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
            if sys.platform != "linux":
                return name, fd
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)  # a sweep came between the file and its lock, and took it for an orphan

    def attach(handle: SegmentHandle, uid: int | None = None) -> NamedSegment:
        """Map the shared memory `handle` names. It must belong to `uid` (None: to our own user)."""
        name = _checked_name(handle)
        try:
            fd = _posixshmem.shm_open(f"/{name}", os.O_RDWR, mode=0o600)
        except OSError as error:
            raise SegmentRefused("there is no such shared memory, or it is not ours") from error
        try:
            status = os.fstat(fd)
            if status.st_uid != (os.getuid() if uid is None else uid):
                raise SegmentRefused("the shared memory belongs to another user")
            # Elsewhere than on Linux the size comes back rounded up to a page.
            is_exact = sys.platform == "linux"
            if status.st_size < handle.nbytes or (is_exact and status.st_size != handle.nbytes):
                raise SegmentRefused(f"the shared memory has not the {handle.nbytes:,} bytes announced")
            buffer = mmap.mmap(fd, handle.nbytes)
        except OSError as error:
            os.close(fd)
            raise SegmentRefused(f"the shared memory cannot be mapped: {error}") from error
        except BaseException:
            os.close(fd)
            raise
        segment = NamedSegment(buffer, handle.nbytes, handle, None)
        segment.peer_fd = fd
        return segment

    def _unlink(name: str) -> None:
        try:
            _posixshmem.shm_unlink(f"/{name}")
        except FileNotFoundError:
            pass  # a tracker or a sweep was faster

    def sweep(dry_run: bool = False) -> list[str]:
        """Remove this user's segments whose creators are dead (`dry_run`: only find them); their
        names (Linux only)."""
        if sys.platform != "linux":
            return []
        removed = []
        try:
            names = [name for name in os.listdir(_SHM_FOLDER) if _NAME_PATTERN.fullmatch(name)]
        except OSError:
            return []
        for name in names:
            try:
                # NONBLOCK: anybody may put a FIFO there, and opening it would wait for a writer.
                fd = os.open(
                    f"{_SHM_FOLDER}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                continue
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or not status.st_nlink:
                    continue
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not dry_run:
                    _unlink(name)
                removed.append(name)
            except BlockingIOError:
                continue  # its creator lives
            finally:
                os.close(fd)
        return removed
