"""The broker's state machine, event by event: batches, priorities, deadlines, requests of many rows."""

from __future__ import annotations

import pytest
from batchyard.broker import events as e
from batchyard.broker.config import BUDGETS_NS_DEFAULT
from batchyard.broker.policy import CREDIT, OVERDUE_SHARE
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
from batchyard.transport.tensors import Slot, Tensor, TensorSpec


@pytest.fixture
def world() -> World:
    """One client (1, arena 1) and one worker (1) that serves `net`, at most 4 rows a run."""
    made = World()
    made.client(1)
    made.worker(1)
    return made


# ---- batches ------------------------------------------------------------------------------------


def test_an_idle_worker_is_lent_a_single_request_at_once(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    assert numbers(batch) == [1]
    assert batch.rows == 1
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_a_batch_is_filled_up_to_the_maximum_in_order_of_arrival(world: World) -> None:
    for number in range(1, 7):
        world.submit(1, number)
    batch, *_ = world.turn()
    assert numbers(batch) == [1, 2, 3, 4]
    assert batch.rows == 4


@pytest.mark.parametrize(("large_bytes", "order"), [(1, [1, 2, 3]), (1 << 16, [3, 1, 2])])
def test_large_neighbours_in_memory_are_neighbours_in_a_batch(
    world: World, monkeypatch: pytest.MonkeyPatch, large_bytes: int, order: list[int]
) -> None:
    monkeypatch.setattr("batchyard.broker.core.LARGE_BYTES", large_bytes)
    for number in (3, 1, 2):
        world.submit(1, number)
    (batch,) = world.turn()
    assert numbers(batch) == order
    world.done(1, batch)
    assert world.outcomes(1) == dict.fromkeys(order, "ok")


def test_two_idle_workers_share_what_waits_before_one_is_given_more() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.worker(2)
    for number in range(1, 7):
        world.submit(1, number)
    world.turn()
    assert [numbers(batches[0]) for batches in world.lent.values()] == [[1, 2, 3, 4], [5, 6]]


def test_no_worker_is_lent_more_than_its_credit(world: World) -> None:
    for number in range(1, 40):
        world.submit(1, number)
    for _ in range(5):
        world.turn(MS)
    assert len(world.lent[1]) == CREDIT == 2


def test_a_busy_worker_is_prefetched_a_batch_as_large_as_the_one_it_runs(world: World) -> None:
    world.submit(1, 1)
    (running,) = world.turn()
    world.submit(1, 2)
    (prefetched,) = world.turn()
    assert numbers(prefetched) == [2]
    world.done(1, running)
    assert world.outcomes(1) == {1: "ok"}


def test_a_lone_request_behind_a_full_batch_waits_for_company_only_while_the_worker_is_busy(
    world: World,
) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (running,) = world.turn()
    world.submit(1, 5)
    assert world.turn() == []
    world.done(1, running)
    (batch,) = world.turn()
    assert numbers(batch) == [5]


def test_requests_of_different_shapes_never_share_a_batch() -> None:
    world = World()
    world.client(1)
    world.worker(
        1,
        net(
            inputs=[TensorSpec("x", 1, ["batch", "width"])], outputs=[TensorSpec("y", 1, ["batch", "width"])]
        ),
    )
    for number, width in enumerate((4, 8, 4, 8), start=1):
        message = m.Submit(number, "net", NORMAL, 0, [Tensor(1, [1, width], number * 1024)], [])
        world.do(e.Submitted(1, 1, message))
    shapes = [{item.inputs[0].shape[1] for item in batch.apart()} for batch in world.turn()]
    assert all(len(shape) == 1 for shape in shapes)


def test_a_model_that_cannot_batch_gets_one_request_at_a_time() -> None:
    world = World()
    world.client(1)
    spec = [TensorSpec("x", 1, [1, 4])]
    world.worker(
        1, net(inputs=spec, outputs=[TensorSpec("y", 1, [1, 4])], batchable=False, alone_reason="fixed")
    )
    for number in range(1, 4):
        world.submit(1, number)
    for batch in world.turn():
        assert len(batch.apart()) == 1
        assert batch.rows == 0


def test_a_worker_is_lent_only_models_that_it_has_loaded() -> None:
    world = World(("net", "other"))
    world.client(1)
    world.worker(1)
    world.worker(2, net(model="other"))
    world.submit(1, 1)
    world.submit(1, 2, model="other")
    world.turn()
    assert [batch.model for batch in world.lent[1]] == ["net"]
    assert [batch.model for batch in world.lent[2]] == ["other"]


def test_what_a_worker_is_lent_is_ended_for_several_clients_with_one_message_each() -> None:
    world = World()
    world.client(1)
    world.client(2)
    world.worker(1)
    for conn, number, arena in ((1, 1, 1), (2, 2, 2), (1, 3, 1), (2, 4, 2)):
        world.submit(conn, number, arena=arena)
    (batch,) = world.turn()
    assert [item.arena for item in batch.apart()] == [1, 2, 1, 2]
    world.done(1, batch)
    assert [message.requests for message in world.told[1]] == [[1, 3]]
    assert [message.requests for message in world.told[2]] == [[2, 4]]


# ---- priorities ---------------------------------------------------------------------------------


def test_urgent_goes_before_what_came_earlier_and_may_wait_longer(world: World) -> None:
    for number, priority in enumerate((LOW, NORMAL, HIGH, URGENT), start=1):
        world.submit(1, number, rows=4, priority=priority)
    order: list[int] = []
    for _ in range(4):
        world.turn()
        batch = world.lent[1][len(order)]
        order += numbers(batch)
        world.done(1, batch)
    assert order == [4, 3, 2, 1]


def test_low_is_not_starved_by_a_steady_stream_of_urgent_requests(world: World) -> None:
    """Once it is overdue, LOW has every OVERDUE_SHARE-th batch. Then it waits for what is lent, and runs."""
    world.submit(1, 1, rows=4, priority=LOW)
    submitted_ns = world.now_ns
    run_ns = 10 * MS
    number = 1
    waiting: list[m.Batch] = []
    while 1 not in world.outcomes(1):
        for _ in range(3):  # more than the worker can do, so that there is always an URGENT one
            number += 1
            world.submit(1, number, rows=4, priority=URGENT, deadline_ns=40 * MS)
        waiting += world.turn(run_ns)
        world.done(1, waiting.pop(0))
        assert world.now_ns - submitted_ns < 2 * BUDGETS_NS_DEFAULT[LOW], "LOW is starved"
    waited_ns = world.now_ns - submitted_ns
    bound_ns = BUDGETS_NS_DEFAULT[LOW] + (OVERDUE_SHARE + CREDIT + 1) * run_ns
    assert BUDGETS_NS_DEFAULT[LOW] // 2 < waited_ns <= bound_ns


def test_a_class_does_not_go_before_what_is_due_sooner_and_not_overdue(world: World) -> None:
    for number in (1, 2, 3):
        world.submit(1, number, rows=4)
    world.turn()  # the worker has its credit
    world.turn(90 * MS)
    world.submit(1, 4, rows=4, priority=HIGH)  # due in 25 ms; request 3 in 10
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [3]


def test_an_urgent_request_does_not_wait_for_everything_that_is_older(world: World) -> None:
    """With more work than workers everything gets old; URGENT still goes first, 7 times of 8."""
    for number in range(1, 101):
        world.submit(1, number, rows=4)
    waiting = world.turn(BUDGETS_NS_DEFAULT[NORMAL] * 2)
    for number in range(101, 121):
        world.submit(1, number, rows=4, priority=URGENT)
    heads = []
    for _ in range(16):
        world.done(1, waiting.pop(0))
        waiting += world.turn(MS)
        heads.append(numbers(waiting[-1])[0] > 100)
    first, second = (index for index, is_urgent in enumerate(heads) if not is_urgent)
    assert second - first == OVERDUE_SHARE


def test_a_low_request_with_a_near_deadline_does_not_buy_the_place_of_an_urgent_one(world: World) -> None:
    world.submit(1, 1, rows=4)
    world.submit(1, 2, rows=4)
    world.turn()  # the worker has its credit
    world.submit(1, 3, rows=4, priority=LOW, deadline_ns=2 * MS)
    world.turn(MS)
    world.submit(1, 4, rows=4, priority=URGENT)
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [4]


def test_a_nearer_deadline_goes_first_inside_a_class(world: World) -> None:
    world.submit(1, 1, rows=4)
    world.submit(1, 2, rows=4)
    world.turn()
    world.submit(1, 3, rows=4, deadline_ns=2_000 * MS)
    world.submit(1, 4, rows=4, deadline_ns=70 * MS)
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [4]


# ---- deadlines and cancellation -----------------------------------------------------------------


def test_expired_request_never_reaches_a_worker(world: World) -> None:
    for number in (1, 2):
        world.submit(1, number, rows=4)
    first, _ = world.turn()
    world.submit(1, 3, deadline_ns=5 * MS)
    assert world.core.next_deadline_ns() == world.now_ns + 5 * MS
    world.now_ns += 5 * MS
    world.done(1, first)
    assert world.turn() == []
    assert world.outcomes(1)[3] == "DEADLINE_EXCEEDED"
    assert world.last(1).held is False
    assert world.core.next_deadline_ns() > world.now_ns + 5 * MS  # only the running batch is watched


def test_request_that_expires_before_any_worker_serves_its_model_says_so(world: World) -> None:
    world.do(e.WorkerGone(1))
    world.submit(1, 1, deadline_ns=5 * MS)
    world.turn(5 * MS)
    assert world.outcomes(1) == {1: "DEADLINE_EXCEEDED"}
    assert "no worker was serving 'net'" in world.last(1).text


def test_request_that_expires_while_it_runs_ends_now_and_releases_its_slots_later(world: World) -> None:
    world.submit(1, 1, deadline_ns=5 * MS)
    (batch,) = world.turn()
    world.turn(5 * MS)
    assert world.outcomes(1) == {1: "DEADLINE_EXCEEDED"}
    assert world.last(1).held is True
    world.done(1, batch)
    assert world.last(1) == m.Released([1])


def test_requests_that_ended_long_before_their_deadline_are_not_kept_until_then(world: World) -> None:
    """A client's default deadline is 30 s: at 20,000 requests/s that would be 600,000 of them."""
    world.submit(1, 1, deadline_ns=60_000 * MS)
    world.do(e.Turn())
    for number in range(2, 5_000):
        world.submit(1, 2, deadline_ns=30_000 * MS + number)
        world.cancel(1, 2)
    assert len(world.core._deadlines) < 2_000
    assert world.core.next_deadline_ns() <= world.now_ns + 60_000 * MS


def test_cancelled_request_never_reaches_a_worker(world: World) -> None:
    for number in (1, 2, 3):
        world.submit(1, number)
    world.cancel(1, 2)
    assert world.outcomes(1) == {2: "CANCELLED"}
    assert world.last(1).held is False
    (batch,) = world.turn()
    assert numbers(batch) == [1, 3]


def test_cancelling_what_runs_ends_it_now_and_releases_its_slots_when_the_worker_is_done(
    world: World,
) -> None:
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    world.cancel(1, 1)
    assert world.last(1).held is True
    world.cancel(1, 1)  # it has its outcome: no second one
    world.done(1, batch)
    assert m.Released([1]) in world.told[1]
    assert world.outcomes(1) == {1: "CANCELLED", 2: "ok"}


def test_cancelling_what_never_was_or_has_ended_says_that_its_slots_are_free(world: World) -> None:
    """A client that was interrupted before it could listen asks again, and must not wait for ever."""
    world.cancel(1, 5, 6, 7)
    assert world.told[1] == [m.Released([5, 6, 7])]


def test_cancelling_what_is_still_held_says_nothing_until_the_worker_is_done(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.cancel(1, 1)
    world.cancel(1, 1)
    assert [type(message) for message in world.told[1]] == [m.Failed]
    world.done(1, batch)
    assert world.told[1][1:] == [m.Released([1])]
    assert world.core.connections[1].held == set()


# ---- many rows ----------------------------------------------------------------------------------


def test_request_with_more_rows_than_a_batch_runs_in_parts_and_completes_once(world: World) -> None:
    world.submit(1, 1, rows=10)
    ranges = []
    while not world.outcomes(1):
        world.turn()
        batch = world.lent[1][len(ranges)]
        (item,) = batch.apart()
        assert item.inputs == [Tensor(1, [10, 4], 64 * ROW_BYTES)]  # whole: a worker knows where its rows lie
        assert item.outputs == [Slot(64 * ROW_BYTES, 10 * ROW_BYTES)]
        assert item.rows == batch.rows
        ranges.append((item.start, item.rows))
        world.now_ns += 7
        world.done(1, batch)
    assert ranges == [(0, 4), (4, 4), (8, 2)]
    (answer,) = world.told[1]
    assert type(answer) is m.Completed
    receipt = answer.batch  # of all its batches together; it waited until the first of them
    assert (receipt.rows, receipt.gather_ns, receipt.compute_ns, receipt.scatter_ns) == (10, 3, 750_000, 3)
    assert (receipt.batch, answer.queue_ns) == (batch.batch, [0])


def test_parts_that_end_out_of_order_are_answered_in_order_of_rows() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(outputs=[TensorSpec("y", 1, ["batch", "found"])]))
    world.worker(2, net(outputs=[TensorSpec("y", 1, ["batch", "found"])]))
    world.submit(1, 1, rows=8, slots=False)
    world.turn()
    for worker, frame in ((2, b"second half"), (1, b"first half!")):
        (batch,) = world.lent[worker]
        outputs = [m.ItemOutputs(0, [Tensor(1, [4, 1], 0, 1)])]
        actions = world.say(worker, m.Done(EPOCH, batch.batch, 0, 1, 0, 0, outputs), [frame])
    (answer,) = actions
    assert isinstance(answer, e.ToClient)
    assert list(answer.frames) == [b"first half!", b"second half"]
    assert [[t.frame for t in part] for part in answer.message.parts] == [[1], [2]]


def test_cancelled_between_its_parts_a_request_gives_the_rest_of_its_rows_back(world: World) -> None:
    world.submit(1, 1, rows=12)
    first, second = world.turn()
    world.cancel(1, 1)
    assert world.last(1).held is True
    world.done(1, first)
    assert m.Released([1]) not in world.told[1]
    world.done(1, second)
    assert world.last(1) == m.Released([1])
    assert world.turn() == []


def test_small_requests_are_not_cut_in_two_to_fill_a_batch(world: World) -> None:
    world.submit(1, 1, rows=3)
    world.submit(1, 2, rows=2)
    batch, *_ = world.turn()
    assert numbers(batch) == [1]
    assert batch.rows == 3


def test_a_worker_is_told_which_requests_are_packed(world: World) -> None:
    """Whole, in columns, and in parts; those that are not share no item with them."""
    def ask(number: int, rows: int, packed: bool) -> None:
        at = number * 64 * ROW_BYTES
        tensors, slots = [Tensor(1, [rows, 4], at)], [Slot(at, rows * ROW_BYTES)]
        world.do(e.Submitted(1, 1, m.Submit(number, "net", NORMAL, 0, tensors, slots, None, packed)))

    for number, rows, packed in ((1, 1, True), (2, 1, True), (3, 1, False), (4, 6, True)):
        ask(number, rows, packed)
    seen = []
    for _ in range(4):
        for batch in world.turn():
            seen += [(number, item.packed) for number, item in zip(numbers(batch), batch.apart(), strict=True)]
            world.done(1, batch)
    assert sorted(set(seen)) == [(1, True), (2, True), (3, False), (4, True)]
    assert len(seen) > 4, "the last one came in parts"
    assert world.outcomes(1) == dict.fromkeys((1, 2, 3, 4), "ok")
