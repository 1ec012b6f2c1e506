"""The answers of one request that has several, handed from the I/O thread to the calling one."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Iterator

from ..transport.errors import BrokerLost
from . import ending
from .future import InferFuture
from .request import Request, Stream
from .signature import Array

LOOK_S = 1.0


def answers_of(
    request: Request, submit: Callable[[Request], InferFuture]
) -> Iterator[Array | dict[str, Array]]:
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
    future.add_done_callback(lambda _: ring())
    try:
        is_over = False
        while not is_over:
            bell.acquire(timeout=LOOK_S)  # no callback comes once the program is ending
            is_over = future.done()  # first: then no answer comes after those that are there
            while stream.answers:
                yield stream.answers.popleft().value
        error = future.exception()
        if isinstance(error, BrokerLost):
            ending.cut_off()
        if error is not None:
            raise error
        if future.reply is not None and future.reply.names:  # of a model that answers once
            yield future.reply.value
    finally:
        future.cancel()
