"""`AsyncClient`: the same verbs as coroutines, on the event loop's own thread.

The loop watches the socket's descriptor (`loop.add_reader`); there is no helper thread, but for
loops that can't watch one (readers.py). Requests that tasks start in one pass of the loop leave as
one message. Cancelling the task that awaits a request cancels the request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self, cast

import numpy as np

from ..transport import endpoints
from ..transport.errors import BatchyardError, BrokerLost, Cancelled, InvalidRequest
from ..transport.messages import ModelInfo, Priority
from . import ending
from .loop import LoopLink
from .options import TIMEOUT_S, check_seconds, empty_in, request_of, source_of, window_of
from .remote import is_remote
from .reply import Reply
from .request import Request
from .sequence import AsyncSequence
from .session import CLOSED, YARD_CLOSED, ClientClosed, check_name, sessions_of
from .signature import Array, Signature


class AsyncClient(ending.OfThisProcess):
    """A connection to a yard, for one event loop. Arguments as for `Client`."""

    def __new__(cls, url: str | None = None, *arguments: Any, **named: Any) -> Self:
        if cls is AsyncClient and is_remote(url or endpoints.default_url()):
            from .remote.aio import RemoteAsyncClient

            return cast(Self, object.__new__(RemoteAsyncClient))
        return object.__new__(cls)

    def __init__(
        self,
        url: str | None = None,
        *,
        arena_bytes: int | None = None,
        keys: str | os.PathLike[str] | None = None,
        segment: str | None = None,
        connect_timeout: float = 5.0,
        token: str | None = None,
    ) -> None:
        url = url or endpoints.default_url()
        self._url = self._begin(url, keys, connect_timeout, token, arena_bytes, segment)
        self._closed = False
        self._waits_for_room = True  # else a request that finds none fails at once
        ending.watch(self)

    def _begin(self, *settings: Any) -> str:
        """Make the sessions. Returns the url."""
        self._sessions = sessions_of(*settings)
        self._link: LoopLink | None = None
        self._retired: list[LoopLink] = []  # see `_look_at`
        return self._sessions.settings.endpoint.url

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._url}{', closed' if self._closed else ''}>"

    @property
    def arena_used_bytes(self) -> int:
        """Shared memory that holds tensors under way, results, and what `empty` gave."""
        session = self._sessions.current
        memory = session.memory if session is not None else None
        return 0 if memory is None else memory.used_bytes

    @property
    def under_way(self) -> int:
        """Requests that the broker has not let go of: those without an outcome, and those that a worker
        may still touch."""
        return 0 if self._link is None else len(self._link.engine.pending)

    # ---- requests -----------------------------------------------------------------------------

    async def infer(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> Array | dict[str, Array]:
        """As `Client.infer`."""
        return (await self._ask(request_of(model, inputs, priority, deadline, timeout, traceparent))).value

    async def request(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> Reply:
        """As `Client.request`."""
        return await self._ask(request_of(model, inputs, priority, deadline, timeout, traceparent))

    async def _ask(self, request: Request) -> Reply:
        """Run a request."""
        request.is_patient = self._waits_for_room
        outcome: Any = None
        try:
            reply: Reply
            outcome = reply = await self._linked().outcome(request)
        except BaseException as error:
            outcome = error
            self._look_at(error)
            raise
        finally:
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
            if isinstance(outcome, BrokerLost):
                ending.cut_off()
            del outcome, request  # else an error and this frame would keep each other alive
        return reply

    def start(
        self,
        model: str,
        inputs: Any,
        done: Callable[[Reply | Exception], None],
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> None:
        """As `request`, without a task: `done` is called on the loop with the reply, or with the error. A
        task and its future are four more passes of the loop. Raises InvalidRequest."""
        self._start(request_of(model, inputs, priority, deadline, timeout, traceparent), done)

    def _start(self, request: Request, done: Callable[[Reply | Exception], None]) -> None:
        """`start`, of a request that has been made."""
        request.is_patient = self._waits_for_room

        def ended(outcome: Any) -> None:
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
            if isinstance(outcome, BrokerLost):
                ending.cut_off()
            done(outcome)

        self._linked().start(request, ended)

    def submit(self, model: str, inputs: Any, **options: Any) -> asyncio.Task[Array | dict[str, Array]]:
        """Start a request and return its task; cancelling that cancels the request."""
        return asyncio.ensure_future(self.infer(model, inputs, **options))

    async def stream(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> AsyncGenerator[Array | dict[str, Array], None]:
        """As `Client.stream`: `async for answer in client.stream(...)`."""
        request = request_of(model, inputs, priority, deadline, timeout, traceparent)
        async with aclosing(self._answers(request)) as answers:
            async for answer in answers:
                yield answer

    async def _answers(self, request: Request) -> AsyncGenerator[Array | dict[str, Array], None]:
        """The answers of a request's stream."""
        outcome: Any = None
        try:
            async with aclosing(self._linked().answers(request)) as answers:
                async for outcome in answers:
                    yield outcome.value
        except BaseException as error:
            outcome = error
            self._look_at(error)
            raise
        finally:
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
            del outcome, request  # else an error and this frame would keep each other alive

    async def map(
        self, model: str, inputs: Iterable[Any], *, window: int = 64, **options: Any
    ) -> AsyncIterator[Array | dict[str, Array]]:
        """`infer` over many inputs, `window` of them under way at once; results in order."""
        window_of(window)
        under_way: list[asyncio.Task[Array | dict[str, Array]]] = []
        try:
            for entry in source_of(inputs):
                if len(under_way) >= window:
                    yield await under_way.pop(0)
                under_way.append(self.submit(model, entry, **options))
            while under_way:
                yield await under_way.pop(0)
        finally:
            for task in under_way:
                task.cancel()
                task.add_done_callback(_looked_at)

    def sequence(
        self, model: str, /, *, states: Mapping[str, str] | None = None, **initial: Any
    ) -> AsyncSequence:
        """As `Client.sequence`, with `async with` and `await`."""
        return AsyncSequence(self, model, states, initial)

    def cancel(self, task: asyncio.Task[Any]) -> bool:
        """Cancel a request of `submit`; the same as `task.cancel()`."""
        return task.cancel()

    async def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """As `Client.empty`."""
        return self.empty_now(shape, dtype)

    def empty_now(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """The same for a callback of the loop's."""
        session = self._sessions.current
        if session is None or session.lost:
            session = self._sessions.open()
        return empty_in(session, shape, dtype)

    async def models(self, timeout: float = TIMEOUT_S) -> list[ModelInfo]:
        """As `Client.models`."""
        return await self._describe("", timeout)

    async def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        """As `Client.wait_ready`."""
        check_name(model)
        (info,) = await self._describe(model, timeout)
        Signature(info)
        return info

    async def _describe(self, model: str, timeout: float) -> list[ModelInfo]:
        check_seconds("timeout", timeout)
        now_ns = time.monotonic_ns()
        question = Request(model, None, 0, 0, now_ns + int(timeout * 1e9), now_ns)
        question.is_question = True
        try:
            infos: list[ModelInfo] = await self._linked().outcome(question)
        except BaseException as error:
            self._look_at(error)
            raise
        return infos

    # ---- the connection -----------------------------------------------------------------------

    def _linked(self) -> LoopLink:
        """The running loop's link. If the loop used before has been closed, everything begins anew.
        Raises InvalidRequest when it goes on: a client is one loop's at a time."""
        loop = asyncio.get_running_loop()
        link = self._link
        if link is not None and link.loop is loop:
            return link
        if self._closed:
            raise ClientClosed(CLOSED)
        if link is not None:
            if not link.loop.is_closed():
                raise InvalidRequest(
                    "this AsyncClient is in use on another event loop: make one AsyncClient per loop, or "
                    "close the other loop first"
                )
            link.end(Cancelled("the event loop was closed"))
        link = self._link = LoopLink(self._sessions, loop)
        return link

    def _look_at(self, error: BaseException) -> None:
        """A call ends with this. If it is none of ours, a signal's handler may have raised it at any
        instruction: the next calls have another link and another session (`Sessions.renew`), and those under
        way come to their own end on this one, which then closes itself."""
        if isinstance(error, BatchyardError | asyncio.CancelledError | GeneratorExit):
            return
        self._retired = [each for each in self._retired if not each.is_over]
        if self._link is not None:
            self._retired.append(self._link)
            self._link.retire()
            self._link = None
        self._sessions.renew()

    def yard_closed(self) -> None:
        """As `Client.yard_closed`."""
        self._sessions.end(YARD_CLOSED)

    async def close(self) -> None:
        """End every request under way with Cancelled, and let go of the connection and its memory."""
        self._closed = True
        for link in (*self._retired, self._link):
            if link is not None:
                link.end(Cancelled("the client was closed"))
        self._link = None
        self._retired.clear()
        self._sessions.close()

    def stop(self) -> None:
        """At the program's end: nothing runs for it but its own event loop."""

    def close_by(self, give_up_s: float) -> None:
        """At the program's end: let go of the memory; the kernel closes the connection."""
        self._closed = True
        self._sessions.close()

    def begin_anew(self) -> None:
        """In a forked child: forget what is the parent's, without closing it."""
        ending.abandon(self._sessions.abandon(), self._link, self._retired)
        self._link, self._retired = None, []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _looked_at(task: asyncio.Task[Any]) -> None:
    """asyncio has no need to report its error: the first one has been raised."""
    if not task.cancelled():
        task.exception()
