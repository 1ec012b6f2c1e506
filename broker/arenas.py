"""The arenas that the broker holds open for its clients, so that workers can map them.

The broker never maps a client's memory: it keeps the descriptor (memfd) or the name, and workers
open it through the broker. A client's death thus cannot pull an arena away under a running batch.
Connections of one process that offer the same segment share one arena.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from typing import Any

from ..transport import segments
from ..transport.errors import SegmentRefused
from ..transport.segments import Segment, SegmentHandle

BLOCK_BYTES = 512  # of st_blocks, whatever the file system


@dataclass
class _Open:
    key: tuple[str, int, int] | tuple[str, str, int]
    handle: SegmentHandle  # as a worker finds it: a descriptor of ours, or the name
    fd: int | None
    segment: Segment | None


class Arenas:
    """Numbered open segments. Numbers are never reused. None is kept by a descriptor of
    `descriptors_max` or more. `named`: whether named segments are taken."""

    def __init__(self, descriptors_max: int = sys.maxsize, named: bool = True) -> None:
        self._descriptors_max = descriptors_max
        self._named = named
        self._by_number: dict[int, _Open] = {}
        self._by_key: dict[object, int] = {}
        self._sequence = 0

    def open(
        self, handle: SegmentHandle, pid: int, uid: int | None, descriptor: int | None = None
    ) -> tuple[int, bool]:
        """(number, whether it is new) of the arena that process `pid` offers. `descriptor`: the memfd itself,
        if it came along; it is ours from now on.

        Raises SegmentRefused for anything that is not a segment as it must be, and OSError when there
        is no descriptor to keep it by.
        """
        if handle.backend == "memfd" and sys.platform == "linux":
            from ..transport.segments import memfd

            if descriptor is None and pid <= 0:
                raise SegmentRefused(
                    "the kernel does not say which process offers this memory, and no descriptor came along: "
                    'over tcp, or from another PID namespace, use segment="frames"'
                )
            fd = memfd.adopt_from(pid, handle, uid) if descriptor is None else memfd.judge(descriptor, handle)
            status = os.fstat(fd)
            key: tuple[str, int, int] | tuple[str, str, int] = ("memfd", status.st_dev, status.st_ino)
            if key in self._by_key:
                os.close(fd)
                return self._by_key[key], False
            if fd >= self._descriptors_max:
                os.close(fd)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._add(_Open(key, memfd.handle_of(fd, handle.nbytes), fd, None)), True
        if descriptor is not None:
            os.close(descriptor)
        if handle.backend == "named" and not self._named:
            raise SegmentRefused(
                "this yard takes no named segments, because a client can shrink one under a worker: leave "
                'segment= out (memfd), use segment="frames", or set named_segments = true in batchyard.toml'
            )
        # Two clients share a name only if one gave it to the other: 128 random bits are the key.
        key = ("named", handle.name, pid)
        if key in self._by_key:
            return self._by_key[key], False
        segment = segments.attach(handle, pid, uid)
        segment.unwatch()  # never read here; a descriptor more for each client
        return self._add(_Open(key, handle, None, segment)), True

    def add_own(self, segment: Segment) -> int:
        """Number a segment that the broker made itself."""
        return self._add(_Open(("own", segment.handle.name, 0), segment.handle, None, segment))

    def _add(self, entry: _Open) -> int:
        self._sequence += 1
        self._by_number[self._sequence] = entry
        self._by_key[entry.key] = self._sequence
        return self._sequence

    def handle(self, number: int) -> SegmentHandle:
        """The handle with which a worker opens the arena."""
        return self._by_number[number].handle

    def read(self, number: int, offset: int, nbytes: int) -> Any:
        """Bytes of an arena as they are now; None where they don't lie in it, or can't be read without
        trusting its client not to shrink it."""
        entry = self._by_number[number]
        if nbytes < 0 or offset + nbytes > entry.handle.nbytes:
            return None
        if entry.fd is not None:
            data = os.pread(entry.fd, nbytes, offset)
            return data if len(data) == nbytes else None
        own = entry.key[0] == "own" or sys.platform == "win32"  # there a mapped segment can't shrink
        return entry.segment.buffer[offset : offset + nbytes] if own and entry.segment else None

    def close(self, number: int) -> None:
        """Let go of an arena; its memory is freed when the last worker has unmapped it."""
        entry = self._by_number.pop(number)
        del self._by_key[entry.key]
        if entry.fd is not None:
            os.close(entry.fd)
        if entry.segment is not None:
            entry.segment.close()

    def close_all(self) -> None:
        for number in list(self._by_number):
            self.close(number)

    def snapshot(self) -> dict[str, int]:
        entries = self._by_number.values()
        return {
            "arenas": len(entries),
            "arena_bytes": sum(entry.handle.nbytes for entry in entries),
            "arena_committed_bytes": sum(map(_committed_bytes, entries)),
        }


def _committed_bytes(entry: _Open) -> int:
    """The pages that an arena has of the machine's memory: a memfd reserves far more address space."""
    fd = entry.segment.descriptor if entry.segment is not None else entry.fd
    return entry.handle.nbytes if fd is None else os.fstat(fd).st_blocks * BLOCK_BYTES
