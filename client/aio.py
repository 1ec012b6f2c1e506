"""`AsyncClient`: the same verbs as coroutines, on the event loop's own thread.

The loop watches the socket's descriptor (`loop.add_reader`); there is no helper thread, but for
loops that can't watch one (readers.py). Requests that tasks start in one pass of the loop leave as
one message. Cancelling the task that awaits a request cancels the request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import count
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zmq

from ..transport import endpoints
from ..transport import messages as m
from ..transport.errors import (
    ArenaExhausted,
    BatchyardError,
    BrokerLost,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
)
from ..transport.keys import KeyFolder
from ..transport.messages import ModelInfo, Priority
from ..transport.sockets import readable
from . import tracing
from .channel import Channel, Pending, Settled
from .client import ARENA_BYTES, TIMEOUT_S, deadline_ns_of, empty_in, patience_s, priority_of
from .connection import Connection, nobody_answers, refusal
from .readers import add_readers
from .reply import Reply
from .resubmit import asked, may_ask_again, nobody_came, not_again
from .session import Session, Settings, check_name
from .sessions import RETRY_S
from .signature import Array, Signature

if TYPE_CHECKING:
    from .spans import RequestSpan

LOOK_AROUND_S = 0.1  # how often the end of a connection is looked for beside its own event
WELCOME_LOOK_S = 0.002  # how often a new connection is asked whether it is welcome
MESSAGES_PER_SEND = 256


class AsyncClient:
    """A connection to a yard, for one event loop. Arguments as for `Client`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        arena_bytes: int = ARENA_BYTES,
        keys: str | os.PathLike[str] | None = None,
        segment: str | None = None,
        connect_timeout: float = 5.0,
    ) -> None:
        folder = KeyFolder(Path(keys)) if keys is not None else None
        self._settings = Settings(
            url or endpoints.default_url(), arena_bytes, folder, segment, connect_timeout
        )
        self._numbers = count(1)
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._settings.endpoint.url}{', closed' if self._closed else ''}>"

    @property
    def arena_used_bytes(self) -> int:
        """Shared memory that holds tensors under way, results, and what `empty` gave."""
        memory = self._link.session.memory if self._link is not None else None
        return 0 if memory is None else memory.used_bytes

    @property
    def under_way(self) -> int:
        """Requests that the broker has not let go of: those without an outcome, and those that a worker
        may still touch."""
        return 0 if self._link is None else len(self._link.channel.pending)

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
        reply = await self.request(
            model, inputs, priority=priority, deadline=deadline, timeout=timeout, traceparent=traceparent
        )
        return reply.value

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
        deadline_ns = deadline_ns_of(deadline, timeout)
        patience = patience_s(deadline, timeout)
        urgency = priority_of(priority)
        span = tracing.begin(model, urgency, traceparent)
        if span is None:
            return await self._outcome(model, inputs, urgency, deadline_ns, timeout, patience, None)
        with span:
            reply = span.reply = await self._outcome(
                model, inputs, urgency, deadline_ns, timeout, patience, span
            )
        return reply

    async def _outcome(
        self,
        model: str,
        inputs: Any,
        urgency: int,
        deadline_ns: int,
        timeout: float,
        patience: float,
        span: RequestSpan | None,
    ) -> Reply:
        """The reply, from whichever broker gives one."""
        started_s = time.monotonic()
        outage: _Outage | None = None
        while True:
            link = self._link
            if link is None or link.lost:
                link = await self._linked(started_s + patience, outage)
            pending = None
            waited_s = time.monotonic() - started_s if outage is not None else 0.0
            try:
                signature = link.session.signatures.get(model)
                if signature is None:
                    signature = await self._describe(link, model, min(timeout, patience) - waited_s)
                left_ns = max(1, deadline_ns - int(waited_s * 1e9))
                pending, frames = link.channel.submit(signature, inputs, urgency, left_ns, 0.0)
                if span is not None:
                    span.sent()
                reply: Reply = await link.settled(pending, frames, patience - waited_s)
                return reply
            except BrokerLost as error:
                asks = signature if pending is not None else None
                if not may_ask_again(error, asks):
                    raise not_again(error, asks) from error
                outage = outage or _Outage(error)
                if pending is not None:
                    inputs = asked(pending, link.channel.memory)
            except ArenaExhausted:
                if outage is None or not link.channel.pending:
                    raise
                await asyncio.sleep(RETRY_S)  # what is under way gives room back

    def submit(self, model: str, inputs: Any, **options: Any) -> asyncio.Task[Array | dict[str, Array]]:
        """Start a request and return its task; cancelling that cancels the request."""
        return asyncio.ensure_future(self.infer(model, inputs, **options))

    async def map(
        self, model: str, inputs: Iterable[Any], *, window: int = 64, **options: Any
    ) -> AsyncIterator[Array | dict[str, Array]]:
        """`infer` over many inputs, `window` of them under way at once; results in order."""
        if window < 1:
            raise InvalidRequest(
                f"window is how many requests are under way at once: 1 or more, not {window}"
            )
        under_way: list[asyncio.Task[Array | dict[str, Array]]] = []
        try:
            for entry in inputs:
                if len(under_way) >= window:
                    yield await under_way.pop(0)
                under_way.append(self.submit(model, entry, **options))
            while under_way:
                yield await under_way.pop(0)
        finally:
            for task in under_way:
                task.cancel()

    def cancel(self, task: asyncio.Task[Any]) -> bool:
        """Cancel a request of `submit`; the same as `task.cancel()`."""
        return task.cancel()

    async def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """As `Client.empty`."""
        link = await self._linked(inf)
        return empty_in(link.session, shape, dtype)

    async def models(self) -> list[ModelInfo]:
        """As `Client.models`."""
        return await self._ask("", TIMEOUT_S)

    async def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        """As `Client.wait_ready`."""
        check_name(model)
        infos = await self._ask(model, timeout)
        known = self._link.session.signatures if self._link is not None else {}
        known[model] = Signature(infos[0], known)  # the first request need not ask again
        return infos[0]

    # ---- the connection -----------------------------------------------------------------------

    async def _describe(self, link: _Link, model: str, timeout: float) -> Signature:
        check_name(model)
        try:
            infos: list[ModelInfo] = await link.settled(link.channel.describe(model), (), timeout)
        except DeadlineExceeded:
            raise DeadlineExceeded(f"no worker has loaded {model!r} within {timeout:g} s") from None
        known = link.session.signatures
        signature = known[model] = Signature(infos[0], known)
        return signature

    async def _ask(self, model: str, timeout: float) -> list[ModelInfo]:
        """Ask for a model's metadata ("": all), and ask the next broker when one goes away."""
        give_up_s = time.monotonic() + timeout
        outage: _Outage | None = None
        while True:
            link = await self._linked(give_up_s, outage)
            try:
                left_s = give_up_s - time.monotonic()
                infos: list[ModelInfo] = await link.settled(link.channel.describe(model), (), left_s)
                return infos
            except BrokerLost as error:
                if not may_ask_again(error, None):
                    raise
                outage = outage or _Outage(error)

    async def _linked(self, give_up_s: float, outage: _Outage | None = None) -> _Link:
        """The link, made anew if there is none or its broker went away.

        Waits up to the connect timeout, and in an outage for as long as the caller: it has lost its
        broker. Raises BrokerLost when nobody answers, Cancelled when `close` was called in an outage.
        """
        while True:
            link = self._link
            if link is not None and not link.lost:
                return link
            if self._closed:
                raise (
                    Cancelled("the client was closed")
                    if outage
                    else BrokerLost("this client has been closed")
                )
            if self._opening is None or self._opening.done():
                self._opening = asyncio.ensure_future(self._open())
                self._opening.add_done_callback(_retrieve)
            opening = self._opening
            # One attempt serves all who wait, and goes on when one of them is cancelled.
            left_s = give_up_s - time.monotonic()
            await asyncio.wait({opening}, timeout=left_s if left_s < TIMEOUT_S else TIMEOUT_S)
            error = opening.exception() if opening.done() and not opening.cancelled() else None
            if opening.done() and error is None:
                continue
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                if outage is None:
                    raise nobody_answers(self._settings.endpoint, self._settings.connect_timeout_s)
                raise outage.nobody_came(error)
            if error is not None:
                if outage is None:
                    raise error
                await asyncio.sleep(min(RETRY_S, left_s))

    async def _open(self) -> _Link:
        """Connect. Raises BrokerLost when nobody answers within the connect timeout."""
        if self._link is not None:
            self._link.session.close()
        session = Session(self._settings, self._numbers)
        connection: Connection | None = None
        started_s = time.monotonic()
        try:
            connection = session.greet()
            while not (readable(connection.socket) and connection.welcomed()):
                connection.check()
                if time.monotonic() - started_s >= self._settings.connect_timeout_s:
                    raise nobody_answers(self._settings.endpoint, self._settings.connect_timeout_s)
                await asyncio.sleep(WELCOME_LOOK_S)
        except BaseException:
            if connection is not None:
                connection.close()
            session.close()
            raise
        self._link = _Link(session, connection)
        return self._link

    async def close(self) -> None:
        """End every request under way with Cancelled, and let go of the connection and its memory."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.close(Cancelled("the client was closed"))
            link.session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Link:
    """One connection on the running loop."""

    def __init__(self, session: Session, connection: Connection) -> None:
        self.session = session
        self.lost = False
        self.channel: Channel = connection.channel
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._outbox: list[tuple[Any, Sequence[Any]]] = []
        assert connection.monitor is not None
        socket_fd = int(connection.socket.getsockopt(zmq.FD))
        monitor_fd = int(connection.monitor.getsockopt(zmq.FD))
        self._stop_readers = add_readers(
            self._loop, {socket_fd: self._readable, monitor_fd: self._look_around}
        )
        self._look = self._loop.call_later(LOOK_AROUND_S, self._look_again)

    async def settled(self, pending: Pending, frames: Sequence[Any], patience_s: float) -> Any:
        """Send a request and wait for its outcome; cancelling this cancels it."""
        if self.lost:
            raise BrokerLost("the broker went away")
        future = pending.waiter = self._loop.create_future()
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append((pending.message, frames))
        timer = self._loop.call_later(patience_s, self._expire, pending, patience_s)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(pending)
            raise
        finally:
            timer.cancel()

    def _abandon(self, pending: Pending) -> None:
        cancel = self.channel.abandon(pending)
        if cancel is not None and not self.lost:
            if not self._outbox:
                self._loop.call_soon(self._flush)
            self._outbox.append((cancel, ()))

    def _expire(self, pending: Pending, patience_s: float) -> None:
        if not pending.settled:
            self._abandon(pending)
            _settle([(pending, DeadlineExceeded(f"no answer within {patience_s:g} s"))])

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if self.lost:
            return  # closed since this was planned: everything has been settled
        gathered: list[Any] = []
        try:
            for message, frames in outbox:
                if frames:
                    self._connection.send([message], frames)
                    continue
                gathered.append(message)
                if len(gathered) == MESSAGES_PER_SEND:
                    self._connection.send(gathered)
                    gathered = []
            if gathered:
                self._connection.send(gathered)
        except BatchyardError as error:
            self.close(error)
            return
        self._readable()  # sending may have swallowed the descriptor's edge

    def _readable(self) -> None:
        """The descriptor is edge-triggered: read until nothing is left."""
        connection = self._connection
        try:
            while not self.lost and readable(connection.socket):
                messages, frames = connection.receive()
                for message in messages:
                    if type(message) is m.Refused:
                        raise refusal(message)
                    _settle(self.channel.handle(message, frames))
        except BatchyardError as error:
            self.close(error)

    def _look_around(self) -> None:
        try:
            if not self.lost:
                self._connection.check()
        except BatchyardError as error:
            self.close(error)

    def _look_again(self) -> None:
        self._look_around()
        self._readable()
        if not self.lost:
            self._look = self._loop.call_later(LOOK_AROUND_S, self._look_again)

    def close(self, error: Exception) -> None:
        """Settle everything with the error. Idempotent."""
        if self.lost:
            return
        self.lost = True
        self._look.cancel()
        self._stop_readers()
        _settle(self.channel.lose(error))
        self._connection.close()


class _Outage:
    """Since when a call is without a broker, and how it lost the last."""

    def __init__(self, error: BrokerLost) -> None:
        self._how = str(error)  # not the error, whose traceback keeps the lost session
        self._since_s = time.monotonic()

    def nobody_came(self, why: BaseException | None) -> BrokerLost:
        said = None if isinstance(why, BrokerLost) else why
        return nobody_came(self._how, time.monotonic() - self._since_s, said or "")


def _retrieve(opening: asyncio.Task[_Link]) -> None:
    """Who waited may have gone: an error that nobody looks at is no mistake."""
    if not opening.cancelled():
        opening.exception()


def _settle(settled: Sequence[Settled]) -> None:
    for pending, outcome in settled:
        future, pending.waiter = pending.waiter, None
        if future is None or future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
