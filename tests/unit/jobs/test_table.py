"""The table of jobs, with a clock of the test's own: one end each, and for how long it is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from batchyard.jobs.table import Job, JobStatus, Table, UnknownJob


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def with_table(run: Callable[[Table[Job[str]], Clock], None], **bounds: float) -> None:
    async def main() -> None:
        clock = Clock()
        run(Table(60.0, clock=clock, **bounds), clock)

    asyncio.run(main())


def test_a_job_ends_once_and_its_first_end_stays() -> None:
    def run(table: Table[Job[str]], clock: Clock) -> None:
        job = table.begin(Job())
        assert (table.find(job.id), len(table)) == (job, 1)
        assert table.end(job, JobStatus.COMPLETED, "y")
        assert not table.end(job, JobStatus.CANCELLED)
        assert (job.status, job.result, job.done.done()) == (JobStatus.COMPLETED, "y", True)
        assert (len(table.under_way), len(table)) == (0, 1)

    with_table(run)


def test_an_end_is_remembered_for_its_time_and_a_job_under_way_for_ever() -> None:
    def run(table: Table[Job[str]], clock: Clock) -> None:
        waiting, ended = table.begin(Job()), table.begin(Job())
        table.end(ended, JobStatus.COMPLETED, "y", nbytes=5)
        clock.now_s += 59.9
        assert table.find(ended.id) is ended
        clock.now_s += 0.1
        with pytest.raises(UnknownJob, match="kept for 60 s"):
            table.find(ended.id)
        assert (table.find(waiting.id), table.result_bytes) == (waiting, 0)

    with_table(run)


def test_the_oldest_end_is_forgotten_when_there_are_too_many() -> None:
    def run(table: Table[Job[str]], clock: Clock) -> None:
        ended = [table.begin(Job()) for _ in range(3)]
        for job in ended:
            table.end(job, JobStatus.COMPLETED, "y")
        assert list(table.ended.values()) == ended[1:]

    with_table(run, ends_max=2)


def test_the_oldest_result_makes_room_and_its_job_stays() -> None:
    def run(table: Table[Job[str]], clock: Clock) -> None:
        ended = [table.begin(Job()) for _ in range(3)]
        for job in ended:
            table.end(job, JobStatus.COMPLETED, "y", nbytes=4)
        assert [job.result for job in ended] == [None, "y", "y"]
        assert (table.result_bytes, len(table)) == (8, 3)
        table.forget(ended[1])
        assert (table.result_bytes, len(table)) == (4, 2)

    with_table(run, bytes_max=10)


def test_ends_are_forgotten_though_nobody_asks_while_the_table_is_open() -> None:
    class Watched(Table[Job[str]]):
        def forget(self, job: Job[str]) -> None:
            super().forget(job)
            if not self.ended:
                is_empty.set()

    is_empty = asyncio.Event()

    async def main() -> None:
        table = Watched(0.01)
        table.open()
        for _ in range(2):
            table.end(table.begin(Job()), JobStatus.FAILED)
        async with asyncio.timeout(20):
            await is_empty.wait()
        table.close()

    asyncio.run(main())
