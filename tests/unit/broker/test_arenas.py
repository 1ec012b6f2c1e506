"""The arenas that the broker holds open: checked when offered, shared by key, closed for good."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from batchyard.broker.arenas import Arenas
from batchyard.transport import segments
from batchyard.transport.errors import SegmentRefused
from batchyard.transport.segments import Segment, SegmentHandle

if sys.platform != "linux":
    pytest.skip("both backends exist on Linux alone", allow_module_level=True)

NBYTES = 1 << 16


@pytest.fixture(params=["memfd", "named"])
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    with segments.create(NBYTES, request.param) as made:
        yield made


@pytest.fixture
def arenas() -> Iterator[Arenas]:
    made = Arenas()
    yield made
    made.close_all()


def descriptors() -> int:
    gc.collect()  # a segment that an earlier test has dropped closes its own
    return len(os.listdir("/proc/self/fd"))


def offer(arenas: Arenas, handle: SegmentHandle) -> tuple[int, bool]:
    return arenas.open(handle, os.getpid(), os.getuid())


def test_an_offered_segment_is_numbered_and_can_be_mapped_through_the_broker(
    arenas: Arenas, segment: Segment
) -> None:
    number, is_new = offer(arenas, segment.handle)
    assert is_new
    segment.commit(0, 16)
    segment.buffer[:5] = b"hello"
    with segments.attach(arenas.handle(number), os.getpid()) as mapped:
        assert bytes(mapped.buffer[:5]) == b"hello"


def test_a_segment_offered_twice_is_one_arena(arenas: Arenas, segment: Segment) -> None:
    number, _ = offer(arenas, segment.handle)
    before = descriptors()
    assert offer(arenas, segment.handle) == (number, False)
    assert descriptors() == before
    found = arenas.snapshot()
    assert (found["arenas"], found["arena_bytes"]) == (1, NBYTES)


def test_pages_that_an_arena_has_are_told_beside_what_it_reserves(arenas: Arenas, segment: Segment) -> None:
    offer(arenas, segment.handle)
    segment.commit(0, NBYTES // 2)
    segment.buffer[: NBYTES // 2] = bytes(NBYTES // 2)
    expected = NBYTES if segment.handle.backend == "named" else NBYTES // 2
    assert arenas.snapshot()["arena_committed_bytes"] == expected


def test_closing_gives_every_descriptor_back_and_numbers_are_not_used_again(segment: Segment) -> None:
    arenas = Arenas()
    before = descriptors()
    seen = set()
    for _ in range(3):
        number, is_new = offer(arenas, segment.handle)
        assert is_new
        seen.add(number)
        arenas.close(number)
    assert len(seen) == 3
    assert descriptors() == before
    assert arenas.snapshot() == {"arenas": 0, "arena_bytes": 0, "arena_committed_bytes": 0}


def test_a_refused_offer_leaves_no_descriptor(arenas: Arenas) -> None:
    plain = os.memfd_create("batchyard", os.MFD_ALLOW_SEALING)  # nothing sealed
    foreign = os.memfd_create("other")
    pipe = os.pipe()
    try:
        os.ftruncate(plain, NBYTES)
        os.ftruncate(foreign, NBYTES)
        before = descriptors()
        for name in (
            *(f"{fd}:{os.fstat(fd).st_ino}" for fd in (plain, foreign, pipe[0], 0)),
            "999999:1",
            "0",
            "-1",
            "x",
            "",
            "1" * 50,
            "../mem",
        ):
            for nbytes in (NBYTES, 0, -1, 1 << 60, 1 << 70):
                with pytest.raises(SegmentRefused):
                    offer(arenas, SegmentHandle("memfd", name, nbytes))
        for name in (
            "",
            "/etc/passwd",
            "batchyard-",
            "batchyard-" + "0" * 32,
            "../x",
            "batchyard-" + "g" * 32,
        ):
            with pytest.raises(SegmentRefused):
                offer(arenas, SegmentHandle("named", name, NBYTES))
        with pytest.raises(SegmentRefused):
            offer(arenas, SegmentHandle("frames", "0", NBYTES))
        assert descriptors() == before
    finally:
        for fd in (plain, foreign, *pipe):
            os.close(fd)


def test_a_descriptor_that_was_closed_and_reused_is_not_taken_for_what_was_offered(arenas: Arenas) -> None:
    with segments.create(NBYTES, "memfd") as made:
        fd, _, inode = made.handle.name.partition(":")
        for name in (f"{fd}:{int(inode) + 1}", f"{fd}:0", fd):
            with pytest.raises(SegmentRefused):
                offer(arenas, SegmentHandle("memfd", name, NBYTES))
        assert offer(arenas, made.handle)[1]


def test_a_segment_of_another_size_or_another_user_is_refused(arenas: Arenas, segment: Segment) -> None:
    wrong = SegmentHandle(segment.handle.backend, segment.handle.name, NBYTES * 2)
    with pytest.raises(SegmentRefused):
        offer(arenas, wrong)
    with pytest.raises(SegmentRefused):
        arenas.open(segment.handle, os.getpid(), os.getuid() + 1)


def test_a_peer_of_which_the_kernel_says_nothing_can_offer_no_memfd(arenas: Arenas) -> None:
    with segments.create(NBYTES, "memfd") as made, pytest.raises(SegmentRefused):
        arenas.open(made.handle, 0, None)


def test_the_brokers_own_segment_counts_like_the_others(arenas: Arenas) -> None:
    own = segments.create(NBYTES)
    number = arenas.add_own(own)
    assert arenas.handle(number) == own.handle
    assert arenas.snapshot()["arenas"] == 1
    arenas.close(number)
    assert own.close()  # idempotent: it was closed with its number


# ---- contents -----------------------------------------------------------------------------------


@pytest.fixture
def memfd(arenas: Arenas) -> Iterator[tuple[Segment, int]]:
    """A client's arena of the kind that it cannot shrink, and its number."""
    with segments.create(NBYTES, "memfd") as made:
        made.commit(0, NBYTES)
        yield made, offer(arenas, made.handle)[0]


def test_bytes_are_read_as_they_are_now(arenas: Arenas, memfd: tuple[Segment, int]) -> None:
    segment, number = memfd
    segment.buffer[100:105] = b"hello"
    assert bytes(arenas.read(number, 100, 5)) == b"hello"
    segment.buffer[100:105] = b"there"
    assert bytes(arenas.read(number, 100, 5)) == b"there"
    assert bytes(arenas.read(number, NBYTES - 1, 1)) == b"\0"
    assert bytes(arenas.read(number, NBYTES, 0)) == b""


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, NBYTES + 1), (NBYTES, 1), (NBYTES - 4, 5), (1 << 60, 1), (0, -1)]
)
def test_what_does_not_lie_in_the_arena_is_not_read(
    arenas: Arenas, memfd: tuple[Segment, int], offset: int, nbytes: int
) -> None:
    assert arenas.read(memfd[1], offset, nbytes) is None


def test_a_named_segment_is_not_read_because_its_client_could_shrink_it(arenas: Arenas) -> None:
    """A mapped page that is gone would end the broker with SIGBUS."""
    with segments.create(NBYTES, "named") as made:
        number, _ = offer(arenas, made.handle)
        assert arenas.read(number, 0, 16) is None


@pytest.mark.parametrize("backend", ["memfd", "named"])
def test_the_brokers_own_arena_is_read(arenas: Arenas, backend: str) -> None:
    with segments.create(NBYTES, backend) as made:
        number = arenas.add_own(made)
        made.commit(0, 64)
        made.buffer[8:12] = b"mine"
        assert bytes(arenas.read(number, 8, 4)) == b"mine"
        assert arenas.read(number, NBYTES - 1, 2) is None
        arenas.close(number)


# ---- memfds that come along ---------------------------------------------------------------------


def passed(segment: Segment) -> int:
    assert segment.descriptor is not None
    return os.dup(segment.descriptor)


def test_a_memfd_that_came_along_is_taken_whoever_its_process_is(
    arenas: Arenas, memfd: tuple[Segment, int]
) -> None:
    """Of a process in another PID namespace the kernel says nothing, and one that changed its user can't be
    looked into."""
    segment, number = memfd
    before = descriptors()
    assert arenas.open(segment.handle, 0, None, passed(segment)) == (number, False)
    with segments.create(NBYTES, "memfd") as other:
        number, is_new = arenas.open(other.handle, 0, 1234567, passed(other))
        assert is_new
        with segments.attach(arenas.handle(number), os.getpid()) as mapped:
            other.commit(0, 8)
            other.buffer[:4] = b"here"
            assert mapped.buffer[:4] == b"here"
        arenas.close(number)
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["no memfd", "another's", "read only", "unsealed", "another size", "a pipe"])
def test_what_came_along_and_is_not_what_was_offered_is_refused_and_closed(arenas: Arenas, kind: str) -> None:
    with segments.create(NBYTES, "memfd") as segment, segments.create(NBYTES, "memfd") as other:
        handle = segment.handle
        fd = passed(segment)
        if kind == "no memfd":
            os.close(fd)
            fd = os.open(os.devnull, os.O_RDWR)
        elif kind == "another's":
            handle = other.handle
        elif kind == "read only":
            os.close(fd)
            fd = os.open(f"/proc/self/fd/{segment.descriptor}", os.O_RDONLY)
        elif kind == "unsealed":
            os.close(fd)
            fd = os.memfd_create("batchyard")
            os.ftruncate(fd, NBYTES)
            handle = SegmentHandle("memfd", f"{fd}:{os.fstat(fd).st_ino}", NBYTES)
        elif kind == "another size":
            handle = SegmentHandle("memfd", handle.name, 2 * NBYTES)
        elif kind == "a pipe":
            os.close(fd)
            fd, write = os.pipe()
            os.close(write)
        before = descriptors()
        with pytest.raises(SegmentRefused):
            arenas.open(handle, os.getpid(), os.getuid(), fd)
        assert descriptors() == before - 1


def test_a_descriptor_that_came_with_a_named_segment_is_closed(arenas: Arenas) -> None:
    with segments.create(NBYTES, "named") as segment:
        assert segment.descriptor is None, "only a memfd is passed"
        before = descriptors()
        arenas.open(segment.handle, os.getpid(), os.getuid(), os.open(os.devnull, os.O_RDONLY))
        assert descriptors() <= before + 1  # what the arena itself holds
