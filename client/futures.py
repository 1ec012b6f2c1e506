"""The I/O thread behind `submit`: one connection, futures settled as their answers come.

A submitting thread prepares its request itself (checks, slot, copy) and leaves it in a queue;
the thread sends everything that has gathered as one message. Done-callbacks run on this thread, so
what they submit leaves as one message too. The thread outlives connections: when one ends, it takes
what had no outcome to the next.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

import zmq

from ..transport import messages as m
from ..transport.deadlines import Deadlines, sleep_ms
from ..transport.errors import ArenaExhausted, BatchyardError, BrokerLost, Cancelled, DeadlineExceeded
from ..transport.sockets import readable
from .channel import Pending, Settled
from .connection import Connection, nobody_answers, refusal
from .reply import Reply
from .resubmit import Backlog, Ended
from .session import Session
from .sessions import RETRY_S, Sessions
from .signature import Signature

if TYPE_CHECKING:
    from .spans import RequestSpan

MESSAGES_PER_SEND = 256
GRACE_NS = 40_000_000  # the broker tells of a passed deadline itself; after this we do
RETRY_MS = int(RETRY_S * 1e3)


class InferFuture(Future[Any]):
    """A request under way. `result()` is an array, or a dict of arrays by output name."""

    def __init__(self, io: IoThread) -> None:
        super().__init__()
        self._io = io
        self._pending: Pending | None = None
        self._span: RequestSpan | None = None
        self.reply: Reply | None = None  # with the receipt, once done

    def cancel(self) -> bool:
        """Cancel the request. True unless it has ended."""
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self.set_running_or_notify_cancel()  # or those who wait on it would wait for ever
            self._io.cancel(self._pending)
            if self._span is not None:
                self._span.end(Cancelled("the caller cancelled it"))
        return True

    def settle(self, outcome: Reply | Exception) -> None:
        """The I/O thread's: end it, unless it was cancelled meanwhile."""
        if self._span is not None:
            self._span.end(outcome)
        try:
            if isinstance(outcome, Reply):
                self.reply = outcome
                self.set_result(outcome.value)
            else:
                self.set_exception(outcome)
        except InvalidStateError:
            self.reply = None  # cancelled: its outcome is known already, and its slots are free


class _Link:
    """The thread's connection in one session, and the models that it has asked for there."""

    __slots__ = ("asked", "channel", "connection", "session")

    def __init__(self, session: Session, connection: Connection) -> None:
        self.session = session
        self.connection = connection
        self.channel = connection.channel
        self.asked: set[str] = set()


class _Question:
    """Who waits for a model's description: the requests that are to be submitted again."""

    def __init__(self, io: IoThread, link: _Link, model: str) -> None:
        self._io = io
        self._link = link
        self._model = model

    def settle(self, outcome: Any) -> None:
        self._link.asked.discard(self._model)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            self._link.session.signatures[self._model] = Signature(outcome[0])
        except BatchyardError as error:
            self._io.fail(self._model, error)


class IoThread:
    """Started on first use of `submit`; ends with `close()`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._link: _Link | None = None  # None: there is no broker, or nobody has asked for one
        # What is to be sent, and on which link it was prepared: (link, message, frames, when to give
        # up, request). Whatever link it is, this thread takes it out, and nobody else does.
        self._outbox: deque[tuple[_Link, Any, Sequence[Any], int, Pending | None]] = deque()
        self._expiries: Deadlines[Pending] = Deadlines(lambda pending: pending.settled)
        self._backlog = Backlog(lambda future: not future.done())
        self._news = threading.Condition()  # there is a link, or there can't be one now
        self._callers = 0  # threads that wait for a link
        self._refusal: Exception | None = None  # why the last attempt did not lead to one
        self._refusals = 0
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._sleeping = False
        self._closing = False
        self.ended: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="batchyard-io", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether any request of this thread has not given its slots back."""
        link = self._link
        return link is not None and bool(link.channel.pending)

    # ---- any thread ---------------------------------------------------------------------------

    def submit(
        self,
        model: str,
        inputs: Any,
        priority: int,
        deadline_ns: int,
        wait_s: float,
        span: RequestSpan | None = None,
    ) -> InferFuture:
        """Prepare a request and queue it; its future ends the span. Raises BrokerLost when there is no
        broker within the connect timeout."""
        link = self._link
        signature = link.session.signatures.get(model) if link is not None else None
        if link is None or signature is None or link.session.lost:
            link, signature = self._prepare(model, time.monotonic() + min(wait_s, deadline_ns / 1e9))
        future = InferFuture(self)
        channel = link.channel
        try:
            pending, frames = channel.submit(signature, inputs, priority, deadline_ns, 0.0)
        except ArenaExhausted:
            # On our own thread a wait for slots would wait for ourselves.
            if threading.current_thread() is self._thread or not channel.pending:
                raise
            pending, frames = channel.submit(signature, inputs, priority, deadline_ns, wait_s)
        pending.waiter = future
        future._pending = pending
        if span is not None:
            future._span = span
            span.sent()
        expires_ns = time.monotonic_ns() + min(deadline_ns, int(wait_s * 1e9)) + GRACE_NS
        self._put((link, pending.message, frames, expires_ns, pending))
        return future

    def _prepare(self, model: str, give_up_s: float) -> tuple[_Link, Signature]:
        """A link whose session knows the model."""
        while True:
            link = self._await_link(give_up_s)
            signature = link.session.signatures.get(model)
            if signature is not None:
                return link, signature
            # On a connection of this thread's own. Should it be in another session than the link's,
            # the link's is over.
            self._sessions.use(
                lambda session, connection: session.signature(connection, model, give_up_s), give_up_s
            )

    def _await_link(self, give_up_s: float) -> _Link:
        """The link to the current session's broker, waiting for one up to the connect timeout."""
        link = self._link
        if link is not None and not link.session.lost:
            return link
        if threading.current_thread() is self._thread:
            raise BrokerLost("there is no broker now, and a callback on the I/O thread can't wait for one")
        settings = self._sessions.settings
        started_s = time.monotonic()
        give_up_s = min(give_up_s, started_s + settings.connect_timeout_s)
        with self._news:
            self._callers += 1
            refusals = self._refusals
            try:
                while True:
                    link = self._link
                    if link is not None and not link.session.lost:
                        return link
                    if self._closing or self.ended is not None:
                        raise BrokerLost("this client has been closed")
                    if self._refusals != refusals and self._refusal is not None:
                        raise self._refusal
                    left_s = give_up_s - time.monotonic()
                    if left_s <= 0:
                        raise nobody_answers(settings.endpoint, time.monotonic() - started_s)
                    self._wake()
                    self._news.wait(left_s)
            finally:
                self._callers -= 1

    def cancel(self, pending: Pending | None) -> None:
        """Tell the broker that nobody waits for this request any more."""
        link = self._link
        if link is not None and pending is not None:
            message = link.channel.abandon(pending)
            if message is not None:
                self._put((link, message, (), 0, None))

    def _put(self, entry: Any) -> None:
        self._outbox.append(entry)
        if self._sleeping:
            self._sleeping = False
            self._wake()
        if self.ended is not None:
            self._end_outbox(self.ended)

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except OSError:
            pass  # the thread has ended already

    def close(self) -> None:
        """End every request with Cancelled, and the thread."""
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception = Cancelled("the client was closed")
        try:
            while not self._closing:
                self._connect()
                if self._link is not None:
                    self._serve_until_lost(self._link)
        except BaseException as bug:  # also a callback's sys.exit(): or every future would wait for ever
            error = BrokerLost(f"the I/O thread failed: {bug!r}")
            if self._link is not None:
                self._link.session.give_up()
        self._end(error)

    def _connect(self) -> None:
        """Make a link, as soon as somebody wants one; meanwhile requests that wait for it expire."""
        connection: Connection | None = None
        try:
            while not self._closing:
                self._collect()
                settle_ended(self._backlog.expire(time.monotonic_ns(), False, self._refusal or ""))
                if not (self._backlog or self._callers):
                    if connection is not None:
                        connection.close()
                        connection = None
                    self._rest(None)
                    continue
                try:
                    if connection is None:
                        session = self._sessions.open()
                        connection = session.greet()
                    if connection.welcomed():
                        self._link, connection = _Link(session, connection), None
                        self._refusal = None
                        self._tell_callers()
                        return
                    if not session.lost:
                        continue
                except (BatchyardError, zmq.ZMQError, OSError) as error:
                    if not (isinstance(error, BrokerLost) or session.lost):
                        self._refusal = error
                        self._refusals += 1
                        self._tell_callers()
                if connection is not None:
                    connection.close()
                    connection = None
                self._rest(RETRY_MS)
        finally:
            if connection is not None:
                connection.close()

    def _tell_callers(self) -> None:
        with self._news:
            self._news.notify_all()

    def _rest(self, for_ms: int | None) -> None:
        """Sleep until woken (None: however long that takes), unless something has been queued."""
        self._sleeping = True
        if not self._outbox:
            poller = zmq.Poller()
            poller.register(self._wake_read.fileno(), zmq.POLLIN)
            if poller.poll(for_ms):
                self._swallow()
        self._sleeping = False

    def _collect(self) -> None:
        """What was prepared for a link that is over waits for the next one."""
        while self._outbox:
            link, _, _, expires_ns, pending = self._outbox.popleft()
            if pending is not None:
                self._add_lost(link, pending, expires_ns, BrokerLost("the broker went away"))

    def _add_lost(self, link: _Link, pending: Pending, expires_ns: int, error: BrokerLost) -> None:
        if pending.settled:
            return
        pending.settled = True
        now_ns = time.monotonic_ns()
        due_ns = expires_ns - GRACE_NS
        settle_ended(self._backlog.add(pending, link.channel.memory, error, due_ns, now_ns))
        pending.waiter = None

    def _serve_until_lost(self, link: _Link) -> None:
        try:
            self._serve(link)
            return
        except BrokerLost as error:
            lost = type(error)(str(error))  # without the traceback, which keeps the lost session
        except BatchyardError as error:
            lost = BrokerLost(str(error))
        except zmq.ZMQError as error:
            lost = BrokerLost(f"the connection failed: {error}")
        self._link = None
        link.session.give_up()
        link.connection.close()
        under_way, self._expiries = self._expiries, Deadlines(lambda pending: pending.settled)
        for expires_ns, pending in under_way.living():
            self._add_lost(link, pending, expires_ns, lost)
        self._rest(RETRY_MS)

    def _serve(self, link: _Link) -> None:
        connection = link.connection
        poller = zmq.Poller()
        poller.register(connection.socket, zmq.POLLIN)
        poller.register(connection.monitor, zmq.POLLIN)
        poller.register(self._wake_read.fileno(), zmq.POLLIN)
        while not self._closing:
            while readable(connection.socket):
                self._receive(link)
                if self._outbox:
                    self._send(link)
            if self._backlog:
                self._ask_again(link)
            if self._outbox:
                self._send(link)
                continue
            self._sleeping = True
            if self._outbox:
                self._sleeping = False
                continue
            woken = poller.poll(sleep_ms(self._next_ns(), time.monotonic_ns()))
            self._sleeping = False
            for entry, _ in woken:
                if entry == self._wake_read.fileno():
                    self._swallow()
                    if link.session.lost:
                        raise BrokerLost("the broker went away")  # another call of this client has seen it
                elif entry is connection.monitor:
                    connection.check()
            self._expire(link)

    def _next_ns(self) -> int | None:
        due_ns = self._expiries.next_ns()
        lost_ns = self._backlog.next_ns() if self._backlog else None
        return lost_ns if due_ns is None or (lost_ns is not None and lost_ns < due_ns) else due_ns

    def _swallow(self) -> None:
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass

    def _receive(self, link: _Link) -> None:
        messages, frames = link.connection.receive()
        for message in messages:
            if type(message) is m.Refused:
                raise refusal(message)
            settle(link.channel.handle(message, frames))

    def _send(self, link: _Link) -> None:
        """Send what has gathered as one message; a request with frames goes by itself."""
        gathered: list[Any] = []
        outbox = self._outbox
        while outbox and len(gathered) < MESSAGES_PER_SEND:
            prepared_on, message, frames, expires_ns, pending = outbox.popleft()
            if prepared_on is not link:
                if pending is not None:
                    self._add_lost(prepared_on, pending, expires_ns, BrokerLost("the broker went away"))
                continue
            if pending is not None:
                self._expiries.add(expires_ns, pending)
            if frames:
                if gathered:
                    link.connection.send(gathered)
                    gathered = []
                link.connection.send([message], frames)
            else:
                gathered.append(message)
        if gathered:
            link.connection.send(gathered)

    def _ask_again(self, link: _Link) -> None:
        """Submit what lost its broker, as soon as this one has the model."""
        for model in self._backlog.models:
            signature = link.session.signatures.get(model)
            if signature is None:
                if model not in link.asked:
                    link.asked.add(model)
                    question = link.channel.describe(model)
                    question.waiter = _Question(self, link, model)
                    self._outbox.append((link, question.message, (), 0, None))
                continue
            submitted, ended = self._backlog.ask_again(link.channel, signature, time.monotonic_ns())
            for pending, frames, due_ns in submitted:
                future = pending.waiter
                future._pending = pending
                if future._span is not None:
                    future._span.sent()
                self._outbox.append((link, pending.message, frames, due_ns + GRACE_NS, pending))
                if future.cancelled():  # while it was being submitted
                    self.cancel(pending)
            settle_ended(ended)

    def fail(self, model: str, error: Exception) -> None:
        """End the requests that wait for a model which this broker can't serve."""
        settle_ended(self._backlog.end(error, model))

    def _expire(self, link: _Link) -> None:
        """Requests whose time is up and of which the broker has said nothing."""
        now_ns = time.monotonic_ns()
        for pending in self._expiries.due(now_ns):
            cancel = link.channel.abandon(pending)
            if cancel is not None:
                link.connection.send([cancel])
            settle([(pending, DeadlineExceeded("no answer before the deadline"))])
        if self._backlog:
            settle_ended(self._backlog.expire(now_ns, True))

    def _end(self, error: Exception) -> None:
        """The thread is over, and so is everything under way."""
        self.ended = error
        link, self._link = self._link, None
        self._tell_callers()
        if link is not None:
            settle(link.channel.lose(error))
        self._end_outbox(error)
        settle_ended(self._backlog.end(error))
        if link is not None:
            link.connection.close()
        self._wake_read.close()
        self._wake_write.close()

    def _end_outbox(self, error: Exception) -> None:
        while self._outbox:
            try:
                pending = self._outbox.popleft()[4]
            except IndexError:
                return  # another thread was faster
            if pending is not None:
                settle([(pending, error)])


def settle(settled: Sequence[Settled]) -> None:
    """End the futures of settled requests."""
    for pending, outcome in settled:
        future = pending.waiter
        pending.waiter = None
        if future is not None:
            future.settle(outcome)


def settle_ended(ended: Iterable[Ended]) -> None:
    """End the futures of requests that are not asked again."""
    for future, error in ended:
        future.settle(error)
