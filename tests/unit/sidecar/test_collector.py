"""The collector: one snapshot a page, and a page whatever happens."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from typing import Any

import pytest
import zmq
from batchyard.sidecar.collector import SHARED_S, YardCollector, gpu_metrics
from batchyard.sidecar.sensors import Gpu
from batchyard.transport.errors import DeadlineExceeded
from batchyard.transport.snapshot import Snapshot, read
from prometheus_client.metrics_core import Metric


class Broker:
    """Answers with `snapshot`, or raises it."""

    def __init__(self, snapshot: Any) -> None:
        self.snapshot = snapshot
        self.asked = 0

    def __call__(self) -> Snapshot:
        self.asked += 1
        if isinstance(self.snapshot, Exception):
            raise self.snapshot
        return read(self.snapshot)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def samples(metrics: Iterable[Metric]) -> dict[str, float]:
    return {sample.name: sample.value for family in metrics for sample in family.samples}


def test_several_scrapes_at_once_cost_the_broker_one_question(counters: dict[str, Any]) -> None:
    broker, clock = Broker(counters), Clock()
    collector = YardCollector(broker, [], False, clock)
    first, second = list(collector.collect()), list(collector.collect())
    assert first == second
    assert broker.asked == 1
    clock.now_s += SHARED_S
    list(collector.collect())
    assert broker.asked == 2


def test_registering_it_asks_the_broker_nothing(counters: dict[str, Any]) -> None:
    from prometheus_client import CollectorRegistry

    broker = Broker(counters)
    CollectorRegistry(auto_describe=True).register(YardCollector(broker, [], False))
    assert broker.asked == 0


@pytest.mark.parametrize(
    "error", [DeadlineExceeded("no broker"), zmq.ZMQError(errno.EMFILE), OSError(24, "too many")]
)
def test_without_a_broker_the_page_still_answers_and_says_so_once(
    counters: dict[str, Any], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "batchyard.sidecar")
    broker, clock = Broker(counters), Clock()
    collector = YardCollector(broker, [], False, clock)
    assert samples(collector.collect())["batchyard_up"] == 1
    broker.snapshot = error
    for _ in range(3):
        clock.now_s += 1
        page = samples(collector.collect())
        assert page["batchyard_up"] == 0
        assert page["batchyard_host_cpus"] >= 1
        assert not [name for name in page if name.startswith(("batchyard_requests", "batchyard_workers"))]
    broker.snapshot = counters
    clock.now_s += 1
    assert samples(collector.collect())["batchyard_up"] == 1
    assert [record.message for record in caplog.records] == [str(error), "the broker answers"]


def test_a_page_after_a_restart_of_the_broker_holds_nothing_of_the_one_before(
    counters: dict[str, Any],
) -> None:
    broker, clock = Broker(counters), Clock()
    collector = YardCollector(broker, [], False, clock)
    list(collector.collect())
    broker.snapshot = counters | {"epoch": 8, "requests": [], "stages": [], "batch_stages": [], "refused": {}}
    clock.now_s += 1
    page = samples(collector.collect())
    counted = [
        name for name in page if name.endswith(("_bucket", "_count", "requests_total", "refusals_total"))
    ]
    assert counted
    assert [name for name in counted if page[name]] == []


def test_a_sensor_that_is_absent_has_no_series_and_one_at_zero_has() -> None:
    page = samples(gpu_metrics([Gpu("a", "card", utilization_ratio=0.0), Gpu("b", "card", power_watts=31.5)]))
    assert page == {"batchyard_gpu_utilization_ratio": 0.0, "batchyard_gpu_power_watts": 31.5}
    assert list(gpu_metrics([])) == []


def test_processes_of_another_machine_are_not_looked_up_here(counters: dict[str, Any]) -> None:
    roles = {
        is_local: {
            sample.labels["role"]
            for family in YardCollector(
                Broker(counters | {"pid": 1, "worker_pids": [1]}), [], is_local
            ).collect()
            for sample in family.samples
            if sample.name == "batchyard_process_start_time_seconds"
        }
        for is_local in (True, False)
    }
    assert roles == {True: {"sidecar", "broker", "worker"}, False: {"sidecar"}}
