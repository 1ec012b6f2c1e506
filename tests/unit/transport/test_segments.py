"""Segments: one conformance suite over both backends, then what each backend alone promises."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
from batchyard.transport import segments
from batchyard.transport.arena import Arena
from batchyard.transport.errors import ArenaExhausted, InvalidRequest, SegmentRefused
from batchyard.transport.segments import Segment, SegmentHandle

if sys.platform != "linux":
    pytest.skip("the backends are compared on Linux, where both exist", allow_module_level=True)

from batchyard.transport.segments import memfd, named

PAGE = mmap.PAGESIZE


@pytest.fixture(params=["memfd", "named"])
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    with segments.create(4 * PAGE, request.param) as created:
        yield created


def run_python(code: str, *arguments: str) -> str:
    """Run `code` in a real process of its own; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_shm(handle: SegmentHandle) -> bool:
    return Path("/dev/shm", handle.name).exists()


# -- conformance: both backends --------------------------------------------------------------------


def test_a_new_segment_is_zeroed_writable_and_of_whole_pages(segment: Segment) -> None:
    view = np.frombuffer(segment.buffer, np.uint8)
    assert view.nbytes == segment.nbytes == segment.handle.nbytes == 4 * PAGE
    assert not view.any()
    view[:] = 7
    del view


@pytest.mark.parametrize("backend", ["memfd", "named"])
@pytest.mark.parametrize(("asked", "given_pages"), [(1, 1), (PAGE, 1), (PAGE + 1, 2)])
def test_sizes_are_rounded_up_to_whole_pages(backend: str, asked: int, given_pages: int) -> None:
    with segments.create(asked, backend) as created:
        assert created.nbytes == given_pages * PAGE


@pytest.mark.parametrize("backend", ["memfd", "named"])
@pytest.mark.parametrize("nbytes", [0, -1, 1 << 60])
def test_impossible_sizes_are_refused_before_the_system_is_asked(backend: str, nbytes: int) -> None:
    with pytest.raises(InvalidRequest, match="a segment has 1 to"):
        segments.create(nbytes, backend)


def test_an_unknown_backend_is_refused_on_both_sides() -> None:
    with pytest.raises(InvalidRequest, match="no segment backend 'tape'"):
        segments.create(PAGE, "tape")
    with pytest.raises(SegmentRefused, match="cannot attach"):
        segments.attach(SegmentHandle("tape", "1", PAGE), os.getpid())


def test_two_mappings_see_the_same_bytes(segment: Segment) -> None:
    with segments.attach(segment.handle, os.getpid(), os.getuid()) as attached:
        assert attached.nbytes == segment.nbytes
        attached.buffer[5:8] = b"abc"
        assert segment.buffer[5:8] == b"abc"
        segment.buffer[0] = 9
        assert attached.buffer[0] == 9


def test_another_process_sees_and_changes_the_bytes_and_its_exit_takes_nothing_away(segment: Segment) -> None:
    segment.buffer[:5] = b"hello"
    code = """
import sys
from batchyard.transport import segments
backend, name, nbytes, owner_pid = sys.argv[1:]
attached = segments.attach(segments.SegmentHandle(backend, name, int(nbytes)), int(owner_pid))
print(bytes(attached.buffer[:5]).decode())
attached.buffer[:5] = b"world"
"""
    handle = segment.handle
    arguments = (handle.backend, handle.name, str(handle.nbytes), str(os.getpid()))
    assert run_python(code, *arguments).strip() == "hello"
    assert segment.buffer[:5] == b"world"
    # Before Python 3.13 the tracker of an attaching process would have unlinked it by now.
    segments.attach(handle, os.getpid()).close()


def test_committed_pages_exist(segment: Segment) -> None:
    segment.commit(100, PAGE)
    owner_fd = segment._owner_fd
    assert owner_fd is not None
    assert os.fstat(owner_fd).st_blocks * 512 == 2 * PAGE  # the two pages that [100, 100 + PAGE) touches
    segment.commit(0, 0)
    segment.commit(0, segment.nbytes)
    assert os.fstat(owner_fd).st_blocks * 512 == segment.nbytes


def test_released_pages_are_gone_and_come_back_as_zeros(segment: Segment) -> None:
    segment.commit(0, segment.nbytes)
    segment.buffer[:] = b"\x7f" * segment.nbytes
    assert segment.release(PAGE, segment.nbytes - 2 * PAGE) is (sys.platform == "linux")
    segment.commit(0, segment.nbytes)
    seen = np.frombuffer(segment.buffer, np.uint8)
    assert seen[:PAGE].min() == 0x7F
    assert seen[-PAGE:].min() == 0x7F
    if sys.platform == "linux":
        assert not seen[PAGE:-PAGE].any()
    assert not segment.release(1, PAGE)  # no whole page lies in it
    del seen


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, -1), (0, 4 * PAGE + 1), (4 * PAGE, 1)])
def test_commit_outside_the_segment_is_our_own_bug(segment: Segment, offset: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match="outside a segment"):
        segment.commit(offset, nbytes)


def test_closing_twice_is_closing_once(segment: Segment) -> None:
    assert segment.close() is True
    assert segment.close() is True


def test_close_leaves_the_mapping_to_a_live_view_and_says_so(segment: Segment) -> None:
    view = np.frombuffer(segment.buffer, np.uint8)
    assert segment.close() is False
    view[3] = 1
    assert view[3] == 1
    del view
    assert segment.close() is True


def test_a_closed_segment_cannot_be_attached_any_more(segment: Segment) -> None:
    segment.close()
    with pytest.raises(SegmentRefused):
        segments.attach(segment.handle, os.getpid())


def test_an_attached_mapping_outlives_its_creators(segment: Segment) -> None:
    attached = segments.attach(segment.handle, os.getpid())
    segment.buffer[0] = 42
    segment.close()
    assert attached.buffer[0] == 42
    assert attached.close() is True


def test_attach_refuses_a_wrong_size(segment: Segment) -> None:
    for nbytes in (0, -1, PAGE, 8 * PAGE, 1 << 62):
        with pytest.raises(SegmentRefused):
            segments.attach(SegmentHandle(segment.handle.backend, segment.handle.name, nbytes), os.getpid())


def test_attach_refuses_another_users_segment(segment: Segment) -> None:
    with pytest.raises(SegmentRefused, match="another user"):
        segments.attach(segment.handle, os.getpid(), os.getuid() + 1)


def test_an_arena_commits_through_its_segment(segment: Segment) -> None:
    arena = Arena(segment.nbytes, segment.commit)
    offset = arena.alloc(3 * PAGE)
    view = np.frombuffer(segment.buffer, np.float32, 16, offset)
    view[:] = 1.0
    del view


def test_no_descriptor_is_left_behind(segment: Segment) -> None:
    backend = segment.handle.backend
    segments.create(PAGE, backend).close()  # the named backend's tracker starts once and keeps a pipe
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with segments.create(PAGE, backend) as created:
            segments.attach(created.handle, os.getpid()).close()
            with pytest.raises(SegmentRefused):
                segments.attach(SegmentHandle(backend, created.handle.name, 2 * PAGE), os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before


# -- memfd alone -----------------------------------------------------------------------------------


def raw_memfd(nbytes: int, seals: int, name: str = "batchyard") -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def test_nobody_can_shrink_or_grow_a_memfd_not_even_through_proc() -> None:
    with memfd.create(2 * PAGE) as created:
        again = os.open(f"/proc/self/fd/{created.handle.name.partition(':')[0]}", os.O_RDWR)
        try:
            for nbytes in (PAGE, 3 * PAGE):
                with pytest.raises(PermissionError):
                    os.ftruncate(again, nbytes)
        finally:
            os.close(again)


def test_an_adopted_memfd_outlives_its_owner_and_can_be_mapped_by_path() -> None:
    created = memfd.create(PAGE)
    fd = memfd.adopt_from(os.getpid(), created.handle, os.getuid())
    created.buffer[0] = 11
    created.close()
    try:
        assert not os.get_inheritable(fd)
        for source in (fd, f"/proc/{os.getpid()}/fd/{fd}"):
            with memfd.attach(source, PAGE) as attached:
                assert attached.buffer[0] == 11
    finally:
        os.close(fd)


def test_a_number_that_was_closed_and_means_another_memfd_now_is_refused() -> None:
    """A late Hello of a lost session once bound its connection to the memory of the next one."""
    first = memfd.create(PAGE)
    handle = first.handle
    first.close()
    with memfd.create(PAGE) as second:
        assert second.handle.name.partition(":")[0] == handle.name.partition(":")[0]
        with pytest.raises(SegmentRefused, match="no longer leads"):
            memfd.adopt_from(os.getpid(), handle)


def test_the_broker_adopts_across_processes() -> None:
    code = """
import sys
from batchyard.transport import segments
with segments.create(8192, "memfd") as created:
    created.buffer[:4] = b"ping"
    print(created.handle.name, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        handle = segments.SegmentHandle("memfd", child.stdout.readline().decode().strip(), 8192)
        fd = memfd.adopt_from(child.pid, handle, os.getuid())
        child.kill()
        child.wait()
        with memfd.attach(fd, 8192) as attached:
            assert attached.buffer[:4] == b"ping"
        os.close(fd)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, ALL_SEALS & ~fcntl.F_SEAL_SEAL])
def test_adopt_refuses_a_memfd_that_could_still_change_its_size(seals: int) -> None:
    fd = raw_memfd(PAGE, seals)
    with pytest.raises(SegmentRefused, match="lacks a seal"):
        memfd.adopt(os.getpid(), fd, PAGE)
    os.close(fd)


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, 0x10])
def test_adopt_refuses_a_memfd_that_nobody_may_write(seal: int) -> None:
    fd = raw_memfd(PAGE, ALL_SEALS | seal)
    with pytest.raises(SegmentRefused, match="against writing"):
        memfd.adopt(os.getpid(), fd, PAGE)
    os.close(fd)


def test_adopt_refuses_a_wrong_size_and_an_empty_memfd() -> None:
    fd = raw_memfd(PAGE, ALL_SEALS)
    for nbytes in (PAGE - 1, PAGE + 1, 0, -PAGE):
        with pytest.raises(SegmentRefused):
            memfd.adopt(os.getpid(), fd, nbytes)
    os.close(fd)
    empty = raw_memfd(0, ALL_SEALS)
    with pytest.raises(SegmentRefused):
        memfd.adopt(os.getpid(), empty, 0)
    os.close(empty)


def test_adopt_refuses_what_is_no_batchyard_memfd_and_does_not_say_what_it_was(tmp_path: Path) -> None:
    secret = tmp_path / "private-name"
    secret.write_bytes(bytes(PAGE))
    pipe_read, pipe_write = os.pipe()
    others = [
        os.open(secret, os.O_RDWR),
        os.open("/dev/zero", os.O_RDWR),
        os.open(tmp_path, os.O_RDONLY),
        raw_memfd(PAGE, ALL_SEALS, name="private-name"),
        pipe_read,
        pipe_write,
    ]
    for fd in others:
        with pytest.raises(SegmentRefused) as caught:
            memfd.adopt(os.getpid(), fd, PAGE)
        assert "private-name" not in str(caught.value)
        assert "zero" not in str(caught.value)
        os.close(fd)


def test_adopt_refuses_a_closed_descriptor_and_a_process_that_is_gone() -> None:
    fd = raw_memfd(PAGE, ALL_SEALS)
    os.close(fd)
    with pytest.raises(SegmentRefused, match="closed, or not ours"):
        memfd.adopt(os.getpid(), fd, PAGE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(SegmentRefused, match="closed, or not ours"):
        memfd.adopt(gone.pid, 3, PAGE)
    for pid, number in ((0, 3), (-1, 3), (os.getpid(), -1)):
        with pytest.raises(SegmentRefused, match="not a descriptor"):
            memfd.adopt(pid, number, PAGE)


@pytest.mark.parametrize("name", ["", "-1", "3/../4", "٣", "3 ", "self", "9" * 10])
def test_a_memfd_handle_names_a_decimal_number_and_nothing_else(name: str) -> None:
    with pytest.raises(SegmentRefused, match="descriptor and an inode"):
        segments.attach(SegmentHandle("memfd", name, PAGE), os.getpid())


# -- named alone -----------------------------------------------------------------------------------

ORPHAN = """
import os, sys
from multiprocessing import resource_tracker
from batchyard.transport import segments
created = segments.create(4096, "named")
print(created.handle.name, resource_tracker._resource_tracker._pid, flush=True)
sys.stdin.read()
"""


def test_a_named_segment_is_private_and_gone_after_close() -> None:
    created = named.create(PAGE)
    found = os.stat(f"/dev/shm/{created.handle.name}")
    assert found.st_mode & 0o777 == 0o600
    assert len(created.handle.name) == len("batchyard-") + 32
    created.close()
    assert not in_shm(created.handle)


def test_a_named_segment_that_its_owner_shrinks_is_seen_to_be_smaller() -> None:
    with named.create(4 * PAGE) as created, named.attach(created.handle) as attached:
        assert attached.is_whole
        os.truncate(f"/dev/shm/{created.handle.name}", PAGE)
        assert not attached.is_whole
        attached.unwatch()
        assert attached.is_whole, "nobody looks any more"


def test_closing_an_attached_segment_leaves_the_name() -> None:
    with named.create(PAGE) as created:
        named.attach(created.handle).close()
        assert in_shm(created.handle)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../tmp/x",
        "psm_12345678",
        "batchyard-",
        "batchyard-" + "0" * 31 + "/",
        "batchyard-" + "0" * 32 + "\n",
        "batchyard-" + "0" * 33,
        "batchyard-" + "A" * 32,
    ],
)
def test_a_named_handle_is_never_a_path(name: str) -> None:
    with pytest.raises(SegmentRefused, match="the name of a shared memory is"):
        named.attach(SegmentHandle("named", name, PAGE))


def test_attaching_to_nothing_is_refused() -> None:
    with pytest.raises(SegmentRefused, match="no such shared memory"):
        named.attach(SegmentHandle("named", "batchyard-" + secrets.token_hex(16), PAGE))


def test_a_too_small_shm_is_an_error_at_commit_and_never_a_bus_error() -> None:
    file_system = os.statvfs("/dev/shm")
    with named.create(2 * file_system.f_blocks * file_system.f_frsize + PAGE) as created:
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is judged below)
            created.commit(0, created.nbytes)
        assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
        arena = Arena(created.nbytes, created.commit)
        with pytest.raises(ArenaExhausted, match="the system gave no memory"):
            arena.alloc(created.nbytes)
        arena.validate()


def test_a_killed_owner_leaves_nothing_even_without_a_sweep() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        name = child.stdout.readline().decode().split()[0]
        assert in_shm(SegmentHandle("named", name, PAGE))
        child.kill()
        child.wait()
        child.stderr.read()  # its tracker holds this pipe too: EOF means that the tracker is done
        assert not in_shm(SegmentHandle("named", name, PAGE))


def test_sweep_removes_what_killed_owners_left_and_nothing_else() -> None:
    with (
        named.create(PAGE) as mine,
        subprocess.Popen(
            [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        assert child.stdout is not None
        name, tracker_pid = child.stdout.readline().decode().split()
        assert name not in named.sweep()  # its owner lives
        # The tracker would clean up first, so it goes the way of its owner: a whole container killed.
        tracker = os.pidfd_open(int(tracker_pid))
        signal.pidfd_send_signal(tracker, signal.SIGKILL)
        os.close(tracker)
        child.kill()
        child.wait()
        named.sweep()  # another yard's sweep may have been faster: what counts is that it is gone
        assert not in_shm(SegmentHandle("named", name, PAGE))
        assert in_shm(mine.handle)
        assert name not in named.sweep()


def test_sweep_passes_by_what_is_not_a_segment() -> None:
    path = Path("/dev/shm", "batchyard-" + secrets.token_hex(16))
    os.mkfifo(path)
    try:
        assert path.name not in named.sweep()
        assert path.exists()
    finally:
        path.unlink()


def test_a_creation_that_fails_leaves_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def refuse(name: str, kind: str) -> None:
        made.append(name)
        assert Path("/dev/shm" + name).exists()
        raise BrokenPipeError

    monkeypatch.setattr(resource_tracker, "register", refuse)
    with pytest.raises(BrokenPipeError):
        named.create(PAGE)
    assert not Path("/dev/shm" + made[0]).exists()
