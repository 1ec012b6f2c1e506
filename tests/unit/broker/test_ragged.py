"""Requests of different sizes: which share a lane, which of them a batch takes, and what that is expected to
take."""

from __future__ import annotations

import random
from math import prod
from pathlib import Path

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.elements import ElementTimes, Line
from batchyard.broker.models import Model
from batchyard.broker.neighbours import WINDOW
from batchyard.broker.policy import choose, take
from batchyard.broker.ragged import RaggedLane
from batchyard.broker.requests import Part, Request
from batchyard.broker.serving import Batch, Worker
from batchyard.broker.taking import heads
from batchyard.broker.timing import TimeModel
from batchyard.broker.waiting import Waiting
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.messages import Loaded, Pad, Padding, Priority, Submit
from batchyard.transport.tensors import ABSENT, Tensor, TensorSpec

URGENT, HIGH, NORMAL, LOW = Priority
MS = 1_000_000
NOW_NS = 1_000 * MS
TO = [16, 32, 64]
# A run takes 4 ms, and 1 ms for each element: 4 elements of padding are worth a run.
RUN_NS = {size: {rows: (4 + rows * size) * MS for rows in (1, 4)} for size in TO}


def loaded(**fields: object) -> Loaded:
    specs = [TensorSpec(name, 7, ["batch", "sequence"]) for name in ("ids", "mask")]
    pooled = TensorSpec("y", 1, ["batch", 4])
    known: dict[str, object] = {
        "padding": Padding([[1], [1]], "seen", False, RUN_NS),
        "warmup_ns": {1: 10 * MS},
        "inputs": specs,
        "buckets": [],
    }
    known |= fields
    return Loaded("net", 1, known.pop("inputs"), [pooled], True, "", 8, "cpu", "", **known)  # type: ignore[arg-type]


def served(elements_max: int = 0, **fields: object) -> tuple[Model, Worker]:
    config = ModelConfig(
        "net", Path("/net.onnx"), 8, pad={"sequence": Pad(TO)}, batch_elements_max=elements_max
    )
    model, worker = Model(config), Worker(1, 501)
    worker.serve(model, loaded(**fields))
    return model, worker


def tensors(length: int, rows: int = 1, mask: int | None = None) -> list[Tensor]:
    return [Tensor(7, [rows, length], 0), Tensor(7, [rows, length if mask is None else mask], 0)]


def queue(
    model: Model,
    length: int,
    rows: int = 1,
    priority: int = NORMAL,
    due_ns: int = NOW_NS,
    deadline_ns: int = 0,
) -> Request:
    inputs = tensors(length, rows)
    lane = model.lane(inputs)
    lane.users += 1
    request = Request(1, Submit(1, "net", priority, 0, inputs, []), 1, model, lane, rows, 64, 0)
    request.virtual_ns, request.deadline_ns = due_ns, deadline_ns
    lane.push(Part(request, 0, rows))
    return request


def waiting(model: Model) -> Waiting:
    found = Waiting(heads)
    for lane in model.lanes.values():
        found.add(lane)
    return found


def taken(model: Model, worker: Worker, urgent: bool = False) -> list[int]:
    """The sizes of the next batch."""
    choice = choose(waiting(model), worker, NOW_NS)
    assert choice is not None
    parts = take(choice, worker, urgent, 5 * MS, NOW_NS)
    return [part.request.sizes[0] for part in parts for _ in range(part.stop - part.start)]


# ---- lanes --------------------------------------------------------------------------------------


def test_sizes_between_two_of_the_configuration_share_a_lane() -> None:
    model, _ = served()
    lanes = {length: model.lane(tensors(length)) for length in (1, 16, 17, 32, 33, 64)}
    assert lanes[1] is lanes[16]
    assert lanes[17] is lanes[32]
    assert lanes[33] is lanes[64]
    assert len(set(map(id, lanes.values()))) == 3
    assert lanes[17].shapes == [[32], [32]]


def test_beyond_the_largest_a_size_shares_a_lane_with_itself_alone() -> None:
    model, _ = served()
    assert model.lane(tensors(65)) is model.lane(tensors(65))
    assert model.lane(tensors(65)) is not model.lane(tensors(66))


def test_a_request_whose_inputs_disagree_or_are_empty_runs_alone() -> None:
    model, _ = served()
    for inputs in (tensors(4, mask=5), tensors(0)):
        assert model.rows(inputs) == 0
        assert model.lane(inputs).is_alone
    assert model.rows(tensors(4, 3)) == 3


def test_what_a_worker_says_of_padding_must_fit_the_inputs() -> None:
    for axes in ([[1]], [[1], [1, 1]], [[1], [2]], [[-1], [-1]]):
        with pytest.raises(InvalidRequest):
            served(padding=Padding(axes, "seen"))


def test_an_optional_input_that_was_not_tried_is_not_padded() -> None:
    ids, mask = (TensorSpec(name, 7, ["batch", "sequence"], name == "mask") for name in ("ids", "mask"))
    model, _ = served(inputs=[ids, mask])
    left_out = [Tensor(7, [1, 4], 0), Tensor(ABSENT, [], 0)]
    assert model.ragged is not None
    assert model.ragged.sizes(left_out) == (4,)
    assert not isinstance(model.lane(tensors(4)), RaggedLane)
    assert model.lane(tensors(4)) is not model.lane(tensors(5))


def test_a_model_that_runs_alone_after_all_pads_nothing() -> None:
    model, worker = served()
    queue(model, 4)
    queue(model, 5)
    model.disprove("seen")
    assert taken(model, worker) == [4]
    assert model.lane(tensors(4)).is_alone
    assert not model.info().padded_axes


# ---- what a batch takes -------------------------------------------------------------------------


def test_neighbours_in_size_go_along_as_long_as_padding_costs_less_than_a_run() -> None:
    model, worker = served()
    for length in (10, 16, 4, 9, 11, 10):
        queue(model, length)
    # 9 beside 10 costs 1; 11 would cost 1 for each of three; 4 would cost 7, and 16 more.
    assert sorted(taken(model, worker)) == [9, 10, 10, 11]
    assert taken(model, worker) == [16]
    assert taken(model, worker) == [4]


def test_the_head_goes_whatever_its_neighbours_are() -> None:
    model, worker = served()
    queue(model, 5, due_ns=NOW_NS - 1)
    for _ in range(9):
        queue(model, 12)
    assert taken(model, worker) == [5]
    assert taken(model, worker) == [12] * 8


def test_where_a_run_costs_nothing_of_its_own_only_equals_share_it() -> None:
    flat = {size: {rows: rows * size * MS for rows in (1, 4)} for size in TO}
    model, worker = served(padding=Padding([[1], [1]], "seen", False, flat))
    for length in (12, 11, 12):
        queue(model, length)
    assert taken(model, worker) == [12, 12]


def test_a_worker_that_pads_to_the_sizes_of_the_configuration_takes_whatever_the_lane_holds() -> None:
    model, worker = served(padding=Padding([[1], [1]], "seen", True, RUN_NS))
    for length in (16, 1, 7, 2):
        queue(model, length)
    assert sorted(taken(model, worker)) == [1, 2, 7, 16]


def test_a_worker_that_does_not_pad_is_lent_rows_of_one_size() -> None:
    model, worker = served()
    other = Worker(2, 502)
    other.serve(model, loaded(padding=Padding([], "not there")))
    model.ragged = None
    worker.serve(model, loaded())
    for length in (12, 11, 12):
        queue(model, length)
    assert taken(model, other) == [12, 12]
    assert taken(model, worker) == [11]


def test_a_batch_has_no_more_elements_than_it_may() -> None:
    model, worker = served(elements_max=48)
    for _ in range(4):
        queue(model, 16)
    assert taken(model, worker) == [16] * 3
    queue(model, 60, rows=3)
    assert taken(model, worker) == [16]
    assert taken(model, worker) == [60]  # one row is the least that can be run
    assert sum(lane.rows for lane in model.lanes.values()) == 2


def test_a_longer_neighbour_must_not_make_the_others_too_many() -> None:
    model, worker = served(elements_max=45)
    queue(model, 11, due_ns=NOW_NS - 1)
    for length in (11, 11, 12, 11):
        queue(model, length)
    assert taken(model, worker) == [11] * 4


def test_a_request_of_many_rows_is_cut_and_its_rest_goes_next() -> None:
    model, worker = served()
    queue(model, 10, rows=11)
    assert taken(model, worker) == [10] * 8
    assert taken(model, worker) == [10] * 3


def test_classes_go_first_and_lower_ones_top_up() -> None:
    model, worker = served()
    queue(model, 10, priority=LOW, due_ns=NOW_NS - 1)
    queue(model, 10, priority=URGENT)
    queue(model, 10, priority=LOW)
    choice = choose(waiting(model), worker, NOW_NS)
    assert choice is not None
    parts = take(choice, worker, False, 5 * MS, NOW_NS)
    assert parts[0].request.priority == URGENT
    assert len(parts) == 3


def test_while_urgent_requests_come_others_do_not_make_the_batch_longer() -> None:
    model, worker = served()
    queue(model, 2, priority=URGENT, due_ns=NOW_NS - 1)
    queue(model, 2, priority=LOW)
    queue(model, 2, priority=URGENT)
    assert taken(model, worker, urgent=True) == [2, 2]
    assert taken(model, worker, urgent=True) == [2]


def test_what_would_be_late_together_goes_apart() -> None:
    model, worker = served()
    queue(model, 16, deadline_ns=NOW_NS + 40 * MS)  # alone 20 ms; two are 36, three 52
    for _ in range(3):
        queue(model, 16)
    assert len(taken(model, worker)) == 2
    assert len(taken(model, worker)) == 2


def test_what_is_late_in_any_case_goes_when_nothing_else_waits() -> None:
    model, worker = served()
    queue(model, 16, deadline_ns=NOW_NS + MS)
    queue(model, 15)
    assert taken(model, worker) == [15]
    assert taken(model, worker) == [16]


def test_ended_requests_are_not_taken_and_nothing_is_lost_or_taken_twice() -> None:
    rng = random.Random(5)
    model, worker = served(elements_max=200)
    left: dict[int, int] = {}
    for _ in range(3 * WINDOW):
        request = queue(
            model,
            rng.randrange(1, 80),
            rng.randrange(1, 12),
            rng.choice(list(Priority)),
            rng.randrange(NOW_NS),
        )
        if rng.random() < 0.1:
            request.ended = True
            request.lane.forget(request)
        else:
            left[id(request)] = request.rows
    while (choice := choose(waiting(model), worker, NOW_NS)) is not None:
        parts = take(choice, worker, rng.random() < 0.2, 5 * MS, NOW_NS)
        assert parts
        longest = max(part.request.sizes[0] for part in parts)
        rows = sum(part.stop - part.start for part in parts)
        assert rows <= 8
        assert rows * longest <= 200 or rows == 1
        assert len({id(part.request.lane) for part in parts}) == 1
        for part in parts:
            assert not part.request.ended
            left[id(part.request)] -= part.stop - part.start
    assert set(left.values()) == {0}
    assert not any(lane.rows for lane in model.lanes.values())
    assert model.waiting == [0, 0, 0, 0]


# ---- times --------------------------------------------------------------------------------------


def test_a_batch_is_expected_to_take_its_own_time_and_that_of_its_padded_elements() -> None:
    model, worker = served()
    parts = [Part(queue(model, length), 0, 1) for length in (10, 12)]
    batch = Batch(1, model, model.lane(tensors(10)), parts, 2, worker, NOW_NS)
    assert batch.elements == 22
    assert batch.predicted_ns == pytest.approx((4 + 24) * MS, rel=0.01)


def test_what_is_measured_moves_the_expectation_of_its_size_and_of_no_other() -> None:
    model, worker = served()
    parts = [Part(queue(model, 16), 0, 1) for _ in range(4)]
    batch = Batch(1, model, model.lane(tensors(16)), parts, 4, worker, NOW_NS)
    other = worker.timing(model.lane(tensors(20))).predict_ns(4)
    for _ in range(60):
        worker.learn(batch, 680 * MS, 0)
    assert worker.timing(model.lane(tensors(16))).predict_ns(4) == pytest.approx(680 * MS, rel=0.05)
    assert worker.timing(model.lane(tensors(20))).predict_ns(4) == other


def test_a_slower_run_is_believed_at_once() -> None:
    line = Line(4.0)
    for _ in range(20):
        line.learn(16, 20 * MS)
    line.learn(16, 60 * MS)
    assert line.predict_ns(16) > 35 * MS


def test_a_run_s_own_time_is_found_in_what_is_measured() -> None:
    rng = random.Random(3)
    line = Line(100.0)
    for _ in range(200):
        elements = rng.randrange(16, 512)
        line.learn(elements, int((6 + 0.5 * elements) * MS * rng.uniform(0.95, 1.05)))
    assert 6 < line.worth < 25  # 12, but for the noise


def test_runs_of_one_size_say_nothing_of_the_slope() -> None:
    rng = random.Random(4)
    line = Line(12.0)
    for _ in range(500):
        line.learn(rng.randrange(98, 103), int(56 * MS * rng.uniform(0.7, 1.3)))
    assert 6 < line.worth < 24  # 12 was known before


def test_sizes_that_were_never_measured_are_taken_to_be_like_the_nearest() -> None:
    times = ElementTimes({16: {1: 20 * MS, 4: 68 * MS}})
    assert times.line(1 << 20).worth == pytest.approx(4, rel=0.05)
    assert times.line(1 << 20).predict_ns(100) == pytest.approx(104 * MS, rel=0.05)
    assert not times.line(1 << 20).is_measured


def test_a_table_stays_small_whatever_sizes_clients_send() -> None:
    times = ElementTimes({})
    for size in range(1, 5_000):
        times.learn(size, 1, size, size * MS)
    assert len(times._lines) == (4_999).bit_length()


def test_rows_that_fill_up_a_batch_size_are_expected_as_well() -> None:
    run_ns = {16: {1: 16 * MS, 4: 64 * MS}}
    model, worker = served(buckets=[1, 4, 8], padding=Padding([[1], [1]], "seen", True, run_ns))
    lane = model.lane(tensors(16))
    assert worker.timing(lane).predict_ns(3) == pytest.approx(64 * MS, rel=0.05)
    assert isinstance(lane, RaggedLane)
    assert lane.size == prod(lane.bucket)


def test_a_lane_of_one_size_is_halved_by_the_line_of_all_sizes() -> None:
    even = ElementTimes({16: {1: MS // 10, 64: 6 * MS}})
    assert even.of(16, TimeModel(), 64).worth_halving(64) == 32
    flat = ElementTimes({16: {1: 5 * MS, 64: 6 * MS}})
    assert [flat.of(16, TimeModel(), 64).worth_halving(64) for _ in range(40)] == [64] * 40
