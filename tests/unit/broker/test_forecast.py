"""When a request would be done, and what a class can count on: what the classes above it leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.forecast import CAUTION_MAX, CAUTION_MIN, LATELY_NS, OVERHEAD_MAX, UPDATE_NS, Forecast
from batchyard.broker.models import Model
from batchyard.broker.policy import OVERDUE_SHARE
from batchyard.broker.requests import Part, Request
from batchyard.broker.serving import Worker
from batchyard.transport.messages import Loaded, Submit
from batchyard.transport.tensors import Tensor, TensorSpec

MS = 1_000_000
STEP_NS = UPDATE_NS + MS  # so that what has come is looked at
URGENT, HIGH, NORMAL, LOW = range(4)


def one(priority: int) -> list[int]:
    """A batch of one row of a class."""
    return [int(number == priority) for number in range(4)]


class Yard:
    """Workers that take a millisecond for a row, and what the classes ask of them."""

    def __init__(self, workers: int = 1) -> None:
        self.model = Model(ModelConfig("net", Path("/net.onnx"), 8))
        self.workers = {number: Worker(number, 5000 + number) for number in range(1, workers + 1)}
        spec = TensorSpec("x", 1, ["n", 4])
        for worker in self.workers.values():
            worker.serve(self.model, Loaded("net", 1, [spec], [spec], True, "", 8, "cpu", "", {8: 8 * MS}))
        self.model.row_ns = MS
        self.forecast = Forecast({"net": self.model}, self.workers)
        self.now_ns = 10**12
        self.left_ns(LOW)  # begins to watch

    def left_ns(self, priority: int, rows: int = 80) -> int:
        """How long so many rows would take now."""
        return self.forecast.finish_ns(self.model, rows, priority, self.now_ns) - self.now_ns

    def share(self, priority: int) -> float:
        """The part of one worker's time that a class counts on."""
        return 80 * MS * CAUTION_MIN[priority] / len(self.workers) / self.left_ns(priority)

    def wait(self, priority: int, rows: int) -> None:
        """So many rows of a class wait."""
        lane = self.model.lane([Tensor(1, [1, 4], 0)])
        message = Submit(1, "net", priority, 0, [Tensor(1, [rows, 4], 0)], [])
        lane.push(Part(Request(1, message, 1, self.model, lane, rows, rows * 16, 0), 0, rows))

    def stream(self, priority: int, asked: float, ran: float, for_ns: int = 10 * LATELY_NS) -> None:
        """A class asks for so much of the workers' time, and gets so much, for a while."""
        for _ in range(for_ns // STEP_NS):
            self.now_ns += STEP_NS
            work_ns = len(self.workers) * STEP_NS
            self.forecast.asked_ns[priority] += asked * work_ns
            self.forecast.ran(one(priority), ran * work_ns, 0, 0, self.now_ns)
            self.left_ns(LOW)


def test_where_nothing_is_known_a_request_is_done_at_once() -> None:
    yard = Yard()
    yard.model.row_ns = 0
    assert yard.left_ns(LOW) == 0
    yard.model.row_ns = MS
    yard.model.workers.clear()
    assert yard.left_ns(LOW) == 0


def test_where_nothing_else_is_asked_every_class_counts_on_everything() -> None:
    yard = Yard()
    assert [yard.share(priority) for priority in range(4)] == [1.0] * 4


@pytest.mark.parametrize("workers", [1, 4])
def test_a_class_counts_on_what_those_above_it_leave(workers: int) -> None:
    yard = Yard(workers)
    yard.stream(HIGH, 0.4, 0.4)
    assert [yard.share(priority) for priority in range(4)] == pytest.approx([1, 1, 0.6, 0.6], abs=0.01)


def test_what_was_asked_in_a_burst_is_no_habit_and_what_ran_after_it_neither() -> None:
    yard = Yard()
    yard.stream(URGENT, asked=0.9, ran=0.1)
    assert yard.share(LOW) == pytest.approx(0.9, abs=0.01)
    yard.stream(URGENT, asked=0.1, ran=0.9)
    assert yard.share(LOW) == pytest.approx(0.9, abs=0.01)


def test_what_is_overdue_has_its_share_under_any_load() -> None:
    yard = Yard()
    yard.stream(URGENT, 2.0, 1.0)
    assert yard.share(URGENT) == 1.0
    assert yard.share(HIGH) == yard.share(LOW) == 1 / OVERDUE_SHARE


def test_what_waits_below_will_have_its_share_too() -> None:
    yard = Yard()
    yard.wait(LOW, 1)
    assert yard.share(NORMAL) == pytest.approx(1 - 1 / OVERDUE_SHARE)
    assert yard.left_ns(LOW) == 81 * MS * CAUTION_MIN[LOW], "it is of the same class"


def test_what_waits_in_a_class_and_above_comes_first() -> None:
    yard = Yard()
    yard.wait(HIGH, 8)
    assert yard.left_ns(URGENT, 8) == int(8 * MS / (1 - 1 / OVERDUE_SHARE))
    assert yard.left_ns(HIGH, 8) == yard.left_ns(NORMAL, 8) == 16 * MS


def test_a_load_that_is_over_is_forgotten() -> None:
    yard = Yard()
    yard.stream(URGENT, 0.8, 0.8)
    yard.stream(URGENT, 0.0, 0.0, LATELY_NS)
    assert 0.6 < yard.share(LOW) < 0.8
    yard.now_ns += 2 * LATELY_NS
    assert yard.share(LOW) == 1.0


def test_between_two_updates_nothing_changes() -> None:
    yard = Yard()
    yard.forecast.asked_ns[URGENT] += 10 * MS
    yard.forecast.ran(one(URGENT), 10 * MS, 0, 0, yard.now_ns)
    yard.now_ns += UPDATE_NS
    assert yard.share(LOW) == 1.0
    yard.now_ns += 1
    assert yard.share(LOW) < 1.0


def test_deadlines_that_are_missed_make_their_class_careful_and_those_that_are_met_bold_again() -> None:
    yard = Yard()
    before = [yard.left_ns(priority) for priority in range(4)]
    for _ in range(10):
        yard.forecast.ended(NORMAL, False)
    after = [yard.left_ns(priority) for priority in range(4)]
    assert after[NORMAL] == pytest.approx(before[NORMAL] * 1.02**10, rel=1e-6)
    assert [after[priority] for priority in (URGENT, HIGH, LOW)] == [
        before[priority] for priority in (URGENT, HIGH, LOW)
    ]
    for _ in range(1_000):
        yard.forecast.ended(NORMAL, False)
    assert yard.left_ns(NORMAL) == int(before[NORMAL] * CAUTION_MAX)
    for _ in range(20_000):
        yard.forecast.ended(NORMAL, True)
    assert yard.left_ns(NORMAL) == pytest.approx(before[NORMAL], rel=1e-3)


@pytest.mark.parametrize(("held_ns", "factor"), [(MS, 1.0), (0, 1.0), (2 * MS, 2.0), (99 * MS, OVERHEAD_MAX)])
def test_what_a_batch_costs_beside_its_own_time_is_expected_of_the_next(held_ns: int, factor: float) -> None:
    yard = Yard()
    for _ in range(400):
        yard.forecast.ran([0] * 4, 0, MS, held_ns, yard.now_ns)
    yard.forecast.ran([0] * 4, 0, 0, 50 * MS, yard.now_ns)  # nothing to compare with
    assert yard.left_ns(URGENT) == pytest.approx(80 * MS * factor, rel=1e-3)


def test_a_burst_that_is_being_run_is_no_habit_either() -> None:
    yard = Yard()
    yard.forecast.asked_ns[NORMAL] += 10_000 * MS
    for _ in range(3):
        yard.stream(NORMAL, asked=0.0, ran=1.0, for_ns=STEP_NS)
    assert yard.share(LOW) > 0.7
