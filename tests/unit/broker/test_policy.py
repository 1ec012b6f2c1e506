"""Which lane and class a worker serves next, and when it is to have its batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.lanes import Lane
from batchyard.broker.models import Model
from batchyard.broker.policy import (
    LEAD_NS,
    NEVER_NS,
    OVERDUE_SHARE,
    URGENT_LEAD_NS,
    Choice,
    choose,
    lend_ns,
    take,
)
from batchyard.broker.requests import Part, Request
from batchyard.broker.serving import Batch, Worker
from batchyard.broker.taking import heads, take_rows
from batchyard.broker.waiting import Waiting
from batchyard.transport.messages import Loaded, Priority, Submit
from batchyard.transport.tensors import Tensor, TensorSpec

NOW_NS = 1_000
URGENT, HIGH, NORMAL, LOW = Priority


MODELS: dict[str, Model] = {}


@pytest.fixture
def worker() -> Worker:
    return Worker(1, 5001)


def lane(
    worker: Worker, name: str = "net", times: dict[int, int] | None = None, buckets: tuple[int, ...] = ()
) -> Lane:
    """The lane of a model that the worker serves, at most 8 rows a run."""
    model = MODELS[name] = Model(ModelConfig(name, Path("/net.onnx"), 8, buckets=buckets))
    spec = TensorSpec("x", 1, ["n", 4])
    worker.serve(model, Loaded(name, 1, [spec], [spec], True, "", 8, "cpu", "", times or {}, list(buckets)))
    return model.lane([Tensor(1, [1, 4], 0)])


def queue(at: Lane, number: int, due_ns: int, priority: int = NORMAL, rows: int = 1) -> Request:
    message = Submit(number, at.model_name, priority, 0, [Tensor(1, [rows, 4], 0)], [])
    request = Request(1, message, 1, MODELS[at.model_name], at, rows, rows * 16, 0, due_ns)
    at.push(Part(request, 0, rows))
    return request


def waiting(*lanes: Lane) -> Waiting:
    made = Waiting(heads)
    for each in lanes:
        made.add(each)
    return made


def chosen(lanes: list[Lane], worker: Worker) -> tuple[str, int]:
    """The model and the class to begin with."""
    choice = choose(waiting(*lanes), worker, NOW_NS)
    assert choice is not None
    at, _, begin = choice
    return at.model_name, begin


# ---- which --------------------------------------------------------------------------------------


def test_where_nothing_waits_or_nothing_is_served_there_is_no_choice(worker: Worker) -> None:
    at = lane(worker)
    assert choose(waiting(), worker, NOW_NS) is None
    assert choose(waiting(at), worker, NOW_NS) is None
    queue(at, 1, 0)
    assert choose(waiting(at), Worker(2, 5002), NOW_NS) is None


def test_while_nothing_is_overdue_the_earliest_virtual_deadline_goes_first(worker: Worker) -> None:
    first, second = lane(worker, "first"), lane(worker, "second")
    queue(first, 1, NOW_NS + 20, URGENT)
    queue(second, 2, NOW_NS + 10, LOW)
    assert chosen([first, second], worker) == ("second", -1)


@pytest.mark.parametrize(("due_ns", "begin"), [(NOW_NS + 1, -1), (NOW_NS, URGENT), (NOW_NS - 1, URGENT)])
def test_when_what_is_due_first_is_overdue_the_highest_class_goes_first(
    worker: Worker, due_ns: int, begin: int
) -> None:
    at = lane(worker)
    queue(at, 1, due_ns, NORMAL)
    queue(at, 2, NOW_NS + 50, URGENT)
    queue(at, 3, NOW_NS + 50, HIGH)
    assert chosen([at], worker) == ("net", begin)


def test_every_eighth_batch_goes_by_age_all_the_same(worker: Worker) -> None:
    at = lane(worker)
    queue(at, 1, NOW_NS - 1, LOW)
    queue(at, 2, NOW_NS + 50, URGENT)
    for worker.overdue_passed_over in range(OVERDUE_SHARE - 1):
        assert chosen([at], worker) == ("net", URGENT)
    worker.overdue_passed_over = OVERDUE_SHARE - 1
    assert chosen([at], worker) == ("net", -1)


def test_what_is_overdue_and_of_the_highest_class_is_nobodys_favour(worker: Worker) -> None:
    """It would go first by either rule, so it does not count as a batch that went before its turn."""
    first, second = lane(worker, "first"), lane(worker, "second")
    queue(first, 1, NOW_NS - 9, HIGH)
    queue(second, 2, NOW_NS - 5, HIGH)
    assert chosen([first, second], worker) == ("first", -1)


def test_among_lanes_the_highest_class_goes_first_and_of_equals_the_earliest(worker: Worker) -> None:
    lanes = [lane(worker, name) for name in ("old", "late", "early")]
    queue(lanes[0], 1, NOW_NS - 90, LOW)
    queue(lanes[1], 2, NOW_NS + 9, HIGH)
    queue(lanes[2], 3, NOW_NS + 5, HIGH)
    queue(lanes[2], 4, NOW_NS - 5, NORMAL)
    assert chosen(lanes, worker) == ("early", HIGH)


def test_halves_of_a_failed_batch_are_chosen_by_their_own_class_and_age(worker: Worker) -> None:
    failed, other = lane(worker, "failed"), lane(worker, "other")
    request = queue(failed, 1, NOW_NS - 9, LOW)
    failed.retry(take_rows(failed, 8))
    queue(failed, 2, NOW_NS + 5, URGENT)
    queue(other, 3, NOW_NS + 5, NORMAL)
    assert chosen([failed, other], worker) == ("other", NORMAL), "its URGENT one waits behind the half"
    request.ended = True
    assert chosen([failed, other], worker)[0] == "failed"


# ---- when ---------------------------------------------------------------------------------------


def running(worker: Worker, at: Lane, rows: int, until_ns: int) -> None:
    worker.leases[1] = Batch(1, MODELS[at.model_name], at, [], rows, worker, 0)
    worker.busy_until_ns = until_ns


def choice(at: Lane, worker: Worker) -> Choice:
    found = choose(waiting(at), worker, NOW_NS)
    assert found is not None
    return found


def test_an_idle_worker_is_lent_what_there_is_at_once(worker: Worker) -> None:
    at = lane(worker)
    queue(at, 1, NOW_NS)
    assert lend_ns(choice(at, worker), worker, False) == 0


@pytest.mark.parametrize(
    ("runs", "waits", "never"), [(4, 3, True), (4, 4, False), (4, 8, False), (8, 7, True)]
)
def test_a_busy_worker_is_lent_nothing_that_is_smaller_than_what_it_runs(
    worker: Worker, runs: int, waits: int, never: bool
) -> None:
    at = lane(worker)
    running(worker, at, runs, 9 * LEAD_NS)
    for number in range(waits):
        queue(at, number, NOW_NS)
    assert (lend_ns(choice(at, worker), worker, False) == NEVER_NS) is never


def test_what_runs_may_be_larger_than_this_model_ever_is(worker: Worker) -> None:
    at = lane(worker)
    running(worker, lane(worker, "other"), 64, 9 * LEAD_NS)
    for number in range(8):
        queue(at, number, NOW_NS)
    assert lend_ns(choice(at, worker), worker, False) == 7 * LEAD_NS + LEAD_NS


@pytest.mark.parametrize(
    ("present", "priority", "lead_ns"),
    [
        (False, NORMAL, LEAD_NS),
        (True, NORMAL, URGENT_LEAD_NS),
        (True, URGENT, LEAD_NS),
        (False, URGENT, LEAD_NS),
    ],
)
def test_the_next_batch_is_bound_when_the_running_one_is_nearly_done(
    worker: Worker, present: bool, priority: int, lead_ns: int
) -> None:
    at = lane(worker)
    running(worker, at, 1, 9 * LEAD_NS)
    queue(at, 1, NOW_NS, priority)
    assert lend_ns(choice(at, worker), worker, present) == 9 * LEAD_NS - lead_ns


# ---- how much -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "rows"), [({1: 10, 4: 40, 8: 80}, 4), ({1: 10, 4: 40, 8: 45}, 7), ({}, 7)])
def test_where_only_some_sizes_are_run_as_many_are_taken_as_are_worth_it(
    worker: Worker, times: dict[int, int], rows: int
) -> None:
    at = lane(worker, times=times, buckets=(1, 4, 8))
    for number in range(7):
        queue(at, number, NOW_NS)
    parts = take(choice(at, worker), worker, False, 0, NOW_NS)
    assert sum(part.stop - part.start for part in parts) == rows


def test_halves_of_a_failed_batch_are_run_as_they_are_whatever_the_sizes(worker: Worker) -> None:
    at = lane(worker, times={1: 10, 4: 40, 8: 80}, buckets=(1, 4, 8))
    for number in range(5):
        queue(at, number, NOW_NS)
    at.retry(take_rows(at, 3))
    assert len(take(choice(at, worker), worker, False, 0, NOW_NS)) == 3


@pytest.mark.parametrize("again", [False, True])
def test_a_worker_that_takes_fewer_rows_than_another_is_lent_no_more_of_them(
    worker: Worker, again: bool
) -> None:
    at = lane(worker, buckets=(1, 4, 8))
    small = Worker(2, 5002)
    inputs = MODELS[at.model_name].inputs
    small.serve(MODELS[at.model_name], Loaded("net", 1, inputs, inputs, True, "", 4, "webgpu", "", {}, [1, 2, 4]))
    assert MODELS[at.model_name].max_batch == 8
    queue(at, 1, NOW_NS, rows=8)
    if again:
        at.retry(take_rows(at, 8))
    for start, of in ((0, small), (4, small)):
        (part,) = take(choice(at, of), of, False, 0, NOW_NS)
        assert (part.start, part.stop) == (start, start + 4)
    assert at.rows == 0


def test_what_goes_by_age_does_not_begin_with_a_class(worker: Worker) -> None:
    at = lane(worker)
    queue(at, 1, NOW_NS + 50, URGENT, rows=8)
    queue(at, 2, NOW_NS - 1, LOW, rows=8)
    worker.overdue_passed_over = OVERDUE_SHARE - 1
    (part,) = take(choice(at, worker), worker, False, 0, NOW_NS)
    assert part.request.id == 2
    worker.overdue_passed_over = 0
    queue(at, 3, NOW_NS - 1, LOW, rows=8)
    (part,) = take(choice(at, worker), worker, False, 0, NOW_NS)
    assert part.request.id == 1
