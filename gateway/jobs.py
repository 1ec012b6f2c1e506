"""The gateway's jobs: their work, their bounds, and their states as REST clients read them.

Ids and lifetimes are those of jobs/. A job's result is a copy: the yard's memory is for requests under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, NamedTuple

from ..jobs.table import Job as AnyJob
from ..jobs.table import JobStatus, Table, UnknownJob
from .datatypes import Array
from .errors import Refusal, refusal_of


class State(StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it was done, and its result had to make room


PASSES = 8  # of the event loop, in which the client says of a request that it can never be

_STATES = {
    JobStatus.PENDING: State.PENDING,
    JobStatus.COMPLETED: State.DONE,
    JobStatus.FAILED: State.FAILED,
    JobStatus.CANCELLED: State.CANCELLED,
}


class Result(NamedTuple):
    """The result of a request: named outputs, and the receipt."""

    model: str
    revision: int
    outputs: dict[str, Array]
    receipt: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.outputs.values())

    def copied(self) -> Result:
        """The same, in memory of its own."""
        return self._replace(outputs={name: array.copy() for name, array in self.outputs.items()})


class Job(AnyJob[Result]):
    """One job, as it was asked for."""

    def __init__(self, model: str, priority: str) -> None:
        super().__init__()
        self.model = model
        self.priority = priority

    @property
    def state(self) -> State:
        if self.status is JobStatus.COMPLETED and self.result is None:
            return State.EXPIRED
        return _STATES[self.status]

    @property
    def refusal(self) -> Refusal | None:
        """A failed job's error, as the response to a request for its result."""
        return None if self.error is None else refusal_of(self.error)


class Jobs:
    """The jobs and their bounds: too many are a Refusal (429), and too many bytes cost the oldest results."""

    def __init__(
        self, jobs_max: int, bytes_max: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs_max = jobs_max
        self._bytes_max = bytes_max
        self._table: Table[Job] = Table(ttl_s, bytes_max=bytes_max, clock=clock)
        self._table.open()

    @property
    def pending(self) -> int:
        return len(self._table.under_way)

    @property
    def done(self) -> int:
        """Those whose result is kept."""
        return sum(job.state is State.DONE for job in self._table.ended.values())

    @property
    def result_bytes(self) -> int:
        return self._table.result_bytes

    async def start(self, model: str, priority: str, work: Coroutine[Any, Any, Result]) -> Job:
        """Start a job that runs `work`. Raises what `work` raises at once: an impossible request is refused,
        and becomes no job."""
        if len(self._table) >= self._jobs_max:
            work.close()
            text = f"{self._jobs_max} jobs are kept here; fetch results, or try again"
            raise Refusal(429, "TOO_MANY_JOBS", text, 1.0)
        job = self._table.begin(Job(model, priority))
        job.task = asyncio.ensure_future(self._run(job, work))
        for _ in range(PASSES):
            if job.done.done():
                break
            await asyncio.sleep(0)
        if job.refusal is not None:
            self._table.forget(job)
            raise job.refusal
        return job

    async def _run(self, job: Job, work: Coroutine[Any, Any, Result]) -> None:
        try:
            result = (await work).copied()
            if result.nbytes > self._bytes_max:
                text = f"the result has {result.nbytes} bytes, and {self._bytes_max} are kept"
                raise Refusal(413, "RESULT_TOO_LARGE", f"{text}; use POST /predict")
        except asyncio.CancelledError:
            work.close()
            self._table.end(job, JobStatus.CANCELLED)
        except Exception as error:
            self._table.end(job, JobStatus.FAILED, error=error)
        else:
            self._table.end(job, JobStatus.COMPLETED, result, nbytes=result.nbytes)

    def get(self, job_id: str) -> Job:
        """Raises Refusal (404)."""
        try:
            return self._table.find(job_id)
        except UnknownJob:
            text = "there is no such job; results are kept for a while only"
            raise Refusal(404, "UNKNOWN_JOB", text) from None

    async def wait(self, job: Job, timeout_s: float) -> None:
        """Until the job has ended, or for so long."""
        await asyncio.wait({job.done}, timeout=timeout_s)

    async def cancel(self, job: Job) -> bool:
        """Cancel the job, and return once the yard knows. False if it had ended already."""
        if job.done.done() or job.task is None:
            return False
        job.task.cancel()
        await asyncio.wait({job.done})
        return job.state is State.CANCELLED

    async def close(self) -> None:
        """Cancel what is pending."""
        self._table.close()
        pending = [job.task for job in self._table.under_way.values() if job.task is not None]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
