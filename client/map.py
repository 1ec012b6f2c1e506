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

from ..transport.errors import (
    BatchyardError,
    BrokerLost,
    Cancelled,
    InvalidRequest,
    ModelFailed,
    WorkerLost,
)
from . import ending
from .engine import Engine
from .link import line_of
from .options import Options
from .packing import Packed, Packer, packer_of
from .reply import Reply
from .request import Request
from .session import Sessions
from .signature import Signature

if TYPE_CHECKING:
    from .spans import TraceParent

_END = object()
REFILL_SHARE = 8  # refill when an eighth of the window is free: one message for many requests
OF_ONE = (InvalidRequest, ModelFailed, WorkerLost)  # errors that one of several packed ones may have caused
SEND_SHARE = 2  # send at the latest when half of it is filled, to a worker that may have nothing to do


class Window:
    """At most `size` requests at once, made by `make` of what `source` gives. `packer`: it lays small ones
    side by side, so that several go as one."""

    def __init__(
        self, engine: Engine, source: Iterator[Any], size: int, make: Callable[[Any], Request]
    ) -> None:
        self.under_way: deque[Request] = deque()  # in order
        self.refill_at = size - max(1, size // REFILL_SHARE)  # requests; -1 when there is no more input
        self.is_asking = False  # the caller's code runs, for the next input
        self._count = 0  # inputs whose results have not been taken
        self._arrived: deque[Reply] = deque()  # the results of what was packed
        self._engine = engine
        self._source = source
        self._size = size
        self._make = make
        self.packer: Packer | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way."""
        return not self._count

    @property
    def waits(self) -> bool:
        """Whether the next result has not come yet."""
        return not self._arrived and bool(self.under_way) and self.under_way[0].outcome is None

    @property
    def wants_filling(self) -> bool:
        """Whether `fill` has something to do: enough room, or else nothing to do but to wait."""
        return self._count <= self.refill_at or (self.refill_at >= 0 and self.waits)

    @property
    def wants_taking(self) -> bool:
        """Whether a result has come, and there is no room for many inputs."""
        return self._count > self.refill_at and self._count > 0 and not self.waits

    def fill(self, now_ns: int) -> bool:
        """Submit what may leave as one message. Whether there is room for more: not when a request has to
        wait, since what was given to it is the caller's, who may change it when the next is asked for."""
        under_way = self.under_way
        submit, make, source = self._engine.submit, self._make, self._source
        if self.refill_at < 0 or (under_way and not _is_placed(under_way[-1])):
            return False
        packer = self.packer
        for _ in range(min(-(-self._size // SEND_SHARE), self._size - self._count)):
            self.is_asking = True
            entry = next(source, _END)
            self.is_asking = False
            if entry is _END:
                self.refill_at = -1
                break
            self._count += 1
            if packer is not None:
                if self._pack(packer, entry, now_ns):
                    continue
                self._send_packed(packer, now_ns)
            request = make(entry)
            under_way.append(request)
            submit(request, now_ns)
            if request.message is None:
                if request.outcome is not None:
                    self.refill_at = -1  # the first error ends it
                return False
        if packer is not None:
            self._send_packed(packer, now_ns)
        is_placed = not under_way or _is_placed(under_way[-1])
        return is_placed and self.refill_at >= 0 and self._count < self._size

    def _pack(self, packer: Packer, entry: Any, now_ns: int) -> bool:
        """Lay it beside others; False if it goes by itself."""
        session = self._engine.session
        signature = session.signatures.get(packer.model) if session is not None else None
        found = packer.look(signature, entry) if signature is not None else None
        if signature is None or found is None:
            return False
        if not packer.fits(signature, *found):
            self._send_packed(packer, now_ns)
        packer.add(signature, *found)
        if packer.is_full:
            self._send_packed(packer, now_ns)
        return True

    def _send_packed(self, packer: Packer, now_ns: int) -> None:
        if not packer.count:
            return
        packed = packer.take()
        request = self._make(packed.given)
        if packed.count > 1:
            request.packed = packed
        self.under_way.append(request)
        self._engine.submit(request, now_ns)

    def take(self, now_ns: int) -> Reply | None:
        """The next result, or its error is raised. None: it has to be waited for again."""
        if not self._arrived:
            request = self.under_way.popleft()
            packed, outcome = request.packed, request.take()
            replies = None
            if isinstance(outcome, Reply):
                replies = [outcome] if packed is None else outcome.apart(packed.output_axes, packed.count)
            if replies is None:
                if packed is not None and isinstance(outcome, (Reply, *OF_ONE)):
                    self._send_apart(request, packed, now_ns)
                    return None
                try:
                    raise outcome  # type: ignore[misc]
                finally:
                    del outcome  # else the error and this frame would keep each other alive
            self._arrived.extend(replies)
        self._count -= 1
        return self._arrived.popleft()

    def _send_apart(self, whole: Request, packed: Packed, now_ns: int) -> None:
        """One of them is at fault, or they may share no run: each goes by itself, and so do later ones. They
        have the time that is left."""
        self.packer = None
        requests = [self._make(given) for given in packed.apart()]
        self.under_way.extendleft(reversed(requests))
        for request in requests:
            request.until_ns, request.due_ns = whole.until_ns, whole.due_ns
            self._engine.submit(request, now_ns)

    def leave(self) -> None:
        """Nobody wants the rest."""
        for request in self.under_way:
            self._engine.cancel(request)
            request.take()
        self.under_way.clear()
        self._arrived.clear()
        self._count = 0


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
        (info,) = line.describe(options.model, options.patience_ns / 1e9)
        Signature(info)
        if origin is None:  # else each has a span
            window.packer = packer_of(info, size // SEND_SHARE)
        while True:
            while window.wants_taking:
                reply = window.take(time.monotonic_ns())
                if reply is not None:
                    yield reply.value  # the quick way
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
            if window.is_over:
                return
            reply = window.take(time.monotonic_ns())
            if reply is not None:
                yield reply.value
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
