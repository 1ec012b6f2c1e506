"""Watching descriptors from an event loop, also one that has no `add_reader`.

Windows' default loop (Proactor) can't watch a descriptor; there a thread waits in `select` and calls
back into the loop. ZeroMQ's descriptors are sockets on Windows, so `select` takes them.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Callable, Mapping

from . import ending

JOIN_S = 1.0  # for the thread, which ends at once


def add_readers(
    loop: asyncio.AbstractEventLoop, callbacks: Mapping[int, Callable[[], None]]
) -> Callable[[], None]:
    """Call `callbacks[fd]` on the loop whenever fd is readable; what is returned ends that, and has to be
    called once the loop has been closed, too."""
    try:
        for fd, callback in callbacks.items():
            loop.add_reader(fd, callback)
    except NotImplementedError:
        return _SelectThread(loop, callbacks).stop

    def stop() -> None:
        if loop.is_closed():
            return  # it watches nothing any more
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
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="batchyard-select", daemon=True)
        ending.start(self._thread)

    def _run(self) -> None:
        with self._wake_read:
            watched = [*self._callbacks, self._wake_read.fileno()]
            while True:
                try:
                    readable, _, _ = select.select(watched, [], [])
                except OSError:
                    return  # a descriptor was closed under it: there is nothing left to wait for
                self._handled.clear()
                if self._ending.is_set():
                    return
                try:
                    self._loop.call_soon_threadsafe(self._call, readable)
                except RuntimeError:
                    return  # the loop is closed
                self._handled.wait()  # for `stop`, if the loop is closed before it comes to that call

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
        self._wake_write.close()
        # Before the descriptors are closed and their numbers mean others.
        if not ending.is_finalizing():
            self._thread.join(JOIN_S)
