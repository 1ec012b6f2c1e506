"""memfd segments (Linux): nameless, sealed, gone with the last process that holds them.

Owns how such a segment is made, checked and mapped. A descriptor number that a peer names is only
a claim: it is pinned first, then judged, then opened; nothing about it is trusted, and no refusal
says what was found instead (an error text once leaked a private region's name: CVE-2025-23319).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import stat
from io import FileIO

from ..errors import SegmentRefused
from . import SEGMENT_BYTES_MAX, Segment, SegmentHandle

_NAME = "batchyard"
# GROW too: a segment's size is part of its contract. SEAL: nobody can add F_SEAL_WRITE later,
# after which a worker could not map it.
_SEALS_REQUIRED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; not in the fcntl module
_SEALS_REFUSED = fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE


class MemfdSegment(Segment):
    """A mapped memfd. The owner's descriptor stays open until `close()`: peers reach it by number."""

    def __init__(
        self, buffer: mmap.mmap, nbytes: int, handle: SegmentHandle, owner: FileIO | None = None
    ) -> None:
        super().__init__(buffer, nbytes, handle, owner.fileno() if owner is not None else None)
        self._owner = owner

    def _release(self) -> None:
        self._owner_fd = None
        if self._owner is not None:
            self._owner.close()


def create(nbytes: int) -> MemfdSegment:
    """A sealed memfd of `nbytes` (whole pages), mapped."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # One call, from the system's answer to an object that closes it: between two instructions a signal's
    # exception would lose the number.
    owner = next(map(FileIO, map(os.memfd_create, (_NAME,), (flags,)), ("r+",)))
    fd = owner.fileno()
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_REQUIRED)
        buffer = mmap.mmap(fd, nbytes)
    except BaseException:
        owner.close()
        raise
    return MemfdSegment(buffer, nbytes, handle_of(fd, nbytes), owner)


def handle_of(fd: int, nbytes: int) -> SegmentHandle:
    """How a peer finds the memfd that we hold as `fd`: the descriptor's number, and the inode, because
    a number that is closed soon means another file: a late reader must not take that one for ours."""
    return SegmentHandle("memfd", f"{fd}:{os.fstat(fd).st_ino}", nbytes)


def adopt(pid: int, fd: int, nbytes: int, uid: int | None = None, inode: int | None = None) -> int:
    """Open the memfd that process `pid` holds as descriptor `fd`; the new descriptor is the caller's.

    The broker calls this with the pid and uid that the kernel gave for the connection. Raises
    SegmentRefused unless it is a sealed batchyard memfd of exactly `nbytes`, made by `uid`, and with
    that inode.
    """
    if pid <= 0 or fd < 0:
        raise SegmentRefused(f"process {pid}, descriptor {fd}: not a descriptor of a process")
    return _open_checked(f"/proc/{pid}/fd/{fd}", nbytes, uid, inode)


def attach(path_or_fd: str | int, nbytes: int) -> MemfdSegment:
    """Map a memfd of exactly `nbytes` by its path (`/proc/<pid>/fd/<n>`) or by our own descriptor.

    The descriptor stays the caller's. Raises SegmentRefused, as `adopt` does.
    """
    path = f"/proc/self/fd/{path_or_fd}" if isinstance(path_or_fd, int) else path_or_fd
    return _map(_open_checked(path, nbytes, None, None), nbytes)


def attach_from(pid: int, handle: SegmentHandle, uid: int | None = None) -> MemfdSegment:
    """Map the segment that process `pid` offers: `adopt`, then map."""
    return _map(adopt_from(pid, handle, uid), handle.nbytes)


def adopt_from(pid: int, handle: SegmentHandle, uid: int | None = None) -> int:
    """`adopt` the segment that process `pid` offers with `handle`."""
    fd, inode = _place_of(handle)
    return adopt(pid, fd, handle.nbytes, uid, inode)


def judge(fd: int, handle: SegmentHandle) -> int:
    """`fd`, which a peer has passed to us, when it is the memfd of `handle`; else it is closed, and
    SegmentRefused is raised. Whoever could pass it may use it, so nobody asks whose it is."""
    try:
        _, inode = _place_of(handle)
        if not 0 < handle.nbytes <= SEGMENT_BYTES_MAX:
            raise SegmentRefused(f"a segment cannot have {handle.nbytes} bytes")
        link = os.readlink(f"/proc/self/fd/{fd}")
        if not (stat.S_ISREG(os.fstat(fd).st_mode) and link.startswith(f"/memfd:{_NAME}")):
            raise SegmentRefused("the descriptor that came along is not a batchyard memfd")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise SegmentRefused("the memfd that came along is not open for writing")
        _judge(fd, handle.nbytes, None, inode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _place_of(handle: SegmentHandle) -> tuple[int, int]:
    """(descriptor, inode) of a memfd handle; SegmentRefused when it names none."""
    place = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,20})", handle.name)
    if place is None:
        raise SegmentRefused("a memfd handle's name is the numbers of a descriptor and an inode, as 7:1234")
    return int(place[1]), int(place[2])


def _map(fd: int, nbytes: int) -> MemfdSegment:
    """Map and close `fd`: the mapping does not need it."""
    try:
        buffer = mmap.mmap(fd, nbytes)
    except (OSError, ValueError) as error:
        raise SegmentRefused(f"the memory of {nbytes:,} bytes cannot be mapped: {error}") from error
    finally:
        os.close(fd)
    return MemfdSegment(buffer, nbytes, SegmentHandle("memfd", "", nbytes))


def _open_checked(path: str, nbytes: int, uid: int | None, inode: int | None) -> int:
    """Pin the file at `path`, judge the pinned file, and only then open it for use."""
    if not 0 < nbytes <= SEGMENT_BYTES_MAX:
        raise SegmentRefused(f"a segment cannot have {nbytes} bytes")
    try:
        # O_PATH opens nothing: no side effect on a device or a pipe, and from here on the peer
        # cannot exchange what we look at.
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        _raise_if_ours(error)
        # The reason must not tell apart what the peer may not know (absent, not ours).
        raise SegmentRefused("the offered descriptor cannot be opened: it is closed, or not ours") from error
    try:
        reopen = f"/proc/self/fd/{pinned}"
        if not (stat.S_ISREG(os.fstat(pinned).st_mode) and os.readlink(reopen).startswith(f"/memfd:{_NAME}")):
            raise SegmentRefused("the offered descriptor is not a batchyard memfd")
        try:
            fd = os.open(reopen, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            _raise_if_ours(error)
            raise SegmentRefused("the offered memfd cannot be opened for writing") from error
    finally:
        os.close(pinned)
    try:
        _judge(fd, nbytes, uid, inode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _raise_if_ours(error: OSError) -> None:
    """That this process, or the system, has no room for another descriptor is not the peer's fault."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


def _judge(fd: int, nbytes: int, uid: int | None, inode: int | None) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise SegmentRefused("the offered descriptor is not a memfd") from error
    if seals & _SEALS_REQUIRED != _SEALS_REQUIRED:
        raise SegmentRefused(
            "the offered memfd lacks a seal: it needs F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL"
        )
    if seals & _SEALS_REFUSED:
        raise SegmentRefused("the offered memfd is sealed against writing, and outputs go into it")
    status = os.fstat(fd)
    if uid is not None and status.st_uid != uid:
        raise SegmentRefused("the offered memfd belongs to another user")
    if inode is not None and status.st_ino != inode:
        raise SegmentRefused("the descriptor no longer leads to the memfd that was offered")
    # After the seals: only now can the size no longer change.
    if status.st_size != nbytes:
        raise SegmentRefused(f"the offered memfd has not the {nbytes:,} bytes that were announced")
