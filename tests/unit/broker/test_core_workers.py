"""The broker's state machine: workers that die or leave, batches that fail, messages about nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.books import LOSSES_MAX
from batchyard.broker.policy import CREDIT
from batchyard.broker.requests import Part
from batchyard.broker.taking import take_rows
from batchyard.tests.unit.broker.world import (
    EPOCH,
    World,
    net,
    numbers,
)
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import Tensor, TensorSpec


@pytest.fixture
def world() -> World:
    """One client (1, arena 1) and one worker (1) that serves `net`, at most 4 rows a run."""
    made = World()
    made.client(1)
    made.worker(1)
    return made


# ---- workers that die ---------------------------------------------------------------------------


def test_a_dead_workers_batches_go_back_and_run_elsewhere(world: World) -> None:
    for number in range(1, 9):
        world.submit(1, number)
    world.turn()
    world.do(e.WorkerGone(1))
    assert world.outcomes(1) == {}
    world.worker(2)
    while batches := world.turn():
        for batch in batches:
            world.done(2, batch)
    assert world.outcomes(1) == dict.fromkeys(range(1, 9), "ok")
    assert world.core.counters.workers_lost == 1


def test_request_that_kills_two_workers_alone_ends_with_worker_lost() -> None:
    world = World()
    world.client(1)
    for worker in range(1, LOSSES_MAX + 1):
        world.worker(worker)
        if worker == 1:
            world.submit(1, 1)
        assert world.outcomes(1) == {}
        (batch,) = world.turn()
        assert numbers(batch) == [1]
        world.do(e.WorkerGone(worker))
    assert world.outcomes(1) == {1: "WORKER_LOST"}
    assert world.last(1).held is False


def test_one_death_counts_once_however_many_parts_of_the_request_it_took() -> None:
    world = World()
    world.client(1)
    for worker in range(1, LOSSES_MAX):
        world.worker(worker)
        if worker == 1:
            world.submit(1, 1, rows=8)
        assert len(world.turn()) == CREDIT
        world.do(e.WorkerGone(worker))
        assert world.outcomes(1) == {}, f"given up after {worker} deaths"


def test_a_death_counts_although_the_batch_had_two_parts_of_the_request(world: World) -> None:
    """What was cut once and came back: there is nobody else to suspect."""
    world.submit(1, 1, rows=4)
    (lane,) = world.core.models["net"].lanes.values()
    (whole,) = take_rows(lane, 4)
    for start in (0, 2):
        lane.push_front(Part(whole.request, start, start + 2))
    for worker in range(1, 1 + LOSSES_MAX):
        assert world.outcomes(1) == {}
        world.turn()
        world.do(e.WorkerGone(worker))
        world.worker(worker + 1)
    assert world.outcomes(1) == {1: "WORKER_LOST"}


def test_request_cancelled_while_its_worker_dies_is_released_and_not_run_again(world: World) -> None:
    world.submit(1, 1)
    world.turn()
    world.cancel(1, 1)
    world.do(e.WorkerGone(1))
    assert world.told[1][-1] == m.Released([1])
    world.worker(2)
    assert world.turn() == []


def test_lost_requests_run_before_what_came_later(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    world.turn()
    world.submit(1, 9, rows=4)
    world.do(e.WorkerGone(1))
    world.worker(2)
    assert [numbers(batch) for batch in world.turn()] == [[1], [2]]  # each by itself


def test_a_request_that_kills_its_workers_takes_no_neighbour_with_it(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    world.turn()
    world.do(e.WorkerGone(1))
    worker = 1
    while len(world.outcomes(1)) < 4:
        worker += 1
        world.worker(worker)
        alive = True
        while alive and (batches := world.turn()):
            for batch in batches:
                if alive and 3 in numbers(batch):
                    world.do(e.WorkerGone(worker))
                    alive = False
                elif alive:
                    world.done(worker, batch)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "WORKER_LOST", 4: "ok"}
    assert worker <= 4


# ---- workers that leave -------------------------------------------------------------------------


def leave(world: World, worker: int) -> None:
    """Its device is lost: it says so, and its process ends."""
    said = world.say(worker, m.Leaving("887A0006"))
    assert [a.message for a in said if isinstance(a, e.ToWorker)] == [m.Dismissed()]
    assert world.turn() == [], "a worker that leaves is lent nothing"
    world.do(e.WorkerGone(worker))


def test_no_request_is_blamed_for_devices_that_were_lost_under_it() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.submit(1, 1)
    for worker in range(1, LOSSES_MAX + 3):
        (batch,) = world.turn()
        assert numbers(batch) == [1]
        leave(world, worker)
        assert world.outcomes(1) == {}
        world.worker(worker + 1)
    (batch,) = world.turn()
    world.done(LOSSES_MAX + 3, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_the_batches_of_a_lost_device_run_again_as_they_were(world: World) -> None:
    for number in range(1, 9):
        world.submit(1, number)
    assert [numbers(batch) for batch in world.turn()] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    leave(world, 1)
    world.worker(2)
    assert sorted(number for batch in world.turn() for number in numbers(batch)) == list(range(1, 9))
    assert world.core.counters.workers_left == 1


def test_a_worker_that_leaves_may_still_end_what_it_runs(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.say(1, m.Leaving("it goes to a better provider"))
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_of_a_model_that_is_not_idempotent_a_lost_devices_requests_fail(world: World) -> None:
    model = world.core.models["net"]
    model.config = replace(model.config, idempotent=False)
    world.submit(1, 1)
    world.turn()
    leave(world, 1)
    assert world.outcomes(1) == {1: "WORKER_LOST"}


def test_why_a_worker_is_on_no_better_provider_is_in_the_snapshot_and_beside_its_models(world: World) -> None:
    world.do(e.WorkerJoined(2, 5002, "webgpu is in quarantine"))
    world.say(2, net())
    assert gauges.snapshot(world.core)["workers_fallen"] == [[2, "webgpu is in quarantine"]]
    (model,) = world.core.models.values()
    assert [worker.fallback_reason for worker in model.info().workers] == ["", "webgpu is in quarantine"]


def test_a_worker_that_was_never_there_can_go(world: World) -> None:
    assert world.do(e.WorkerGone(99)) == []


# ---- batches that fail --------------------------------------------------------------------------


def run_with_one_poisoned(world: World, poisoned: set[int]) -> None:
    """A worker that fails every batch with a poisoned request in it, until nothing is left."""
    for _ in range(100):
        batches = world.turn()
        pending = [*world.core.workers[1].leases]
        if not batches and not pending:
            return
        for batch in [batch for batch in world.lent[1] if batch.batch in pending]:
            if poisoned & set(numbers(batch)):
                world.failed(1, batch)
            else:
                world.done(1, batch)
    raise AssertionError("bisection does not end")


@pytest.mark.parametrize("poisoned", [{1}, {2}, {3}, {4}, {1, 4}, {2, 3}, {1, 2, 3, 4}])
def test_a_failed_batch_is_bisected_and_only_the_guilty_fail(world: World, poisoned: set[int]) -> None:
    for number in range(1, 7):
        world.submit(1, number)
    run_with_one_poisoned(world, poisoned)
    assert world.outcomes(1) == {n: "MODEL_FAILED" if n in poisoned else "ok" for n in range(1, 7)}


def test_halves_of_a_failed_batch_are_not_mixed_with_what_waits(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.submit(1, 9)
    world.failed(1, batch)
    assert {tuple(sorted(numbers(half))) for half in world.turn()} == {(1, 2), (3, 4)}


def test_where_the_worker_names_the_item_at_fault_the_others_run_again_together(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.failed(1, batch, item=2)
    assert world.outcomes(1) == {3: "MODEL_FAILED"}
    (again,) = world.turn()
    assert sorted(numbers(again)) == [1, 2, 4]
    world.done(1, again)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "MODEL_FAILED", 4: "ok"}


@pytest.mark.parametrize("item", [4, 99, -2, 1 << 40])
def test_an_item_that_is_not_in_the_batch_is_as_good_as_none(world: World, item: int) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.failed(1, batch, item=item)
    assert world.outcomes(1) == {}
    run_with_one_poisoned(world, {3})
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "MODEL_FAILED", 4: "ok"}


def test_requests_that_ended_during_a_failed_batch_do_not_run_again(world: World) -> None:
    for number in range(1, 4):
        world.submit(1, number)
    (batch,) = world.turn()
    world.cancel(1, 2)
    world.failed(1, batch)
    assert m.Released([2]) in world.told[1]
    run_with_one_poisoned(world, {2})
    assert world.outcomes(1) == {1: "ok", 2: "CANCELLED", 3: "ok"}


@pytest.mark.parametrize("code", [0, 999, -1, 1 << 40])
def test_a_failure_with_a_code_that_does_not_exist_still_ends_the_request_with_an_error(
    world: World, code: int
) -> None:
    """A worker's message is a peer's data too: it must not end the broker."""
    world.submit(1, 1)
    (batch,) = world.turn()
    world.say(1, m.BatchFailed(EPOCH, batch.batch, code, "what?"))
    assert world.outcomes(1) == {1: "MODEL_FAILED"}


# ---- messages that are about nothing ------------------------------------------------------------


def test_stale_epochs_unknown_batches_and_repeated_answers_are_counted_and_ignored(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(1, batch, epoch=EPOCH + 1)
    world.say(1, m.Done(EPOCH, 999, 0, 0, 0, 0, []))
    world.say(1, m.BatchFailed(EPOCH - 1, batch.batch, Code.MODEL_FAILED, ""))
    assert world.outcomes(1) == {}
    world.done(1, batch)
    world.done(1, batch)
    world.failed(1, batch)
    assert world.outcomes(1) == {1: "ok"}
    assert world.core.counters.refused == {"stale_batch": 5}


def test_a_worker_cannot_end_another_workers_batch() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.worker(2)
    world.submit(1, 1)
    (batch,) = world.turn()
    other = 2 if world.lent.get(1) else 1
    world.done(other, batch)
    world.failed(other, batch)
    assert world.outcomes(1) == {}


def test_answers_that_name_items_and_frames_that_are_not_there_do_not_end_the_core(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    world.done(1, batch, inline_outputs=[m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 7)]), m.ItemOutputs(55, [])])
    assert world.outcomes(1) == {1: "WORKER_LOST", 2: "ok"}


@pytest.mark.parametrize(
    "spec", [TensorSpec("x", 8, ["n", 4]), TensorSpec("x", 99, ["n", 4]), TensorSpec("x", 1, ["n", -4])]
)
def test_metadata_that_no_model_can_have_makes_the_load_fail_and_not_the_broker(spec: TensorSpec) -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[spec]))
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    assert world.last(1).models[0].state is m.ModelState.FAILED
    world.worker(2)
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(2, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_a_load_for_an_unknown_model_or_another_revision_is_ignored(world: World) -> None:
    world.say(1, net(model="nothing"))
    world.say(1, net(revision=9))
    world.say(1, m.LoadFailed("nothing", 1, "no"))
    world.say(1, m.LoadFailed("net", 9, "no"))
    assert world.core.counters.refused == {"stale_load": 4}
    assert world.core.models["net"].state is m.ModelState.READY
