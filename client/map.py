"""`map`: a window of requests under way on one line, results in order.

No futures and no thread: the caller's own thread fills the window, waits, and hands results out. Places that
have come free are filled together, so that requests leave as one message; at most half of the window does, so
that a worker has something to do while the others are made. `Window` is pure; the simulator drives it, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..transport.errors import BatchyardError, BrokerLost, Cancelled
from . import ending
from .engine import Engine
from .link import line_of
from .options import Options
from .reply import Reply
from .request import Request
from .session import Sessions
from .signature import Signature

if TYPE_CHECKING:
    from .spans import TraceParent

_END = object()
REFILL_SHARE = 8  # refill when an eighth of the window is free: one message for many requests
SEND_SHARE = 2  # send at the latest when half of it is filled, to a worker that may have nothing to do


class Window:
    """At most `size` requests at once, made by `make` of what `source` gives."""

    def __init__(
        self, engine: Engine, source: Iterator[Any], size: int, make: Callable[[Any], Request]
    ) -> None:
        self.under_way: deque[Request] = deque()  # in order
        self.refill_at = size - max(1, size // REFILL_SHARE)  # requests; -1 when there is no more input
        self.is_asking = False  # the caller's code runs, for the next input
        self._engine = engine
        self._source = source
        self._size = size
        self._make = make

    @property
    def waits(self) -> bool:
        """Whether the next result has not come yet."""
        return bool(self.under_way) and self.under_way[0].outcome is None

    @property
    def wants_filling(self) -> bool:
        """Whether `fill` has something to do: enough room, or else nothing to do but to wait."""
        return len(self.under_way) <= self.refill_at or (self.refill_at >= 0 and self.waits)

    def fill(self, now_ns: int) -> bool:
        """Submit what may leave as one message. Whether there is room for more: not when a request has to
        wait, since what was given to it is the caller's, who may change it when the next is asked for."""
        under_way = self.under_way
        submit, make, source = self._engine.submit, self._make, self._source
        if self.refill_at < 0 or (under_way and not _is_placed(under_way[-1])):
            return False
        for _ in range(min(-(-self._size // SEND_SHARE), self._size - len(under_way))):
            self.is_asking = True
            entry = next(source, _END)
            self.is_asking = False
            if entry is _END:
                self.refill_at = -1
                return False
            request = make(entry)
            under_way.append(request)
            submit(request, now_ns)
            if request.message is None:
                if request.outcome is not None:
                    self.refill_at = -1  # the first error ends it
                return False
        return len(under_way) < self._size

    def leave(self) -> None:
        """Nobody wants the rest."""
        for request in self.under_way:
            self._engine.cancel(request)
            request.take()
        self.under_way.clear()

    def take(self) -> Reply:
        """The next result, or its error is raised."""
        outcome = self.under_way.popleft().take()
        if isinstance(outcome, Reply):
            return outcome
        try:
            raise outcome  # type: ignore[misc]
        finally:
            del outcome  # else the error and this frame would keep each other alive


def _is_placed(request: Request) -> bool:
    return request.message is not None or request.outcome is not None


def results(
    sessions: Sessions,
    options: Options,
    inputs: Iterator[Any],
    size: int,
    origin: TraceParent | None,
    client: object,
) -> Generator[Any, None, None]:
    """`Reply.value` of each input, in order. The first error is raised. `origin`: where the requests' spans
    hang, when they are traced. `client`: held until the last result, because one that nobody holds closes its
    sessions (`for y in yard.client().map(...)`)."""

    def make_traced(entry: Any) -> Request:
        assert origin is not None
        span = origin.begin(options.model, options.priority)
        request = options.request(entry)
        request.span = request.waiter = span
        return request

    line = line_of(sessions)
    window = Window(line.engine, inputs, size, options.request if origin is None else make_traced)
    under_way = window.under_way
    try:
        # Asked anew: a connection that idled through a broker's restart is replaced here, while
        # nothing is under way yet. It is part of the time of the requests that wait for it.
        options.since_ns = time.monotonic_ns()
        Signature(line.describe(options.model, options.patience_ns / 1e9)[0])
        while True:
            while len(under_way) > window.refill_at and under_way and under_way[0].outcome is not None:
                yield window.take().value  # the quick way
            has_room = window.wants_filling
            while has_room:
                has_room = window.fill(time.monotonic_ns())
                options.since_ns = None
                if line.connection is not None:
                    line.send()
            while window.waits:
                line.step(under_way[0])
                if origin is not None:
                    _end_spans(line.engine.take_outcomes())
            if origin is not None:
                _end_spans(line.engine.take_outcomes())
            if not under_way:
                return
            yield window.take().value
    except BrokerLost as error:
        ending.cut_off()
        _end_spans(under_way, error)
        raise
    except (BatchyardError, GeneratorExit):
        raise
    except BaseException:
        if not window.is_asking:  # of the caller's own input
            sessions.renew()
        raise
    finally:
        _end_spans(under_way, Cancelled("the map has ended"))
        if not ending.is_finalizing():
            window.leave()
            line.forget()
            line.leave()


def _end_spans(requests: Iterable[Request], error: Exception | None = None) -> None:
    for request in requests:
        if request.span is not None:
            request.span.end(request.outcome or error, request.sent_ns)
