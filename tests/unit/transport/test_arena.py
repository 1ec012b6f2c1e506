"""The arena, held by properties: no overlap, no loss, neighbours, and recovery from exhaustion."""

from __future__ import annotations

import errno

import pytest
from batchyard.transport.arena import ALIGNMENT, Arena
from batchyard.transport.errors import ArenaExhausted
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

MIB = 1 << 20


def fill(arena: Arena, nbytes: int) -> list[int]:
    """Slots of `nbytes` until there is no room for another."""
    offsets = []
    try:
        while True:
            offsets.append(arena.alloc(nbytes))
    except ArenaExhausted:
        return offsets


def test_consecutive_slots_of_one_size_are_neighbours() -> None:
    arena = Arena(16 * MIB)
    offsets = [arena.alloc(4000) for _ in range(200)]
    assert offsets == [index * 4032 for index in range(200)]


def test_consecutive_big_slots_from_fresh_space_are_neighbours() -> None:
    arena = Arena(16 * MIB)
    offsets = [arena.alloc(2 * MIB) for _ in range(8)]
    assert offsets == [index * 2 * MIB for index in range(8)]
    arena.validate()


@pytest.mark.parametrize("nbytes", [100_000, 602_112, 4_915_200])
def test_large_slots_are_neighbours_though_others_are_carved_between(nbytes: int) -> None:
    arena = Arena(4096 * MIB)
    stride = nbytes + -nbytes % ALIGNMENT
    taken = [arena.alloc_all([nbytes, 4000, 40 + 64 * index]) for index in range(16)]
    first = taken[0][0]
    assert [slots[0] for slots in taken] == [first + stride * index for index in range(16)]
    arena.validate()


def test_large_slots_are_handed_out_in_order_though_lower_ones_come_back_meanwhile() -> None:
    arena = Arena(256 * MIB)
    first = [arena.alloc(602_112) for _ in range(16)]
    for offset in reversed(first):
        arena.free(offset)
    taken = [arena.alloc(602_112) for _ in range(8)]
    for offset in taken[:4]:
        arena.free(offset)
    taken += [arena.alloc(602_112) for _ in range(8)]
    assert taken == first
    assert arena.alloc(602_112) == first[0], "behind the last the lowest comes again"
    arena.validate()


def test_room_that_is_left_for_neighbours_has_no_pages_and_is_taken_before_an_arena_is_exhausted() -> None:
    committed: list[tuple[int, int]] = []
    arena = Arena(64 * MIB, lambda offset, nbytes: committed.append((offset, nbytes)))
    arena.alloc_all([602_112, 4000])
    assert sum(nbytes for _, nbytes in committed) == arena.committed_bytes < 2 * MIB
    fill(arena, 4000)
    assert arena.nbytes - arena.used_bytes < 602_112
    arena.validate()


def test_freed_slot_is_handed_out_again_lowest_address_first() -> None:
    arena = Arena(16 * MIB)
    offsets = [arena.alloc(1000) for _ in range(10)]
    for index in (7, 2, 5):
        arena.free(offsets[index])
    assert [arena.alloc(1000) for _ in range(3)] == [offsets[2], offsets[5], offsets[7]]


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4097])
def test_every_offset_is_aligned_whatever_was_asked(nbytes: int) -> None:
    arena = Arena(MIB)
    offsets = [arena.alloc(nbytes) for _ in range(5)]
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert len(set(offsets)) == 5


def test_an_empty_tensor_takes_the_smallest_slot() -> None:
    arena = Arena(MIB)
    offset = arena.alloc(0)
    assert arena.used_bytes == ALIGNMENT
    arena.free(offset)
    assert (arena.used_bytes, arena.allocated_count) == (0, 0)


def test_freeing_twice_or_a_foreign_offset_is_our_own_bug() -> None:
    arena = Arena(MIB)
    offset = arena.alloc(100)
    with pytest.raises(ValueError, match="no live slot"):
        arena.free(offset + 64)
    arena.free(offset)
    with pytest.raises(ValueError, match="no live slot"):
        arena.free(offset)
    arena.validate()


@pytest.mark.parametrize("nbytes", [-1, -64, -1000])
def test_a_negative_size_is_refused_even_when_a_slot_is_free(nbytes: int) -> None:
    arena = Arena(MIB)
    arena.free(arena.alloc(1))
    with pytest.raises(ValueError, match="cannot allocate"):
        arena.alloc(nbytes)


def test_exhaustion_says_what_was_asked_what_is_free_and_what_to_do() -> None:
    arena = Arena(MIB)
    arena.alloc(MIB - 4096)
    with pytest.raises(ArenaExhausted) as caught:
        arena.alloc(8192)
    text = str(caught.value)
    for part in ("8,192 bytes", "4,096 of 1,048,576", "largest free extent has 4,096", "arena_bytes="):
        assert part in text
    assert isinstance(caught.value, MemoryError)
    arena.validate()


def test_free_slabs_of_other_sizes_are_given_back_when_the_arena_is_exhausted() -> None:
    arena = Arena(MIB)
    small = fill(arena, 1000)
    for offset in small:
        arena.free(offset)
    assert arena.alloc(MIB) == 0
    arena.validate()


def test_a_slab_with_one_live_slot_is_never_given_back() -> None:
    arena = Arena(MIB)
    small = fill(arena, 1000)
    for offset in small[1:]:
        arena.free(offset)
    with pytest.raises(ArenaExhausted):
        arena.alloc(MIB)
    assert arena.alloc(MIB // 2) > small[0]
    arena.free(small[0])  # its class survived the loss of its other slabs
    arena.validate()


def test_few_sizes_do_not_use_up_a_small_arena() -> None:
    arena = Arena(2 * MIB)
    for nbytes in range(64, 64 * 15, 64):
        arena.alloc(nbytes)
    arena.validate()


def test_every_byte_is_committed_once_and_before_its_first_use() -> None:
    committed: list[tuple[int, int]] = []
    arena = Arena(4 * MIB, lambda offset, nbytes: committed.append((offset, offset + nbytes)))
    for round_nbytes in (1000, 3 * MIB, 70_000, 4 * MIB):
        offsets = []
        for _ in range(3):
            try:
                offsets.append(arena.alloc(round_nbytes))
            except ArenaExhausted:
                break
            assert max(end for _, end in committed) >= offsets[-1] + round_nbytes
        for offset in offsets:
            arena.free(offset)
    assert [start for start, _ in committed] == [0] + [end for _, end in committed[:-1]]
    assert committed[-1][1] == 4 * MIB


def test_a_failed_commit_is_exhaustion_and_changes_nothing() -> None:
    available_bytes = MIB

    def commit(offset: int, nbytes: int) -> None:
        if offset + nbytes > available_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    arena = Arena(16 * MIB, commit)
    first = arena.alloc(MIB)
    with pytest.raises(ArenaExhausted, match="No space left on device") as caught:
        arena.alloc(MIB)
    assert isinstance(caught.value.__cause__, OSError)
    arena.validate()
    available_bytes = 16 * MIB
    assert arena.alloc(MIB) == first + MIB


def test_a_failed_commit_falls_back_on_slabs_that_are_free() -> None:
    def commit(offset: int, nbytes: int) -> None:
        if offset + nbytes > MIB:
            raise OSError(errno.ENOSPC, "No space left on device")

    arena = Arena(16 * MIB, commit)
    arena.free(arena.alloc(MIB))
    assert arena.alloc(1000) == 0
    arena.validate()


def test_pages_of_idle_slabs_go_back_to_the_system_and_are_there_again_before_they_are_used() -> None:
    committed: list[tuple[int, int]] = []
    released: list[tuple[int, int]] = []
    arena = Arena(64 * MIB, lambda *place: committed.append(place), lambda *place: not released.append(place))
    frames = [arena.alloc(8 * MIB) for _ in range(3)]
    kept = arena.alloc(100)
    arena.free(frames[0])
    arena.free(frames[2])
    assert arena.idle_slabs() == {frames[0], frames[2]}
    assert arena.give_back([frames[0], frames[2]]) == 16 * MIB
    assert released == [(frames[0], 8 * MIB), (frames[2], 8 * MIB)]
    assert 8 * MIB < arena.committed_bytes <= 9 * MIB
    committed.clear()
    assert arena.alloc(8 * MIB) == frames[0]
    assert committed == [(frames[0], 8 * MIB)]
    arena.validate()
    arena.free(kept)


def test_a_system_that_keeps_pages_needs_them_committed_once() -> None:
    committed: list[tuple[int, int]] = []
    arena = Arena(64 * MIB, lambda *place: committed.append(place), lambda *place: False)
    arena.free(arena.alloc(8 * MIB))
    assert arena.give_back(arena.idle_slabs()) == 0
    arena.alloc(8 * MIB)
    assert committed == [(0, 8 * MIB)]


class ArenaMachine(RuleBasedStateMachine):
    """Random traffic on a small arena, beside a plain model of what is live."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: set[int] = set()  # by number, of 64 bytes
        self.arena = Arena(256 * 1024, self.commit, self.release)
        self.live: dict[int, int] = {}

    def commit(self, offset: int, nbytes: int) -> None:
        self.pages.update(range(offset // 64, (offset + nbytes) // 64))

    def release(self, offset: int, nbytes: int) -> bool:
        for start, size in self.live.items():
            assert start + max(size, 1) <= offset or offset + nbytes <= start, "it is in use"
        self.pages.difference_update(range(offset // 64, (offset + nbytes) // 64))
        return True

    @rule(nbytes=st.one_of(st.integers(0, 300), st.integers(0, 300_000), st.sampled_from([4096, 60_000])))
    def alloc(self, nbytes: int) -> None:
        try:
            offset = self.arena.alloc(nbytes)
        except ArenaExhausted:
            # Honest only if no extent could hold it.
            assert self.live or nbytes > self.arena.nbytes
            return
        end = offset + max(nbytes, 1)
        assert self.pages.issuperset(range(offset // 64, (end + 63) // 64)), "handed out without pages"
        assert all(end <= start or offset >= start + max(size, 1) for start, size in self.live.items())
        self.live[offset] = nbytes

    @rule(nbytes=st.sampled_from([100, 4096, 20_000]), count=st.integers(2, 6))
    def alloc_many(self, nbytes: int, count: int) -> None:
        for _ in range(count):
            self.alloc(nbytes)

    @rule(data=st.data())
    def free_one(self, data: st.DataObject) -> None:
        if self.live:
            offset = data.draw(st.sampled_from(sorted(self.live)))
            del self.live[offset]
            self.arena.free(offset)

    @rule()
    def free_all_and_take_everything(self) -> None:
        for offset in self.live:
            self.arena.free(offset)
        self.live.clear()
        self.arena.free(self.arena.alloc(self.arena.nbytes))  # nothing was lost to fragments

    @rule(data=st.data())
    def give_idle_slabs_back(self, data: st.DataObject) -> None:
        idle = self.arena.idle_slabs()
        if idle:
            self.arena.give_back(data.draw(st.sets(st.sampled_from(sorted(idle)))))

    @rule(offset=st.integers(0, 4096).map(lambda index: index * 64))
    def free_what_is_not_live(self, offset: int) -> None:
        if offset not in self.live:
            with pytest.raises(ValueError, match="no live slot"):
                self.arena.free(offset)

    @invariant()
    def holds(self) -> None:
        self.arena.validate()
        assert self.arena.allocated_count == len(self.live)
        assert self.arena.committed_bytes == 64 * len(self.pages)


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
