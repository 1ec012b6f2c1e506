"""A queue's jobs beside a client that does as it is told: who waits for room, who gets it, who is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from batchyard import AsyncInferenceQueue, JobPriority, JobStatus
from batchyard.client.signature import Signature
from batchyard.jobs import queue as jobs
from batchyard.transport.errors import ArenaExhausted, Cancelled, DeadlineExceeded
from batchyard.transport.messages import ModelInfo, ModelState
from batchyard.transport.tensors import TensorSpec

ROOM = 8  # rows
PASSES = 50  # of the event loop, for everything that follows at once


class Reply:
    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.outputs = {"y": rows}
        self.receipt = type("Receipt", (), {"rows": len(rows)})


class Client:
    """What a queue uses of an AsyncClient; it has room for ROOM rows."""

    def __init__(self) -> None:
        self.running: list[tuple[np.ndarray[Any, Any], asyncio.Future[None]]] = []
        self.runs = asyncio.Event()  # set with each request that gets room
        self.held = 0  # rows of what has ended, which a worker may still touch
        self.cancelled: list[float] = []

    @property
    def under_way(self) -> int:
        return len(self.running) + bool(self.held)

    @property
    def rows(self) -> list[int]:
        return [len(rows) for rows, _ in self.running]

    async def request(self, model: str, inputs: dict[str, Any], **options: Any) -> Any:
        rows = inputs["x"]
        if sum(self.rows) + self.held + len(rows) > ROOM:
            raise ArenaExhausted("no room")
        entry = rows, asyncio.get_running_loop().create_future()
        self.running.append(entry)
        self.runs.set()
        try:
            await entry[1]
        except asyncio.CancelledError:
            self.cancelled.append(float(rows[0, 0]))
            raise
        finally:
            self.running.remove(entry)
        return Reply(rows)

    def finish(self, index: int = 0) -> None:
        self.running[index][1].set_result(None)

    async def close(self) -> None:
        """Nothing is left."""


Test = Callable[[AsyncInferenceQueue, Client], Coroutine[Any, Any, None]]


def play(test: Test) -> None:
    async def run() -> None:
        queue, client = AsyncInferenceQueue(model="net", url="ipc:///nowhere"), Client()
        spec = [TensorSpec("x", 1, ["n", 1])]
        queue._info = ModelInfo("net", ModelState.READY, "", 1, spec, spec, True, "", ROOM, [])
        queue._signature = Signature(queue._info)
        queue._client, queue._open = client, True  # type: ignore[assignment]
        async with asyncio.timeout(20):
            await test(queue, client)
        await queue.stop()

    asyncio.run(run())


async def submit(queue: AsyncInferenceQueue, rows: int, mark: float = 0, **options: Any) -> str:
    return await queue.submit(np.full((rows, 1), mark, np.float32), **options)


async def settle() -> None:
    for _ in range(PASSES):
        await asyncio.sleep(0)


def test_the_room_of_one_big_job_is_given_to_all_the_small_ones_that_fit() -> None:
    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        await submit(queue, ROOM)
        for _ in range(4):
            await submit(queue, 2)
        await submit(queue, 2)
        assert client.rows == [ROOM]
        assert queue.statistics().pending == 5
        client.finish()
        await settle()
        assert client.rows == [2, 2, 2, 2]
        assert queue.statistics().pending == 1

    play(test)


def test_the_most_urgent_gets_room_first_and_of_equals_the_oldest_however_often_they_have_tried() -> None:
    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        await submit(queue, 4)
        await submit(queue, 4)
        await submit(queue, ROOM, 1)
        await submit(queue, ROOM, 2)
        await submit(queue, ROOM, 3, priority=JobPriority.URGENT)
        order = []
        for _ in range(5):
            client.finish()
            await settle()
            order += [float(rows[0, 0]) for rows, _ in client.running if len(rows) == ROOM]
        assert order == [3, 1, 2]

    play(test)


def test_a_job_waits_for_room_that_a_worker_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.001)

    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        first = await submit(queue, ROOM)
        second = await submit(queue, ROOM)
        client.held = ROOM
        queue.cancel(first)
        await settle()
        assert queue.status(second) is JobStatus.PENDING, "nothing runs, but something will be released"
        client.held = 0
        client.runs.clear()
        await client.runs.wait()
        assert queue.status(second) is JobStatus.RUNNING

    play(test)


def test_a_job_that_no_room_will_ever_do_for_fails_and_one_that_gets_none_in_time_expires() -> None:
    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        with pytest.raises(ArenaExhausted):
            await queue.get_result(await submit(queue, ROOM + 1))
        await submit(queue, ROOM)
        late = await submit(queue, 1, deadline=0.001)
        with pytest.raises(DeadlineExceeded, match="no room for its inputs in time"):
            await queue.get_result(late)
        assert queue.status(late) is JobStatus.EXPIRED

    play(test)


def test_a_job_that_is_cancelled_when_it_gets_room_never_runs_and_the_next_one_has_it() -> None:
    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        await submit(queue, ROOM)
        gone, other = await submit(queue, ROOM, 1), await submit(queue, ROOM, 2)
        client.finish()
        while queue._room._waiters and len(queue._room._waiters) == 2:
            await asyncio.sleep(0)
        assert queue.cancel(gone)
        await settle()
        assert [float(rows[0, 0]) for rows, _ in client.running] == [2]
        assert client.cancelled == []
        assert (queue.status(gone), queue.status(other)) == (JobStatus.CANCELLED, JobStatus.RUNNING)
        with pytest.raises(Cancelled):
            await queue.get_result(gone)

    play(test)


def test_a_submit_that_is_cancelled_leaves_no_job_behind() -> None:
    async def test(queue: AsyncInferenceQueue, client: Client) -> None:
        task = asyncio.ensure_future(submit(queue, 1))
        while not queue.statistics().running + queue.statistics().pending:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert (queue.statistics().cancelled, client.running) == (1, [])

    play(test)


def test_a_yard_that_was_started_is_used_although_its_starter_went_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first job's submitter is cancelled while its model is awaited."""
    made = []

    class Yard:
        def async_client(self) -> Any:
            client: Any = Client()
            client.wait_ready = self.wait_ready
            return client

        async def wait_ready(self, model: str) -> ModelInfo:
            if len(made) == 1 and not tried:
                tried.append(model)
                await asyncio.get_running_loop().create_future()
            spec = [TensorSpec("x", 1, ["n", 1])]
            return ModelInfo("net", ModelState.READY, "", 1, spec, spec, True, "", ROOM, [])

        def close(self) -> None:
            made.remove(self)

    tried: list[str] = []

    async def run() -> None:
        queue = AsyncInferenceQueue("folder.module:f")
        queue._learns = True

        async def start(example: Any) -> Any:
            made.append(Yard())
            return made[-1]

        monkeypatch.setattr(queue, "_serve", start)
        await queue.start()
        task = asyncio.ensure_future(submit(queue, 1))
        while not tried:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await submit(queue, 1)
        assert len(made) == 1
        await queue.stop()
        assert made == []

    asyncio.run(run())
