"""Large answers: the bytes of a frame in a memfd of its own, which goes along with the message in its place.

A worker makes it, writes it, and seals it against every further change; the broker passes the descriptor on
unread; the client maps it privately, and the memory ends with the last array over it. Nobody gives anything
back. In a list of frames, a `LentFrame` stands where its bytes would. Where it can't go along (over tcp, to a
client without memory) `plain` makes bytes of it. Linux only.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from .errors import SegmentRefused
from .messages import FrameSegment
from .segments import SEGMENT_BYTES_MAX, SegmentHandle
from .wire import ALONG_MAX, Descriptor, owned

LENT_MIN_BYTES = 1 << 20  # a smaller answer is quicker as a frame

if sys.platform == "linux":
    import fcntl

    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class LentFrame:
    """A frame in a sealed memfd. `segment` is how a message names it."""

    __slots__ = ("descriptor", "segment")

    def __init__(self, descriptor: Descriptor, segment: SegmentHandle) -> None:
        self.descriptor = descriptor
        self.segment = segment

    def __len__(self) -> int:
        return self.segment.nbytes

    def __bytes__(self) -> bytes:
        return bytes(self.map())

    def map(self) -> mmap.mmap:
        """The bytes. The mapping is private: whoever writes to it has pages of his own. Raises OSError."""
        return mmap.mmap(
            self.descriptor.number,
            self.segment.nbytes,
            mmap.MAP_PRIVATE,
            mmap.PROT_READ | mmap.PROT_WRITE,
        )


class LentMemory:
    """A memfd of `nbytes` that is being filled; `seal` makes a frame of it. It is written, not mapped: that
    spares a page fault for each page, and where there is no memory it is an OSError and not a SIGBUS."""

    def __init__(self, nbytes: int) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._descriptor = Descriptor(owned(os.memfd_create("batchyard", flags)))
        self._nbytes = nbytes
        os.ftruncate(self._descriptor.number, nbytes)

    def write(self, offset: int, data: Any) -> None:
        """Raises OSError."""
        rest = memoryview(data).cast("B")
        while len(rest):
            count = os.pwrite(self._descriptor.number, rest, offset)
            rest = rest[count:]
            offset += count

    def seal(self) -> LentFrame:
        """Nobody can write to it from now on."""
        number = self._descriptor.number
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        name = f"{number}:{os.fstat(number).st_ino}"
        return LentFrame(self._descriptor, SegmentHandle("memfd", name, self._nbytes))


def judged(descriptor: Descriptor, segment: SegmentHandle) -> LentFrame:
    """A frame that a peer has lent. Raises SegmentRefused unless it is what it says, and can't change."""
    number = descriptor.number
    status = os.fstat(number)
    if not 0 < segment.nbytes <= SEGMENT_BYTES_MAX or not stat.S_ISREG(status.st_mode):
        raise SegmentRefused("what came along is no memory")
    try:
        seals = fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except OSError as error:
        raise SegmentRefused("what came along is no memfd") from error
    if seals & _SEALS != _SEALS:
        raise SegmentRefused("the memfd that came along is not sealed against changes")
    if status.st_size != segment.nbytes:
        raise SegmentRefused(f"the memfd that came along has not the {segment.nbytes:,} bytes announced")
    return LentFrame(descriptor, segment)


def received(frames: Sequence[Any], segments: Sequence[FrameSegment], take: Any) -> list[Any]:
    """The frames of a message with what was lent in their places. `take()`: the next descriptor that came
    along, or None. Raises SegmentRefused; every descriptor of the message has been taken by then."""
    came = [take() for _ in segments]
    placed = list(frames)
    for entry, descriptor in zip(segments, came, strict=True):
        if descriptor is None or not 1 <= entry.frame <= len(placed):
            raise SegmentRefused("a frame that is said to be lent did not come along")
        placed[entry.frame - 1] = judged(descriptor, entry.segment)
    return placed


def plain(frames: Sequence[Any]) -> list[Any]:
    """The same frames, all of them bytes. Raises OSError."""
    return [memoryview(frame.map()) if type(frame) is LentFrame else frame for frame in frames]


def parted(frames: Sequence[Any]) -> tuple[list[Any], list[FrameSegment], list[Descriptor], int]:
    """(frames, what goes along in their places, its descriptors, its bytes). At most ALONG_MAX go along; the
    others travel as bytes."""
    sent: list[Any] = []
    segments: list[FrameSegment] = []
    along: list[Descriptor] = []
    for number, frame in enumerate(frames, 1):
        if type(frame) is LentFrame and len(along) < ALONG_MAX:
            segments.append(FrameSegment(number, frame.segment))
            along.append(frame.descriptor)
            frame = b""
        sent.append(frame)
    return plain(sent), segments, along, sum(entry.segment.nbytes for entry in segments)
