"""`Client`: the blocking client, safe to share between threads.

`infer`, `request`, and `map` talk on a socket that the calling thread holds alone for the call, with
no hop to a helper thread. `submit` and `cancel` go through one I/O thread, started on first use.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np

from ..transport import endpoints
from ..transport.errors import BatchyardError, BrokerLost, no_descriptors
from ..transport.messages import ModelInfo, Priority
from . import ending, tracing
from .future import InferFuture
from .link import Line, line_of
from .map import results
from .options import (
    TIMEOUT_S,
    Options,
    check_seconds,
    empty_in,
    request_of,
    source_of,
    window_of,
)
from .remote import is_remote
from .reply import Reply
from .request import Request
from .sequence import ClientSequence
from .session import CLOSED, YARD_CLOSED, ClientClosed, check_name, sessions_of
from .signature import Array, Signature
from .stream import answers_of
from .thread import IoThread


class Client(ending.OfThisProcess):
    """A connection to a yard.

    url: `ipc:///folder` or `tcp://host:port`; default $BATCHYARD_URL, else this user's local yard.
    arena_bytes: the most shared memory for tensors under way, results that are still held, and `empty`;
        default: a quarter of the memory of this machine or container. It is taken as it is needed, and what
        is idle for a minute is given back.
    keys: folder with CURVE keys, for a yard that asks for them.
    segment: "memfd", "named", or "frames"; default by the url.
    connect_timeout: seconds to wait for a broker.
    token: for a gateway or a fleet (`http://host:port`, `grpc://host:port`; with TLS `https`, `grpcs`): its
        bearer token; default $BATCHYARD_GATEWAY_TOKEN. There is no shared memory then (docs/fleet.md).

    Connects on first use. Raises InvalidRequest for a url that is none.
    """

    def __new__(cls, url: str | None = None, *arguments: Any, **named: Any) -> Self:
        if cls is Client and is_remote(url or endpoints.default_url()):
            from .remote.client import RemoteClient

            return cast(Self, object.__new__(RemoteClient))
        return object.__new__(cls)

    def __init__(
        self,
        url: str | None = None,
        *,
        arena_bytes: int | None = None,
        keys: str | os.PathLike[str] | None = None,
        segment: str | None = None,
        connect_timeout: float = 5.0,
        token: str | None = None,
    ) -> None:
        url = url or endpoints.default_url()
        self._url = self._begin(url, keys, connect_timeout, token, arena_bytes, segment)
        self._closed = False
        self._pid = os.getpid()
        ending.watch(self)

    def _begin(self, *settings: Any) -> str:
        """Make the sessions. Returns the url."""
        self._sessions = sessions_of(*settings)
        self._io: IoThread | None = None
        self._lock = threading.Lock()
        return self._sessions.settings.endpoint.url

    def __repr__(self) -> str:
        return f"<Client of {self._url}{', closed' if self._closed else ''}>"

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
        return self._ask(request_of(model, inputs, priority, deadline, timeout, traceparent)).value

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
        return self._ask(request_of(model, inputs, priority, deadline, timeout, traceparent))

    def _ask(self, request: Request) -> Reply:
        """Run a request."""
        session = self._sessions.current
        try:
            try:
                line = session.idle.pop()  # type: ignore[union-attr]  # atomic, as a lock would be
            except (IndexError, AttributeError):
                line = Line(self._sessions)
            try:
                outcome = line.ask(request)
            except BaseException as error:
                if request.span is not None:
                    request.span.end(error, request.sent_ns)
                raise
            finally:
                session = line.session
                if session is None:
                    line.close()
                else:
                    session.idle.append(line)
                    if session.is_over:
                        session.close_idle()
            if not isinstance(outcome, Reply | BatchyardError):
                self._cut_off()
        except BatchyardError:
            raise
        except BaseException:
            self._cut_off()
            raise
        if request.span is not None:
            request.span.end(outcome, request.sent_ns)
        if type(outcome) is Reply:
            return outcome
        if isinstance(outcome, BrokerLost):
            ending.cut_off()
        try:
            raise outcome
        finally:
            del outcome, request  # else the error and this frame would keep each other alive

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
        return self._submit(request_of(model, inputs, priority, deadline, timeout, traceparent))

    def _submit(self, request: Request) -> InferFuture:
        """Start a request."""
        try:
            io = self._io
            if io is None or io.ended:
                io = self._start_io()
            return io.submit(request)
        except BaseException as error:
            if request.span is not None:
                request.span.end(error, request.sent_ns)
            if isinstance(error, BrokerLost):
                ending.cut_off()
            if not isinstance(error, BatchyardError):
                self._cut_off()
            raise

    def stream(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int | str = Priority.NORMAL,
        deadline: float | None = None,
        timeout: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> Iterator[Array | dict[str, Array]]:
        """The answers of a model that yields several (docs/python-models.md), each as soon as it is there; of
        any other model, its one answer. Arguments as of `infer`; `timeout` and `deadline` are for the whole
        stream. Left early (`break`), the request is cancelled. The first error ends it; what has been
        answered is never asked for again."""
        return self._answers(request_of(model, inputs, priority, deadline, timeout, traceparent))

    def _answers(self, request: Request) -> Iterator[Array | dict[str, Array]]:
        """The answers of a request's stream."""
        return ending.own(answers_of, request, self._submit)

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
        options = Options(model, priority, deadline, timeout)
        source, size = source_of(inputs), window_of(window)
        origin = tracing.origin(traceparent)
        return ending.own(results, self._sessions, options, source, size, origin, self)

    def sequence(
        self, model: str, /, *, states: Mapping[str, str] | None = None, **initial: Any
    ) -> ClientSequence:
        """Steps of a model with state: what it gives of its state is the next step's input, where it lies.

            with client.sequence("vad", sr=np.int64(16000)) as vad:
                speech = vad.infer(samples)

        states: {"input": "output"}; default: by their names (`state`/`stateN`, `h`/`hn`,
            `past...`/`present...`, `x_in`/`x_out`).
        initial: the first step's state, by input names; zeros of the declared shape where it is not given.
            And inputs that are the same in every step, such as `sr`.

        Used as a context manager, or as it is. Raises (with the first step, or by `with`) as `wait_ready`,
        and InvalidRequest where no output is an input's next value.
        """
        return ClientSequence(self, model, states, initial)

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
        try:
            return empty_in(session, shape, dtype)
        except BatchyardError:
            raise
        except BaseException:
            self._cut_off()
            raise

    def models(self, timeout: float = TIMEOUT_S) -> list[ModelInfo]:
        """Every model of the yard: inputs, outputs, whether it batches and if not why, its workers."""
        return self._describe("", timeout)

    def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        """Wait until a model is ready. Raises UnknownModel, ModelFailed with the reason why it can't
        be loaded, or DeadlineExceeded."""
        check_name(model)
        (info,) = self._describe(model, timeout)
        Signature(info)
        return info

    def _describe(self, model: str, timeout: float) -> list[ModelInfo]:
        check_seconds("timeout", timeout)
        line = line_of(self._sessions)
        try:
            return line.describe(model, timeout)
        except BrokerLost:
            ending.cut_off()
            raise
        except BatchyardError:
            raise
        except BaseException:
            self._cut_off()
            raise
        finally:
            line.leave()

    def _cut_off(self) -> None:
        """A call ended with somebody else's exception: see `Sessions.renew`."""
        self._sessions.renew()
        io = self._io
        if io is not None:
            io.look()

    @property
    def bytes_copied(self) -> int:
        """Bytes that this client has copied into shared memory so far; over http and grpc into messages, and
        that is every input."""
        return self._sessions.bytes_copied

    # ---- the I/O thread -----------------------------------------------------------------------

    def _start_io(self) -> IoThread:
        """The I/O thread, started if there is none."""
        with self._lock:
            if self._closed:
                raise ClientClosed(CLOSED)
            if self._io is None or self._io.ended:
                try:
                    io = IoThread(self._sessions)
                except OSError as error:
                    raise no_descriptors(error) from error
                io.start()
                self._io = io
            return self._io

    # ---- the end ------------------------------------------------------------------------------

    def yard_closed(self) -> None:
        """There will be no other broker: what has no outcome when this one goes ends at once."""
        self._sessions.end(YARD_CLOSED)

    def close(self) -> None:
        """End the requests of `submit` with Cancelled, and let go of connections and memory; calls
        that are under way in other threads come to their own end, and so does a done-callback that
        runs for longer than a second. Results that are still held stay readable. Idempotent."""
        self.close_by(time.monotonic() + ending.CLOSE_S)

    def close_by(self, give_up_s: float) -> None:
        """`close`, waiting until `give_up_s` (time.monotonic) at most."""
        with self._lock:
            self._closed = True
            io, self._io = self._io, None
        # Not under the lock: a callback on the I/O thread may be waiting for it.
        if io is not None:
            io.close_by(give_up_s)
        self._sessions.close()

    def stop(self) -> None:
        """Tell the I/O thread to end. Waits for nothing."""
        io = self._io
        if io is not None:
            io.stop()

    def begin_anew(self) -> None:
        """In a forked child: forget what is the parent's, without closing it."""
        ending.abandon(self._sessions.abandon(), self._io)
        self._lock = threading.Lock()
        self._io = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) != os.getpid() or ending.is_finalizing():
            return
        self._closed = True
        if self._io is not None:
            self._io.leave()
        else:
            self._sessions.close()
