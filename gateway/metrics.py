"""The gateway's own figures, as Prometheus reads them. The broker's and the machine's are the sidecar's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = exposition.CONTENT_TYPE_PLAIN_0_0_4
BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
PREFIX = "batchyard_gateway"


class Metrics:
    """`in_flight`: HTTP requests that have no answer yet."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = 0
        # The sidecar's page has it, too: by it a dashboard finds both.
        build = Gauge("batchyard_build_info", "The version; always 1.", ["version"], registry=self.registry)
        build.labels(version).set(1)
        self._requests = Counter(
            f"{PREFIX}_requests", "Answered requests (499: its client had gone).", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._duration = Histogram(
            f"{PREFIX}_request_duration_seconds", "From a request's head to the end of its answer.",
            ["route"], buckets=BUCKETS_S, registry=self.registry,
        )  # fmt: skip

    def observe(self, route: str, status: int, duration_s: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(duration_s)

    def add_gauges(self, gauges: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """More figures, asked for when somebody reads: name -> (what it is, value)."""
        self.registry.register(_Gauges(gauges))

    def page(self) -> bytes:
        return exposition.generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        self._gauges = gauges

    def describe(self) -> list[Metric]:
        return []  # what there is is known when it is collected

    def collect(self) -> Iterator[Metric]:
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def tasks() -> int:
    """Asyncio's tasks on the running loop; 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
