"""The table of jobs: ids, states, and how long results are kept.

Owns a job from its start until it is forgotten. Runs nothing; its users do.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

from ..transport.errors import BatchyardError, Code


class JobStatus(Enum):
    """PENDING waits for room in shared memory. RUNNING is with the yard: it waits for a worker or is in a
    batch; the broker does not say which. The others are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class UnknownJob(BatchyardError, LookupError):
    """No such job: it was never submitted, or its result has been dropped."""

    code = Code.INVALID_REQUEST

    def __str__(self) -> str:  # LookupError's subclasses may quote
        return str(self.args[0]) if self.args else ""


Result = TypeVar("Result")


class Job(Generic[Result]):
    """`done` is set with the job's end. `task` carries it there."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = JobStatus.PENDING
        self.started_s = self.ended_s = 0.0
        self.result: Result | None = None
        self.result_bytes = 0
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None


AJob = TypeVar("AJob", bound=Job)  # type: ignore[type-arg]


class Table(Generic[AJob]):
    """Jobs under way, and those that have ended: each for `ttl_s` seconds, at most `ends_max` of them.

    All results together have at most `bytes_max` bytes: past that, the oldest results are dropped and their
    jobs stay. For one event loop; `clock` is monotonic.
    """

    def __init__(
        self,
        ttl_s: float,
        ends_max: float = math.inf,
        bytes_max: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._ends_max = ends_max
        self._bytes_max = bytes_max
        self._clock = clock
        self.under_way: dict[str, AJob] = {}
        self.ended: OrderedDict[str, AJob] = OrderedDict()  # oldest first
        self.result_bytes = 0
        self._sweeps = False
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """The number of jobs, after forgetting those that are due."""
        self._sweep()
        return len(self.under_way) + len(self.ended)

    def open(self) -> None:
        """Forget ended jobs by a timer, and not only at the next call, until `close`."""
        self._sweeps = True

    def close(self) -> None:
        self._sweeps = False
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def begin(self, job: AJob) -> AJob:
        job.started_s = self._clock()
        self.under_way[job.id] = job
        return job

    def find(self, job_id: str) -> AJob:
        """The job of that id. Raises UnknownJob."""
        self._sweep()
        job = self.under_way.get(job_id) or self.ended.get(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id[:80]!r}; results are kept for {self._ttl_s:g} s")
        return job

    def end(
        self,
        job: AJob,
        status: JobStatus,
        result: object = None,
        error: Exception | None = None,
        nbytes: int = 0,
    ) -> bool:
        """End a job, once; `nbytes` is its result's size. False if it had ended already."""
        if job.done.done():
            return False
        self._make_room(nbytes)
        job.status, job.result, job.error = status, result, error
        job.result_bytes = nbytes
        self.result_bytes += nbytes
        job.ended_s = self._clock()
        job.done.set_result(None)
        del self.under_way[job.id]
        self.ended[job.id] = job
        self._sweep()
        if self._sweeper is None and self._sweeps:
            self._sweeper = asyncio.get_running_loop().call_later(self._ttl_s, self._sweep_again)
        return True

    def forget(self, job: AJob) -> None:
        self.drop_result(self.ended.pop(job.id))

    def drop_result(self, job: AJob) -> None:
        """The job stays, without its result."""
        self.result_bytes -= job.result_bytes
        job.result, job.result_bytes = None, 0

    def count(self, status: JobStatus) -> int:
        """Jobs under way in this state."""
        return sum(job.status is status for job in self.under_way.values())

    def _make_room(self, nbytes: int) -> None:
        """Drop the oldest results first."""
        for job in self.ended.values():
            if self.result_bytes + nbytes <= self._bytes_max:
                return
            self.drop_result(job)

    def _sweep(self) -> None:
        """Forget ends that are too old or too many."""
        now_s = self._clock()
        while self.ended:
            oldest = next(iter(self.ended.values()))
            if len(self.ended) <= self._ends_max and now_s - oldest.ended_s < self._ttl_s:
                break
            self.forget(oldest)

    def _sweep_again(self) -> None:
        """Called by the timer: sweep, and set it for the next oldest."""
        self._sweeper = None
        self._sweep()
        if self.ended and self._sweeps:
            oldest = next(iter(self.ended.values()))
            due_s = oldest.ended_s + self._ttl_s - self._clock()
            self._sweeper = asyncio.get_running_loop().call_later(due_s, self._sweep_again)
