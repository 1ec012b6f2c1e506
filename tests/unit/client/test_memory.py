"""The client's shared memory: slots live as long as their last view, and are found again by address."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.client import idle
from batchyard.client.memory import FIXED_BYTES, MEMCPY_MAX_BYTES, SlotMemory, reserved_bytes
from batchyard.transport import machine
from batchyard.transport.errors import ArenaExhausted

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def memory() -> Iterator[SlotMemory]:
    made = SlotMemory(1 << 20)
    yield made
    made.close()


def array(memory: SlotMemory, *shape: int, dtype: Any = FLOAT32) -> np.ndarray[Any, Any]:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return memory.array(memory.alloc(nbytes), np.dtype(dtype), shape)


def test_a_slot_is_free_when_the_last_view_of_its_array_is_gone(memory: SlotMemory) -> None:
    whole = array(memory, 8, 16)
    row = whole[3]
    part = row[::2].reshape(2, 4)
    transposed = part.T
    del whole, row, part
    assert memory.used_bytes == 512
    transposed[:] = 5
    del transposed
    assert memory.used_bytes == 0


def test_what_is_computed_from_a_view_does_not_keep_the_slot(memory: SlotMemory) -> None:
    kept = array(memory, 4, 4) + 1
    assert memory.used_bytes == 0
    assert kept.shape == (4, 4)


def test_memoryviews_and_other_buffers_keep_the_slot_too(memory: SlotMemory) -> None:
    view = memoryview(array(memory, 16))
    again = np.asarray(view)
    del view
    assert memory.used_bytes == 64
    del again
    assert memory.used_bytes == 0


def test_an_array_is_found_by_its_address_with_any_contiguous_part_of_it(memory: SlotMemory) -> None:
    array(memory, 16)
    whole = array(memory, 4, 16)
    base = memory.offset_of(whole)
    assert base is not None
    assert memory.offset_of(whole[1:]) == base + 64
    assert memory.offset_of(whole[2, 3:5]) == base + 140
    assert memory.offset_of(whole.reshape(-1).view(np.uint8)) == base
    assert memory.offset_of(whole[..., 0]) is None
    assert memory.offset_of(whole.T) is None
    assert memory.offset_of(whole[::-1]) is None


def test_an_array_that_lies_elsewhere_is_not_found(memory: SlotMemory) -> None:
    ordinary = np.zeros(64, np.float32)
    assert memory.offset_of(ordinary) is None
    assert memory.offset_of(ordinary[3:]) is None
    other = SlotMemory(1 << 16)
    try:
        assert memory.offset_of(array(other, 4)) is None
    finally:
        other.close()


def test_the_end_of_the_arena_is_inside_and_one_past_it_is_not(memory: SlotMemory) -> None:
    bytes_of_arena = np.frombuffer(memory.segment.buffer, np.uint8)
    assert memory.offset_of(bytes_of_arena[-1:]) == memory.segment.nbytes - 1
    assert memory.offset_of(bytes_of_arena[:1]) == 0
    del bytes_of_arena


def test_exhaustion_is_an_error_that_says_what_to_do_and_ends_with_the_next_free(memory: SlotMemory) -> None:
    held = [array(memory, 1 << 16) for _ in range(4)]
    with pytest.raises(ArenaExhausted, match="arena_bytes"):
        memory.alloc(4)
    held.pop()
    memory.free(memory.alloc(4))


def test_room_is_given_in_the_order_in_which_it_was_asked_for(memory: SlotMemory) -> None:
    held = [array(memory, 1 << 16) for _ in range(4)]
    rung: list[int] = []
    large = memory.wait([1 << 18, 1 << 18], lambda: rung.append(1))
    small = memory.wait([4], lambda: rung.append(2))
    held.pop()
    assert rung == [1], "there may be room for the first"
    assert memory.take([4]) is None, "others came first"
    assert "arena_bytes" in memory.serve()
    assert (large.offsets, small.offsets) == (None, None)
    held.pop()
    rung.clear()
    assert "arena_bytes" in memory.serve()
    assert rung == [1], "it has been given some"
    assert large.offsets is not None
    assert small.offsets is None
    held.pop()
    assert memory.serve() == ""
    assert small.offsets is not None


def test_who_leaves_the_line_lets_the_next_one_go_first_and_gives_back_what_he_was_given(
    memory: SlotMemory,
) -> None:
    held = [array(memory, 1 << 16) for _ in range(4)]
    rung: list[int] = []
    large = memory.wait([1 << 19], lambda: rung.append(1))
    small = memory.wait([1 << 18], lambda: rung.append(2))
    assert memory.is_first(large)
    memory.leave(large)
    assert rung == [2]
    assert memory.is_first(small)
    held.pop()
    memory.serve()
    assert small.offsets is not None
    used = memory.used_bytes
    memory.leave(small)
    assert memory.used_bytes == used - (1 << 18)
    memory.leave(small)  # once is enough
    assert not memory.is_first(small)


def test_what_no_array_holds_is_owed(memory: SlotMemory) -> None:
    held = array(memory, 16)
    assert not memory.is_owed
    offset = memory.alloc(64)
    assert memory.is_owed
    memory.free(offset)
    assert not memory.is_owed
    del held
    assert not memory.is_owed


def test_more_than_the_whole_arena_is_never_waited_for(memory: SlotMemory) -> None:
    with pytest.raises(ArenaExhausted):
        memory.take([1 << 19, 1 << 19, 4])
    memory.alloc(64)
    assert memory.take([1 << 20]) is None


def test_empty_arrays_need_no_slot(memory: SlotMemory) -> None:
    made = array(memory, 0, 5)
    assert made.shape == (0, 5)
    assert memory.used_bytes == 0


@pytest.mark.parametrize(
    "source",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(24, dtype=np.float32).reshape(3, 8)[:, ::2],
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.array(7, np.int64),
        np.zeros((0, 3), np.float32),
        np.array([True, False, True]),
        np.array([1 + 2j], np.complex64),
        np.arange(MEMCPY_MAX_BYTES, dtype=np.float32),
        np.broadcast_to(np.float32(3), (5, 5)),
    ],
    ids=lambda source: f"{source.dtype}{source.shape}",
)
def test_any_array_is_written_in_c_order_and_counted(
    memory: SlotMemory, source: np.ndarray[Any, Any]
) -> None:
    offset = memory.alloc(source.nbytes)
    memory.write(offset, source)
    written = bytes(memory.segment.buffer[offset : offset + source.nbytes])
    assert written == np.ascontiguousarray(source).tobytes()
    assert memory.bytes_copied == source.nbytes


def test_a_read_only_array_is_written_like_any_other(memory: SlotMemory) -> None:
    source = np.arange(4, dtype=np.float32)
    source.flags.writeable = False
    memory.write(memory.alloc(16), source)


def test_bfloat16_is_written_as_its_bits(memory: SlotMemory) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    source = np.arange(4).astype(ml_dtypes.bfloat16)
    offset = memory.alloc(8)
    memory.write(offset, source)
    assert bytes(memory.segment.buffer[offset : offset + 8]) == source.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")
def test_arrays_stay_readable_after_close_and_the_mapping_goes_with_the_last() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:batchyard")

    before = mapped()
    memory = SlotMemory(1 << 16)
    held = array(memory, 4)
    held[:] = 3
    memory.close()
    assert held.sum() == 12
    del memory
    assert held.sum() == 12
    assert mapped() == before + 1
    del held
    assert mapped() == before


def test_a_call_that_another_thread_closes_the_memory_under_meets_no_error_of_pythons(
    memory: SlotMemory,
) -> None:
    offset = memory.alloc(16)
    memory.close()
    memory.write(offset, np.ones(4, np.float32))
    assert memory.array(offset, FLOAT32, (4,)).sum() == 4
    assert memory.alloc(16) >= 0


def test_freeing_from_many_threads_loses_no_slot(memory: SlotMemory) -> None:
    def churn() -> None:
        for _ in range(300):
            made = array(memory, 64)
            made[:] = 1
            view = made[3:]
            del made, view

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.used_bytes == 0


# ---- what is idle goes back to the system ---------------------------------------------------------


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlotMemory]:
    """64 MB, of which idle.py looks at nothing by itself."""
    monkeypatch.setattr(idle, "watch", lambda holder: watched.append(holder))
    watched.clear()
    made = SlotMemory(64 << 20)
    yield made
    made.close()


watched: list[SlotMemory] = []


def pages_of(memory: SlotMemory) -> int:
    """Bytes that the system has given it."""
    descriptor = memory.segment.descriptor
    assert descriptor is not None
    return os.fstat(descriptor).st_blocks * 512


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_what_has_been_idle_at_some_looks_in_a_row_goes_back_and_comes_again(big: SlotMemory) -> None:
    frame = 8 << 20
    small, one, other = big.alloc(100), big.alloc(frame), big.alloc(frame)
    assert watched
    big.free(one)
    for _ in range(idle.IDLE_LOOKS - 1):
        assert big.trim()
    assert pages_of(big) >= 2 * frame
    assert big.trim()
    assert frame <= pages_of(big) < 2 * frame
    big.free(other)
    for _ in range(idle.IDLE_LOOKS):
        assert big.trim()
    assert pages_of(big) <= idle.KEPT_BYTES
    assert not big.trim()
    again = big.alloc(frame)
    big.write(again, np.full(frame, 7, np.uint8))
    assert big.view(again, np.dtype(np.uint8), (frame,)).min() == 7
    big.free(small, again)


@pytest.mark.skipif(sys.platform != "linux", reason="memfd")
def test_a_slab_that_is_used_between_two_looks_keeps_its_pages(big: SlotMemory) -> None:
    frame = 8 << 20
    offset = big.alloc(frame)
    for _ in range(3 * idle.IDLE_LOOKS):
        big.free(offset)
        big.trim()
        offset = big.alloc(frame)
        big.trim()
    big.free(offset)
    assert pages_of(big) >= frame


def test_little_memory_is_not_watched(big: SlotMemory) -> None:
    big.free(big.alloc(idle.KEPT_BYTES // 2))
    assert watched == []


def test_a_reserved_arena_is_a_part_of_the_memory_where_pages_come_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8 << 30)
    assert reserved_bytes("memfd") == 2 << 30
    assert reserved_bytes("named") == FIXED_BYTES
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1 << 20)
    assert reserved_bytes("memfd") == FIXED_BYTES
