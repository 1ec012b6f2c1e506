"""The answers of one request that has several, handed from the I/O thread to the calling one."""

from __future__ import annotations

import time
from _thread import TIMEOUT_MAX, allocate_lock
from collections.abc import Callable, Generator

from ..transport.errors import BrokerLost, Cancelled
from . import ending
from .future import InferFuture
from .request import Request, Stream
from .signature import Array
from .thread import SLACK_S


def answers_of(
    request: Request, submit: Callable[[Request], InferFuture]
) -> Generator[Array | dict[str, Array], None, None]:
    """Raises the request's error. Left early, it is cancelled."""
    bell = allocate_lock()  # no SimpleQueue: its get() may sleep past its timeout
    bell.acquire()

    def ring() -> None:
        try:
            bell.release()
        except RuntimeError:
            pass  # it has been rung already

    stream = request.stream = Stream(ring)
    future = submit(request)
    try:
        is_over = False
        while not is_over:
            left_s = (request.due_ns - time.monotonic_ns()) / 1e9 + SLACK_S
            is_rung = bell.acquire(timeout=min(max(0.0, left_s), TIMEOUT_MAX))
            is_over = future.done()  # first: then no answer comes after those that are there
            while stream.answers:
                yield stream.answers.popleft().value
            if not is_rung and not is_over:
                assert future.held_up is not None
                raise future.held_up(request)
        error = future.exception()
        if isinstance(error, BrokerLost | Cancelled):
            ending.cut_off()
        if error is not None:
            raise error
        if future.reply is not None and future.reply.names:  # of a model that answers once
            yield future.reply.value
    finally:
        future.cancel()
