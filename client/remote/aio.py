"""`RemoteAsyncClient`: what `AsyncClient("http://...")` makes. Cancelling a task closes its connection, which
cancels its request in the yard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np

from ...transport.errors import BrokerLost, Cancelled, InvalidRequest
from ...transport.messages import ModelInfo
from .. import ending
from ..aio import AsyncClient
from ..options import TIMEOUT_S, check_seconds, empty_in
from ..reply import Reply
from ..request import Request
from ..signature import Array
from .session import RemoteSession

T = TypeVar("T")


class RemoteAsyncClient(AsyncClient):
    """As `AsyncClient`, for a gateway or a fleet. `arena_bytes` and `segment` mean nothing here."""

    def _begin(self, *settings: Any) -> str:
        self._remote = RemoteSession(*settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started: set[asyncio.Task[None]] = set()  # of `start`: each waits for one of `_tasks`
        return self._remote.url

    @property
    def arena_used_bytes(self) -> int:
        """There is no shared memory."""
        return 0

    @property
    def under_way(self) -> int:
        """Requests without an outcome."""
        return len(self._tasks)

    async def _ask(self, request: Request) -> Reply:
        outcome: Any = None
        try:
            outcome = reply = await self._run(self._remote.reply(request))
        except BaseException as error:
            outcome = error
            raise
        finally:
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
            del outcome, request  # else an error and this frame would keep each other alive
        return reply

    async def _answers(self, request: Request) -> AsyncGenerator[Array | dict[str, Array], None]:
        self._here()
        async with aclosing(self._remote.answers(request)) as answers:
            async for answer in answers:
                yield answer

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it as one of those that `close` ends. Raises Cancelled for that."""
        try:
            self._here()
        except BaseException:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise Cancelled("the client was closed") from None
            task.cancel()
            raise
        finally:
            self._tasks.discard(task)

    def _here(self) -> None:
        """The running loop drives this client. Raises as `AsyncClient._linked`."""
        if self._closed:
            raise BrokerLost("this client has been closed")
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise InvalidRequest(
                    "this AsyncClient is in use on another event loop: make one AsyncClient per loop, or "
                    "close the other loop first"
                )
            self._remote.renew()
        self._loop = loop

    def _start(self, request: Request, done: Callable[[Reply | Exception], None]) -> None:
        async def run() -> None:
            try:
                reply = await self._ask(request)
            except Exception as error:
                done(error)
            else:
                done(reply)

        task = asyncio.ensure_future(run())
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    def empty_now(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """An ordinary array."""
        return empty_in(None, shape, dtype)

    async def models(self, timeout: float = TIMEOUT_S) -> list[ModelInfo]:
        check_seconds("timeout", timeout)
        return await self._run(self._remote.models(timeout))

    async def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        check_seconds("timeout", timeout)
        return await self._run(self._remote.wait_ready(model, timeout))

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._loop is not None:
            await self._remote.close()

    def close_by(self, give_up_s: float) -> None:
        """At the program's end: the kernel closes the connections."""
        self._closed = True

    def begin_anew(self) -> None:
        """In a forked child: no connection comes along."""
        ending.abandon(self._remote.carrier)
        self._loop = None
        self._tasks = set()
        self._remote.renew()
