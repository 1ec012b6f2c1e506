"""An event loop's driver. The loop watches the socket's descriptor (`loop.add_reader`); there is no helper
thread, but for loops that can't watch one (readers.py). What tasks ask for in one pass leaves as one message,
or as several if the pass is long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from math import inf
from typing import Any

from ..transport.errors import BatchyardError, BrokerLost
from .link import Link
from .readers import add_readers
from .reply import Reply
from .request import Request, Stream
from .session import Sessions

LOOK_AROUND_S = 0.1  # how often the end of a connection is looked for beside its own event
CONNECT_LOOK_S = 0.002  # how often a new connection is asked whether it is welcome
GATHER_NS = 2_000_000  # of one pass: what is asked for then has waited long enough for the rest
GUARD_S = 0.1  # how often a lost timer is looked for, while anybody waits
GUARD_NS = int(GUARD_S * 1e9)
GUARDS = 5  # that are planned at any time: a look that is lost itself costs GUARD_S, and no other one
LOST_S = 0.03  # after which a timer that was due counts as lost
STRUCK = "an exception of a signal's handler interrupted the connection"


class LoopLink(Link):
    """The link of one running event loop.

    A signal's handler may raise at any instruction: of a callback of ours, which is then mended, and of the
    event loop's own code, which loses the callback that it was about to call. So no plan is trusted for
    long: while anybody waits, several looks are planned ahead, none of which hangs on another's being called.
    """

    def __init__(self, sessions: Sessions, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sessions, self._ring)
        self.loop = loop
        self._asked: dict[Request, Any] = {}  # whoever waits: a future, or what is called
        self._planned: asyncio.Handle | None = None  # `_act` is about to be called
        self._gathers_until_ns = 0
        self._timer: asyncio.Handle | None = None
        self._timer_s = inf  # when; uvloop's handle of a time that is near does not say
        self._guards: deque[tuple[float, asyncio.Handle]] = deque()  # when, and the look that is planned
        self._guarded_until_ns = 0  # as of the last plan
        self._is_acting = False  # a callback is at work, or was interrupted
        self._is_retired = False  # nothing more is asked of it
        self._writes: int | None = None  # the descriptor that is watched for writing
        self._stop_readers: Callable[[], None] | None = None

    async def outcome(self, request: Request) -> Any:
        """Send a request or a question, and wait for its outcome; cancelling this cancels it."""
        future = request.waiter = self.loop.create_future()
        try:
            self._begin(request, future)
            return await future
        finally:
            self._leave(request)
            del future, request  # else an error and this frame would keep each other alive

    def start(self, request: Request, done: Callable[[Any], None]) -> None:
        """Send a request; `done` is called on the loop with its outcome. There is no way to cancel it."""
        request.waiter = done
        self._begin(request, done)

    async def answers(self, request: Request) -> AsyncGenerator[Reply, None]:
        """A stream's answers, one after the other. Left early, the request is cancelled."""
        arrived = asyncio.Event()
        stream = request.stream = Stream(arrived.set)
        future = request.waiter = self.loop.create_future()
        try:
            self._begin(request, future)
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
            self._leave(request)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, also where the caller has left

    def _begin(self, request: Request, waiter: Any) -> None:
        self._asked[request] = waiter
        if request.is_question:
            self.engine.ask(request, request.began_ns)
        else:
            self.engine.submit(request, request.began_ns)
        if request.began_ns > self._guarded_until_ns:
            self._plan_guards()
        if self._planned is None:
            self._gathers_until_ns = request.began_ns + GATHER_NS
            self.plan()
        elif request.began_ns > self._gathers_until_ns:
            self._gathers_until_ns = request.began_ns + GATHER_NS
            self._send_early()

    def _send_early(self) -> None:
        """In the middle of a long pass: a worker may have nothing to do."""
        if self.connection is not None and not self._is_acting:
            self._guarded(self.send)

    def _plan_guards(self) -> None:
        """Somebody waits: there shall be as many looks ahead as there may be."""
        now_s = self.loop.time()
        guards = self._guards
        while guards and guards[0][0] <= now_s:
            guards.popleft()
        when_s = guards[-1][0] if guards else now_s
        while len(guards) < GUARDS:
            when_s += GUARD_S
            guards.append((when_s, self.loop.call_at(when_s, self._look_after)))
        self._guarded_until_ns = time.monotonic_ns() + GUARD_NS

    def _leave(self, request: Request) -> None:
        """Its caller goes on. What has no outcome by then is cancelled."""
        request.waiter = None
        self._asked.pop(request, None)
        if request.outcome is None:
            self.engine.cancel(request)
            self.plan()

    def retire(self) -> None:
        """Come to an end with what is under way."""
        self._is_retired = True
        self.plan()

    @property
    def is_over(self) -> bool:
        """Whether a retired link has nothing to do, and nothing open."""
        return not self._asked and self.connection is None and self._greeting is None

    def plan(self) -> None:
        """Act when every task of this pass has had its turn: what they ask for leaves as one message."""
        if self._planned is None:
            self._planned = self.loop.call_soon(self._act)

    def _ring(self) -> None:
        """There may be room. From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._look)
        except RuntimeError:
            pass  # the loop has been closed

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do a callback's work. One that an exception has interrupted is mended; if another one interrupts
        that, by the next callback."""
        if self._is_acting:
            self._mend()
        self._is_acting = True
        try:
            act()
        except BaseException:
            self._mend()
            raise
        self._is_acting = False

    def _look(self) -> None:
        self._guarded(self._expire)
        self._act()

    def _expire(self) -> None:
        self.engine.expire(time.monotonic_ns())

    def _act(self) -> None:
        self._planned = None
        self._guarded(self._go_on)

    def _go_on(self) -> None:
        if self.connection is not None:
            self.send()
            self._read()  # libzmq: sending may have swallowed the descriptor's edge
        self._settle()
        if self.connection is not None:
            self._watch_writing()
        self._plan_timer()
        if self._is_retired and not self._asked and not self.engine.is_busy:
            self.close()

    def _read(self) -> None:
        """Read until nothing is left: libzmq's descriptors tell of it once."""
        while self.connection is not None and self.receive(0):
            if self.connection is not None:
                self.send()

    def _readable(self) -> None:
        self._guarded(self._read_on)

    def _read_on(self) -> None:
        self._read()
        self._settle()

    def _settle(self) -> None:
        for stream in self.engine.take_streams():
            stream.bell()
        for request in self.engine.take_outcomes():
            self._tell(request, request.waiter)

    def _tell(self, request: Request, waiter: Any) -> None:
        """Whoever waits first, then what is forgotten: an exception in between loses nothing."""
        outcome = request.outcome
        if callable(waiter):
            request.waiter = None  # no signal is heeded between this and the call: it is called exactly once
            try:
                waiter(outcome)
            except Exception as error:  # the caller's fault ends no other request
                self.loop.call_exception_handler({"message": f"{waiter!r} failed", "exception": error})
            self._asked.pop(request, None)
        elif waiter is not None and not waiter.done():
            if isinstance(outcome, Exception):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
        if request.stream is not None:
            request.stream.bell()
        request.waiter = None
        request.take()

    def _mend(self) -> None:
        """An exception has interrupted a callback, at any instruction. The connection is given up as if its
        broker had gone: what may be asked again is. Whoever is in no table any more gets an error."""
        self._is_acting = True
        self.lose(BrokerLost(STRUCK))
        self.drop_greeting()
        self.engine.end_strays(self._asked, BrokerLost(f"{STRUCK}, and the request with it"))
        for request in list(self._asked):
            if request.outcome is not None:
                self._tell(request, request.waiter)
        self._is_acting = False

    def _look_after(self) -> None:
        """Whatever a lost callback would have done, while anybody waits."""
        if not self._asked:
            return
        self._plan_guards()
        if self._is_acting or self._timer is None or self._timer_s < self.loop.time() - LOST_S:
            self._tick()

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
            if self.loop.time() - LOST_S < self._timer_s <= when_s:
                return
            self._timer.cancel()
        self._timer_s = when_s
        self._timer = self.loop.call_at(when_s, self._tick)

    def lose(self, error: BatchyardError | None) -> None:
        super().lose(error)
        self.plan()

    def _tick(self) -> None:
        self._timer = None
        self._guarded(self._keep_time)
        self._act()

    def _keep_time(self) -> None:
        self._expire()
        if self.engine.wants_connection:
            if time.monotonic_ns() >= self.retry_ns and self.connect(0):
                assert self.connection is not None
                watched = dict.fromkeys(self.connection.wire.watched, self._readable)
                self._stop_readers = add_readers(self.loop, watched)
        elif self.connection is None:
            self.drop_greeting()

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
        self._guarded(self._write_on)

    def _write_on(self) -> None:
        if self.connection is not None:
            self.connection.wire.flush()
            self._watch_writing()

    def unwatch(self) -> None:
        stop, self._stop_readers = self._stop_readers, None
        writes, self._writes = self._writes, None
        if stop is not None:
            stop()
        if writes is not None and not self.loop.is_closed():
            self.loop.remove_writer(writes)

    def end(self, error: Exception) -> None:
        """Everything ends so, and the connection is closed."""
        self.engine.end(error)
        if not self.loop.is_closed():
            if self._timer is not None:
                self._timer.cancel()
            for _, look in self._guards:
                look.cancel()
            self._settle()
        if self.session is not None:
            self.session.give_up()
        self.close()
