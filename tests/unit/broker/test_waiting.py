"""The choice among lanes, by heaps, beside a scan of all of them: in random states, the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from batchyard.broker import waiting as room
from batchyard.broker.config import ModelConfig
from batchyard.broker.lanes import Lane
from batchyard.broker.models import Model
from batchyard.broker.policy import OVERDUE_SHARE, Choice, choose, take
from batchyard.broker.requests import Part, Request
from batchyard.broker.serving import Worker
from batchyard.broker.taking import heads, take_rows
from batchyard.broker.waiting import SWEEP_MIN, Heads, Waiting
from batchyard.transport.messages import Loaded, Submit
from batchyard.transport.tensors import Tensor, TensorSpec

SHAPES = 30
STEPS = 400


def scanned(lanes: Iterable[Lane], worker: Worker, now_ns: int) -> Choice | None:
    """The policy as docs/architecture.md has it, by looking at every lane: slow, and plain."""
    starts_ns = max(now_ns, worker.busy_until_ns)
    due: tuple[Heads, Lane] | None = None
    first: tuple[Heads, Lane] | None = None
    for lane in lanes:
        name = lane.model_name
        if not lane.rows or name not in worker.models:
            continue
        found = heads(lane, worker, starts_ns)
        if found is None:
            continue
        if due is None or found[0] < due[0][0]:
            due = found, lane
        if first is None or found[2:] < first[0][2:]:
            first = found, lane
    if due is None or first is None:
        return None
    (due_ns, due_class, _, _), _ = due
    first_class = first[0][2]
    if first_class < due_class and due_ns <= now_ns and worker.overdue_passed_over < OVERDUE_SHARE - 1:
        return first[1], first[0], first_class
    return due[1], due[0], -1


class Yard:
    """Models with free axes, workers that serve some of them, and requests of random shapes, classes, and
    deadlines that come, end, fail, and are lent."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now_ns = 1_000
        self.waiting = Waiting(heads)
        names = [f"m{number}" for number in range(rng.randrange(1, 4))]
        self.models = [Model(ModelConfig(name, Path("/m.onnx"), 4)) for name in names]
        self.workers = [Worker(number, 5000 + number) for number in range(rng.randrange(1, 4))]
        for model in self.models:
            for worker in self.workers:
                if worker.id == 0 or rng.random() < 0.7:
                    self.load(worker, model)
        self.live: list[Part] = []
        self.lent: list[list[Part]] = []
        self.shapes = rng.choice((1, 3, SHAPES))
        self.sequence = 0

    def load(self, worker: Worker, model: Model) -> None:
        spec = TensorSpec("x", 1, ["n", "t"])
        times = {1: self.rng.randrange(1, 40), 4: self.rng.randrange(40, 90)}
        worker.serve(model, Loaded(model.name, 1, [spec], [spec], True, "", 4, "cpu", "", times))

    def come(self) -> None:
        rng = self.rng
        model = rng.choice(self.models)
        self.sequence += 1
        rows = rng.choice((1, 1, 1, 2, 6))
        deadline_ns = rng.choice((0, 0, 5, 40, 120, 400))
        inputs = [Tensor(1, [rows, rng.randrange(self.shapes) + 1], 0)]
        message = Submit(self.sequence, model.name, rng.randrange(4), deadline_ns, inputs, [])
        lane = model.lane(inputs)
        lane.users += 1
        request = Request(1, message, 1, model, lane, rows, 16, self.now_ns)
        # Places come near each other, and often are the same: then the older lane goes first.
        request.virtual_ns = self.now_ns + rng.choice((5, 5, 25, 100, 300)) - rng.choice((0, 0, 60))
        part = Part(request, 0, rows)
        self.give(lane, lambda: lane.push(part))
        self.live.append(part)

    def end(self) -> None:
        """A request is cancelled, or too late; or all of its lane are."""
        lane = self.live[-1].request.lane
        whole = [part for part in self.live if part.request.lane is lane] if self.rng.random() < 0.5 else []
        for part in whole or [self.rng.choice(self.live)]:
            self.live.remove(part)
            request = part.request
            request.ended = True
            if request.rows_waiting:
                request.lane.forget(request)

    def lend(self, worker: Worker, choice: Choice) -> None:
        parts = take(choice, worker, self.rng.random() < 0.3, 5, self.now_ns)
        for part in parts:
            part.request.rows_leased += part.stop - part.start
        if not choice[0].rows:
            self.waiting.drop(choice[0])
        worker.overdue_passed_over = worker.overdue_passed_over + 1 if choice[2] >= 0 else 0
        self.lent.append(parts)

    def give_back(self) -> None:
        """A batch is done; or its worker has died, and its parts wait again, as they were or by themselves."""
        parts = self.lent.pop(self.rng.randrange(len(self.lent)))
        how = self.rng.choice(("done", "done", "front", "retry", "halves"))
        for part in parts:
            part.request.rows_leased -= part.stop - part.start
            if how == "done":
                part.request.rows_done += part.stop - part.start
        living = [part for part in parts if not part.request.ended]
        if how == "done" or not living:
            return
        lane = living[0].request.lane
        middle = len(living) // 2 if how == "halves" else 0

        def give() -> None:
            for part in living if how == "front" else ():
                lane.push_front(part)
            for group in (living[middle:], living[:middle]) if how != "front" else ():
                if group:
                    lane.retry(group)

        self.give(lane, give)

    def give(self, lane: Lane, give: Callable[[], None]) -> None:
        """It is said before or afterwards: the same, up to the next choice."""
        says_before = self.rng.random() < 0.5
        if says_before:
            self.waiting.add(lane)
        give()
        if not says_before:
            self.waiting.add(lane)

    def step(self) -> None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.45:
            for _ in range(rng.choice((1, 1, 8))):
                self.come()
        elif kind < 0.55 and self.live:
            self.end()
        elif kind < 0.7 and self.lent:
            self.give_back()
        elif kind < 0.72:
            self.load(rng.choice(self.workers), rng.choice(self.models))
        else:
            self.now_ns += rng.choice((0, 1, 10, 60))
        for worker in rng.sample(self.workers, len(self.workers)):
            worker.busy_until_ns = self.now_ns + rng.choice((0, 0, 30, 200))
            if rng.random() < 0.7:
                self.choose(worker)

    def choose(self, worker: Worker) -> None:
        # The scan may come first or last: what either looks at must not change what the other finds.
        expected = scanned(self.waiting.lanes, worker, self.now_ns) if self.rng.random() < 0.5 else None
        choice = choose(self.waiting, worker, self.now_ns)
        expected = expected or scanned(self.waiting.lanes, worker, self.now_ns)
        assert choice == expected
        if choice is not None and self.rng.random() < 0.6:
            again = choose(self.waiting, worker, self.now_ns)
            assert again == choice
            self.lend(worker, choice)


@pytest.mark.parametrize("seed", range(60))
def test_the_heaps_choose_what_a_scan_of_all_lanes_would(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SWEEP_MIN", seed % 3 * SWEEP_MIN // 2)  # some sweep all the time
    yard = Yard(seed)
    for _ in range(STEPS):
        yard.step()
    assert yard.sequence > STEPS / 4


# ---- what it costs ------------------------------------------------------------------------------


def full(shapes: int) -> tuple[Waiting, Model, Worker]:
    """So many shapes wait, one row each."""
    model, worker = Model(ModelConfig("net", Path("/net.onnx"), 4)), Worker(1, 5001)
    spec = TensorSpec("x", 1, ["n", "t"])
    worker.serve(model, Loaded("net", 1, [spec], [spec], True, "", 4, "cpu", "", {1: 10}))
    waiting = Waiting(heads)
    for width in range(1, shapes + 1):
        queue(waiting, model, width, virtual_ns=width)
    return waiting, model, worker


def queue(waiting: Waiting, model: Model, width: int, virtual_ns: int, priority: int = 2) -> Lane:
    inputs = [Tensor(1, [1, width], 0)]
    lane = model.lane(inputs)
    request = Request(1, Submit(width, "net", priority, 0, inputs, []), 1, model, lane, 1, 16, 0)
    request.virtual_ns = virtual_ns
    lane.push(Part(request, 0, 1))
    waiting.add(lane)
    return lane


def test_a_choice_asks_a_few_lanes_however_many_wait() -> None:
    waiting, _, worker = full(5_000)
    assert choose(waiting, worker, 0) is not None  # all are new to the heaps
    asked = 0

    def noted(lane: Lane, worker: Worker, starts_ns: int) -> Heads | None:
        nonlocal asked
        asked += 1
        return heads(lane, worker, starts_ns)

    (order,) = waiting._orders.values()
    order._look = noted
    for now_ns in (0, 10_000):  # nothing is overdue; all is
        choice = choose(waiting, worker, now_ns)
        assert choice is not None
        take(choice, worker, False, 5, now_ns)
        waiting.drop(choice[0])
    assert asked <= 8


@pytest.mark.parametrize("rule", ["earliest", "highest"])
def test_what_was_earlier_in_a_lane_and_has_ended_is_put_right_once(rule: str) -> None:
    shapes, choices = 50, 10
    waiting, model, worker = full(shapes)
    for width in range(1, shapes + 1):
        queue(waiting, model, width, virtual_ns=-width, priority=0)
    choose_by = getattr(waiting, rule)
    assert choose_by(worker, 0) is not None  # all are in the heaps
    for lane in waiting.lanes:
        urgent = next(part.request for part in lane.waiting() if not part.request.priority)
        urgent.ended = True
        lane.forget(urgent)
    asked: list[Lane] = []

    def noted(lane: Lane, worker: Worker, starts_ns: int) -> Heads | None:
        asked.append(lane)
        return heads(lane, worker, starts_ns)

    (order,) = waiting._orders.values()
    order._look = noted
    for _ in range(choices):
        found = choose_by(worker, 0)
        assert found is not None
        assert found[0][0] == 1
    assert len(asked) <= shapes + 2 * choices


def test_lanes_of_models_that_nobody_serves_are_in_no_order() -> None:
    waiting, _, worker = full(3)
    other = Model(ModelConfig("other", Path("/net.onnx"), 4))
    spec = TensorSpec("x", 1, ["n", "t"])
    Worker(2, 5002).serve(other, Loaded("other", 1, [spec], [spec], True, "", 4, "cpu", "", {}))
    for came in range(2):  # before there is an order, and afterwards
        queue(waiting, other, 1 + came, virtual_ns=100)
        assert choose(waiting, worker, 0) is not None
        (order,) = waiting._orders.values()
        assert {lane.model_name for _, _, lane in (*order._due, *order._first)} == {"net"}


def test_lanes_that_come_and_go_leave_nothing_in_the_heaps() -> None:
    waiting, model, worker = full(3)
    for turn in range(20 * SWEEP_MIN):
        lane = queue(waiting, model, 10 + turn, virtual_ns=turn)
        assert choose(waiting, worker, 0) is not None
        take_rows(lane, 1)
        waiting.drop(lane)
    (order,) = waiting._orders.values()
    assert len(order._due) <= 2 * SWEEP_MIN
    assert len(order._first) <= 2 * SWEEP_MIN
    assert not waiting._given


def test_an_urgent_request_that_comes_and_goes_in_a_lane_with_others_leaves_nothing_in_the_heaps() -> None:
    waiting, model, worker = full(3)
    for turn in range(20 * SWEEP_MIN):
        queue(waiting, model, 1, virtual_ns=-turn - 1, priority=0)
        choice = choose(waiting, worker, 0)
        assert choice is not None
        assert len(take_rows(choice[0], 1)) == 1
    (order,) = waiting._orders.values()
    assert len(order._due) <= 2 * SWEEP_MIN
    assert len(order._first) <= 2 * SWEEP_MIN


def test_a_lane_that_a_sweep_left_out_is_found_again() -> None:
    """Its requests were cancelled, so nobody has dropped it; what comes next is due no earlier than they were."""
    waiting, model, worker = full(3)
    other = queue(waiting, model, 9, virtual_ns=4)
    assert choose(waiting, worker, 0) is not None  # all are in the heaps
    (cancelled,) = other.waiting()
    cancelled.request.ended = True
    other.forget(cancelled.request)
    turn = 0
    (order,) = waiting._orders.values()
    while any(lane is other for _, _, lane in order._due):  # until the sweep
        turn -= 1
        queue(waiting, model, 1, virtual_ns=turn)
        assert choose(waiting, worker, 0) is not None
    queue(waiting, model, 9, virtual_ns=5)
    chosen = []
    while (choice := choose(waiting, worker, 0)) is not None:
        chosen.append(choice[0])
        take_rows(choice[0], 4)
    assert other in chosen


def test_workers_that_serve_the_same_share_an_order_and_sets_of_models_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, model, worker = full(3)
    monkeypatch.setattr(room, "ORDERS_MAX", 4)
    other = Model(ModelConfig("other", Path("/net.onnx"), 4))
    for number in range(10):
        each = Worker(number, 5000 + number)
        spec = TensorSpec("x", 1, ["n", "t"])
        for serves in (model, *([other] if number % 2 else [])):
            each.serve(serves, Loaded(serves.name, 1, [spec], [spec], True, "", 4, "cpu", "", {}))
        assert choose(waiting, each, 0) == choose(waiting, worker, 0)
    assert len(waiting._orders) == 2
    for number in range(10):
        each = Worker(number, 5000 + number)
        alone = Model(ModelConfig(f"alone{number}", Path("/net.onnx"), 4))
        each.serve(alone, Loaded(alone.name, 1, [spec], [spec], True, "", 4, "cpu", "", {}))
        assert choose(waiting, each, 0) is None
    assert len(waiting._orders) <= 4
    assert choose(waiting, worker, 0) is not None
