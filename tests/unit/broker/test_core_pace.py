"""The broker's state machine: batches by predicted times, rows that turn out dependent, the end, columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker.leases import HUNG_UNKNOWN_NS
from batchyard.broker.timing import STEADY_RUNS
from batchyard.tests.unit.broker.world import (
    EPOCH,
    HIGH,
    LOW,
    MS,
    NORMAL,
    ROW_BYTES,
    URGENT,
    World,
    net,
    numbers,
)
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import Slot, Tensor, TensorSpec


@pytest.fixture
def world() -> World:
    """One client (1, arena 1) and one worker (1) that serves `net`, at most 4 rows a run."""
    made = World()
    made.client(1)
    made.worker(1)
    return made


# ---- scheduling by predicted times ------------------------------------------------------------------


def timed(**warmup_ms: int) -> m.Loaded:
    """`net` with a warm-up: rows -> milliseconds."""
    loaded = net()
    loaded.warmup_ns = {int(rows[1:]): ms * MS for rows, ms in warmup_ms.items()}
    return loaded


@pytest.fixture
def paced() -> World:
    """A worker that needs 10 ms for one row and 40 ms for four (its maximum)."""
    world = World()
    world.client(1)
    world.worker(1, timed(r1=10, r2=20, r4=40))
    return world


def test_a_batch_is_no_larger_than_its_nearest_deadline_allows(paced: World) -> None:
    paced.submit(1, 1, deadline_ns=25 * MS)
    for number in range(2, 5):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [2]


def test_what_is_lent_ahead_is_bound_only_when_the_running_batch_is_nearly_done(paced: World) -> None:
    for number in range(1, 9):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [4]  # 40 ms
    assert paced.core.next_deadline_ns() == paced.now_ns + 38 * MS
    assert paced.turn(37 * MS) == []
    paced.submit(1, 9, priority=HIGH)  # it still goes ahead of what waited longer
    (ahead,) = paced.turn(1 * MS)
    assert numbers(ahead)[0] == 9
    assert paced.core.next_deadline_ns() != paced.now_ns


@pytest.mark.parametrize("lie", [{1: 1, 4: 1}, {1: 10**13, 4: 10**13}, {4: 10**13}, {1: 10**13}])
def test_a_file_that_lies_about_its_times_has_nobody_refused_and_no_worker_killed(
    lie: dict[int, int],
) -> None:
    """Without a warm-up nothing is measured: the first batch runs as if nothing were claimed."""
    world = World()
    world.client(1)
    world.worker(1, net(claimed_ns=lie))
    for number in range(1, 9):
        world.submit(1, number, deadline_ns=200 * MS)
    first, *ahead = world.turn()
    assert first.lease_ns == HUNG_UNKNOWN_NS
    world.done(1, first)  # in next to no time: now that is what counts
    assert world.core.workers[1].timings["net"].predict_ns(4) < 3 * MS
    world.submit(1, 9, deadline_ns=200 * MS)
    assert set(world.outcomes(1).values()) == {"ok"}
    while ahead := [*ahead, *world.turn()]:
        world.done(1, ahead.pop(0))
    assert list(world.outcomes(1)) == list(range(1, 10))


def test_after_one_batch_what_the_file_claims_says_how_long_a_full_one_takes() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(claimed_ns={1: 10 * MS, 4: 20 * MS}))
    assert world.core.models["net"].row_ns == 0
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(1, batch, compute_ns=20 * MS)  # half as fast as claimed
    assert world.core.models["net"].row_ns == pytest.approx(10 * MS, rel=0.01)


def test_without_deadlines_the_batch_is_full(paced: World) -> None:
    for number in range(1, 6):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [4]


def test_what_would_miss_its_deadline_is_refused_at_once_and_told_when_to_come_back(paced: World) -> None:
    for number in range(1, 9):
        paced.submit(1, number)
    paced.turn()  # two batches of 40 ms are lent
    paced.submit(1, 9, deadline_ns=60 * MS)
    assert paced.outcomes(1)[9] == "OVERLOADED"
    assert paced.last(1).retry_after_ns == 30 * MS  # it would be done in 90 ms
    paced.submit(1, 10, deadline_ns=100 * MS)
    assert 10 not in paced.outcomes(1)


def test_an_idle_yard_does_not_second_guess_a_short_deadline(paced: World) -> None:
    paced.submit(1, 1, deadline_ns=1 * MS)
    assert [batch.rows for batch in paced.turn()] == [1]


def test_while_urgent_requests_come_other_batches_are_kept_short(paced: World) -> None:
    paced.submit(1, 1, priority=URGENT)
    (urgent,) = paced.turn()
    for number in range(2, 8):
        paced.submit(1, number)
    assert paced.turn() == []  # nothing is lent ahead of an urgent request that may come
    paced.done(1, urgent)
    assert [batch.rows for batch in paced.turn()] == [1]  # the least that can be run; 5 ms were allowed


def test_a_worker_that_runs_one_batch_for_far_too_long_is_killed_once(paced: World) -> None:
    for _ in range(STEADY_RUNS):
        paced.core.models["net"].steadiness.ran(1, 1)
    paced.submit(1, 1)
    paced.turn()
    due_ns = paced.core.next_deadline_ns()
    assert due_ns is not None
    paced.now_ns = due_ns
    actions = paced.core.handle(e.Turn(), paced.now_ns)
    assert actions == [e.KillWorker(1)]
    assert paced.core.handle(e.Turn(), paced.now_ns + 1) == []
    paced.do(e.WorkerGone(1))
    paced.worker(2, timed(r1=10))
    assert [batch.rows for batch in paced.turn()] == [1]


def test_predictions_follow_what_batches_take(paced: World) -> None:
    timing = paced.core.workers[1].timings["net"]
    paced.submit(1, 1)
    (batch,) = paced.turn()
    paced.do(e.WorkerSaid(1, m.Done(EPOCH, batch.batch, 0, 30 * MS, 0, 0, [])))
    assert timing.predict_ns(1) == 20 * MS


def test_a_request_said_twice_has_one_outcome_and_another_under_its_number_is_refused(world: World) -> None:
    world.submit(1, 1, deadline_ns=50 * MS)
    world.submit(1, 1, deadline_ns=20 * MS)  # sent again, when less time was left
    assert 1 not in world.told
    world.submit(1, 1, rows=2)
    world.submit(1, 1, priority=LOW)
    assert [type(message) for message in world.told[1]] == [m.Refused, m.Refused]
    (batch,) = world.turn()
    assert numbers(batch) == [1]
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


# ---- rows that are none after all ---------------------------------------------------------------


def alone(world: World, worker: int = 1, revision: int = 1) -> None:
    world.say(worker, m.RunsAlone("net", revision, "output 'y' came out with shape [1, 4] for 3 rows"))


def run_all(world: World) -> list[tuple[int, list[int], list[tuple[int, int]]]]:
    """Run what waits: (Batch.rows, its requests, their start and rows) of each batch."""
    ran = []
    for _ in range(50):
        for batch in world.turn():
            ran.append((batch.rows, numbers(batch), [(item.start, item.rows) for item in batch.apart()]))
            world.done(1, batch)
    return ran


def test_what_waits_runs_one_by_one_once_rows_are_disproved(world: World) -> None:
    for number, rows in ((1, 1), (2, 9), (3, 2)):
        world.submit(1, number, rows)
    alone(world)
    world.submit(1, 4, rows=3)
    assert run_all(world) == [(0, [n], [(0, 0)]) for n in (1, 2, 3, 4)]
    assert world.outcomes(1) == dict.fromkeys((1, 2, 3, 4), "ok")
    world.do(e.DescribeAsked(1, m.Describe(9, "net")))
    (info,) = world.last(1).models
    assert (info.batchable, info.max_batch) == (False, 1)
    assert info.alone_reason == "output 'y' came out with shape [1, 4] for 3 rows"


def test_what_has_run_in_parts_is_run_again_as_a_whole(world: World) -> None:
    world.submit(1, 1, rows=10)
    first, second = world.turn()
    world.done(1, first)
    assert (second.rows, second.apart()[0].start) == (4, 4)
    alone(world)  # before the answer, as a worker says it
    world.done(1, second)
    assert world.outcomes(1) == {}
    ran = run_all(world)
    assert ran[-1] == (0, [1], [(0, 0)])
    assert world.outcomes(1) == {1: "ok"}


def test_parts_that_are_all_lent_are_run_again_as_a_whole_too(world: World) -> None:
    world.submit(1, 1, rows=8)
    first, second = world.turn()
    assert [batch.apart()[0].start for batch in (first, second)] == [0, 4]
    alone(world)
    for batch in (first, second):
        world.done(1, batch)
    assert world.outcomes(1) == {}
    assert run_all(world) == [(0, [1], [(0, 0)])]
    assert world.outcomes(1) == {1: "ok"}


def test_parts_that_only_wait_are_run_again_as_a_whole_too() -> None:
    """A worker died under the first part: nothing is done, nothing is lent, and the request is in two."""
    world = World()
    world.client(1)
    world.worker(1)
    world.submit(1, 1, rows=6)
    world.turn()
    world.do(e.WorkerGone(1))
    world.worker(3)
    alone(world, 3)
    parts = []
    for _ in range(9):
        for batch in world.turn():
            parts.append((batch.apart()[0].start, batch.apart()[0].rows))
            world.done(3, batch)
    assert parts[-1] == (0, 0)
    assert world.outcomes(1) == {1: "ok"}


def test_where_nothing_may_run_twice_a_request_in_parts_that_are_none_fails(world: World) -> None:
    world.core.models["net"].config = replace(world.core.models["net"].config, idempotent=False)
    world.submit(1, 1, rows=6)
    world.submit(1, 2)
    (first,) = world.turn()
    alone(world)
    world.done(1, first)
    run_all(world)
    assert world.outcomes(1) == {1: "MODEL_FAILED", 2: "ok"}


def test_another_revisions_disproof_is_nothing_to_this_one(world: World) -> None:
    alone(world, revision=2)
    world.say(1, m.RunsAlone("nothing", 1, "no"))
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    assert batch.rows == 2


def test_workers_that_do_not_see_the_same_run_everything_alone() -> None:
    """One found no inputs to try in time, the other did: neither is refused."""
    for said in (False, True):
        world = World()
        world.client(1)
        kinds = [net(batchable=said, alone_reason="" if said else "no inputs could be invented")]
        kinds.append(net(batchable=not said, alone_reason="no inputs could be invented" if said else ""))
        for number, kind in enumerate(kinds, start=1):
            world.worker(number, kind)
        for number in (1, 2, 3):
            world.submit(1, number)
        assert [(batch.rows, len(batch.apart())) for batch in world.turn()][:2] == [(0, 1), (0, 1)]
        world.do(e.DescribeAsked(1, m.Describe(9, "net")))
        (info,) = world.last(1).models
        assert len(info.workers) == 2
        assert info.alone_reason == "no inputs could be invented"


def test_a_request_that_is_larger_than_a_batch_is_whole_where_it_runs_alone() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[TensorSpec("x", 1, ["n", 4]), TensorSpec("k", 1, ["m", 4])], batch_axes=[0, 0, 0]))
    inputs = [Tensor(1, [9, 4], 0), Tensor(1, [5, 4], 1024)]
    world.do(e.Submitted(1, 1, m.Submit(1, "net", NORMAL, 0, inputs, [])))
    world.do(e.Submitted(1, 1, m.Submit(2, "net", NORMAL, 0, inputs, [])))
    first, second = world.turn()
    assert [(batch.rows, len(batch.apart()), batch.apart()[0].rows) for batch in (first, second)] == [(0, 1, 0)] * 2
    world.failed(1, first)
    assert world.outcomes(1) == {1: "MODEL_FAILED"}, "it was alone in its batch"


def test_a_lane_whose_last_request_is_cancelled_is_looked_at_no_more() -> None:
    """Else whoever waits there last keeps it for good, and every round looks for something to lend."""
    world = World()
    world.client(1)
    world.worker(1)
    for number in (1, 2, 3):
        world.submit(1, number)
        world.turn()
    assert len(world.lent[1]) == 2
    assert world.core.policy.lanes
    world.cancel(1, 3)
    for batch in world.lent[1]:
        world.done(1, batch)
    assert not world.core.policy.lanes


# ---- the end ------------------------------------------------------------------------------------


def test_a_broker_that_stops_answers_what_it_has_admitted_and_refuses_the_rest_at_once(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.submit(1, 2)
    world.do(e.Stopping())
    assert not world.core.is_idle
    world.submit(1, 3)
    refused = world.told[1][-1]
    assert isinstance(refused, m.Failed)
    assert (refused.request, refused.code, refused.retry_after_ns) == (3, Code.OVERLOADED, 1_000 * MS)
    assert "is being stopped" in refused.text
    world.do(e.DescribeAsked(1, m.Describe(4, "net")))
    assert (world.told[1][-1].request, world.told[1][-1].code) == (4, Code.OVERLOADED)
    world.done(1, batch)
    (batch,) = world.lent[1][1:] or world.turn()
    assert not world.core.is_idle
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "OVERLOADED", 4: "OVERLOADED"}
    assert world.core.is_idle


def test_a_broker_that_gives_notice_says_so_of_every_model_and_admits_as_before(world: World) -> None:
    world.do(e.Leaving())
    for asked in ("", "net"):
        world.do(e.DescribeAsked(1, m.Describe(9, asked)))
        (info,) = world.told[1][-1].models
        assert info.state is m.ModelState.READY
        assert "is being stopped" in info.reason
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(1, batch)
    assert world.outcomes(1)[1] == "ok"


def test_nobody_is_waited_for_who_has_gone(world: World) -> None:
    world.submit(1, 1)
    world.turn()
    world.do(e.Stopping())
    world.do(e.ClientGone(1))
    assert world.core.is_idle


# ---- requests in columns ------------------------------------------------------------------------


def together(*numbers: int, rows: int = 1, left_ns: Sequence[int] = (), **changed: Any) -> m.Submit:
    """The requests that World.submit would send one by one."""
    left_ns = left_ns or [0] * len(numbers)
    first, *others = ([number * 64 * ROW_BYTES] * 2 for number in numbers)
    more = m.More(list(numbers[1:]), list(left_ns[1:]), [offset for places in others for offset in places])
    inputs, outputs = [Tensor(1, [rows, 4], first[0])], [Slot(first[1], rows * ROW_BYTES)]
    fields = {"model": "net", "priority": NORMAL} | changed
    return m.Submit(numbers[0], fields["model"], fields["priority"], left_ns[0], inputs, outputs, more)


def test_requests_in_columns_run_as_those_that_came_one_by_one(world: World) -> None:
    world.client(2)
    world.do(e.Submitted(1, 1, together(1, 2, 3, 4, 5)))
    for number in range(1, 6):
        world.submit(2, number, arena=2)
    seen: dict[int, list[int]] = {1: [], 2: []}
    while batches := world.turn():
        for batch in batches:
            for item in batch.apart():
                seen[item.arena].append(item.inputs[0].offset // (64 * ROW_BYTES))
                assert item.outputs == [Slot(item.inputs[0].offset, ROW_BYTES)]
            world.done(1, batch)
    assert seen == {1: [1, 2, 3, 4, 5], 2: [1, 2, 3, 4, 5]}
    assert world.outcomes(1) == world.outcomes(2) == dict.fromkeys(range(1, 6), "ok")
    assert world.core.admission.rows == world.core.admission.nbytes == world.core.books.held_bytes == 0


def test_requests_that_are_alike_are_lent_in_columns_however_they_came(world: World) -> None:
    world.do(e.Submitted(1, 1, together(1, 2)))
    world.submit(1, 3)
    world.submit(1, 4)
    (batch,) = world.turn()
    (item,) = batch.items
    assert numbers(batch) == [1, 2, 3, 4]
    assert len(item.more) == 2 * 3


def test_each_in_columns_has_a_deadline_of_its_own_and_can_be_cancelled(world: World) -> None:
    world.do(e.Submitted(1, 1, together(1, 2, 3, left_ns=[10**9, 5_000_000, 10**9])))
    world.cancel(1, 3)
    (batch,) = world.turn(6_000_000)
    assert numbers(batch) == [1]
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok", 2: "DEADLINE_EXCEEDED", 3: "CANCELLED"}


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        (together(1, 2, 1 << 40), {1 << 40: "INVALID_REQUEST"}),  # outside the arena
        (together(1, 2, 3, model="other"), dict.fromkeys((1, 2, 3), "UNKNOWN_MODEL")),
        (together(7, 8, rows=3), {8: "OVERLOADED"}),
    ],
    ids=["one is outside", "no such model", "there is room for one"],
)
def test_where_one_in_columns_is_wrong_the_others_are_not(message: m.Submit, refused: dict[int, str]) -> None:
    world = World(queue_rows_max=5)
    world.client(1)
    world.worker(1)
    world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == refused


def test_a_number_that_is_under_way_is_refused_and_the_others_in_its_columns_are_not(world: World) -> None:
    world.submit(1, 2, rows=2)
    world.do(e.Submitted(1, 1, together(1, 2, 3)))
    assert isinstance(world.last(1), m.Refused)
    assert sorted(world.core.connections[1].requests) == [1, 2, 3]
    world.do(e.Submitted(1, 1, together(4, 4)))
    assert sorted(world.core.connections[1].requests) == [1, 2, 3, 4]
