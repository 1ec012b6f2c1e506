"""Jobs: requests whose result somebody fetches later. Owns them from POST to the end of their time.

A job's result is a copy: the yard's memory is for requests under way. Bounded in number, in bytes of
results, and in time; the clock is an argument of whoever makes the table.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, NamedTuple

from .datatypes import Array
from .errors import Refusal, refusal_of

SWEEPS_PER_TTL = 20


class State(StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it was done, and its result had to make room


class Result(NamedTuple):
    """What a request brought: named outputs, and the receipt."""

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


class Job:
    """One job. `ended`: set when it has left PENDING."""

    def __init__(self, model: str, priority: str) -> None:
        self.id = secrets.token_urlsafe(16)
        self.model = model
        self.priority = priority
        self.state = State.PENDING
        self.result: Result | None = None
        self.refusal: Refusal | None = None
        self.ended = asyncio.Event()
        self.ended_s = 0.0
        self.task: asyncio.Task[None] | None = None


class Jobs:
    """The table. Raises Refusal (429) when it is full of jobs that are not old enough to be forgotten."""

    def __init__(
        self, jobs_max: int, bytes_max: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs: dict[str, Job] = {}  # oldest first
        self._jobs_max = jobs_max
        self._bytes_max = bytes_max
        self._ttl_s = ttl_s
        self._clock = clock
        self.result_bytes = 0

    def count(self, state: State) -> int:
        return sum(job.state is state for job in self._jobs.values())

    async def start(self, model: str, priority: str, work: Coroutine[Any, Any, Result]) -> Job:
        """A job that runs `work`. Raises what the work raises before it has to wait for the first time:
        a request that can never be is refused at once, not by a job."""
        self.sweep()
        if len(self._jobs) >= self._jobs_max:
            work.close()
            text = f"{self._jobs_max} jobs are kept here; fetch results, or try again"
            raise Refusal(429, "TOO_MANY_JOBS", text, 1.0)
        job = Job(model, priority)
        self._jobs[job.id] = job
        job.task = asyncio.ensure_future(self._run(job, work))
        await asyncio.sleep(0)
        if job.refusal is not None:
            del self._jobs[job.id]
            raise job.refusal
        return job

    async def _run(self, job: Job, work: Coroutine[Any, Any, Result]) -> None:
        try:
            result = (await work).copied()
        except asyncio.CancelledError:
            work.close()
            self._end(job, State.CANCELLED)
        except Exception as error:
            job.refusal = refusal_of(error)
            self._end(job, State.FAILED)
        else:
            self._keep(job, result)

    def _keep(self, job: Job, result: Result) -> None:
        """Make room: the results that have been there longest go first."""
        if result.nbytes > self._bytes_max:
            text = f"the result has {result.nbytes} bytes, and {self._bytes_max} are kept; use POST /predict"
            job.refusal = Refusal(413, "RESULT_TOO_LARGE", text)
            self._end(job, State.FAILED)
            return
        if self.result_bytes + result.nbytes > self._bytes_max:
            for old in sorted(self._jobs.values(), key=lambda job: job.ended_s):
                if old.result is not None:
                    self._drop_result(old, State.EXPIRED)
                    if self.result_bytes + result.nbytes <= self._bytes_max:
                        break
        job.result = result
        self.result_bytes += result.nbytes
        self._end(job, State.DONE)

    def _drop_result(self, job: Job, state: State) -> None:
        if job.result is not None:
            self.result_bytes -= job.result.nbytes
            job.result = None
            job.state = state

    def _end(self, job: Job, state: State) -> None:
        job.state = state
        job.ended_s = self._clock()
        job.task = None
        job.ended.set()

    def get(self, job_id: str) -> Job:
        """Raises Refusal (404)."""
        self.sweep()
        job = self._jobs.get(job_id)
        if job is None:
            raise Refusal(404, "UNKNOWN_JOB", "there is no such job; results are kept for a while only")
        return job

    async def wait(self, job: Job, timeout_s: float) -> None:
        """Until the job has ended, or for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await job.ended.wait()
        except TimeoutError:
            pass

    async def cancel(self, job: Job) -> bool:
        """Whether it was still to be cancelled; the yard has been told when this returns."""
        if job.task is None:
            return False
        job.task.cancel()
        await job.ended.wait()
        return job.state is State.CANCELLED

    def sweep(self) -> None:
        """Forget what ended long ago."""
        before_s = self._clock() - self._ttl_s
        for job in list(self._jobs.values()):
            if job.state is not State.PENDING and job.ended_s <= before_s:
                self._drop_result(job, State.EXPIRED)
                del self._jobs[job.id]

    async def sweep_for_ever(self) -> None:
        """Also when nobody asks: a result that is never fetched takes memory."""
        while True:
            await asyncio.sleep(self._ttl_s / SWEEPS_PER_TTL)
            self.sweep()

    async def close(self) -> None:
        """Cancel what is pending."""
        pending = [job.task for job in self._jobs.values() if job.task is not None]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        self._jobs.clear()
