"""`InferFuture`: what `submit` returns. The I/O thread (thread.py) settles it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import PENDING
from functools import partial
from operator import attrgetter
from typing import Any

from ..transport.errors import Cancelled, DeadlineExceeded
from . import ending
from .reply import Reply
from .request import Outcome, Request


class _Condition(threading.Condition):
    """Entered and left in C alone. A signal's exception amid `Condition.__enter__` would leave it locked, and
    the thread that settles the future would wait for ever, with everything else that it has to do."""

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


def harden(future: Future[Any]) -> None:
    """Let no signal that interrupts whoever waits for it keep the thread that settles it. For a new one."""
    future._condition.__class__ = _Condition


class InferFuture(Future[Any]):
    """A request under way. `result()` is an array, or a dict of arrays by output name."""

    def __init__(
        self,
        request: Request,
        cancel: Callable[[Request], None],
        held_up: Callable[[Request], DeadlineExceeded] | None = None,
    ) -> None:
        super().__init__()
        harden(self)
        self._cancel = cancel
        self.held_up = held_up  # IoThread's, for a stream
        self._request: Request | None = request
        self._forks = ending.forks()
        self.reply: Reply | None = None  # with the receipt, once done

    def cancel(self) -> bool:
        """Cancel the request. True unless it has ended."""
        request = self._request
        before = self.cancelled()
        if not super().cancel():
            return False
        if not before and request is not None:
            self.set_running_or_notify_cancel()  # or those who wait on it would wait for ever
            self._cancel(request)
            if request.span is not None:
                request.span.end(Cancelled("the caller cancelled it"), request.sent_ns)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The outcome, as `infer` would return or raise it. Waits up to `timeout` seconds; None: without a
        bound of its own, as the request's deadline is one."""
        if self._state == PENDING:  # and no lock: in a forked child it may be held for ever
            ending.check_own(self._forks)
        try:
            return super().result(timeout)
        except Cancelled:
            ending.cut_off()
            raise
        except RuntimeError as error:
            # A signal's exception between two instructions of Condition.wait leaves it without its lock.
            cause = error.__context__
            if cause is None or error is self._exception:
                raise
            raise cause from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error; None for a request that has none. Waits as `result` does."""
        if self._state == PENDING:
            ending.check_own(self._forks)
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn` with this future when it has ended, on the I/O thread. Not once the program is ending."""
        super().add_done_callback(partial(_call, fn))

    @property
    def has_callbacks(self) -> bool:
        """Whether `settle` is about to call any."""
        return bool(self._done_callbacks)  # type: ignore[attr-defined]

    def settle(self, outcome: Outcome | None) -> None:
        """The I/O thread's: end it, unless it was cancelled meanwhile."""
        request, self._request = self._request, None
        if request is not None:
            request.waiter = None
            if request.span is not None:
                request.span.end(outcome, request.sent_ns)
        try:
            if isinstance(outcome, Reply):
                self.reply = outcome
                self.set_result(outcome.value)
            else:
                self.set_exception(outcome)  # type: ignore[arg-type]
        except InvalidStateError:
            self.reply = None  # cancelled: its outcome is known already, and its slots are free
        if request is not None and request.stream is not None:
            request.stream.bell()  # no done-callback: none is called once the program is ending


def _call(fn: Callable[[Future[Any]], object], future: Future[Any]) -> None:
    if not ending.has_begun():
        fn(future)
