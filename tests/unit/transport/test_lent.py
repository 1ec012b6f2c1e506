"""Large frames as sealed memory that goes along with a message."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Any

import pytest
from batchyard.transport import lent
from batchyard.transport.errors import SegmentRefused
from batchyard.transport.messages import FrameSegment
from batchyard.transport.segments import SegmentHandle
from batchyard.transport.wire import ALONG_MAX, Descriptor, owned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd")


def a_frame(data: bytes = b"answer") -> lent.LentFrame:
    memory = lent.LentMemory(len(data))
    memory.write(2, data[2:])
    memory.write(0, data[:2])
    return memory.seal()


def test_a_lent_frame_is_read_by_all_and_changed_by_none() -> None:
    frame = a_frame()
    mine, yours = frame.map(), frame.map()
    mine[:1] = b"A"  # a page of its own
    assert (bytes(mine), bytes(yours), bytes(frame), len(frame)) == (b"Answer", b"answer", b"answer", 6)
    for change in (
        lambda: os.pwrite(frame.descriptor.number, b"x", 0),
        lambda: os.ftruncate(frame.descriptor.number, 1),
    ):
        with pytest.raises(PermissionError):
            change()


def test_frames_are_parted_and_come_together_again() -> None:
    frames = [b"first", a_frame(), b"third", a_frame(b"fourth")]
    sent, segments, along, nbytes = lent.parted(frames)
    assert sent == [b"first", b"", b"third", b""]
    assert [entry.frame for entry in segments] == [2, 4]
    assert nbytes == 12
    waiting = list(along)
    came = lent.received(sent, segments, lambda: waiting.pop(0))
    assert [bytes(frame) for frame in lent.plain(came)] == [b"first", b"answer", b"third", b"fourth"]


def test_more_than_may_go_along_travel_as_bytes() -> None:
    sent, segments, along, _ = lent.parted([a_frame()] * (ALONG_MAX + 1))
    assert (len(segments), len(along)) == (ALONG_MAX, ALONG_MAX)
    assert bytes(sent[-1]) == b"answer"


def test_what_can_still_change_or_is_not_there_is_refused() -> None:
    frame = a_frame()
    number = os.memfd_create("batchyard", os.MFD_ALLOW_SEALING)
    os.ftruncate(number, 6)
    writable = Descriptor(owned(number))
    handle = SegmentHandle("memfd", "1:1", 6)
    refused: list[tuple[Any, SegmentHandle, int, str]] = [
        (writable, handle, 1, "not sealed"),
        (Descriptor(owned(os.open(os.devnull, os.O_RDWR))), handle, 1, "no memory"),
        (frame.descriptor, SegmentHandle("memfd", "1:1", 7), 1, "announced"),
        (frame.descriptor, handle, 2, "did not come along"),
        (None, handle, 1, "did not come along"),
    ]
    for descriptor, segment, at, why in refused:
        with pytest.raises(SegmentRefused, match=why):
            lent.received([b""], [FrameSegment(at, segment)], lambda descriptor=descriptor: descriptor)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)  # it may still shrink under its reader
    with pytest.raises(SegmentRefused, match="not sealed"):
        lent.judged(writable, handle)
