"""The page, rebuilt for every scrape from one snapshot of one broker and the sensors' readings.

Decides when to ask the broker: at a scrape, and at most every SHARED_S, however many scrape. It keeps nothing
between pages, so nothing is lost if this process stops or restarts, and a page never mixes two brokers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import zmq
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..transport.errors import BatchyardError
from ..transport.snapshot import Snapshot
from . import metrics
from .sensors import Gpu, Reader, host

SHARED_S = 0.2  # a page younger than this answers the next scrape as well

log = logging.getLogger("batchyard.sidecar")

_GPU_METRICS = (
    ("utilization_ratio", "How much of the time the GPU's busiest engine works, 0 to 1."),
    ("memory_used_bytes", "Memory of the card that is in use."),
    ("memory_total_bytes", "Memory of the card."),
    ("temperature_celsius", "Temperature of the card."),
    ("power_watts", "Power that the card draws."),
)


class YardCollector(Collector):
    """`ask` pulls a snapshot or raises; `is_local`: the broker's processes are this machine's."""

    def __init__(
        self,
        ask: Callable[[], Snapshot],
        gpu_readers: Sequence[Reader],
        is_local: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._gpu_readers = gpu_readers
        self._is_local = is_local
        self._clock = clock
        self._lock = threading.Lock()  # scrapes come on threads of their own
        self._page: list[Metric] = []
        self._made_s = -SHARED_S
        self._trouble: str | None = None  # said once, not at every scrape

    def describe(self) -> list[Metric]:
        """Empty: describing the metrics would take a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if self._clock() - self._made_s >= SHARED_S:
                self._page = list(self._make())
                self._made_s = self._clock()
            page = self._page
        yield from page

    def _make(self) -> Iterator[Metric]:
        started_s = self._clock()
        snapshot = self._snapshot()
        took_s = self._clock() - started_s
        yield from metrics.absent() if snapshot is None else metrics.families(snapshot)
        text = "Time that the broker took to answer, or was waited for."
        yield GaugeMetricFamily("batchyard_snapshot_duration_seconds", text, took_s)
        gpus = [gpu for read in self._gpu_readers for gpu in read()]
        yield from gpu_metrics(gpus)
        yield device_metric(bool(gpus))
        yield from host.host()
        pids = {"sidecar": [os.getpid()]}
        if snapshot is not None and self._is_local:
            pids |= {"broker": [snapshot.pid], "worker": snapshot.worker_pids}
        yield from host.processes(pids)

    def _snapshot(self) -> Snapshot | None:
        try:
            snapshot = self._ask()
        except (BatchyardError, zmq.ZMQError, OSError) as error:
            if str(error) != self._trouble:
                log.warning("%s", error)
                self._trouble = str(error)
            return None
        if self._trouble is not None:
            log.info("the broker answers")
            self._trouble = None
        return snapshot


def device_metric(has_gpu: bool) -> Metric:
    """What a dashboard calls the panels of the machine's devices."""
    text = "Whether a GPU can be read here: GPU, or Host; always 1."
    family = GaugeMetricFamily("batchyard_device_info", text, labels=("device",))
    family.add_metric(("GPU" if has_gpu else "Host",), 1)
    return family


def gpu_metrics(gpus: Sequence[Gpu]) -> Iterator[Metric]:
    """A family for each sensor that some GPU has."""
    for field, text in _GPU_METRICS:
        family = GaugeMetricFamily(f"batchyard_gpu_{field}", text, labels=("gpu", "name"))
        for gpu in gpus:
            value = getattr(gpu, field)
            if value is not None:
                family.add_metric((gpu.gpu, gpu.name), value)
        if family.samples:
            yield family
