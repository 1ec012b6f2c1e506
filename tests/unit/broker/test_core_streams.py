"""A model that answers a request several times, through the core: its answers, its end, and what waits behind."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.tests.unit.broker.world import EPOCH, MS, World, net, numbers
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import Tensor

OUTPUT = Tensor(1, [1, 4], 0, 1)
FRAME = [b"0123456789abcdef"]
STREAM: dict[str, Any] = {"batchable": False, "streams": True, "max_batch": 1}


@pytest.fixture
def world() -> World:
    """One client and one worker, whose model yields."""
    made = World()
    made.client(1)
    made.worker(1, net(**STREAM))
    return made


def yields(world: World, batch: m.Batch, *outputs: Tensor, worker: int = 1, frames: Any = FRAME) -> list[e.Action]:
    return world.say(worker, m.Yielded(EPOCH, batch.batch, list(outputs or (OUTPUT,))), frames)


def ends(world: World, batch: m.Batch, worker: int = 1) -> None:
    world.say(worker, m.Done(EPOCH, batch.batch, 1, 1, 1, 0, [m.ItemOutputs(0, [])]))


def test_each_answer_is_passed_on_with_its_frames_and_the_end_has_none(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    for _ in range(2):
        (action,) = yields(world, batch)
        assert isinstance(action, e.ToClient)
        assert (action.message, action.frames) == (m.Streamed(1, [OUTPUT]), FRAME)
    ends(world, batch)
    last = world.last(1)
    assert isinstance(last, m.Answer)
    assert last.parts == [[]]
    assert world.core.is_idle


def test_a_stream_whose_request_has_ended_is_unwanted(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.cancel(1, 1)
    assert yields(world, batch) == [e.ToWorker(1, m.Unwanted(batch.batch))]
    ends(world, batch)
    assert world.last(1) == m.Released([1])


def test_nothing_waits_behind_a_stream(world: World) -> None:
    for number in range(1, 4):
        world.submit(1, number)
    (first,) = world.turn()
    assert world.turn(10_000 * MS) == []
    ends(world, first)
    (second,) = world.turn()
    assert numbers(second) == [2]


def test_a_worker_that_dies_is_not_asked_again_for_answers_that_its_client_has(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 2)
    (first,) = world.turn()
    yields(world, first)
    world.worker(2, net(**STREAM))
    (second,) = world.turn()
    world.do(e.WorkerGone(1))
    world.do(e.WorkerGone(2))
    failed = world.last(1)
    assert isinstance(failed, m.Failed)
    assert (failed.request, failed.code) == (1, Code.WORKER_LOST)
    world.worker(3, net(**STREAM))
    (again,) = world.turn()
    assert numbers(again) == numbers(second) == [2]


def test_answers_of_no_stream_or_without_their_frames_are_not_passed_on(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    other = m.Batch(batch.batch + 1, "net", 1, 0, [])
    assert yields(world, other) == []
    yields(world, batch, Tensor(1, [1, 4], 0, 2))
    failed = world.last(1)
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.WORKER_LOST


def test_a_worker_of_another_kind_of_answers_does_not_serve(world: World) -> None:
    world.worker(2, net(batchable=False, max_batch=1))
    assert list(world.core.models["net"].workers) == [1]
    assert "several times" in world.core.models["net"].failures[2]


def test_a_stream_past_its_deadline_is_given_time_to_hear_of_it(world: World) -> None:
    world.submit(1, 1, deadline_ns=6_000 * MS)
    (batch,) = world.turn()
    assert batch.lease_ns > 6_000 * MS
    world.turn(6_001 * MS)
    assert world.last(1).code == Code.DEADLINE_EXCEEDED
    assert yields(world, batch) == [e.ToWorker(1, m.Unwanted(batch.batch))]
