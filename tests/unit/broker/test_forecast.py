"""The forecast: what is left for a class, and how it learns from being wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker.batching import OVERDUE_SHARE
from batchyard.broker.config import ModelConfig
from batchyard.broker.forecast import CAUTION_MAX, CAUTION_MIN, LATELY_NS, UPDATE_NS, Forecast
from batchyard.broker.registry import Model, Worker
from batchyard.transport.messages import Loaded
from batchyard.transport.tensors import TensorSpec

MS = 1_000_000
NOW_NS = 1_000 * MS
URGENT, HIGH, NORMAL, LOW = range(4)


@pytest.fixture
def model() -> Model:
    """10 ms a row, in batches of one."""
    return Model(ModelConfig("net", Path("/net.onnx"), 1))


@pytest.fixture
def forecast(model: Model) -> Forecast:
    spec = TensorSpec("x", 1, ["n", 4])
    worker = Worker(1, 4711)
    worker.serve(model, Loaded("net", 1, [spec], [spec], True, "", 1, "cpu", "", {1: 10 * MS}))
    model.row_ns = 10 * MS
    return Forecast({"net": model}, {1: worker})


def wait_ms(forecast: Forecast, model: Model, priority: int, now_ns: int = NOW_NS) -> float:
    return (forecast.finish_ns(model, 1, priority, now_ns) - now_ns) / MS


def busy(forecast: Forecast, priority: int, share: float, until_ns: int = NOW_NS) -> None:
    """A class has asked for a share of the worker's time for long, and got it."""
    step_ns = 2 * UPDATE_NS
    for at_ns in range(until_ns - 20 * LATELY_NS, until_ns, step_ns):
        forecast.asked_ns[priority] += share * step_ns
        forecast.ran([int(n == priority) for n in range(4)], share * step_ns, 1, 1)
        forecast._load_above(LOW, at_ns + step_ns)


def test_what_waits_in_the_class_and_above_comes_first(forecast: Forecast, model: Model) -> None:
    model.waiting[:] = [1, 2, 4, 0]
    assert [wait_ms(forecast, model, priority) for priority in (URGENT, LOW)] == [
        pytest.approx(20 / (1 - 1 / OVERDUE_SHARE)),
        pytest.approx(80 * CAUTION_MIN[LOW]),
    ]


def test_nothing_is_foretold_of_a_model_that_nobody_serves(forecast: Forecast, model: Model) -> None:
    model.workers.clear()
    assert forecast.finish_ns(model, 1, LOW, NOW_NS) == NOW_NS


def test_what_higher_classes_have_asked_for_and_got_is_not_left(forecast: Forecast, model: Model) -> None:
    busy(forecast, HIGH, 0.5)
    assert wait_ms(forecast, model, HIGH) == 10
    assert wait_ms(forecast, model, NORMAL) == pytest.approx(20, rel=0.01)
    later_ns = NOW_NS + 20 * LATELY_NS
    assert wait_ms(forecast, model, NORMAL, later_ns) == pytest.approx(10, rel=0.01)


def test_however_much_is_above_the_overdue_have_their_share(forecast: Forecast, model: Model) -> None:
    busy(forecast, HIGH, 2.0)
    assert wait_ms(forecast, model, LOW) == pytest.approx(10 * OVERDUE_SHARE * CAUTION_MIN[LOW])


def test_a_burst_that_waits_is_no_habit(forecast: Forecast, model: Model) -> None:
    forecast.asked_ns[HIGH] += 1e12  # asked, and not yet served
    assert wait_ms(forecast, model, NORMAL) == 10


def test_a_miss_makes_the_next_forecasts_of_its_class_more_careful(forecast: Forecast, model: Model) -> None:
    for _ in range(10):
        forecast.ended(NORMAL, in_time=False)
    careful_ms = wait_ms(forecast, model, NORMAL)
    assert careful_ms == pytest.approx(10 * 1.02**10)
    assert wait_ms(forecast, model, HIGH) == 10
    for _ in range(10_000):
        forecast.ended(NORMAL, in_time=False)
    assert wait_ms(forecast, model, NORMAL) == pytest.approx(10 * CAUTION_MAX)
    for _ in range(100_000):
        forecast.ended(NORMAL, in_time=True)
    assert wait_ms(forecast, model, NORMAL) == 10
    assert not forecast.is_careful


def test_what_a_batch_costs_beside_its_own_time_counts(forecast: Forecast, model: Model) -> None:
    model.waiting[NORMAL] = 9
    before_ms = wait_ms(forecast, model, NORMAL)
    for _ in range(200):
        forecast.ran([0, 0, 1, 0], 10 * MS, 10 * MS, 12 * MS)
    assert wait_ms(forecast, model, NORMAL, NOW_NS) == pytest.approx(before_ms * 1.2, rel=0.01)
