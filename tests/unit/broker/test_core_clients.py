"""The broker's state machine: admission, descriptions, clients that leave, and their arenas."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.gauges import LANES_MAX
from batchyard.broker.lanes import Lane
from batchyard.broker.models import ALONE
from batchyard.broker.policy import CREDIT
from batchyard.tests.unit.broker.world import (
    ARENA_BYTES,
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
from batchyard.transport import snapshot
from batchyard.transport.messages import Priority
from batchyard.transport.tensors import Tensor, TensorSpec


@pytest.fixture
def world() -> World:
    """One client (1, arena 1) and one worker (1) that serves `net`, at most 4 rows a run."""
    made = World()
    made.client(1)
    made.worker(1)
    return made


# ---- admission ----------------------------------------------------------------------------------


def test_a_second_request_of_one_number_is_refused_and_the_first_lives_on(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 1, rows=2)
    assert isinstance(world.last(1), m.Refused)
    (batch,) = world.turn()
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}
    world.submit(1, 1)  # it has ended: its number is free again
    assert len(world.turn()) == 1


@pytest.mark.parametrize(
    ("limits", "who"),
    [
        ({"queue_rows_max": 10}, "the yard"),
        ({"queue_bytes_max": 10 * 2 * ROW_BYTES}, "the yard"),
        ({"client_rows_max": 10}, "this client"),
        ({"client_bytes_max": 10 * 2 * ROW_BYTES}, "this client"),
    ],
)
def test_past_a_bound_a_request_is_refused_at_once_with_when_to_come_back(
    limits: dict[str, int], who: str
) -> None:
    world = World(**limits)
    world.client(1)
    world.worker(1)
    for number in range(1, 11):
        world.submit(1, number, priority=URGENT)
    assert world.outcomes(1) == {}
    world.submit(1, 11, priority=URGENT)
    assert world.outcomes(1) == {11: "OVERLOADED"}
    assert world.last(1).retry_after_ns >= MS
    assert who in world.last(1).text
    assert next(iter(limits)) in world.last(1).text
    batch = world.turn()[0]
    world.done(1, batch)  # four rows ended: there is room for four
    for number in range(12, 16):
        world.submit(1, number, priority=URGENT)
    assert set(world.outcomes(1)) == {11, *numbers(batch)}


@pytest.mark.parametrize(("priority", "rows"), [(LOW, 80), (NORMAL, 90), (HIGH, 95), (URGENT, 100)])
def test_a_queue_that_fills_is_closed_for_the_lowest_class_first(priority: Priority, rows: int) -> None:
    world = World(queue_rows_max=100)
    world.client(1)
    world.worker(1)
    for number in range(1, rows + 1):
        world.submit(1, number, priority=LOW if number <= 80 else URGENT)
    assert world.outcomes(1) == {}
    world.submit(1, 101, priority=priority)
    assert world.outcomes(1) == {101: "OVERLOADED"}
    if priority:
        assert f"({rows} % of queue_rows_max = 100)" in world.last(1).text
        world.submit(1, 102, priority=Priority(priority - 1))
        assert 102 not in world.outcomes(1)


def test_a_request_that_is_too_large_is_told_what_is_allowed_and_how_to_split_it() -> None:
    world = World(client_rows_max=1000)
    world.client(1)
    world.worker(1)
    world.submit(1, 1, rows=60_000, slots=False)
    assert world.outcomes(1) == {1: "INVALID_REQUEST"}
    assert world.last(1).text == (
        "60,000 rows exceed the 58,982 allowed (90 % of queue_rows_max = 65,536); split the request into parts "
        "of at most 1,000 rows"
    )


def test_one_clients_bound_leaves_room_for_the_others() -> None:
    world = World(client_rows_max=4)
    world.worker(1)
    for conn in (1, 2):
        world.client(conn)
    world.submit(1, 1, rows=4)
    world.submit(1, 2)
    world.submit(2, 1, rows=4, arena=2)
    assert world.outcomes(1) == {2: "OVERLOADED"}
    assert world.outcomes(2) == {}


def test_an_unknown_model_is_an_error_that_names_those_that_there_are(world: World) -> None:
    world.submit(1, 1, model="nte")
    assert world.outcomes(1) == {1: "UNKNOWN_MODEL"}
    assert "net" in world.last(1).text


def test_a_model_that_no_worker_has_loaded_yet_asks_to_come_back() -> None:
    world = World()
    world.client(1)
    world.submit(1, 1)
    assert world.outcomes(1) == {1: "OVERLOADED"}
    assert world.last(1).retry_after_ns > 0


def test_a_lying_handle_is_refused_and_nothing_is_held_for_it(world: World) -> None:
    message = m.Submit(1, "net", NORMAL, 0, [Tensor(1, [1, 4], ARENA_BYTES - 8)], [])
    world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == {1: "INVALID_REQUEST"}
    assert world.core.admission.rows == world.core.admission.nbytes == 0


# ---- describing ---------------------------------------------------------------------------------


def test_describe_waits_while_the_model_loads_and_is_then_answered() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    assert world.told.get(1, []) == []
    world.worker(1)
    (described,) = world.told[1]
    assert described.request == 5
    assert described.models[0].state is m.ModelState.READY
    assert [worker.worker for worker in described.models[0].workers] == [1]


def test_describe_of_a_model_that_cannot_be_loaded_is_answered_with_the_reason() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    world.do(e.WorkerJoined(1, 5001))
    world.say(1, m.LoadFailed("net", 1, "Protobuf parsing failed"))
    (described,) = world.told[1]
    assert described.models[0].state is m.ModelState.FAILED
    assert described.models[0].reason == "Protobuf parsing failed"


def test_describe_of_everything_is_answered_at_once_and_of_an_unknown_name_with_an_error() -> None:
    world = World(("net", "other"))
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "")))
    assert [model.name for model in world.last(1).models] == ["net", "other"]
    world.do(e.DescribeAsked(1, m.Describe(6, "nothing")))
    assert world.outcomes(1) == {6: "UNKNOWN_MODEL"}


def test_a_client_that_left_is_not_told_what_it_asked() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    world.do(e.ClientGone(1))
    world.worker(1)
    assert world.told.get(1, []) == []


# ---- clients that leave, and their arenas -------------------------------------------------------


def test_a_client_that_left_frees_everything_and_its_arena_is_closed_after_the_last_lease(
    world: World,
) -> None:
    for number in range(1, 11):
        world.submit(1, number)
    first, second = world.turn()
    world.do(e.ClientGone(1))
    assert world.core.admission.rows == world.core.admission.nbytes == 0
    assert world.closed == []  # a worker may still write
    world.done(1, first)
    assert world.closed == []
    world.failed(1, second)
    assert world.closed == [1]
    assert world.turn() == []
    assert world.core.arenas == {}


def test_a_client_that_left_with_nothing_under_way_has_its_arena_closed_at_once(world: World) -> None:
    world.do(e.ClientGone(1))
    assert world.closed == [1]
    world.do(e.ClientGone(1))
    assert world.closed == [1]


def test_an_arena_that_two_connections_share_is_closed_with_the_second(world: World) -> None:
    world.client(2, arena=1)
    world.do(e.ClientGone(1))
    assert world.closed == []
    world.do(e.ClientGone(2))
    assert world.closed == [1]


def test_the_brokers_own_arena_outlives_every_client() -> None:
    world = World()
    world.do(e.ArenaOpened(9, ARENA_BYTES, pinned=True))
    world.worker(1)
    for conn in (1, 2):
        world.client(conn, arena=9)
        world.submit(conn, 1, arena=9)
    (batch,) = world.turn()
    world.do(e.ClientGone(1))
    world.do(e.ClientGone(2))
    world.done(1, batch)
    assert world.closed == []
    assert 9 in world.core.arenas


def test_requests_of_a_client_that_left_are_released_to_the_loop_exactly_once() -> None:
    """The loop frees the slots of inline requests by this message, whoever still listens."""
    world = World()
    world.do(e.ArenaOpened(9, ARENA_BYTES, pinned=True))
    world.client(1, arena=9)
    world.worker(1)
    for number in range(1, 11):
        world.submit(1, number, arena=9)
    first, second = world.turn()
    world.do(e.ClientGone(1))
    world.done(1, first)
    world.failed(1, second)
    released = [n for message in world.told[1] if isinstance(message, m.Released) for n in message.requests]
    assert sorted(released) == list(range(1, 11))


def test_counters_and_gauges_tell_what_happened(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 2, priority=LOW)
    (batch,) = world.turn()
    counts = {
        "rows_under_way": 2,
        "bytes_under_way": 4 * ROW_BYTES,
        "clients": 1,
        "workers": 1,
        "batches_lent": 1,
    }
    assert counts.items() <= gauges.snapshot(world.core).items()
    world.done(1, batch)
    counters = world.core.counters.snapshot()
    assert sorted(counters["requests"]) == [["net", 2, "ok", 1], ["net", 3, "ok", 1]]
    assert (counters["batches"], counters["rows"]) == (1, 2)


def test_every_request_is_counted_once_under_the_outcome_that_its_client_was_told() -> None:
    world = World(queue_rows_max=40)
    world.client(1)
    world.worker(1)
    world.submit(1, 1)
    world.submit(1, 1)  # said twice: one request
    world.submit(1, 2, priority=LOW)
    world.submit(1, 3, model="nonesuch", priority=HIGH)
    world.submit(1, 5, rows=35)
    world.do(e.Submitted(1, 1, m.Submit(4, "net", NORMAL, 0, [Tensor(7, [1, 4], 0)], [])))
    world.submit(1, 6, deadline_ns=MS)
    (batch, *_) = world.turn(0)
    world.done(1, batch)
    world.submit(1, 7)
    world.submit(1, 8)
    world.cancel(1, 8)
    for _ in range(3):
        for batch in world.turn(2 * MS):
            world.failed(1, batch)
    world.submit(1, 9)
    (batch,) = world.turn()
    world.done(1, batch, inline_outputs=[m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 7)])])  # a frame that isn't there
    told: dict[str, int] = {}
    for outcome in world.outcomes(1).values():
        told[outcome.lower()] = told.get(outcome.lower(), 0) + 1
    counted: dict[str, int] = {}
    for _, _, outcome, count in gauges.snapshot(world.core)["requests"]:
        counted[outcome] = counted.get(outcome, 0) + count
    assert counted == told
    assert sum(counted.values()) == 9
    assert {"ok", "unknown_model", "invalid_request", "overloaded", "cancelled", "worker_lost"} <= set(counted)


def test_a_name_that_no_model_has_is_never_a_counters_key(world: World) -> None:
    for number in range(5):
        world.submit(1, number, model=f"nonesuch{number}")
    assert gauges.snapshot(world.core)["requests"] == [["", NORMAL, "unknown_model", 5]]


def test_what_ended_while_a_worker_runs_it_still_holds_its_bytes(world: World) -> None:
    world.submit(1, 1, rows=2)
    (batch,) = world.turn()
    world.cancel(1, 1)
    snapshot = gauges.snapshot(world.core)
    assert (snapshot["bytes_under_way"], snapshot["bytes_held"]) == (0, 4 * ROW_BYTES)
    world.done(1, batch)
    assert gauges.snapshot(world.core)["bytes_held"] == 0


def test_a_worker_that_takes_a_lost_ones_place_counts_as_restarted_and_one_more_does_not(world: World) -> None:
    world.worker(2)
    assert gauges.snapshot(world.core)["workers_restarted"] == 0
    world.do(e.WorkerGone(1))
    assert gauges.snapshot(world.core)["workers_restarted"] == 0
    world.worker(3)
    world.worker(4)
    snapshot = gauges.snapshot(world.core)
    assert (snapshot["workers_lost"], snapshot["workers_restarted"], snapshot["workers"]) == (1, 1, 3)


def test_a_snapshot_names_lanes_and_what_every_worker_has_been_lent(world: World) -> None:
    world.submit(1, 1, rows=2)
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 2]]
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, []]]
    (batch,) = world.turn()
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 0]]
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, [["net", 2]]]]
    world.done(1, batch)
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, []]]


def test_a_snapshot_names_the_fullest_lanes_and_how_many_there_are_besides() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[TensorSpec("x", 1, ["batch", "t"])], outputs=[TensorSpec("y", 1, ["batch", 4])]))
    for width in range(1, 301):
        for number in (width, width + 1000) if width == 7 else (width,):
            message = m.Submit(number, "net", NORMAL, 0, [Tensor(1, [1, width], 0)], [])
            world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == {}, "any number of shapes may wait"
    snapshot = gauges.snapshot(world.core)
    assert len(snapshot["lanes"]) == LANES_MAX
    assert snapshot["lanes"][0] == ["net", [[7]], 2]
    assert snapshot["lanes_omitted"] == {"net": 300 - LANES_MAX}


def test_a_snapshot_of_a_lane_without_shapes_of_its_own_is_read_by_its_readers(counters: dict[str, Any]) -> None:
    """Requests that run alone share a lane; a lane of what a batch shares has a digest in its signature."""
    lanes = [Lane("net", [0, 0, 0, 0], signature) for signature in (ALONE, (b"digest", (3,), 0))]
    world = World()
    world.core.models["net"].lanes = {lane.signature: lane for lane in lanes}
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 0], ["net", [[3]], 0]]
    assert len(snapshot.read(counters | gauges.snapshot(world.core)).lanes) == 2


def test_a_snapshot_names_models_what_waits_for_them_and_who_serves_them(world: World) -> None:
    for number in range(1, 13):
        world.submit(1, number, priority=LOW)
    world.submit(1, 13, rows=3, priority=URGENT)
    assert gauges.snapshot(world.core)["models"] == [["net", 1, m.ModelState.READY, [3, 0, 0, 12], {"cpu": 1}]]
    assert gauges.snapshot(world.core)["credit"] == CREDIT
    world.turn()
    snapshot = gauges.snapshot(world.core)
    assert snapshot["credit"] == CREDIT - snapshot["batches_lent"] < CREDIT
    assert snapshot["worker_pids"] == [5001]
    assert snapshot["epoch"] == EPOCH
