"""A thread with an event loop, started on first use; what runs on it for other threads, and how that ends.

Done-callbacks are a user's code and may take as long as they like, so they have a thread of their own: the
loop carries every call, and its timeout.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ...transport.errors import BrokerLost, InvalidRequest, no_descriptors
from .. import ending
from ..future import harden
from ..request import Request

T = TypeVar("T")


class LoopThread:
    """Knows nothing of clients, so that the thread keeps none alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._callbacks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._caller: threading.Thread | None = None

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there. Raises BrokerLost once it has ended."""
        future = asyncio.run_coroutine_threadsafe(work, self._started(work))
        harden(future)
        return future

    def start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        """Run a request there; its `waiter` is its task."""
        loop = self._started(work)

        def begin() -> None:
            request.waiter = loop.create_task(work)

        loop.call_soon_threadsafe(begin)

    def cancel(self, request: Request) -> None:
        """Cancel a request of `start`."""

        def end() -> None:
            if request.waiter is not None:
                request.waiter.cancel()

        if self._loop is not None and not self._ended:
            self._loop.call_soon_threadsafe(end)

    def call(self, callbacks: Callable[[], None]) -> None:
        """Run callbacks on their thread, or here where Python starts none any more."""
        if self._caller is None:
            thread = threading.Thread(
                target=_call, args=(self._callbacks,), name="batchyard-callbacks", daemon=True
            )
            try:
                ending.start(thread)
            except InvalidRequest:
                callbacks()
                return
            self._caller = thread
        self._callbacks.put(callbacks)

    def _started(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._ended:
                work.close()
                raise BrokerLost("this client has been closed")
            if self._loop is None:
                try:
                    loop = asyncio.new_event_loop()
                except OSError as error:
                    work.close()
                    raise no_descriptors(error) from error
                thread = threading.Thread(target=_run, args=(loop,), name="batchyard-remote", daemon=True)
                try:
                    ending.start(thread)
                except BaseException:
                    work.close()
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return self._loop

    def close_by(self, close: Callable[[], Awaitable[None]], give_up_s: float) -> None:
        """Cancel what runs, close, and end the thread; waits until `give_up_s` at most. Idempotent."""
        with self._lock:
            ended, self._ended = self._ended, True
        if ended or self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_end(self._loop, close), self._loop)
        for thread in (self._thread, self._caller):
            if thread is self._caller:
                self._callbacks.put(None)  # behind what the loop has given it
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, give_up_s - time.monotonic()))

    def leave(self) -> None:
        """Nobody holds the client any more, and so nothing runs: let the thread end. Waits for nothing."""
        if self._loop is not None and not self._ended:
            self._ended = True
            self._callbacks.put(None)
            self._loop.call_soon_threadsafe(self._loop.stop)


async def _end(loop: asyncio.AbstractEventLoop, close: Callable[[], Awaitable[None]]) -> None:
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks(loop) if task is not own]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    try:
        await close()
    finally:
        loop.stop()


def _call(callbacks: SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := callbacks.get()) is not None:
        work()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
