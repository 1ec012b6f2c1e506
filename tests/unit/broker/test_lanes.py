"""Lanes: order, splitting, what ended requests leave behind, and groups that must run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker import taking
from batchyard.broker.config import ModelConfig
from batchyard.broker.lanes import SWEEP_MIN, Lane
from batchyard.broker.models import Model
from batchyard.broker.requests import Part, Request
from batchyard.broker.serving import Worker
from batchyard.broker.taking import take_rows
from batchyard.broker.timing import TimeModel
from batchyard.broker.waiting import Heads
from batchyard.transport.messages import Loaded, Submit
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

ROW_BYTES = 16


MODEL = Model(ModelConfig("net", Path("/net.onnx"), 8))


@pytest.fixture
def lane() -> Lane:
    global MODEL
    MODEL = model = Model(ModelConfig("net", Path("/net.onnx"), 8))
    spec = TensorSpec("x", 1, ["n", 4])
    model.loaded(1, 1, Loaded("net", 1, [spec], [spec], True, "", 8, "cpu", "", {}))
    return model.lane([Tensor(1, [1, 4], 0)])


def queued(
    lane: Lane, number: int, rows: int = 1, virtual_ns: int = 0, priority: int = 2, deadline_ns: int = 0
) -> Request:
    at = number * 1024
    message = Submit(number, "net", priority, deadline_ns, [Tensor(1, [rows, 4], at)], [Slot(at + 512, rows * ROW_BYTES)])
    request = Request(1, message, 1, MODEL, lane, rows, rows * 2 * ROW_BYTES, 0, virtual_ns)
    lane.push(Part(request, 0, rows))
    return request


def end(request: Request) -> None:
    request.ended = True
    request.lane.forget(request)


def heads(lane: Lane, starts_ns: int = 0, timing: TimeModel | None = None) -> Heads | None:
    """What the lane begins with, on a worker with these times."""
    if timing is None:
        return taking.heads(lane)
    worker = Worker(1, 1)
    worker.timings["net"], worker.rows_max["net"] = timing, 8
    return taking.heads(lane, worker, starts_ns)


def due_ns(lane: Lane) -> int:
    first = heads(lane)
    assert first is not None
    return first[0]


def taken(lane: Lane, rows_max: int) -> list[tuple[int, int, int]]:
    """(request, first row, one past the last) of what is taken."""
    return [(part.request.id, part.start, part.stop) for part in take_rows(lane, rows_max)]


def test_the_earliest_virtual_deadline_goes_first_and_equals_in_order_of_arrival(lane: Lane) -> None:
    for number, virtual_ns in enumerate((30, 10, 20, 10), start=1):
        queued(lane, number, virtual_ns=virtual_ns)
    assert due_ns(lane) == 10
    assert [number for number, _, _ in taken(lane, 8)] == [2, 4, 3, 1]
    assert heads(lane) is None
    assert lane.rows == 0


def test_what_comes_back_goes_before_its_equals_but_not_before_its_betters(lane: Lane) -> None:
    first = queued(lane, 1, virtual_ns=10)
    (part,) = take_rows(lane, 8)
    queued(lane, 2, virtual_ns=10)
    queued(lane, 3, virtual_ns=5)
    lane.push_front(part)
    assert [number for number, _, _ in taken(lane, 8)] == [3, 1, 2]
    assert first.rows_waiting == 1


def test_a_request_larger_than_a_batch_is_split_and_keeps_its_place(lane: Lane) -> None:
    request = queued(lane, 1, rows=10, virtual_ns=10)
    queued(lane, 2, virtual_ns=20)
    assert taken(lane, 4) == [(1, 0, 4)]
    request.rows_leased = 4
    assert taken(lane, 4) == [(1, 4, 8)]
    assert lane.rows == 3
    assert taken(lane, 4) == [(1, 8, 10), (2, 0, 1)]


def test_a_large_request_fills_the_room_that_is_left_but_one_that_fits_is_not_cut(lane: Lane) -> None:
    queued(lane, 1, rows=2)
    queued(lane, 2, rows=9)
    assert taken(lane, 4) == [(1, 0, 2), (2, 0, 2)]
    assert taken(lane, 4) == [(2, 2, 6)]
    assert taken(lane, 4) == [(2, 6, 9)]
    queued(lane, 3, rows=3)
    queued(lane, 4, rows=2)
    assert taken(lane, 4) == [(3, 0, 3)]


def test_a_part_is_the_whole_request_and_the_rows_of_it_that_are_run(lane: Lane) -> None:
    queued(lane, 1, rows=10)
    (part,) = take_rows(lane, 4)
    (rest,) = take_rows(lane, 100)
    whole = Part(part.request, 0, 10).item()
    for item in (whole, part.item(), rest.item()):
        assert item.inputs is part.request.inputs
        assert item.outputs is part.request.outputs
    assert [(item.start, item.rows) for item in (whole, part.item(), rest.item())] == [(0, 0), (0, 4), (4, 6)]


def test_requests_that_run_alone_are_taken_one_by_one_and_whole(lane: Lane) -> None:
    lane.is_alone = True
    queued(lane, 1, rows=20)
    queued(lane, 2)
    queued(lane, 3, rows=3)
    assert [taken(lane, 8) for _ in range(4)] == [[(1, 0, 20)], [(2, 0, 1)], [(3, 0, 3)], []]
    assert lane.rows == 0


def test_halves_of_a_failed_batch_are_run_one_by_one_where_requests_have_come_to_run_alone(lane: Lane) -> None:
    for number in (1, 2, 3):
        queued(lane, number, rows=9)
    parts = [part for _ in range(3) for part in take_rows(lane, 9)]
    lane.retry(parts)
    lane.is_alone = True
    again = [lane.take_again(8) for _ in range(4)]
    assert [[(part.request.id, part.start, part.stop) for part in group] for group in again] == [
        [(1, 0, 9)], [(2, 0, 9)], [(3, 0, 9)], [],
    ]  # fmt: skip
    assert lane.rows == 0


def test_ended_requests_are_skipped_and_no_longer_counted(lane: Lane) -> None:
    requests = [queued(lane, number) for number in range(1, 6)]
    for request in requests[::2]:
        end(request)
    assert lane.rows == 2
    assert {part.request.id for part in lane.waiting()} == {2, 4}
    assert [number for number, _, _ in taken(lane, 8)] == [2, 4]


def test_what_ended_requests_leave_behind_is_swept_when_it_is_the_majority(lane: Lane) -> None:
    requests = [queued(lane, number, virtual_ns=-number) for number in range(1, 4 * SWEEP_MIN)]
    for request in requests[: 3 * SWEEP_MIN]:
        end(request)
    assert sum(map(len, lane.heaps)) <= 2 * SWEEP_MIN
    assert lane.rows == len(lane.waiting()) == SWEEP_MIN - 1
    order = [number for number, _, _ in taken(lane, 1000)]
    assert order == sorted(range(3 * SWEEP_MIN + 1, 4 * SWEEP_MIN), reverse=True)


def test_a_group_to_be_retried_runs_as_it_is_and_before_everything(lane: Lane) -> None:
    for number in range(1, 4):
        queued(lane, number, virtual_ns=100)
    group = take_rows(lane, 2)
    queued(lane, 9, virtual_ns=1)
    lane.retry(group)
    assert due_ns(lane) == 100
    assert lane.rows == 4
    assert [part.request.id for part in lane.take_again(8)] == [1, 2]
    assert lane.take_again(8) == []
    assert [number for number, _, _ in taken(lane, 8)] == [9, 3]


@pytest.mark.parametrize(
    ("rows", "batches"),
    [
        ([6], [[(0, 0, 4)], [(0, 4, 6)]]),
        ([1, 6], [[(0, 0, 1)], [(1, 0, 4)], [(1, 4, 6)]]),
        ([3, 3], [[(0, 0, 3)], [(1, 0, 3)]]),
        ([2, 2, 1], [[(0, 0, 2), (1, 0, 2)], [(2, 0, 1)]]),
    ],
)
def test_a_group_of_more_rows_than_a_worker_takes_is_run_in_several_batches_and_in_order(
    lane: Lane, rows: list[int], batches: list[list[tuple[int, int, int]]]
) -> None:
    for number, count in enumerate(rows):
        queued(lane, number, rows=count)
    lane.retry(take_rows(lane, 8))
    queued(lane, 9)
    seen = []
    while group := lane.take_again(4):
        seen.append([(part.request.id, part.start, part.stop) for part in group])
    assert seen == batches
    assert lane.rows == 1


def test_ended_members_leave_a_group_and_an_empty_group_is_dropped(lane: Lane) -> None:
    requests = [queued(lane, number) for number in range(1, 5)]
    first, second = take_rows(lane, 2), take_rows(lane, 2)
    lane.retry(first)
    lane.retry(second)
    for request in requests[:3]:
        end(request)
    assert lane.rows == 1
    assert due_ns(lane) == 0
    assert [part.request.id for part in lane.take_again(8)] == [4]
    assert heads(lane) is None
    assert lane.take_again(8) == []


def test_the_class_to_begin_with_goes_first_and_the_rest_by_virtual_deadline(lane: Lane) -> None:
    for number, virtual_ns, priority in ((1, 5, 3), (2, 9, 0), (3, 8, 1), (4, 7, 0)):
        queued(lane, number, virtual_ns=virtual_ns, priority=priority)
    assert heads(lane) == (5, 3, 0, 7)
    assert [part.request.id for part in take_rows(lane, 8, begin=0)] == [4, 2, 1, 3]


def test_lower_classes_do_not_make_a_batch_longer_than_urgent_requests_may_wait(lane: Lane) -> None:
    for number in range(1, 5):
        queued(lane, number, virtual_ns=number, priority=0)
    for number in range(5, 9):
        queued(lane, number, virtual_ns=number, priority=2)
    assert [part.request.id for part in take_rows(lane, 8, begin=0, lower_max=5)] == [1, 2, 3, 4, 5]
    assert [part.request.id for part in take_rows(lane, 8, lower_max=2)] == [6, 7]
    queued(lane, 9, rows=6, virtual_ns=1, priority=2)
    assert taken_below(lane, 2) == [(9, 0, 2)]


def taken_below(lane: Lane, lower_max: int) -> list[tuple[int, int, int]]:
    return [(part.request.id, part.start, part.stop) for part in take_rows(lane, 8, lower_max=lower_max)]


def test_what_cannot_be_in_time_any_more_goes_when_nothing_else_waits(lane: Lane) -> None:
    timing = TimeModel({1: 10, 2: 20, 4: 40, 8: 80})
    queued(lane, 1, deadline_ns=5)
    for number in range(2, 5):
        queued(lane, number, virtual_ns=number)
    assert [part.request.id for part in take_rows(lane, 8, 0, timing)] == [2, 3, 4]
    assert lane.rows == 1
    assert [part.request.id for part in take_rows(lane, 8, 0, timing)] == [1]
    queued(lane, 5, deadline_ns=25)
    queued(lane, 6, virtual_ns=1, deadline_ns=15)  # too late beside another, and later still after it
    queued(lane, 7, virtual_ns=2)
    assert [part.request.id for part in take_rows(lane, 8, 0, timing)] == [5, 6]


# ---- what is withdrawn --------------------------------------------------------------------------


def withdrawn(lane: Lane, request: Request) -> bool:
    """Take back the part that the request was queued as."""
    (part,) = (part for part in lane.waiting() if part.request is request)
    return lane.withdraw(part)


def test_what_is_withdrawn_is_not_run_and_may_be_queued_again(lane: Lane) -> None:
    requests = [queued(lane, number, virtual_ns=number) for number in (1, 2, 3)]
    assert withdrawn(lane, requests[0])
    assert due_ns(lane) == 2
    assert lane.rows == lane.waiting_rows[2] == 2
    lane.push(Part(requests[0], 0, 1))
    assert [number for number, _, _ in taken(lane, 8)] == [1, 2, 3]


def test_what_is_in_part_elsewhere_is_not_withdrawn(lane: Lane) -> None:
    request = queued(lane, 1, rows=6)
    (part,) = take_rows(lane, 4)
    request.rows_leased = 4
    assert not withdrawn(lane, request), "its rest"
    assert not lane.withdraw(part), "what is lent"
    assert lane.rows == 2


def test_what_must_run_as_it_is_is_not_withdrawn(lane: Lane) -> None:
    request = queued(lane, 1)
    lane.retry(take_rows(lane, 8))
    assert not withdrawn(lane, request)
    assert [part.request.id for part in lane.take_again(8)] == [1]


def test_what_was_set_aside_as_too_late_can_be_withdrawn_too(lane: Lane) -> None:
    timing = TimeModel({8: 80})
    late, other = queued(lane, 1, deadline_ns=5), queued(lane, 2)
    assert heads(lane, 0, timing) is not None
    assert withdrawn(lane, late)
    assert lane.rows == 1
    assert [part.request for part in take_rows(lane, 8, 0, timing)] == [other]
    assert heads(lane, 0, timing) is None
    assert take_rows(lane, 8, 0, timing) == []


def test_what_is_too_late_for_a_busy_worker_may_be_in_time_for_another(lane: Lane) -> None:
    timing = TimeModel({8: 80})
    queued(lane, 1, virtual_ns=10, deadline_ns=100)
    queued(lane, 2, virtual_ns=50)
    for starts_ns, first_ns in ((90, 50), (0, 10), (90, 50)):
        first = heads(lane, starts_ns, timing)
        assert first is not None
        assert first[0] == first_ns


def test_what_withdrawn_parts_leave_behind_is_swept_when_it_is_the_majority(lane: Lane) -> None:
    for number in range(SWEEP_MIN * 4):
        assert withdrawn(lane, queued(lane, number))
        assert len(lane.heaps[2]) <= SWEEP_MIN + 1
