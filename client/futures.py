"""The I/O thread behind `submit`: one connection, futures settled as their answers come.

A submitting thread prepares its request itself (checks, slot, copy) and leaves it in a queue;
the thread sends everything that has gathered as one message. Done-callbacks run on this thread, so
what they submit leaves as one message too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import zmq

from ..transport import messages as m
from ..transport.deadlines import Deadlines, sleep_ms
from ..transport.errors import ArenaExhausted, BatchyardError, BrokerLost, Cancelled, DeadlineExceeded
from ..transport.sockets import readable
from .channel import Pending, Settled
from .connection import Connection, refusal
from .reply import Reply
from .session import Session

MESSAGES_PER_SEND = 256
GRACE_NS = 40_000_000  # the broker tells of a passed deadline itself; after this we do


class InferFuture(Future[Any]):
    """A request under way. `result()` is an array, or a dict of arrays by output name."""

    def __init__(self, io: IoThread) -> None:
        super().__init__()
        self._io = io
        self._pending: Pending | None = None
        self.reply: Reply | None = None  # with the receipt, once done

    def cancel(self) -> bool:
        """Cancel the request. True unless it has ended."""
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before:
            self.set_running_or_notify_cancel()  # or those who wait on it would wait for ever
            self._io.cancel(self._pending)
        return True

    def settle(self, outcome: Reply | Exception) -> None:
        """The I/O thread's: end it, unless it was cancelled meanwhile."""
        try:
            if isinstance(outcome, Reply):
                self.reply = outcome
                self.set_result(outcome.value)
            else:
                self.set_exception(outcome)
        except InvalidStateError:
            self.reply = None  # cancelled: its outcome is known already, and its slots are free


class IoThread:
    """Started on first use of `submit`; ends with `close()` or with its session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._connection: Connection = session.connect()
        self._channel = self._connection.channel
        self._outbox: deque[tuple[Any, Sequence[Any]]] = deque()
        self._expiries: Deadlines[Pending] = Deadlines(lambda pending: pending.settled)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._sleeping = False
        self._closing = False
        self._lost: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="batchyard-io", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether any request of this thread has not given its slots back."""
        return bool(self._channel.pending)

    # ---- any thread ---------------------------------------------------------------------------

    def submit(self, model: str, inputs: Any, priority: int, deadline_ns: int, wait_s: float) -> InferFuture:
        """Prepare a request and queue it."""
        future = InferFuture(self)
        session = self.session
        signature = session.signatures.get(model)
        if signature is None:
            give_up_s = time.monotonic() + min(wait_s, deadline_ns / 1e9)
            signature = session.use(
                lambda connection: session.signature(connection, model, give_up_s), give_up_s
            )
        try:
            pending, frames = self._channel.submit(signature, inputs, priority, deadline_ns, 0.0)
        except ArenaExhausted:
            # On our own thread a wait for slots would wait for ourselves.
            if threading.current_thread() is self._thread or not self.busy:
                raise
            pending, frames = self._channel.submit(signature, inputs, priority, deadline_ns, wait_s)
        pending.waiter = future
        future._pending = pending
        expires_ns = time.monotonic_ns() + min(deadline_ns, int(wait_s * 1e9)) + GRACE_NS
        self._put((pending.message, frames, expires_ns, pending))
        if self._lost is not None and not future.done():
            future.settle(self._lost)  # the connection ended before the future was known to it
        return future

    def cancel(self, pending: Pending | None) -> None:
        """Tell the broker that nobody waits for this request any more."""
        if pending is not None and (message := self._channel.abandon(pending)) is not None:
            self._put((message, (), 0, None))

    def _put(self, entry: Any) -> None:
        self._outbox.append(entry)
        if self._sleeping:
            self._sleeping = False
            self._wake()
        if self._lost is not None:
            self._fail_all(self._lost)

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
            self._serve()
            if self.session.lost:  # closed because the client has a new session, not by its user
                error = BrokerLost("the broker went away")
        except BatchyardError as lost:
            error = lost
            self.session.give_up()
        except zmq.ZMQError as lost:
            error = BrokerLost(f"the connection failed: {lost}")
            self.session.give_up()
        except BaseException as bug:  # also a callback's sys.exit(): or every future would wait for ever
            error = BrokerLost(f"the I/O thread failed: {bug!r}")
            self.session.give_up()
        self._lost = error
        self._fail_all(error)
        self._connection.close()
        self._wake_read.close()
        self._wake_write.close()

    def _serve(self) -> None:
        connection = self._connection
        poller = zmq.Poller()
        poller.register(connection.socket, zmq.POLLIN)
        poller.register(connection.monitor, zmq.POLLIN)
        poller.register(self._wake_read.fileno(), zmq.POLLIN)
        while not self._closing:
            while readable(connection.socket):
                self._receive()
                if self._outbox:
                    self._send()
            if self._outbox:
                self._send()
                continue
            self._sleeping = True
            if self._outbox:
                self._sleeping = False
                continue
            woken = poller.poll(sleep_ms(self._expiries.next_ns(), time.monotonic_ns()))
            self._sleeping = False
            for entry, _ in woken:
                if entry == self._wake_read.fileno():
                    self._swallow()
                elif entry is connection.monitor:
                    connection.check()
            self._expire()

    def _swallow(self) -> None:
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass

    def _receive(self) -> None:
        messages, frames = self._connection.receive()
        for message in messages:
            if type(message) is m.Refused:
                raise refusal(message)
            settle(self._channel.handle(message, frames))

    def _send(self) -> None:
        """Send what has gathered as one message; a request with frames goes by itself."""
        gathered: list[Any] = []
        outbox = self._outbox
        while outbox and len(gathered) < MESSAGES_PER_SEND:
            message, frames, expires_ns, pending = outbox.popleft()  # type: ignore[misc]
            if pending is not None:
                self._expiries.add(expires_ns, pending)
            if frames:
                if gathered:
                    self._connection.send(gathered)
                    gathered = []
                self._connection.send([message], frames)
            else:
                gathered.append(message)
        if gathered:
            self._connection.send(gathered)

    def _expire(self) -> None:
        """Requests whose time is up and of which the broker has said nothing."""
        for pending in self._expiries.due(time.monotonic_ns()):
            cancel = self._channel.abandon(pending)
            if cancel is not None:
                self._connection.send([cancel])
            settle([(pending, DeadlineExceeded("no answer before the deadline"))])

    def _fail_all(self, error: Exception) -> None:
        settle(self._channel.lose(error))


def settle(settled: Sequence[Settled]) -> None:
    """End the futures of settled requests."""
    for pending, outcome in settled:
        future = pending.waiter
        pending.waiter = None
        if future is not None:
            future.settle(outcome)
