"""The table of jobs, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from batchyard import InvalidRequest, ModelFailed
from batchyard.gateway.errors import Refusal
from batchyard.gateway.jobs import PASSES, Job, Jobs, Result, State


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def result(nbytes: int = 8) -> Result:
    return Result("m", 1, {"y": np.zeros(nbytes, "u1")}, {})


def with_jobs(run: Callable[[Jobs, Clock], Awaitable[None]], jobs_max: int = 4, bytes_max: int = 100) -> None:
    async def main() -> None:
        clock = Clock()
        jobs = Jobs(jobs_max, bytes_max, 60.0, clock)
        await run(jobs, clock)
        await jobs.close()

    asyncio.run(main())


async def later() -> None:
    """When a request that can never be would have been refused."""
    for _ in range(PASSES + 1):
        await asyncio.sleep(0)


async def ended(jobs: Jobs, value: Result) -> Job:
    async def work() -> Result:
        await later()
        return value

    job = await jobs.start("m", "high", work())
    await job.done
    return job


async def pending() -> Any:
    await asyncio.Event().wait()


def test_a_job_that_is_done_keeps_a_copy_of_its_result_for_its_time() -> None:
    async def run(jobs: Jobs, clock: Clock) -> None:
        value = result()
        job = await ended(jobs, value)
        assert jobs.get(job.id) is job
        assert (job.state, jobs.result_bytes) == (State.DONE, 8)
        assert job.result is not None
        assert not np.shares_memory(job.result.outputs["y"], value.outputs["y"])
        clock.now_s += 59
        jobs.get(job.id)
        clock.now_s += 1
        with pytest.raises(Refusal) as caught:
            jobs.get(job.id)
        assert (caught.value.status, jobs.result_bytes) == (404, 0)

    with_jobs(run)


def test_a_request_that_can_never_be_is_refused_at_once_and_no_job() -> None:
    async def wrong() -> Result:
        raise InvalidRequest("no such input")

    async def run(jobs: Jobs, clock: Clock) -> None:
        with pytest.raises(Refusal, match="no such input"):
            await jobs.start("m", "high", wrong())
        assert (jobs.pending, len(jobs._table)) == (0, 0)

    with_jobs(run)


def test_a_job_that_fails_keeps_its_error() -> None:
    async def fails() -> Result:
        await later()
        raise ModelFailed("division by zero")

    async def run(jobs: Jobs, clock: Clock) -> None:
        job = await jobs.start("m", "high", fails())
        await jobs.wait(job, 5)
        assert job.state is State.FAILED
        assert job.refusal is not None
        assert (job.refusal.status, job.refusal.text) == (500, "division by zero")

    with_jobs(run)


def test_a_job_is_cancelled_once_and_its_work_with_it() -> None:
    gone = []

    async def work() -> Result:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            gone.append(True)
            raise
        raise AssertionError

    async def run(jobs: Jobs, clock: Clock) -> None:
        job = await jobs.start("m", "high", work())
        assert await jobs.cancel(job)
        assert (job.state, gone) == (State.CANCELLED, [True])
        assert not await jobs.cancel(job)

    with_jobs(run)


def test_the_table_is_bounded_and_says_so() -> None:
    async def run(jobs: Jobs, clock: Clock) -> None:
        for _ in range(4):
            await jobs.start("m", "high", pending())
        with pytest.raises(Refusal) as caught:
            await jobs.start("m", "high", pending())
        assert caught.value.status == 429

    with_jobs(run)


def test_the_oldest_results_make_room_for_new_ones() -> None:
    async def run(jobs: Jobs, clock: Clock) -> None:
        made = []
        for _ in range(3):
            clock.now_s += 1
            made.append(await ended(jobs, result(40)))
        assert [job.state for job in made] == [State.EXPIRED, State.DONE, State.DONE]
        assert (made[0].result, jobs.result_bytes) == (None, 80)

    with_jobs(run)


def test_a_result_larger_than_all_that_is_kept_fails_its_job_and_drops_no_other() -> None:
    async def run(jobs: Jobs, clock: Clock) -> None:
        small = await ended(jobs, result())
        large = await ended(jobs, result(101))
        assert (small.state, large.state) == (State.DONE, State.FAILED)
        assert large.refusal is not None
        assert large.refusal.status == 413

    with_jobs(run)


def test_waiting_ends_with_the_job_or_with_patience() -> None:
    async def run(jobs: Jobs, clock: Clock) -> None:
        job = await jobs.start("m", "high", pending())
        await jobs.wait(job, 0)
        assert job.state is State.PENDING

    with_jobs(run)
