"""`AsyncInferenceQueue`: jobs with an identity: submit now, ask for the result later, by number.

A thin room over `AsyncClient`: it remembers what was submitted and what came of it, for a while. Order,
batches, workers and failures are the yard's. Only here, and in the REST gateway, a request is a job.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ..transport.errors import (
    ArenaExhausted,
    BatchyardError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
)
from ..transport.functions import ATTRIBUTE
from ..transport.messages import ModelInfo, Priority
from . import functions
from .aio import AsyncClient
from .client import deadline_ns_of, priority_of
from .register import Job, Register, Result
from .reply import Reply
from .sessions import RETRY_S
from .signature import Array, Signature
from .tally import JobPriority, JobStatistics, JobStatus
from .yard import Yard, serve

MODEL = "inference"  # what the yard of a queue's own calls its model
JOB_TIMEOUT_S = 600.0


class _Room:
    """Jobs that wait for room in shared memory: the most urgent first, and of these the oldest."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap

    def number(self) -> int:
        """Of a job, for all its waits."""
        return next(self._numbers)

    async def wait(self, priority: int, number: int, timeout_s: float) -> bool:
        """Return when there may be room, and nobody who goes first waits for it; False: not in time."""
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (priority, number, waiter))
        try:  # not by wait_for, which forgets a cancellation that comes with the result (Python 3.11)
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            in_time = not waiter.cancel()
        return in_time

    def wake(self) -> None:
        """There may be room for whoever is first."""
        while self._waiters:
            _, _, waiter = heapq.heappop(self._waiters)
            if not waiter.done():
                waiter.set_result(None)
                return


class AsyncInferenceQueue:
    """Jobs for one function or model, for one event loop.

    inference_fn: a function or class that can be imported by name, "module:function", "file.py:function",
        or an ONNX file. It gets batches: a dict of arrays with rows on axis 0, or one such array, as
        `batchyard.model` says on it; without that, as the first job's data does, which is then taken for
        one item. It returns an array, or a dict of them, with as many rows. Not a list of items.
    model: in its place, the name of a model of a yard that runs; `url` is the yard's.
    batch_size: most rows in one run.
    max_wait_time: how long a job may wait for a batch to fill, in seconds. Accepted, and never used up:
        batchyard lends an idle worker what there is, at once, and batches grow while workers are busy.
        So every job waits less than this for company: it waits for none.
    num_workers: worker processes, each with its own copy of the function.
    max_queue_size: jobs without an end at once; one more is refused as Overloaded.
    result_ttl, max_results: for how many seconds, and for how many jobs, ends are remembered.
    log: a file for what the processes say, and functions print; default: this program's stderr.

    `async with`, or `start` and `stop`. A function without `batchyard.model` is loaded when the first
    job shows what it takes, so that `submit` raises what is wrong with it.
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
            raise InvalidRequest("a queue is for an inference_fn, or for a model of a yard that runs")
        for what, value in (("max_wait_time", max_wait_time), ("result_ttl", result_ttl)):
            if not isinstance(value, int | float) or not value >= 0:
                raise InvalidRequest(f"{what} is a number of seconds, not {value!r}")
        for what, jobs in (("max_queue_size", max_queue_size), ("max_results", max_results)):
            if not isinstance(jobs, int) or jobs < 1:
                raise InvalidRequest(f"{what} is a number of jobs, not {jobs!r}")
        self._learns = callable(inference_fn) and not hasattr(inference_fn, ATTRIBUTE)
        if callable(inference_fn):
            functions.reference(inference_fn)  # raises at once for what no worker can find
        self._source = inference_fn
        self._model = model or MODEL
        self._url = url
        self._batch_size = batch_size
        self._workers = num_workers
        self._log = log
        self._jobs_max = max_queue_size
        self._register = Register(result_ttl, max_results)
        self._room = _Room()
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
        self._register.open()
        try:
            if not self._learns:
                await self._connect(None)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel what has no end, and end the yard. What has ended can still be asked for."""
        self._open = False
        tasks = [job.task for job in self._register.under_way.values() if job.task is not None]
        for number in list(self._register.under_way):
            self.cancel(number)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._register.close()
        async with self._opening:
            client, self._client, yard, self._yard = self._client, None, self._yard, None
            if client is not None:
                await client.close()
            if yard is not None:
                await asyncio.to_thread(yard.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _connect(self, example: Any) -> AsyncClient:
        """The client, made with its yard when there is none. `example`: what the first job brought."""
        async with self._opening:
            if not self._open:
                raise InvalidRequest("the queue is not started: `async with queue`, or `await queue.start()`")
            if self._client is not None:
                return self._client
            if self._source is None:
                client = AsyncClient(self._url)
            else:
                if self._yard is None:  # else whoever started it went away before it was ready
                    self._yard = await self._serve(example)
                client = self._yard.async_client()
            try:
                self._info = await client.wait_ready(self._model)
            except BaseException:
                await client.close()
                raise
            self._signature = Signature(self._info)
            self._client = client
            return client

    async def _serve(self, example: Any) -> Yard:
        """The queue's own yard. One that is cancelled while it starts is closed."""
        source: Any = self._source
        if self._learns:
            source = functions.Named(functions.reference(source), functions.learned(example))
        start = partial(
            serve,
            {self._model: source},
            workers=self._workers,
            max_batch=self._batch_size,
            url=self._url,
            log=self._log,
        )
        starting = asyncio.ensure_future(asyncio.to_thread(start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            yard = await starting
            await asyncio.to_thread(yard.close)
            raise

    # ---- jobs ---------------------------------------------------------------------------------

    async def submit(
        self,
        data: Any,
        priority: JobPriority | Priority | str = JobPriority.NORMAL,
        *,
        deadline: float | None = None,
    ) -> str:
        """Begin a job, and return its number.

        data: one item, without the batch axis; or rows, with it. An array, or a dict of arrays by input.
            It is copied.
        deadline: seconds from now, after which the job is dropped: EXPIRED. Default: 10 minutes.

        Raises InvalidRequest for data that does not fit, Overloaded when `max_queue_size` jobs are under
        way, and for the first job of a function without `batchyard.model` as `start` does.
        """
        urgency = priority_of(priority.value if isinstance(priority, JobPriority) else priority)
        deadline_s = deadline_ns_of(deadline, JOB_TIMEOUT_S) / 1e9
        client = self._client if self._open and self._client is not None else await self._connect(data)
        if len(self._register.under_way) >= self._jobs_max:
            raise Overloaded(f"{self._jobs_max} jobs are under way, and no more are allowed", 0.01)
        inputs, rows, single = self._rows(data)
        job = self._register.begin()
        job.task = asyncio.ensure_future(self._carry(job, client, inputs, rows, single, urgency, deadline_s))
        try:
            await asyncio.sleep(0)  # it is on its way, also when the caller submits many without a pause
        except asyncio.CancelledError:
            self.cancel(job.id)  # nobody will ever know its number
            raise
        return job.id

    async def get_result(self, job_id: str, timeout: float | None = None) -> Result:
        """What came of a job: for one item without the batch axis. Waits up to `timeout` seconds for it.

        Raises DeadlineExceeded when it has not ended by then, and the job goes on; UnknownJob; and the
        error that the job ended with: ModelFailed, Cancelled, DeadlineExceeded, or another.
        """
        job = self._register.find(job_id)
        if not job.done.done():
            await asyncio.wait({job.done}, timeout=timeout)
        if not job.done.done():
            raise DeadlineExceeded(f"job {job_id} has not ended within {timeout:g} s")
        if job.error is not None:
            raise job.error.with_traceback(None)
        assert job.result is not None
        return job.result

    def status(self, job_id: str) -> JobStatus:
        """Where a job is. Raises UnknownJob."""
        return self._register.find(job_id).status

    def cancel(self, job_id: str) -> bool:
        """End a job: what waits is never run, and what runs is not answered. False: it had ended already.
        Raises UnknownJob."""
        job = self._register.find(job_id)
        if job.done.done():
            return False
        self._end(job, JobStatus.CANCELLED, error=Cancelled(f"job {job_id} was cancelled"))
        if job.task is not None:
            job.task.cancel()
        return True

    def statistics(self) -> JobStatistics:
        """Counts, and figures of the jobs that ended last."""
        most = self._info.max_batch if self._info is not None else self._batch_size
        return self._register.statistics(most)

    async def _carry(
        self,
        job: Job,
        client: AsyncClient,
        inputs: dict[str, Array],
        rows: int,
        single: bool,
        priority: int,
        deadline_s: float,
    ) -> None:
        """A job from its beginning to its end."""
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
                    if not self._register.count(JobStatus.RUNNING):
                        if not client.under_way:  # nobody will give room back
                            raise
                        loop.call_later(RETRY_S, self._room.wake)  # a worker still holds what has ended
                    if not await self._room.wait(priority, number, left_s):
                        raise DeadlineExceeded("there was no room for its inputs in time") from None
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
                self._register.ran(job, rows, reply.receipt.rows)

    def _pass_on(self, job: Job) -> None:
        """A job has asked again since: if it found room, there may be some for the next one."""
        if job.status is not JobStatus.PENDING:
            self._room.wake()

    def _end(
        self, job: Job, status: JobStatus, result: Result | None = None, error: BatchyardError | None = None
    ) -> bool:
        """A job's end, once; then there may be room. False: it had one."""
        if not self._register.end(job, status, result, error):
            return False
        self._room.wake()
        return True

    def _rows(self, data: Any) -> tuple[dict[str, Array], int, bool]:
        """(arrays with rows, how many, whether it was one item). Raises InvalidRequest."""
        assert self._info is not None
        assert self._signature is not None
        specs = {spec.name: spec for spec in self._info.inputs}
        given = data if isinstance(data, Mapping) or len(specs) != 1 else {next(iter(specs)): data}
        single = False
        if self._info.batchable and isinstance(given, Mapping) and given.keys() == specs.keys():
            single = all(np.ndim(given[name]) == len(spec.shape) - 1 for name, spec in specs.items())
            if single:
                given = {n: v[None] if isinstance(v, np.ndarray) else [v] for n, v in given.items()}
        try:
            arrays, rows = self._signature.arrays(given)
        except InvalidRequest as error:
            if not single:
                raise
            raise InvalidRequest(f"{error}; that is one item, with the axis of rows put before it") from None
        return {name: np.array(array) for name, array in zip(specs, arrays, strict=True)}, rows, single


def _kept(reply: Reply, single: bool) -> Result:
    """A copy: a view would keep its place in shared memory for as long as it is remembered."""
    arrays = {name: np.array(array[0] if single else array) for name, array in reply.outputs.items()}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
