"""Watching descriptors from an event loop, also one that has no `add_reader`.

Windows' default loop (Proactor) can't watch a descriptor; there a thread waits in `select` and calls
back into the loop. ZeroMQ's descriptors are sockets on Windows, so `select` takes them.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable, Mapping

from . import ending

SELECT_S = 0.5  # how soon the thread sees that it is to end


def add_readers(
    loop: asyncio.AbstractEventLoop, callbacks: Mapping[int, Callable[[], None]]
) -> Callable[[], None]:
    """Call `callbacks[fd]` on the loop whenever fd is readable; what is returned ends that."""
    try:
        for fd, callback in callbacks.items():
            loop.add_reader(fd, callback)
    except NotImplementedError:
        return _SelectThread(loop, callbacks).stop

    def stop() -> None:
        for fd in callbacks:
            loop.remove_reader(fd)

    return stop


class _SelectThread:
    """Waits, calls back, and waits until the callback has run, so that one edge is one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callbacks: Mapping[int, Callable[[], None]]) -> None:
        self._loop = loop
        self._callbacks = callbacks
        self._ending = threading.Event()
        self._handled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batchyard-select", daemon=True)
        ending.start(self._thread)

    def _run(self) -> None:
        while not self._ending.is_set():
            readable, _, _ = select.select(list(self._callbacks), [], [], SELECT_S)
            if not readable or self._ending.is_set():
                continue
            self._handled.clear()
            try:
                self._loop.call_soon_threadsafe(self._call, readable)
            except RuntimeError:
                return  # the loop is closed
            while not self._handled.wait(SELECT_S):
                if self._ending.is_set():
                    return

    def _call(self, readable: list[int]) -> None:
        try:
            for fd in readable:
                if not self._ending.is_set():
                    self._callbacks[fd]()
        finally:
            self._handled.set()

    def stop(self) -> None:
        self._ending.set()
        self._handled.set()
        # Before the descriptors are closed and their numbers mean others. It looks up every SELECT_S.
        if not ending.is_finalizing():
            self._thread.join(2 * SELECT_S)
