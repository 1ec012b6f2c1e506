"""A queue's statistics: outcomes and times of its jobs. Pure: the queue reads the clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from .table import JobStatus

SAMPLES_MAX = 4096  # jobs that figures look back on
WINDOW_S = 10.0  # that throughput is counted over


@dataclass(frozen=True, slots=True)
class JobStatistics:
    """Since the queue was made. None means no data yet. Latencies run from submit to result; they and the
    batch figures are of the last 4,096 completed jobs."""

    submitted: int
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    throughput: float  # completed jobs per second, over the last 10 s
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    batch_rows_mean: float | None  # of the batches that jobs ran in
    batch_fill: float | None  # the same, as a share of the largest batch


class Tally:
    """Counts of a queue's jobs. `now_s` is of one monotonic clock throughout."""

    def __init__(self) -> None:
        self._began_s = 0.0
        self._submitted = 0
        self._ends = dict.fromkeys(JobStatus, 0)
        # (when it ended, its latency, its rows, its batch's rows)
        self._samples: deque[tuple[float, float, int, int]] = deque(maxlen=SAMPLES_MAX)

    def began(self, now_s: float) -> None:
        self._began_s = self._began_s or now_s
        self._submitted += 1

    def ended(self, status: JobStatus) -> None:
        self._ends[status] += 1

    def ran(self, now_s: float, latency_s: float, rows: int, batch_rows: int) -> None:
        """A job was completed, with its rows in a batch of so many."""
        self._samples.append((now_s, latency_s, rows, max(1, batch_rows)))

    def statistics(self, now_s: float, pending: int, running: int, largest_batch: int) -> JobStatistics:
        """The figures, beside what is under way now."""
        samples = self._samples
        p50 = p95 = p99 = mean = fill = None
        throughput = 0.0
        if samples:
            oldest_s = samples[0][0] if len(samples) == SAMPLES_MAX else self._began_s
            since_s = max(now_s - WINDOW_S, oldest_s)
            recent = sum(ended_s >= since_s for ended_s, *_ in samples)
            throughput = recent / max(1e-3, now_s - since_s)
            latencies = [latency_s for _, latency_s, _, _ in samples]
            p50, p95, p99 = (float(value) for value in np.percentile(latencies, (50, 95, 99)))
            # A batch is seen by each of its jobs: by their shares of its rows, it counts once.
            batches = sum(rows / batch_rows for _, _, rows, batch_rows in samples)
            mean = sum(rows for _, _, rows, _ in samples) / batches
            fill = mean / largest_batch
        ends = self._ends
        return JobStatistics(
            self._submitted,
            pending,
            running,
            ends[JobStatus.COMPLETED],
            ends[JobStatus.FAILED],
            ends[JobStatus.CANCELLED],
            ends[JobStatus.EXPIRED],
            throughput,
            p50,
            p95,
            p99,
            mean,
            fill,
        )
