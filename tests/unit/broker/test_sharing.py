"""Identical work of one model: who leads, what is kept, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.models import Model
from batchyard.broker.requests import SWEEP_MIN, Request, SharedRun
from batchyard.broker.sharing import (
    KEPT_BYTES,
    KEPT_TENSOR_BYTES,
    QUARANTINE_NS,
    QUARANTINED_MAX,
    Key,
    Sharing,
    key_of,
)
from batchyard.tests.sim.invariants import check_results
from batchyard.transport.messages import Submit
from batchyard.transport.tensors import Tensor

TTL_NS = 1_000
OVERHEAD = KEPT_BYTES + KEPT_TENSOR_BYTES  # of a result of one tensor


def identical(join: bool = True, cache_ns: int = TTL_NS, cache_bytes: int = 10 * OVERHEAD) -> Sharing:
    return Sharing(
        ModelConfig("net", Path("/net.onnx"), 8, join=join, cache_ns=cache_ns, cache_bytes=cache_bytes)
    )


def key(number: int, revision: int = 1) -> Key:
    return key_of(revision, number.to_bytes(16, "big"), [Tensor(1, [1, 4], 0)])


def request(number: int, virtual_ns: int = 0) -> Request:
    model = Model(ModelConfig("net", Path("/net.onnx"), 8))
    lane = model.lane([Tensor(1, [1, 4], 0)])
    made = Request(1, Submit(number, "net", 2, 0, [Tensor(1, [1, 4], 0)], []), 1, model, lane, 1, 16, 0)
    made.virtual_ns = virtual_ns
    made.key = key(0)
    return made


def keep(at: Sharing, number: int, nbytes: int = 0, now_ns: int = 0) -> None:
    at.keep(key(number), [[Tensor(1, [1, 4], 0, 1)]], [bytes(nbytes)], 1, now_ns)


def kept(at: Sharing, *numbers: int, now_ns: int = 0) -> list[int]:
    found = [number for number in numbers if at.result(key(number), now_ns) is not None]
    check_results(at)
    return found


# ---- keys ---------------------------------------------------------------------------------------


def test_a_key_tells_apart_revisions_bytes_dtypes_and_shapes() -> None:
    same = [Tensor(1, [2, 4], 0)]
    keys = {
        key_of(1, b"a", same),
        key_of(2, b"a", same),
        key_of(1, b"b", same),
        key_of(1, b"a", [Tensor(6, [2, 4], 0)]),
        key_of(1, b"a", [Tensor(1, [4, 2], 0)]),
        key_of(1, b"a", [Tensor(1, [2, 2], 0), Tensor(1, [2, 2], 0)]),
    }
    assert len(keys) == 6


def test_a_key_does_not_tell_apart_where_the_bytes_lie() -> None:
    assert key_of(1, b"a", [Tensor(1, [2, 4], 0)]) == key_of(1, b"a", [Tensor(1, [2, 4], 64, 3)])


# ---- runs ---------------------------------------------------------------------------------------


def test_the_first_leads_until_its_run_is_ended() -> None:
    at = identical()
    leader = request(1)
    assert at.run(key(0)) is None
    at.begin(leader)
    run = at.run(key(0))
    assert run is leader.run
    assert run is not None
    assert run.leader is leader
    assert leader.leader is None, "it waits for nobody"
    at.end(run, key(0))
    assert at.run(key(0)) is None


def test_a_run_that_another_has_replaced_ends_only_itself() -> None:
    at = identical()
    first, second = request(1), request(2)
    at.begin(first)
    at.begin(second)
    assert first.run is not None
    at.end(first.run, key(0))
    assert at.run(key(0)) is second.run


def test_without_join_nobody_leads() -> None:
    at = identical(join=False)
    at.begin(request(1))
    assert at.run(key(0)) is None
    assert at.shares, "but results are kept"


def test_who_should_go_first_leads_next_and_equals_in_order_of_arrival() -> None:
    run = SharedRun(request(0))
    followers = [request(number, virtual_ns) for number, virtual_ns in enumerate((30, 10, 20, 10), start=1)]
    for follower in followers:
        run.follow(follower)
        assert follower.leader is run.leader
    order = []
    while (successor := run.succeed()) is not None:
        assert run.leader is successor
        assert successor.run is run
        assert successor.leader is None
        order.append(successor.id)
    assert order == [2, 4, 3, 1]
    assert not run.followers


def test_who_has_left_never_leads() -> None:
    run = SharedRun(request(0))
    followers = [request(number) for number in range(3)]
    for follower in followers:
        run.follow(follower)
    for follower in followers[:2]:
        run.leave(follower)
        assert follower.run is None
    assert run.succeed() is followers[2]
    assert run.succeed() is None


def test_a_leader_that_gave_up_its_place_follows_and_may_lead_again() -> None:
    low, urgent = request(1, 90), request(2, 10)
    run = SharedRun(low)
    run.lead(urgent)
    run.follow(low)
    assert low.leader is urgent
    assert run.succeed() is low
    assert run.succeed() is None


def test_followers_that_come_and_go_leave_no_places_behind() -> None:
    run = SharedRun(request(0))
    stays = request(1, 5)
    run.follow(stays)
    for number in range(1_000):
        passing = request(number, number % 9)
        run.follow(passing)
        run.leave(passing)
        assert len(run._places) <= SWEEP_MIN + 3
    assert run.succeed() is stays


def test_in_any_order_of_comings_and_goings_the_first_in_line_is_next() -> None:
    rng = random.Random(7)
    run = SharedRun(request(0))
    line: dict[Request, tuple[int, int]] = {}
    for number in range(1, 2_000):
        chance = rng.random()
        if chance < 0.5 or not line:
            follower = request(number, rng.randrange(50))
            run.follow(follower)
            line[follower] = (follower.virtual_ns, number)
        elif chance < 0.85:
            leaver = rng.choice(list(line))
            run.leave(leaver)
            del line[leaver]
        else:
            expected = min(line, key=lambda follower: line[follower])
            assert run.succeed() is expected
            del line[expected]
        assert set(run.followers) == set(line)


# ---- results ------------------------------------------------------------------------------------


def test_a_result_is_kept_for_its_time_and_then_forgotten() -> None:
    at = identical()
    keep(at, 1, now_ns=5)
    assert kept(at, 1, now_ns=5 + TTL_NS - 1) == [1]
    assert kept(at, 1, now_ns=5 + TTL_NS) == []
    assert at.kept_bytes == 0


def test_being_asked_for_does_not_make_a_result_live_longer() -> None:
    at = identical()
    keep(at, 1)
    for now_ns in range(0, TTL_NS, 100):
        assert kept(at, 1, now_ns=now_ns) == [1]
    assert kept(at, 1, now_ns=TTL_NS) == []


def test_without_a_time_nothing_is_kept() -> None:
    at = identical(cache_ns=0)
    keep(at, 1)
    assert kept(at, 1) == []


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    at = identical(cache_bytes=3 * OVERHEAD)
    for number in (1, 2, 3):
        keep(at, number)
    assert kept(at, 1) == [1]  # asked for: now 2 is the oldest
    keep(at, 4)
    assert kept(at, 1, 2, 3, 4) == [1, 3, 4]


def test_a_large_result_drops_as_many_as_it_takes() -> None:
    at = identical(cache_bytes=4 * OVERHEAD)
    for number in (1, 2, 3, 4):
        keep(at, number)
    keep(at, 5, nbytes=2 * OVERHEAD)
    assert kept(at, 1, 2, 3, 4, 5) == [4, 5]


def test_a_result_that_is_larger_than_all_the_room_drops_nothing() -> None:
    at = identical(cache_bytes=2 * OVERHEAD)
    keep(at, 1)
    keep(at, 2, nbytes=2 * OVERHEAD)
    assert kept(at, 1, 2) == [1]


def test_a_result_that_comes_again_takes_the_first_ones_place_and_time() -> None:
    at = identical(cache_bytes=2 * OVERHEAD)
    for now_ns in (0, 10, 20):
        keep(at, 1, now_ns=now_ns)
    assert at.kept_bytes == OVERHEAD
    assert kept(at, 1, now_ns=TTL_NS + 19) == [1]


def test_many_results_of_no_bytes_are_bounded_too() -> None:
    """What they take beside their bytes is counted, or a flood of tiny ones would take gigabytes."""
    at = identical(cache_bytes=100 * OVERHEAD)
    for number in range(1_000):
        keep(at, number)
    assert len(at._results) == 100


def test_a_kept_result_is_a_copy_of_frames_that_are_somebody_elses() -> None:
    at = identical()
    frame = bytearray(b"then")
    at.keep(key(1), [[Tensor(2, [4], 0, 1)]], [memoryview(frame)], 1, 0)
    frame[:] = b"now!"
    found = at.result(key(1), 0)
    assert found is not None
    assert found.frames == [b"then"]
    assert found.receipt(3).provider == "cache"
    assert found.receipt(3).revision == 3


def test_another_revision_forgets_results_and_quarantines() -> None:
    at = identical(join=False)
    keep(at, 1)
    at.quarantine(key(2), 0)
    at.become(ModelConfig("net", Path(), cache_ns=TTL_NS))
    assert kept(at, 1) == []
    assert at.quarantined_ns(key(2), 0) == 0
    assert at.kept_bytes == 0


# ---- contents that kill -------------------------------------------------------------------------


@pytest.mark.parametrize(("join", "cache_ns"), [(False, 0), (True, 0), (False, 9), (True, 9)])
def test_contents_are_looked_at_only_where_it_matters(join: bool, cache_ns: int) -> None:
    at = identical(join, cache_ns)
    assert at.shares is at.wants_digest is (join or cache_ns > 0)
    at.quarantine(key(1), 0)
    assert at.wants_digest
    assert at.quarantined_ns(key(2), QUARANTINE_NS) == 0
    assert at.wants_digest is at.shares, "when the quarantine is over, whoever asks"


def test_a_quarantine_lasts_ten_minutes_and_is_about_one_content() -> None:
    at = identical()
    at.quarantine(key(1), 5)
    assert at.quarantined_ns(key(1), 5) == QUARANTINE_NS == 600 * 10**9
    assert at.quarantined_ns(key(2), 5) == 0
    assert at.quarantined_ns(key(1), 5 + QUARANTINE_NS - 1) == 1
    assert at.quarantined_ns(key(1), 5 + QUARANTINE_NS) == 0


def test_past_the_bound_the_oldest_quarantine_is_forgotten() -> None:
    at = identical()
    for number in range(QUARANTINED_MAX):
        at.quarantine(key(number), number)
    at.quarantine(key(0), QUARANTINED_MAX)  # again: now 1 is the oldest
    assert len(at._quarantined) == QUARANTINED_MAX
    at.quarantine(key(99), QUARANTINED_MAX)
    held = [number for number in (*range(QUARANTINED_MAX), 99) if at.quarantined_ns(key(number), 100)]
    assert held == [0, *range(2, QUARANTINED_MAX), 99]
