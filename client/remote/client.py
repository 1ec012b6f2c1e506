"""`RemoteClient`: what `Client("http://...")` makes.

One thread with an event loop carries every call, so that a future's `cancel` and a caller's time-out end the
request itself, and not only the wait for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import numpy as np

from ...transport.errors import BrokerLost, Cancelled, InvalidRequest
from ...transport.messages import ModelInfo, Priority
from .. import ending
from ..client import Client
from ..future import InferFuture
from ..options import TIMEOUT_S, check_seconds, empty_in, request_of, source_of, window_of
from ..reply import Reply
from ..request import Request
from ..session import check_name
from ..signature import Array
from .calls import Packed
from .loop import LoopThread
from .session import RemoteSession

T = TypeVar("T")


class RemoteFuture(InferFuture):
    """Its callbacks run on a thread of their own."""

    def __init__(self, request: Request, thread: LoopThread) -> None:
        super().__init__(request, thread.cancel)
        self._thread = thread

    def _invoke_callbacks(self) -> None:
        callbacks = super()._invoke_callbacks  # type: ignore[misc]
        if self._thread.is_current and self._done_callbacks:  # type: ignore[attr-defined]
            self._thread.call(callbacks)
        else:
            callbacks()


class RemoteClient(Client):
    """As `Client`, for a gateway or a fleet. `arena_bytes` and `segment` mean nothing here."""

    def _begin(self, *settings: Any) -> str:
        self._remote = RemoteSession(*settings)
        self._thread = LoopThread()
        return self._remote.url

    # ---- requests -----------------------------------------------------------------------------

    def _ask(self, request: Request) -> Reply:
        outcome: Any = None
        try:
            outcome = reply = self._run(self._remote.reply(request))
        except BaseException as error:
            outcome = error
            raise
        finally:
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
            del outcome, request  # else an error and this frame would keep each other alive
        return reply

    def _submit(self, request: Request) -> InferFuture:
        try:
            self._check_open()
            signature = self._remote.signatures.get(request.model)
            if signature is None:
                signature = self._run(self._remote.within(request, self._remote.signature(request.model)))
            packed = self._remote.pack(signature, request)
            request.given = None
            future = RemoteFuture(request, self._thread)
            self._thread.start(request, self._serve(request, packed, future))
        except BaseException as error:
            if request.span is not None:
                request.span.end(error, request.sent_ns)
            raise
        return future

    async def _serve(self, request: Request, packed: Packed, future: InferFuture) -> None:
        """A request of `submit`, to its end."""
        outcome: Any
        try:
            outcome = await self._remote.reply(request, packed)
        except asyncio.CancelledError:
            outcome = Cancelled("the client was closed")
        except Exception as error:
            outcome = error
        future.settle(outcome)

    def _answers(self, request: Request) -> Iterator[Array | dict[str, Array]]:
        return ending.own(self._answered, request)

    def _answered(self, request: Request) -> Generator[Array | dict[str, Array], None, None]:
        answers = self._remote.answers(request)

        async def step() -> Array | dict[str, Array] | None:
            return await anext(answers, None)

        async def end() -> None:
            await answers.aclose()

        try:
            while (answer := self._run(step())) is not None:
                yield answer
        finally:
            if not self._closed:
                self._run(end())

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
        options: Any = {
            "priority": priority, "deadline": deadline, "timeout": timeout, "traceparent": traceparent,
        }  # fmt: skip
        request_of(model, None, **options)
        return ending.own(self._mapped, model, source_of(inputs), options, window_of(window))

    def _mapped(
        self, model: str, inputs: Iterator[Any], options: dict[str, Any], window: int
    ) -> Generator[Array | dict[str, Array], None, None]:
        under_way: deque[InferFuture] = deque()
        self.wait_ready(model, options["timeout"])
        try:
            for entry in inputs:
                if len(under_way) >= window:
                    yield under_way.popleft().result()
                under_way.append(self.submit(model, entry, **options))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    # ---- models -------------------------------------------------------------------------------

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Array:
        """An ordinary array."""
        return empty_in(None, shape, dtype)

    def models(self, timeout: float = TIMEOUT_S) -> list[ModelInfo]:
        check_seconds("timeout", timeout)
        return self._run(self._remote.models(timeout))

    def wait_ready(self, model: str, timeout: float = TIMEOUT_S) -> ModelInfo:
        check_name(model)
        check_seconds("timeout", timeout)
        return self._run(self._remote.wait_ready(model, timeout))

    @property
    def bytes_copied(self) -> int:
        """Bytes of inputs that this client has copied into messages so far: all of them."""
        return self._remote.bytes_copied

    # ---- the thread ---------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of a coroutine on the thread's loop."""
        try:
            self._check_open()
            if self._thread.is_current:  # a destructor's
                raise InvalidRequest("the client's own thread can't wait for itself")
        except BaseException:
            work.close()
            raise
        future = self._thread.run(work)
        try:
            return future.result()
        except CancelledError:
            ending.cut_off()
            raise Cancelled("the client was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerLost("this client has been closed")

    # ---- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End what is under way with Cancelled, and close the connections. Idempotent."""
        self.close_by(time.monotonic() + ending.CLOSE_S)

    def close_by(self, give_up_s: float) -> None:
        self._closed = True
        self._thread.close_by(self._remote.close, give_up_s)

    def stop(self) -> None:
        """Waits for nothing."""

    def begin_anew(self) -> None:
        """In a forked child: no connection and no thread come along."""
        ending.abandon(self._remote.carrier, self._thread)
        self._thread = LoopThread()
        self._remote.renew()
        self._pid = os.getpid()

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) != os.getpid() or ending.is_finalizing():
            return
        self._thread.leave()
