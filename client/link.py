"""An engine and its connection: the calls that every driver makes (`Link`), and the driver of a thread that
waits for itself (`Line`). Nothing is decided here; engine.py does that.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from collections.abc import Callable

from ..transport.codec import broker_to_client, encode
from ..transport.errors import BatchyardError, BrokerLost, Unauthorized
from ..transport.messages import ModelInfo
from ..transport.wire import Ended, Full
from . import ending
from .connection import LOOK_AROUND_MS, BrokerConnection, HandshakeLost, NotSent
from .engine import Engine
from .request import TAKEN, Outcome, Request
from .session import ClientClosed, Session, Sessions

RETRY_NS = 20_000_000  # between two attempts at a connection
CONNECT_LOOK_MS = 10  # at once: a handshake comes in pieces, and each may take as long again
HANDSHAKES_MAX = 5  # that were cut off in a row: no broker dies that often, so its key is another one
_LOOK_AROUND_NS = LOOK_AROUND_MS * 1_000_000


class Link:
    """`connection` is None until one is welcomed."""

    def __init__(self, sessions: Sessions, bell: Callable[[], None]) -> None:
        settings = sessions.settings
        self.sessions = sessions
        self.engine = Engine(
            sessions.numbers, settings.endpoint.url, int(settings.connect_timeout_s * 1e9), bell
        )
        self.session: Session | None = None
        self.connection: BrokerConnection | None = None
        self.retry_ns = 0  # not before then
        self._greeting: BrokerConnection | None = None
        self._handshakes_lost = 0  # in a row

    def connect(self, timeout_ms: int) -> bool:
        """A step towards a connection, which takes `timeout_ms` at most. Whether there is one now."""
        now_ns = time.monotonic_ns()
        timeout_ms = min(timeout_ms, CONNECT_LOOK_MS)
        if now_ns < self.retry_ns:
            time.sleep(min((self.retry_ns - now_ns) / 1e9, timeout_ms / 1e3))
            return False
        try:
            session = self.sessions.open()  # also to see that the client, or its yard, is not closed
            if self._greeting is None or self.session is None:  # None: a signal's exception came in between
                self.drop_greeting()
                self.session = session
                self._greeting = self.session.greet()
            if not self._greeting.welcomed(timeout_ms):
                return False
            assert self.session is not None
            if self.session.is_over:
                raise BrokerLost("the broker went away while this call connected")
        except ClientClosed as error:
            self.drop_greeting()
            self.engine.end(error)
        except (BatchyardError, OSError) as error:
            self._refused(error)
        else:
            self._handshakes_lost = 0
            self.connection, self._greeting = self._greeting, None
            self.engine.connected(self.session, time.monotonic_ns())
            return True
        return False

    def _refused(self, error: BatchyardError | OSError) -> None:
        session, self.session = self.session, None
        if self._greeting is not None:
            self._greeting.close()
            self._greeting = None
        is_over = session is not None and session.is_over  # another call has given its memory up
        if is_over or not isinstance(error, BatchyardError):
            error = BrokerLost(str(error))
        settings = self.sessions.settings
        self._handshakes_lost = self._handshakes_lost + 1 if isinstance(error, HandshakeLost) else 0
        if self._handshakes_lost >= HANDSHAKES_MAX and settings.keys is not None:
            error = Unauthorized(
                f"the yard at {settings.endpoint.url} ends every handshake: the server.key in "
                f"{settings.keys.path} is not its own; copy it from the yard's keys"
            )
        self.retry_ns = time.monotonic_ns() + RETRY_NS
        self.engine.refused(error)

    def send(self) -> None:
        connection = self.connection
        assert connection is not None
        for messages, frames, requests in self.engine.take_envelopes():
            try:
                connection.send(messages, frames)
            except NotSent as error:
                self.engine.unsent(requests, error)

    def receive(self, timeout_ms: int) -> bool:
        """Handle the next envelope, or the connection's end. Whether anything came within `timeout_ms`."""
        assert self.connection is not None
        try:
            envelope = self.connection.receive(timeout_ms)
        except BatchyardError as error:
            self.lose(error)
            return True
        if envelope is None:
            return False
        self.engine.received(*envelope, time.monotonic_ns())
        if self.engine.session is None:
            self.lose(None)
        return True

    def unwatch(self) -> None:
        """A driver's: the connection is about to be closed, and its descriptors with it."""

    def lose(self, error: BatchyardError | None) -> None:
        """The connection is over, and its session with it. None: the engine knows."""
        self.unwatch()
        if error is not None:
            self.engine.lost(error, time.monotonic_ns())
        ending.cut_off()
        connection, self.connection = self.connection, None
        session, self.session = self.session, None
        if connection is not None:
            connection.close()
        if session is not None:
            session.give_up()

    def drop_greeting(self) -> None:
        """Nobody wants a connection any more."""
        if self._greeting is not None:
            self._greeting.close()
            self._greeting = self.session = None

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        self.unwatch()
        self.drop_greeting()
        self.session = self.engine.session = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


def line_of(sessions: Sessions) -> Line:
    """A line for the calling thread alone, until `leave`."""
    try:
        return sessions.current.idle.pop()  # type: ignore  # atomic
    except (AttributeError, IndexError):
        return Line(sessions)


class Line(Link):
    """A link that one thread uses at a time, and waits on. Kept by its session in between."""

    def __init__(self, sessions: Sessions) -> None:
        self._bell = allocate_lock()  # released when it is rung: that may be in a destructor
        self._bell.acquire()
        super().__init__(sessions, self._ring)

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it has been rung already

    def leave(self) -> None:
        """The thread is done with it; an idle line waits for the next."""
        if self.session is None:
            self.close()
        else:
            self.session.give_back(self)

    def ask(self, request: Request) -> Outcome:
        """Submit a request, and wait for its outcome. One that is not waited for to the end is cancelled."""
        engine = self.engine
        now_ns = request.began_ns
        try:
            engine.submit(request, now_ns)
            message = engine.outbox.take_only(request)
            if message is not None:
                # The quick way of a lone request; whatever is unusual is left to `step`.
                wire = self.connection.wire  # type: ignore[union-attr]
                try:
                    wire.send((encode((message,)),))
                    while request.due_ns - now_ns > _LOOK_AROUND_NS:
                        parts = wire.receive(LOOK_AROUND_MS)
                        if parts is None:
                            now_ns = time.monotonic_ns()
                            continue
                        if len(parts) == 1:
                            engine.received(broker_to_client.decode(parts[0]), (), now_ns)  # type: ignore[arg-type]
                        else:
                            messages, frames = self.connection.opened(parts)  # type: ignore[union-attr]
                            engine.received(messages, frames, now_ns)
                        if request.outcome is not None:
                            break
                        if engine.session is None:
                            self.lose(None)
                            break
                        now_ns = time.monotonic_ns()
                except Full as full:
                    engine.unsent((request,), self.connection.not_sent(full))  # type: ignore[union-attr]
                except Ended as ended:
                    self.lose(self.connection.lost(ended))  # type: ignore[union-attr]
                except BatchyardError as error:
                    self.lose(error)
            while request.outcome is None:
                self.step()
        except BaseException:  # also Ctrl-C
            self.forget(request)
            raise
        outcome, request.outcome = request.outcome, TAKEN
        return outcome

    def forget(self, *requests: Request) -> None:
        """Nobody waits for these any more: tell the broker, without waiting."""
        for request in requests:
            self.engine.cancel(request)
            request.take()
        if self.connection is not None:
            self.send()

    def describe(self, model: str, timeout_s: float) -> list[ModelInfo]:
        """Ask for a model's metadata ("": all), waiting until it is ready or has failed."""
        now_ns = time.monotonic_ns()
        question = Request(model, None, 0, 0, now_ns + int(timeout_s * 1e9), now_ns)
        try:
            self.engine.ask(question, now_ns)
            while question.outcome is None:
                self.step()
        except BaseException:
            self.forget(question)
            raise
        outcome = question.take()
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, list)
        return outcome

    def step(self, first: Request | None = None) -> None:
        """Wait for whatever comes next, for LOOK_AROUND_MS at most, and let the engine know. `first`: of all
        that is under way, what is due first."""
        engine = self.engine
        if engine.session is None and self.connection is not None:
            self.lose(None)
        now_ns = time.monotonic_ns()
        if (
            first is not None
            and first.due_ns - now_ns > _LOOK_AROUND_NS
            and self.connection is not None
            and not engine.room
        ):
            self.send()
            self.receive(LOOK_AROUND_MS)  # without a look at the clock
            return
        due_ns = engine.next_due_ns()
        if due_ns is not None and due_ns <= now_ns:
            engine.expire(now_ns)
            return
        wait_ms = LOOK_AROUND_MS
        if due_ns is not None and due_ns - now_ns < _LOOK_AROUND_NS:
            wait_ms = (due_ns - now_ns) // 1_000_000 + 1
        if self.connection is None:
            self.connect(wait_ms)
            return
        self.send()
        if not engine.room:
            self.receive(wait_ms)
        elif not self.receive(0):
            # What idle lines abandoned comes back in messages that nobody else reads.
            assert self.session is not None
            self.session.recover_slots()
            self._bell.acquire(timeout=wait_ms / 1e3)
            engine.expire(time.monotonic_ns())

    def drain(self) -> None:
        """Handle what has come, without waiting."""
        while self.connection is not None and self.receive(0):
            pass
