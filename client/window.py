"""`map`'s engine: a window of requests under way on one connection, results in order.

No futures and no thread: the caller's own thread fills the window, waits, and hands results out.
Places that have come free are filled together, so that requests leave as one message. `Window` is
pure, `results` drives it; the simulator drives one, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..transport import messages as m
from ..transport.errors import ArenaExhausted, BatchyardError, BrokerLost, Cancelled, DeadlineExceeded
from .channel import Channel, Pending
from .connection import Connection, refusal
from .reply import Reply
from .resubmit import Lost, may_ask_again, not_again
from .session import Session
from .sessions import Sessions
from .signature import Signature

if TYPE_CHECKING:
    from .spans import Origin, RequestSpan

_END = object()
REFILL_SHARE = 8  # refill when an eighth of the window is free: one message for many requests

Envelope = tuple[list[Any], Sequence[Any]]  # messages, and the frames behind them


class Window:
    """At most `size` requests at once, each with `deadline_ns` to run; `patience_s` is the caller's.
    `origin`: where their spans hang, when they are traced."""

    def __init__(
        self,
        source: Iterator[Any],
        size: int,
        priority: int,
        deadline_ns: int,
        patience_s: float,
        origin: Origin | None = None,
    ) -> None:
        self.patience_s = patience_s
        # In order, with when to give up. `waiter` is what a request has come to: a Reply, or an error.
        self.under_way: deque[tuple[Pending | Lost, float]] = deque()
        self._source = source
        self._size = size
        self.refill_at = size - max(1, size // REFILL_SHARE)  # requests; -1 when there is no more input
        self._priority = priority
        self._deadline_ns = deadline_ns
        self._channel: Channel
        self._signature: Signature
        self._more = True
        self._kept: list[Any] = []  # an input that the arena had no room for
        self._origin = origin
        self._unsent: RequestSpan | None = None  # of the input that is being submitted, or kept
        self.lost = 0  # requests that lost their broker

    def begin(self, channel: Channel, signature: Signature) -> None:
        """Ask on this connection from now on."""
        self._channel = channel
        self._signature = signature

    @property
    def wants_filling(self) -> bool:
        """Whether `fill` has something to do: enough room, or else nothing to do but to wait."""
        if len(self.under_way) <= self.refill_at:
            return True
        return bool((self._more or self.lost) and self.waits)

    @property
    def waits(self) -> bool:
        """Whether the next result has not come yet."""
        return bool(self.under_way) and self.under_way[0][0].waiter is None

    def fill(self, now_s: float) -> list[Envelope]:
        """Submit until the window or the arena is full, first of all what lost its broker; what to send.

        Raises ArenaExhausted only when nothing is under way that will give room back.
        """
        envelopes: list[Envelope] = []
        gathered: list[Any] = []
        under_way = self.under_way
        channel = self._channel
        give_up_s = now_s + self.patience_s
        if self.lost:
            self._ask_again(now_s, envelopes)
        while self._more and not self.lost and len(under_way) < self._size:
            entry = self._kept.pop() if self._kept else next(self._source, _END)
            if entry is _END:
                self._more = False
                self.refill_at = -1
                break
            if self._origin is not None and self._unsent is None:
                self._unsent = self._origin.begin(self._signature.name, self._priority)
            try:
                pending, frames = channel.submit(
                    self._signature, entry, self._priority, self._deadline_ns, 0.0
                )
            except BatchyardError as error:
                if isinstance(error, ArenaExhausted) and under_way:
                    self._kept.append(entry)  # for when a result has been handed out
                    break
                if self._unsent is not None:
                    self._unsent.end(error)
                raise
            if self._unsent is not None:
                pending.span, self._unsent = self._unsent, None
                pending.span.sent()
            under_way.append((pending, give_up_s))
            if frames:
                envelopes.append(([pending.message], frames))
            else:
                gathered.append(pending.message)
        if gathered:
            envelopes.append((gathered, ()))
        return envelopes

    def _ask_again(self, now_s: float, envelopes: list[Envelope]) -> None:
        for place, (entry, give_up_s) in enumerate(self.under_way):
            if type(entry) is not Lost or entry.waiter is not None:
                continue
            try:
                pending, frames = entry.submit(self._channel, self._signature, int(now_s * 1e9))
            except BatchyardError as error:
                if isinstance(error, ArenaExhausted) and self._channel.pending:
                    return  # for when one that is under way has given its room back
                entry.waiter = error
                if entry.span is not None:
                    entry.span.end(error)
            else:
                if pending.span is not None:
                    pending.span.sent()
                self.under_way[place] = (pending, give_up_s)
                envelopes.append(([pending.message], frames))
            self.lost -= 1

    def lose(self, error: BrokerLost, now_s: float) -> float:
        """The connection is over: what it owes is to be asked again, on the next one. When the first of
        its callers gives up is returned; raises BrokerLost when it can't be asked again."""
        first_s = now_s + self.patience_s
        for place, (entry, give_up_s) in enumerate(self.under_way):
            if entry.waiter is not None:
                continue
            first_s = min(first_s, give_up_s)
            if type(entry) is Pending:
                if not may_ask_again(error, self._signature):
                    raise not_again(error, self._signature) from error
                lost = Lost(entry, self._channel.memory, error, int(give_up_s * 1e9), int(now_s * 1e9))
                self.under_way[place] = (lost, give_up_s)
                self.lost += 1
        return first_s

    def expire(self, now_s: float) -> None:
        """Raise DeadlineExceeded when the next result comes too late."""
        if self.waits and now_s >= self.under_way[0][1]:
            error = DeadlineExceeded("no answer in time")
            if (span := self.under_way[0][0].span) is not None:
                span.end(error)
            raise error

    def take(self) -> Reply:
        """The next result, or its error is raised."""
        outcome = self.under_way.popleft()[0].waiter
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome  # or the error and this frame would keep each other, and results with them
        reply: Reply = outcome
        return reply

    def end_spans(self, error: BatchyardError) -> None:
        """What has not ended yet ends so."""
        for span in (self._unsent, *(entry.span for entry, _ in self.under_way)):
            if span is not None:
                span.end(error)

    def cancel(self) -> list[Any]:
        """Nobody wants the rest: what to tell the broker."""
        entries = [entry for entry, _ in self.under_way if type(entry) is Pending]
        self.under_way.clear()
        cancels = (self._channel.abandon(entry) for entry in entries)
        return [cancel for cancel in cancels if cancel is not None]


def results(window: Window, sessions: Sessions, model: str) -> Iterator[Any]:
    """`Reply.value` of each input, in order. The first error is raised."""
    give_up_s = time.monotonic() + window.patience_s

    def enter(session: Session, connection: Connection) -> tuple[Session, Connection]:
        # Asked anew: a connection that idled through a broker's restart is replaced here, while
        # nothing is under way yet.
        infos = session.describe(connection, model, give_up_s)
        signature = session.signatures[model] = Signature(infos[0])
        window.begin(connection.channel, signature)
        return session, connection

    held: tuple[Session, Connection] | None = sessions.use(enter, give_up_s, keep=True)
    under_way = window.under_way
    try:
        while True:
            while len(under_way) > window.refill_at and under_way and under_way[0][0].waiter is not None:
                yield window.take().value  # the quick way
            assert held is not None
            session, connection = held
            envelopes = window.fill(time.monotonic()) if window.wants_filling else ()
            try:
                for messages, frames in envelopes:
                    connection.send(messages, frames)
                while window.waits:
                    _receive(window, connection)
                    if window.lost:
                        break  # there may be room for it now
            except BrokerLost as error:
                held = None
                session.discard(connection)
                give_up_s = window.lose(error, time.monotonic())
                held = sessions.use(enter, give_up_s, keep=True, lost=str(error))
                continue
            if window.waits:
                continue
            if not under_way:
                return
            yield window.take().value
    except BrokerLost as error:
        window.end_spans(error)
        raise
    finally:
        window.end_spans(Cancelled("the map has ended"))
        if held is not None:
            _leave(window, *held)


def _receive(window: Window, connection: Connection) -> None:
    """Note what the next envelope settles, or look whether any will come."""
    messages, frames = connection.receive()
    for message in messages:
        if type(message) is m.Refused:
            raise refusal(message)
        for pending, outcome in connection.channel.handle(message, frames):
            pending.waiter = outcome
            if pending.span is not None:
                pending.span.end(outcome)  # type: ignore[arg-type]
    if not messages:
        connection.check()
        window.expire(time.monotonic())


def _leave(window: Window, session: Session, connection: Connection) -> None:
    """Cancel what is under way, and give the connection back."""
    try:
        cancels = window.cancel()
        if cancels:
            connection.send(cancels)
    except BrokerLost:
        session.discard(connection)
    else:
        session.give_back(connection)
