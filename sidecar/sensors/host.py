"""Every machine's processors and memory, and our own processes' share of them.

By psutil, which knows how Linux, Windows, and macOS say it. Seconds of processor time are cumulative,
so that whoever scrapes, and however often, gets the mean over his own interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # guests are counted in user as well


def host() -> Iterator[Metric]:
    times = psutil.cpu_times()
    busy_s = sum(seconds for kind, seconds in times._asdict().items() if kind not in _NOT_BUSY)
    memory = psutil.virtual_memory()
    text = "Time that the machine's processors have worked, summed over all of them."
    yield CounterMetricFamily("batchyard_host_cpu_seconds", text, busy_s)
    yield GaugeMetricFamily("batchyard_host_cpus", "Processors of the machine.", psutil.cpu_count() or 1)
    text = "Memory that programs can't have without swapping."
    used = memory.total - memory.available
    yield GaugeMetricFamily("batchyard_host_memory_used_bytes", text, used)
    yield GaugeMetricFamily("batchyard_host_memory_total_bytes", "The machine's memory.", memory.total)


def processes(pids: Mapping[str, Iterable[int]]) -> Iterator[Metric]:
    """`pids`: of this machine, by role. One that has ended meanwhile is left out."""
    labels = ("role", "pid")
    text = "Processor time of our processes."
    cpu = CounterMetricFamily("batchyard_process_cpu_seconds", text, labels=labels)
    text = "Memory of our processes, the pages of arenas that they share included."
    resident = GaugeMetricFamily("batchyard_process_resident_memory_bytes", text, labels=labels)
    text = "When our processes started, in seconds since 1970."
    started = GaugeMetricFamily("batchyard_process_start_time_seconds", text, labels=labels)
    for role, numbers in pids.items():
        for pid in numbers:
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    rss, started_s = process.memory_info().rss, process.create_time()
            except psutil.Error:
                continue
            cpu.add_metric((role, str(pid)), times.user + times.system)
            resident.add_metric((role, str(pid)), rss)
            started.add_metric((role, str(pid)), started_s)
    yield from (cpu, resident, started)
