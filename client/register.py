"""Which jobs there are, and for how long it is known what came of them.

Owns a job's state from its beginning to when it is forgotten. Runs nothing: jobs.py does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict

from ..transport.errors import BatchyardError, Code
from .signature import Array
from .tally import JobStatistics, JobStatus, Tally

Result = Array | dict[str, Array]


class UnknownJob(BatchyardError, LookupError):
    """No such job: it was never submitted, or its result has been dropped."""

    code = Code.INVALID_REQUEST

    def __str__(self) -> str:  # LookupError's subclasses may quote
        return str(self.args[0]) if self.args else ""


class Job:
    """`done` is set with the job's end. `task` carries it there."""

    __slots__ = ("done", "ended_s", "error", "id", "result", "started_s", "status", "task")

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self.done = asyncio.get_running_loop().create_future()
        self.status = JobStatus.PENDING
        self.started_s = time.monotonic()
        self.ended_s = 0.0
        self.result: Result | None = None
        self.error: BatchyardError | None = None
        self.task: asyncio.Task[None] | None = None


class Register:
    """Jobs under way, and those that have ended, at most `ends_max` and each for `ttl_s` seconds."""

    def __init__(self, ttl_s: float, ends_max: int) -> None:
        self._ttl_s = ttl_s
        self._ends_max = ends_max
        self.under_way: dict[str, Job] = {}
        self.ended: OrderedDict[str, Job] = OrderedDict()  # oldest first
        self._tally = Tally()
        self._sweeps = False
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Ends are forgotten as time passes, and not only when the next one comes, until `close`."""
        self._sweeps = True

    def close(self) -> None:
        self._sweeps = False
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def begin(self) -> Job:
        """A new job."""
        job = Job()
        self.under_way[job.id] = job
        self._tally.began(job.started_s)
        return job

    def find(self, job_id: str) -> Job:
        """The job of that number. Raises UnknownJob."""
        job = self.under_way.get(job_id) or self.ended.get(job_id)
        if job is None or (job.done.done() and time.monotonic() - job.ended_s >= self._ttl_s):
            raise UnknownJob(f"there is no job {job_id!r}; ends are remembered for {self._ttl_s:g} s")
        return job

    def end(
        self, job: Job, status: JobStatus, result: Result | None = None, error: BatchyardError | None = None
    ) -> bool:
        """Note a job's end, once. False: it had one."""
        if job.done.done():
            return False
        job.status, job.result, job.error = status, result, error
        job.ended_s = time.monotonic()
        job.done.set_result(None)
        del self.under_way[job.id]
        self.ended[job.id] = job
        self._tally.ended(status)
        self._sweep()
        if self._sweeper is None and self._sweeps:
            self._sweeper = asyncio.get_running_loop().call_later(self._ttl_s, self._sweep_again)
        return True

    def ran(self, job: Job, rows: int, batch_rows: int) -> None:
        """A job that was completed had so many rows, in a batch of so many."""
        self._tally.ran(job.ended_s, job.ended_s - job.started_s, rows, batch_rows)

    def count(self, status: JobStatus) -> int:
        """Jobs under way in this state."""
        return sum(job.status is status for job in self.under_way.values())

    def statistics(self, largest_batch: int) -> JobStatistics:
        """Counts, and figures of the jobs that ended last."""
        pending, running = self.count(JobStatus.PENDING), self.count(JobStatus.RUNNING)
        return self._tally.statistics(time.monotonic(), pending, running, largest_batch)

    def _sweep(self) -> None:
        """Forget ends that are too old or too many."""
        now_s = time.monotonic()
        while self.ended:
            oldest = next(iter(self.ended.values()))
            if len(self.ended) <= self._ends_max and now_s - oldest.ended_s < self._ttl_s:
                break
            del self.ended[oldest.id]

    def _sweep_again(self) -> None:
        """As time passes: the next oldest is looked at when it is due."""
        self._sweeper = None
        self._sweep()
        if self.ended and self._sweeps:
            oldest = next(iter(self.ended.values()))
            due_s = oldest.ended_s + self._ttl_s - time.monotonic()
            self._sweeper = asyncio.get_running_loop().call_later(due_s, self._sweep_again)
