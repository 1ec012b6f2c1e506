"""Jobs over a real yard: an AsyncInferenceQueue starts, runs them by priority, and forgets them in time."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import (
    AsyncInferenceQueue,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    JobPriority,
    JobStatus,
    ModelFailed,
    Overloaded,
    UnknownJob,
    serve,
)
from batchyard.client import Yard
from batchyard.transport import machine

ROWS = 32
POISON, HOLD = -2.0, -3.0  # what a row may ask for
HOLD_S = 0.3

MODEL = f"""
import time
import batchyard

AXES = "float32[batch, 4]"

@batchyard.model(inputs={{"x": AXES}}, outputs={{"y": AXES}})
def act(batch):
    x = batch["x"]
    if (x == {POISON}).any():
        raise ValueError("a row that nobody likes")
    if (x == {HOLD}).any():
        time.sleep({HOLD_S})
    return {{"y": x * 2}}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs") / "log"


@pytest.fixture(scope="module")
def yard(log: Path) -> Iterator[Yard]:
    (log.parent / "model.py").write_text(MODEL)
    with log.open("wb") as file, serve(f"{log.parent}/model.py:act", max_batch=ROWS, log=file) as made:
        yield made


def queue_of(yard: Yard, **options: Any) -> AsyncInferenceQueue:
    return AsyncInferenceQueue(model="act", url=yard.url, **options)


def test_the_owners_calls_work_with_a_function_that_declares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_91c.py").write_text("def predict(batch):\n    return batch * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    predict = importlib.import_module("mine_91c").predict

    async def run() -> None:
        queue = AsyncInferenceQueue(inference_fn=predict, batch_size=8, max_wait_time=0.1, num_workers=2)
        async with queue:
            jobs = [await queue.submit(np.full(3, n), priority=JobPriority.HIGH) for n in range(20)]
            results = [await queue.get_result(job, timeout=30.0) for job in jobs]
            assert [result.tolist() for result in results] == [[2 * n] * 3 for n in range(20)]  # type: ignore[union-attr]
            both = await queue.get_result(await queue.submit([[1, 2, 3], [4, 5, 6]]), timeout=30.0)
            assert both.tolist() == [[2, 4, 6], [8, 10, 12]]  # type: ignore[union-attr]
            figures = queue.statistics()
            assert (figures.submitted, figures.completed, figures.failed) == (21, 21, 0)
            assert figures.throughput > 0
            assert 0 < figures.latency_p50_s <= figures.latency_p95_s <= figures.latency_p99_s  # type: ignore[operator]
            assert 1 <= figures.batch_rows_mean <= 8  # type: ignore[operator]
            assert figures.batch_fill == pytest.approx(figures.batch_rows_mean / 8)  # type: ignore[operator]
            with pytest.raises(InvalidRequest, match=r"given the shape \(1, 4\); axis 1 must be 3; it was taken for one item"):
                await queue.submit(np.zeros(4, np.int64))
        assert queue.status(jobs[0]) is JobStatus.COMPLETED

    asyncio.run(run())


def test_urgent_jobs_go_before_low_ones_and_cancelled_ones_never_run(yard: Yard, log: Path) -> None:
    async def run() -> None:
        async with queue_of(yard) as queue:
            ends: list[str] = []

            async def note(kind: str, job: str) -> None:
                await queue.get_result(job, 60)
                ends.append(kind)

            holding = [await queue.submit(np.full(4, HOLD, np.float32), JobPriority.URGENT)]
            await asyncio.sleep(0.05)
            holding.append(await queue.submit(np.full(4, HOLD, np.float32), JobPriority.URGENT))
            await asyncio.sleep(0.05)
            # One batch runs and one may be bound; whole batches, so that neither fits in the other's.
            low = await queue.submit(np.ones((ROWS, 4), np.float32), JobPriority.LOW)
            gone = await queue.submit(np.full(4, POISON, np.float32), JobPriority.LOW)
            urgent = await queue.submit(np.ones((ROWS, 4), np.float32), JobPriority.URGENT)
            assert queue.status(low) is JobStatus.RUNNING
            assert queue.cancel(gone)
            assert not queue.cancel(gone)
            assert queue.status(gone) is JobStatus.CANCELLED
            with pytest.raises(Cancelled, match=gone):
                await queue.get_result(gone)
            await asyncio.gather(note("low", low), note("urgent", urgent))
            assert ends == ["urgent", "low"]
            assert queue.statistics().cancelled == 1
            assert [await queue.get_result(job, 60) is not None for job in holding] == [True, True]

    asyncio.run(run())


def test_ends_are_told_apart_and_forgotten_in_time(yard: Yard) -> None:
    async def run() -> None:
        async with queue_of(yard, result_ttl=1.0, max_results=3) as queue:
            failed = await queue.submit(np.full(4, POISON, np.float32))
            with pytest.raises(ModelFailed, match="a row that nobody likes"):
                await queue.get_result(failed, 30)
            assert queue.status(failed) is JobStatus.FAILED
            late = await queue.submit(np.full(4, HOLD, np.float32), deadline=0.05)
            with pytest.raises(DeadlineExceeded):
                await queue.get_result(late, 30)
            assert queue.status(late) is JobStatus.EXPIRED
            slow = await queue.submit(np.full(4, HOLD, np.float32))
            with pytest.raises(DeadlineExceeded, match=r"has not ended within 0\.001 s"):
                await queue.get_result(slow, timeout=0.001)
            await queue.get_result(slow, 30)  # impatience ended nothing
            done = [await queue.submit(np.ones(4, np.float32)) for _ in range(3)]
            for job in done:
                await queue.get_result(job, 30)
            with pytest.raises(UnknownJob, match=slow):  # one too many
                queue.status(slow)
            await asyncio.sleep(1.0)
            for job in (*done, "never"):
                with pytest.raises(UnknownJob):
                    await queue.get_result(job)
            async with asyncio.timeout(20):
                while queue._table.ended:  # forgotten, and not only hidden
                    await asyncio.sleep(0.01)
            figures = queue.statistics()
            assert (figures.submitted, figures.completed, figures.failed, figures.expired) == (6, 4, 1, 1)

    asyncio.run(run())


def test_more_jobs_than_memory_has_room_for_wait_for_it(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 256 << 20)  # a quarter of it is an arena
    gate = tmp_path / "gate"
    (tmp_path / "wide.py").write_text(
        "import os, time\nimport batchyard\nAXES = 'float32[batch, 1000000]'\n"
        "@batchyard.model(inputs=AXES, outputs='float32[batch]')\ndef f(x):\n"
        f"    while x.any() and not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n"
        "    return x[:, 0].copy()\n"
    )

    async def run() -> None:
        async with AsyncInferenceQueue(f"{tmp_path}/wide.py:f", batch_size=2, max_queue_size=40) as queue:
            jobs = [
                await queue.submit(np.full(1_000_000, n, np.float32)) for n in range(1, 41)
            ]  # 160 MB, of 64
            with pytest.raises(Overloaded, match="40 jobs are unfinished"):
                await queue.submit(np.zeros(1_000_000, np.float32))
            assert queue.statistics().pending > 0
            gate.touch()
            assert [await queue.get_result(job, 60) for job in jobs] == list(range(1, 41))

    asyncio.run(run())


def test_a_queue_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, yard: Yard, log: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library\n")

    async def run() -> None:
        with log.open("ab") as file, pytest.raises(ModelFailed, match="no_such_library"):
            await AsyncInferenceQueue(f"{tmp_path}/broken.py:f", log=file).start()
        with pytest.raises(batchyard.UnknownModel):
            await AsyncInferenceQueue(model="nobody", url=yard.url).start()
        queue = queue_of(yard)
        with pytest.raises(InvalidRequest, match="is not started"):
            await queue.submit(np.ones((1, 4), np.float32))
        await queue.start()
        job = await queue.submit(np.full(4, HOLD, np.float32))
        await queue.stop()
        with pytest.raises(Cancelled):
            await queue.get_result(job)
        with pytest.raises(InvalidRequest, match="is not started"):
            await queue.submit(np.ones((1, 4), np.float32))

    asyncio.run(run())


def test_a_queue_that_is_cancelled_while_it_starts_ends_at_once(tmp_path: Path, log: Path) -> None:
    text = "import pathlib, time\npathlib.Path(__file__).with_name('loads').touch()\ntime.sleep(600)\n"
    (tmp_path / "never.py").write_text(text)

    async def run() -> float:
        with log.open("ab") as file:
            starting = asyncio.ensure_future(AsyncInferenceQueue(f"{tmp_path}/never.py:f", log=file).start())
            while not (tmp_path / "loads").exists():
                await asyncio.sleep(0.01)
            starting.cancel()
            cancelled_s = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await starting
            return time.monotonic() - cancelled_s

    assert asyncio.run(run()) < 30  # it waited for its model before: a minute


@pytest.mark.parametrize(
    "arguments",
    [{}, {"inference_fn": "a:f", "model": "m"}, {"inference_fn": lambda x: x}, {"inference_fn": "a:f", "max_wait_time": -1}, {"inference_fn": "a:f", "max_wait_time": "1"},
     {"inference_fn": "a:f", "result_ttl": float("nan")}, {"inference_fn": "a:f", "max_results": 0}],
)  # fmt: skip
def test_a_queue_refuses_what_it_cannot_be(arguments: dict[str, Any]) -> None:
    async def run() -> None:
        AsyncInferenceQueue(**arguments)

    with pytest.raises(InvalidRequest):
        asyncio.run(run())


def test_a_queue_serves_an_onnx_file_as_well(neg_model: Path) -> None:
    async def run() -> None:
        async with AsyncInferenceQueue(neg_model) as queue:
            job = await queue.submit({"x": np.ones(4, np.float32)}, "urgent")
            assert (await queue.get_result(job, 30)).tolist() == [-1] * 4  # type: ignore[union-attr]

    asyncio.run(run())
