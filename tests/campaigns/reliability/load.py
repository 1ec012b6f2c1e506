"""The load: requests from one thread, so many under way or so many a second, written into a ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

from .ledger import OK, WRONG, Ledger, Sent
from .proc import until
from .truth import INPUTS, MODEL, Truth

REFUSED_PAUSE_S = 0.01  # after a submit that raised: a yard that is away is asked at a bounded rate
DRAIN_GRACE_S = 5.0


def submit(
    client: Any, truth: Truth, ledger: Ledger, index: int, deadline_s: float, ended: Callable[[], None]
) -> Any | None:
    """Send input `index`, and write its end into the ledger; `ended` is called then. None: it was refused."""
    sent = ledger.open(index, time.monotonic_ns(), int(deadline_s * 1e9))
    try:
        future = client.submit(MODEL, truth.inputs[index], deadline=deadline_s)
    except Exception as error:
        ledger.end(sent, type(error).__name__, time.monotonic_ns())
        ended()
        return None
    future.add_done_callback(partial(_settle, truth, ledger, sent, ended))
    return future


def _settle(truth: Truth, ledger: Ledger, sent: Sent, ended: Callable[[], None], future: Any) -> None:
    now_ns = time.monotonic_ns()
    try:
        outcome = OK if truth.right(sent.index, future.result()) else WRONG
    except Exception as error:
        outcome = type(error).__name__
    ledger.end(sent, outcome, now_ns)
    ended()


class Load:
    """Keeps `in_flight` requests under way, or fewer where `rate_per_s` is given, until `stop`.

    A context manager: the thread has ended and everything has an outcome when it is left. Each request
    has `deadline_s`, after which it ends by itself.
    """

    def __init__(
        self,
        client: Any,
        truth: Truth,
        ledger: Ledger,
        in_flight: int,
        deadline_s: float,
        rate_per_s: float | None = None,
    ) -> None:
        self._client = client
        self._truth = truth
        self._ledger = ledger
        self._room = threading.Semaphore(in_flight)
        self._deadline_s = deadline_s
        self._gap_s = 1 / rate_per_s if rate_per_s else 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def _run(self) -> None:
        due_s = time.monotonic()
        for number in count():
            self._room.acquire()
            if self._gap_s:
                due_s = max(due_s + self._gap_s, time.monotonic() - 1.0)  # never a second's worth at once
                self._stopping.wait(max(0.0, due_s - time.monotonic()))
            if self._stopping.is_set():
                return
            arguments = (self._client, self._truth, self._ledger, number % INPUTS, self._deadline_s)
            if submit(*arguments, self._room.release) is None:
                self._stopping.wait(REFUSED_PAUSE_S)

    def stop(self) -> None:
        """Send no more, and wait until what is under way had time to end; what has not is lost."""
        self._stopping.set()
        self._room.release()
        self._thread.join()
        try:
            until(lambda: not self._ledger.under_way(), self._deadline_s + DRAIN_GRACE_S, "every outcome")
        except TimeoutError:
            pass  # the ledger shows it

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
