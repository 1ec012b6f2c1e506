"""`AsyncInferenceQueue`: submit a job now, ask for its result later, by id.

A thin layer over `AsyncClient` that remembers jobs and their results for a while. The yard owns order,
batches, workers and failures. Only here and in the REST gateway is a request called a job.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import IO, Any, Self

import numpy as np

from ..client import python_models
from ..client.aio import AsyncClient
from ..client.embedded import START_TIMEOUT_S, begin
from ..client.options import deadline_ns_of, priority_of
from ..client.reply import Reply
from ..client.signature import Array, Signature
from ..client.yard import Yard, check_count
from ..transport.errors import (
    ArenaExhausted,
    BatchyardError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    shown,
)
from ..transport.messages import ModelInfo, Priority
from ..transport.python_models import ATTRIBUTE
from .room import Room
from .table import Job, JobStatus, Table
from .tally import JobStatistics, Tally

MODEL = "inference"  # what the yard of a queue's own calls its model
LEARNED = (
    "the first job's data was taken as one item to learn its inputs: declare them with "
    '@batchyard.model(inputs="float32[batch, 4]")'
)
JOB_TIMEOUT_S = 600.0
RETRY_S = 0.02  # how soon a job looks again for room that a worker still holds

Result = Array | dict[str, Array]


class JobPriority(Enum):
    """How soon a job should run: the `Priority` of the same name."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class AsyncInferenceQueue:
    """Jobs for one function or model, for one event loop.

    inference_fn: a function or class that can be imported by name, "module:function", "file.py:function",
        or an ONNX file. It is called with a batch: a dict of arrays with rows on axis 0, or one such array,
        as `batchyard.model` declares; without that declaration, the first job's data is taken as one item
        and shows the form. It returns an array, or a dict of arrays, with as many rows; not a list of items.
    model: instead of inference_fn, the name of a model of a running yard; `url` is the yard's address.
    batch_size: most rows in one run.
    max_wait_time: ignored; accepted for compatibility. A batch never waits to fill: an idle worker gets what
        there is at once, and batches grow while workers are busy.
    num_workers: worker processes, each with its own copy of the function.
    max_queue_size: most unfinished jobs at once; another one is refused as Overloaded.
    result_ttl, max_results: results are kept for so many seconds, and of so many jobs.
    log: a file for the output of the processes and functions; default: this program's stderr.

    Use `async with`, or `start` and `stop`. A function without `batchyard.model` is loaded with the first
    job, which shows its inputs, so `submit` raises its errors.
    """

    def __init__(
        self,
        inference_fn: str | os.PathLike[str] | Callable[..., Any] | None = None,
        *,
        model: str | None = None,
        url: str | None = None,
        batch_size: int = 32,
        max_wait_time: float = 0.0,
        num_workers: int = 1,
        max_queue_size: int = 1024,
        result_ttl: float = 300.0,
        max_results: int = 1024,
        log: IO[bytes] | None = None,
    ) -> None:
        if (inference_fn is None) == (model is None):
            raise InvalidRequest("a queue needs either an inference_fn, or a model of a running yard")
        for what, value in (("max_wait_time", max_wait_time), ("result_ttl", result_ttl)):
            if not isinstance(value, int | float) or not value >= 0:
                raise InvalidRequest(f"{what} is a number of seconds, not {shown(value)}")
        for what, jobs in (("max_queue_size", max_queue_size), ("max_results", max_results)):
            if not isinstance(jobs, int) or jobs < 1:
                raise InvalidRequest(f"{what} is a number of jobs, not {shown(jobs)}")
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers)
        self._learns = callable(inference_fn) and not hasattr(inference_fn, ATTRIBUTE)
        if callable(inference_fn):
            python_models.reference(inference_fn)  # raises at once for what no worker can find
        self._source = inference_fn
        self._model = model or MODEL
        self._url = url
        self._batch_size = batch_size
        self._workers = num_workers
        self._log = log
        self._jobs_max = max_queue_size
        self._table: Table[Job[Result]] = Table(result_ttl, max_results)
        self._tally = Tally()
        self._room = Room()
        self._open = False
        self._opening = asyncio.Lock()
        self._yard: Yard | None = None
        self._client: AsyncClient | None = None
        self._info: ModelInfo | None = None
        self._signature: Signature | None = None

    # ---- start and stop -----------------------------------------------------------------------

    async def start(self) -> None:
        """Start the yard, and return when its workers have loaded the function. Raises as `serve` does."""
        self._open = True
        self._table.open()
        try:
            if not self._learns:
                await self._connect(None)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel unfinished jobs and end the yard. Results of finished jobs stay available."""
        self._open = False
        tasks = [job.task for job in self._table.under_way.values() if job.task is not None]
        for number in list(self._table.under_way):
            self.cancel(number)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._table.close()
        async with self._opening:
            client, self._client, yard, self._yard = self._client, None, self._yard, None
            if client is not None:
                await client.close()
            if yard is not None:
                await asyncio.to_thread(yard.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _connect(self, example: Any) -> AsyncClient:
        """The client; the first call makes it and its yard. `example`: the first job's data."""
        async with self._opening:
            if not self._open:
                raise InvalidRequest("the queue is not started: `async with queue`, or `await queue.start()`")
            if self._client is not None:
                return self._client
            if self._source is None:
                client = AsyncClient(self._url)
            else:
                if self._yard is None:  # else whoever started it went away before it was ready
                    try:
                        self._yard = await self._serve(example)
                    except ModelFailed as error:
                        if not self._learns:
                            raise
                        raise ModelFailed(f"{error}; {LEARNED}") from None
                client = self._yard.async_client()
            client._waits_for_room = False  # who goes first when there is some is decided here, by priority
            try:
                self._info = await client.wait_ready(self._model)
            except BaseException:
                await client.close()
                raise
            self._signature = Signature(self._info)
            self._client = client
            return client

    async def _serve(self, example: Any) -> Yard:
        """Start the queue's own yard. If the start is cancelled, the yard is closed."""
        source: Any = self._source
        if self._learns:
            source = python_models.Named(python_models.reference(source), python_models.learned(example))
        start = partial(
            begin,
            {self._model: source},
            workers=self._workers,
            max_batch=self._batch_size,
            url=self._url,
            log=self._log,
        )
        starting = asyncio.ensure_future(asyncio.to_thread(start))
        try:
            yard, names = await asyncio.shield(starting)
        except asyncio.CancelledError:
            yard, _ = await starting
            await asyncio.to_thread(yard.close)
            raise
        waiting = asyncio.ensure_future(asyncio.to_thread(yard.await_models, names, START_TIMEOUT_S))
        try:
            await asyncio.shield(waiting)
        except BaseException:
            await asyncio.to_thread(yard.close)
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                waiting.exception()  # seen: it is raised already, or it is that the yard was closed
            raise
        return yard

    # ---- jobs ---------------------------------------------------------------------------------

    async def submit(
        self,
        data: Any,
        priority: JobPriority | Priority | str = JobPriority.NORMAL,
        *,
        deadline: float | None = None,
    ) -> str:
        """Submit a job and return its id.

        data: one item without the batch axis, or rows with it: an array, or a dict of arrays by input. It
            is copied.
        deadline: seconds until the job is dropped as EXPIRED. Default: 10 minutes.

        Raises InvalidRequest for data that does not fit, Overloaded if `max_queue_size` jobs are unfinished,
        and, for the first job of a function without `batchyard.model`, what `start` raises.
        """
        urgency = priority_of(priority.value if isinstance(priority, JobPriority) else priority)
        deadline_s = deadline_ns_of(deadline, JOB_TIMEOUT_S) / 1e9
        client = self._client if self._open and self._client is not None else await self._connect(data)
        if len(self._table.under_way) >= self._jobs_max:
            raise Overloaded(f"{self._jobs_max} jobs are unfinished, and no more are allowed", 0.01)
        inputs, rows, single = self._rows(data)
        job = self._table.begin(Job())
        self._tally.began(job.started_s)
        job.task = asyncio.ensure_future(self._carry(job, client, inputs, rows, single, urgency, deadline_s))
        try:
            await asyncio.sleep(0)  # it is on its way, also when the caller submits many without a pause
        except asyncio.CancelledError:
            self.cancel(job.id)  # nobody will ever know its number
            raise
        return job.id

    async def get_result(self, job_id: str, timeout: float | None = None) -> Result:
        """Wait up to `timeout` seconds for a job's result; for a single item it has no batch axis.

        Raises DeadlineExceeded if the job is unfinished by then (it goes on), UnknownJob, and the error that
        ended the job: ModelFailed, Cancelled, DeadlineExceeded, or another.
        """
        job = self._table.find(job_id)
        if not job.done.done():
            await asyncio.wait({job.done}, timeout=timeout)
        if not job.done.done():
            raise DeadlineExceeded(f"job {job_id} has not ended within {timeout:g} s")
        if job.error is not None:
            raise job.error.with_traceback(None)
        assert job.result is not None
        return job.result

    def status(self, job_id: str) -> JobStatus:
        """A job's status. Raises UnknownJob."""
        return self._table.find(job_id).status

    def cancel(self, job_id: str) -> bool:
        """Cancel a job: it never runs, or its result is dropped. False if it had ended already. Raises
        UnknownJob."""
        job = self._table.find(job_id)
        if job.done.done():
            return False
        self._end(job, JobStatus.CANCELLED, error=Cancelled(f"job {job_id} was cancelled"))
        if job.task is not None:
            job.task.cancel()
        return True

    def statistics(self) -> JobStatistics:
        """Counts, and figures of the jobs that ended last."""
        most = self._info.max_batch if self._info is not None else self._batch_size
        pending, running = self._table.count(JobStatus.PENDING), self._table.count(JobStatus.RUNNING)
        return self._tally.statistics(time.monotonic(), pending, running, most)

    async def _carry(
        self,
        job: Job[Result],
        client: AsyncClient,
        inputs: dict[str, Array],
        rows: int,
        single: bool,
        priority: int,
        deadline_s: float,
    ) -> None:
        """Carry a job from its start to its end."""
        give_up_s = job.started_s + deadline_s
        number = self._room.number()
        loop = asyncio.get_running_loop()
        try:
            while True:
                left_s = max(1e-6, give_up_s - time.monotonic())
                job.status = JobStatus.RUNNING
                try:
                    asked = client.request(
                        self._model, inputs, priority=priority, deadline=left_s, timeout=left_s
                    )
                    reply = await asked
                    break
                except ArenaExhausted:
                    job.status = JobStatus.PENDING
                    if not self._table.count(JobStatus.RUNNING):
                        if not client.under_way:  # nobody will give room back
                            raise
                        loop.call_later(RETRY_S, self._room.wake)  # a worker still holds what has ended
                    if not await self._room.wait(priority, number, left_s):
                        raise DeadlineExceeded("shared memory had no room for its inputs in time") from None
                    loop.call_soon(self._pass_on, job)
        except DeadlineExceeded as error:
            self._end(job, JobStatus.EXPIRED, error=error)
        except BatchyardError as error:
            self._end(job, JobStatus.FAILED, error=error)
        except Exception as error:  # no end at all would be worse
            self._end(job, JobStatus.FAILED, error=BatchyardError(f"{type(error).__name__}: {error}"))
        except asyncio.CancelledError:
            self._end(job, JobStatus.CANCELLED, error=Cancelled("the event loop ended it"))
            raise
        else:
            if self._end(job, JobStatus.COMPLETED, _kept(reply, single)):
                self._tally.ran(job.ended_s, job.ended_s - job.started_s, rows, reply.receipt.rows)

    def _pass_on(self, job: Job[Result]) -> None:
        """If this job found room, let the next one try as well."""
        if job.status is not JobStatus.PENDING:
            self._room.wake()

    def _end(
        self,
        job: Job[Result],
        status: JobStatus,
        result: Result | None = None,
        error: BatchyardError | None = None,
    ) -> bool:
        """End a job, once, and let the next one try for its room. False if it had ended already."""
        if not self._table.end(job, status, result, error):
            return False
        self._tally.ended(status)
        self._room.wake()
        return True

    def _rows(self, data: Any) -> tuple[dict[str, Array], int, bool]:
        """(arrays with rows, how many, whether it was one item). Raises InvalidRequest."""
        assert self._info is not None
        assert self._signature is not None
        specs = {spec.name: spec for spec in self._info.inputs}
        given = data if isinstance(data, Mapping) or len(specs) != 1 else {next(iter(specs)): data}
        single = False
        if self._info.batchable and not any(self._info.batch_axes) and isinstance(given, Mapping):
            single = given.keys() == specs.keys() and all(
                np.ndim(given[name]) == len(spec.shape or ()) - 1 for name, spec in specs.items()
            )
            if single:
                given = {n: v[None] if isinstance(v, np.ndarray) else [v] for n, v in given.items()}
        try:
            arrays, rows = self._signature.arrays(given)
        except InvalidRequest as error:
            if not single:
                raise
            raise InvalidRequest(f"{error}; it was taken for one item and given a batch axis") from None
        named = zip(specs, arrays, strict=True)
        return {name: np.array(array) for name, array in named if array is not None}, max(1, rows), single


def _kept(reply: Reply, single: bool) -> Result:
    """Copies of the outputs: a view would hold its slot in shared memory as long as the result is kept."""
    arrays = {name: np.array(array[0] if single else array) for name, array in reply.outputs.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
