"""`Client`: the blocking client, safe to share between threads.

`infer`, `request`, and `map` talk on a socket that the calling thread holds alone for the call, with
no hop to a helper thread. `submit` and `cancel` go through one I/O thread, started on first use.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..transport import endpoints
from ..transport.dtypes import CODE_BY_NUMPY
from ..transport.errors import ArenaExhausted, BrokerLost, InvalidRequest
from ..transport.keys import KeyFolder
from ..transport.messages import ModelInfo, Priority
from ..transport.tensors import nbytes_of
from . import tracing
from .channel import Pending
from .connection import Connection
from .futures import InferFuture, IoThread
from .reply import Reply
from .session import Session, Settings, check_name
from .sessions import Sessions
from .signature import Array, Signature
from .window import Window, results

ARENA_BYTES = 64 << 20
TIMEOUT_S = 30.0
SECONDS_MAX = 1e9
# The broker tells of a passed deadline itself; after this we no longer wait for it. Together with the
# 25 ms after which a waiting call looks up (connection.py) it is less than the promised 50 ms.
BROKERS_WORD_S = 0.02
ROOM_LOOK_S = 0.01  # how often a caller that waits for room reads what its own connection is told


class Client:
    """A connection to a yard.

    url: `ipc:///folder` or `tcp://host:port`; default $BATCHYARD_URL, else this user's local yard.
    arena_bytes: shared memory for tensors under way, results that are still held, and `empty`.
    keys: folder with CURVE keys, for a yard that asks for them.
    segment: "memfd", "named", or "frames"; default by the url.
    connect_timeout: seconds to wait for a broker.

    Connects on first use. Raises InvalidRequest for a url that is none.
    """

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
        url = url or endpoints.default_url()
        self._sessions = Sessions(Settings(url, arena_bytes, folder, segment, connect_timeout))
        self._io: IoThread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<Client of {self._sessions.settings.endpoint.url}{', closed' if self._closed else ''}>"

    # ---- requests -----------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> Array | dict[str, Array]:
        """Run a model and return its output: an array, or a dict by name when there are several.

        inputs: one array `dtype[rows, ...]`, or a mapping of input names to arrays. An array made
            by `empty` is not copied. Any number of rows; more than the model's maximum are split.
        priority: how soon, by class: a Priority, or its name.
        deadline: seconds after which the broker drops the work; default: `timeout`.
        timeout: seconds that this call waits at most.
        traceparent: the caller's span, as a W3C `traceparent` header, for a program that traces with
            OpenTelemetry (docs/tracing.md); default: OpenTelemetry's current span.

        The arrays may be views of shared memory; dropping them gives it back. When the broker goes
        away meanwhile, the request is sent again to the next one, unless the model is not idempotent.
        Raises InvalidRequest, UnknownModel, Overloaded, DeadlineExceeded, WorkerLost, ModelFailed,
        BrokerLost, ArenaExhausted.
        """
        return self.request(
            model, inputs, priority=priority, deadline=deadline, timeout=timeout, traceparent=traceparent
        ).value

    def request(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> Reply:
        """`infer`, with the receipt: where the time went, batch size, worker, provider."""
        started_s = time.monotonic()
        deadline_ns = deadline_ns_of(deadline, timeout)
        urgency = priority_of(priority)
        give_up_s = started_s + patience_s(deadline, timeout)
        span = tracing.begin(model, urgency, traceparent)

        def run(session: Session, connection: Connection) -> Reply:
            signature = session.signatures.get(model) or session.signature(connection, model, give_up_s)
            channel = connection.channel

            def submit(wait_s: float) -> tuple[Pending, Sequence[Any]]:
                left_ns = deadline_ns - int((time.monotonic() - started_s) * 1e9)
                return channel.submit(signature, inputs, urgency, max(1, left_ns), wait_s)

            pending = None
            try:
                try:
                    pending, frames = submit(0.0)
                except ArenaExhausted:
                    pending, frames = self._patiently(submit, session, connection, give_up_s)
                if span is not None:
                    span.sent()
                connection.send([pending.message], frames)
                reply: Reply = connection.wait(pending, give_up_s)
            except BrokerLost:
                raise
            except BaseException:  # also Ctrl-C: nobody waits for the answer any more
                if pending is not None and (cancel := channel.abandon(pending)) is not None:
                    connection.send([cancel])
                raise
            return reply

        if span is None:
            return self._sessions.use(run, give_up_s, model)
        with span:
            reply = span.reply = self._sessions.use(run, give_up_s, model)
        return reply

    def _patiently(
        self,
        submit: Callable[[float], tuple[Pending, Sequence[Any]]],
        session: Session,
        connection: Connection,
        give_up_s: float,
    ) -> tuple[Pending, Sequence[Any]]:
        """Submit while the arena is full: try as long as slots can still come back, and no longer
        than the caller waits. Raises ArenaExhausted."""
        while True:
            # What this connection abandoned comes back in messages that nobody else reads.
            connection.drain()
            session.recover_slots()
            io = self._io
            others = session.busy or bool(connection.channel.pending) or (io is not None and io.busy)
            left_s = give_up_s - time.monotonic() if others else 0.0
            try:
                return submit(min(left_s, ROOM_LOOK_S))
            except ArenaExhausted:
                if left_s <= 0:
                    raise

    def submit(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> InferFuture:
        """Start a request and return its future, whose `result()` is what `infer` would return.

        A real `concurrent.futures.Future`: `wait` and `as_completed` take it, `cancel()` cancels
        the request wherever it is, and `reply` has the receipt. Raises at once what is wrong with
        the call itself; waits for room in the arena up to `timeout`.
        """
        urgency = priority_of(priority)
        deadline_ns = deadline_ns_of(deadline, timeout)
        io = self._io
        if io is None or io.ended:
            io = self._start_io()
        span = tracing.begin(model, urgency, traceparent)
        try:
            return io.submit(model, inputs, urgency, deadline_ns, timeout, span)
        except BaseException as error:
            if span is not None:
                span.end(error)
            raise

    def map(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
        window: int = 64,
    ) -> Iterator[Array | dict[str, Array]]:
        """`infer` over many inputs, `window` of them under way at once; results in order.

        The quickest way to run many: no futures, no thread, and requests leave as one message. The
        first error ends it, and cancels what is under way. `timeout` and `deadline` are for each.
        """
        if window < 1:
            raise InvalidRequest(
                f"window is how many requests are under way at once: 1 or more, not {window}"
            )
        check_name(model)
        deadline_ns = deadline_ns_of(deadline, timeout)
        patience = patience_s(deadline, timeout)
        origin = tracing.origin(traceparent)
        mapping = Window(iter(inputs), window, priority_of(priority), deadline_ns, patience, origin)
        return results(mapping, self._sessions, model)

    def cancel(self, future: InferFuture) -> bool:
        """Cancel a request of `submit`; the same as `future.cancel()`."""
        return future.cancel()

    # ---- memory and models --------------------------------------------------------------------

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """An uninitialised array in shared memory: requests that use it, or a C-contiguous part of
        it, copy nothing. Its slot is freed with its last view. Don't write to it while a request
        reads it. Raises ArenaExhausted. (Over tcp: an ordinary array.)"""
        session = self._sessions.current
        if session is None or session.lost:
            session = self._sessions.open()
        return empty_in(session, shape, dtype)

    def models(self) -> list[ModelInfo]:
        """Every model of the yard: inputs, outputs, whether it batches and if not why, its workers."""
        give_up_s = time.monotonic() + TIMEOUT_S
        return self._sessions.use(
            lambda session, connection: session.describe(connection, "", give_up_s), give_up_s
        )

    def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        """Wait until a model is ready. Raises UnknownModel, ModelFailed with the reason why it can't
        be loaded, or DeadlineExceeded."""
        check_name(model)
        give_up_s = time.monotonic() + timeout
        (info,) = self._sessions.use(
            lambda session, connection: session.describe(connection, model, give_up_s), give_up_s
        )
        Signature(info)
        return info

    @property
    def bytes_copied(self) -> int:
        """Bytes that this client has copied into shared memory so far."""
        return self._sessions.bytes_copied

    # ---- the I/O thread -----------------------------------------------------------------------

    def _start_io(self) -> IoThread:
        """The I/O thread, started if there is none."""
        with self._lock:
            if self._closed:
                raise BrokerLost("this client has been closed")
            if self._io is None or self._io.ended:
                self._io = IoThread(self._sessions)
            return self._io

    def _begin_anew(self) -> None:
        """Forget what is another process's, without closing it."""
        _abandoned.append((self._sessions.abandon(), self._io))
        self._lock = threading.Lock()
        self._io = None
        self._pid = os.getpid()

    # ---- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the requests of `submit` with Cancelled, and let go of connections and memory; calls
        that are under way in other threads come to their own end. Results that are still held stay
        readable. Idempotent."""
        with self._lock:
            self._closed = True
            io, self._io = self._io, None
        # Not under the lock: a callback on the I/O thread may be waiting for it.
        if io is not None:
            io.close()
        self._sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) == os.getpid():
            self.close()


def priority_of(priority: int | str) -> int:
    """A Priority, its number, or its name in any case. Raises InvalidRequest."""
    if type(priority) is Priority:
        return priority
    if isinstance(priority, str):
        found = Priority.__members__.get(priority.upper())
        if found is not None:
            return found
    elif priority in (0, 1, 2, 3):
        return int(priority)
    names = ", ".join(Priority.__members__)
    raise InvalidRequest(f"priority is one of {names}, not {priority!r}")


def deadline_ns_of(deadline: float | None, timeout: float) -> int:
    """Time that the broker has. Raises InvalidRequest for a duration that is not above zero."""
    if deadline is None and type(timeout) is float and 0.0 < timeout <= SECONDS_MAX:
        return int(timeout * 1e9)
    _check_seconds("timeout", timeout)
    if deadline is None:
        return int(timeout * 1e9)
    _check_seconds("deadline", deadline)
    return int(deadline * 1e9)


def _check_seconds(what: str, seconds: object) -> None:
    if not isinstance(seconds, int | float) or not 0 < seconds <= SECONDS_MAX:
        raise InvalidRequest(
            f"{what} is a number of seconds above 0 and up to {SECONDS_MAX:g}, not {seconds!r}"
        )


def patience_s(deadline: float | None, timeout: float) -> float:
    """How long the caller waits for the outcome, whatever the broker does."""
    return (timeout if deadline is None else min(deadline, timeout)) + BROKERS_WORD_S


def empty_in(session: Session, shape: int | Sequence[int], dtype: Any) -> Array:
    """`empty`, in a session's memory."""
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    element = np.dtype(dtype)
    code = CODE_BY_NUMPY.get(element)
    if code is None:
        raise InvalidRequest(f"{element} cannot travel as a tensor")
    nbytes = nbytes_of(code, dims)
    if session.memory is None:
        return np.empty(dims, element)
    try:
        offset = session.memory.alloc(nbytes)
    except ArenaExhausted:
        session.recover_slots()
        offset = session.memory.alloc(nbytes)
    return session.memory.array(offset, element, dims)


def _after_fork() -> None:
    """A forked child must not talk on its parent's sockets: its clients begin anew."""
    for client in list(_clients):
        client._begin_anew()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_abandoned: list[Any] = []  # kept, so that nothing of a parent's is closed by a destructor here
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
