"""A flag that signal handlers may set.

`threading.Event.set` takes a lock. A handler runs in the middle of whatever the main thread does: if that is
the `wait` of the same event, or another handler's `set`, both wait for ever.
"""

from __future__ import annotations

import os
import select
import socket
import weakref
from collections.abc import Iterable


class Flag:
    """As threading.Event, set once. `set` takes no lock and may be called anywhere, in its own middle too.
    A forked child has the same socket: its `set` wakes nobody in its parent."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._is_set = False
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        # With the flag, and not before: a thread or a handler may still use it when its yard is closed.
        weakref.finalize(self, _close, self._woken, self._wake).atexit = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if os.getpid() != self._pid:
            return
        try:
            self._wake.send(b"\0")  # nobody reads it: whoever waits from now on need not
        except OSError:
            pass  # it is full: it has been set before

    def wait(self, timeout_s: float | None = None, others: Iterable[int] = ()) -> bool:
        """Whether it is set: at the latest after `timeout_s` seconds, and as soon as one of these other
        descriptors can be read."""
        if not self._is_set:
            _wait([self._woken.fileno(), *others], timeout_s)
        return self._is_set


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


def _wait(descriptors: list[int], timeout_s: float | None) -> None:
    if not hasattr(select, "poll"):
        select.select(descriptors, [], [], timeout_s)
        return
    waiting = select.poll()  # unlike select, for descriptors of any number
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    waiting.poll(None if timeout_s is None else timeout_s * 1000)
