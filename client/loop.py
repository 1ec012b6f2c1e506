"""An event loop's driver. The loop watches the socket's descriptor (`loop.add_reader`); there is no helper
thread, but for loops that can't watch one (readers.py). What tasks ask for in one pass leaves as one message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from math import inf
from typing import Any

from ..transport.errors import BatchyardError
from .link import Link
from .readers import add_readers
from .reply import Reply
from .request import Request, Stream
from .session import Sessions

LOOK_AROUND_S = 0.1  # how often the end of a connection is looked for beside its own event
CONNECT_LOOK_S = 0.002  # how often a new connection is asked whether it is welcome


class LoopLink(Link):
    def __init__(self, sessions: Sessions, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sessions, self._ring)
        self.loop = loop
        self._planned = False  # `_act` is about to be called
        self._timer: asyncio.Handle | None = None
        self._timer_s = inf  # when it is due; uvloop's handle of a time that is near does not say
        self._writes: int | None = None  # the descriptor that is watched for writing
        self._stop_readers: Callable[[], None] | None = None

    async def outcome(self, request: Request) -> Any:
        """Send a request or a question, and wait for its outcome; cancelling this cancels it."""
        future = request.waiter = self.loop.create_future()
        if request.is_question:
            self.engine.ask(request, request.began_ns)
        else:
            self.engine.submit(request, request.began_ns)
        self.plan()
        try:
            return await future
        except asyncio.CancelledError:
            self.engine.cancel(request)
            self.plan()
            raise
        finally:
            request.waiter = None
            del future, request  # else an error and this frame would keep each other alive

    def start(self, request: Request, done: Callable[[Any], None]) -> None:
        """Send a request; `done` is called on the loop with its outcome. There is no way to cancel it."""
        request.waiter = done
        self.engine.submit(request, request.began_ns)
        self.plan()

    async def answers(self, request: Request) -> AsyncGenerator[Reply, None]:
        """A stream's answers, one after the other. Left early, the request is cancelled."""
        arrived = asyncio.Event()
        stream = request.stream = Stream(arrived.set)
        future = request.waiter = self.loop.create_future()
        future.add_done_callback(lambda _: arrived.set())
        self.engine.submit(request, request.began_ns)
        self.plan()
        try:
            is_over = False
            while not is_over:
                await arrived.wait()
                arrived.clear()
                is_over = future.done()  # first: then no answer comes after those that are there
                while stream.answers:
                    yield stream.answers.popleft()
            last: Reply = future.result()
            if last.names:  # of a model that answers once
                yield last
        finally:
            request.waiter = None
            if not future.done():
                self.engine.cancel(request)
                self.plan()
            elif not future.cancelled():
                future.exception()  # looked at, also where the caller has left

    def plan(self) -> None:
        """Act when every task of this pass has had its turn: what they ask for leaves as one message."""
        if not self._planned:
            self._planned = True
            self.loop.call_soon(self._act)

    def _ring(self) -> None:
        """There may be room. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._look)
        except RuntimeError:
            pass  # the loop has been closed

    def _look(self) -> None:
        self.engine.expire(time.monotonic_ns())
        self._act()

    def _act(self) -> None:
        self._planned = False
        if self.connection is not None:
            self.send()
            self._read()  # libzmq: sending may have swallowed the descriptor's edge
        self._settle()
        if self.connection is not None:
            self._watch_writing()
        self._plan_timer()

    def _read(self) -> None:
        """Read until nothing is left: libzmq's descriptors tell of it once."""
        while self.connection is not None and self.receive(0):
            if self.connection is not None:
                self.send()

    def _readable(self) -> None:
        self._read()
        self._settle()

    def _settle(self) -> None:
        for stream in self.engine.take_streams():
            stream.bell()
        for request in self.engine.take_outcomes():
            future, request.waiter = request.waiter, None
            if callable(future):
                self._tell(future, request.take())
                continue
            if future is None or future.done():
                continue
            outcome = request.take()
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _tell(self, done: Callable[[Any], None], outcome: Any) -> None:
        try:
            done(outcome)
        except Exception as error:  # the caller's fault ends no other request
            self.loop.call_exception_handler({"message": f"{done!r} failed", "exception": error})

    def _plan_timer(self) -> None:
        """Call `_tick` when the engine is due, a connection is to be made, or it is to be looked at."""
        due_ns = self.engine.next_due_ns()
        wait_s = LOOK_AROUND_S if self.connection is not None else inf
        if due_ns is not None:
            wait_s = min(wait_s, (due_ns - time.monotonic_ns()) / 1e9)
        if self.engine.wants_connection:
            wait_s = min(wait_s, CONNECT_LOOK_S)
        if wait_s == inf:
            return
        when_s = self.loop.time() + max(0.0, wait_s)
        if self._timer is not None:
            if self._timer_s <= when_s:
                return
            self._timer.cancel()
        self._timer_s = when_s
        self._timer = self.loop.call_at(when_s, self._tick)

    def lose(self, error: BatchyardError | None) -> None:
        super().lose(error)
        self.plan()

    def _tick(self) -> None:
        self._timer = None
        self.engine.expire(time.monotonic_ns())
        if self.engine.wants_connection:
            if time.monotonic_ns() >= self.retry_ns and self.connect(0):
                assert self.connection is not None
                watched = dict.fromkeys(self.connection.wire.watched, self._readable)
                self._stop_readers = add_readers(self.loop, watched)
        elif self.connection is None:
            self.drop_greeting()
        self._act()

    def _watch_writing(self) -> None:
        assert self.connection is not None
        blocked_on = self.connection.wire.blocked_on
        if blocked_on == self._writes:
            return
        if blocked_on is not None:
            self.loop.add_writer(blocked_on, self._writable)
        elif self._writes is not None:
            self.loop.remove_writer(self._writes)
        self._writes = blocked_on

    def _writable(self) -> None:
        if self.connection is not None:
            self.connection.wire.flush()
            self._watch_writing()

    def unwatch(self) -> None:
        stop, self._stop_readers = self._stop_readers, None
        writes, self._writes = self._writes, None
        if self.loop.is_closed():
            return  # it watches nothing any more
        if stop is not None:
            stop()
        if writes is not None:
            self.loop.remove_writer(writes)

    def end(self, error: Exception) -> None:
        """End every request with this error, and close the connection."""
        self.engine.end(error)
        if not self.loop.is_closed():
            if self._timer is not None:
                self._timer.cancel()
            self._settle()
        if self.session is not None:
            self.session.give_up()
        self.close()
