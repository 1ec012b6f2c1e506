"""Waiting for descriptors: epoll on Linux, `selectors` elsewhere.

Owns one set of descriptors and the source behind each. Knows nothing of their messages.

A signal whose handler raises nothing ends a wait in the kernel, and Python (and pyzmq) begin the call anew.
One that has its time-out from the socket (SO_RCVTIMEO, RCVTIMEO) then waits for all of it again: for ever,
under a timer that is quicker. `poll` waits for the rest. A process's signals come to its main thread.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
from _thread import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Source

EVENTS_MAX = 256  # reported in one wait; the rest in the next


_main = threading.main_thread().ident


def gets_signals() -> bool:
    """Whether signals interrupt the waits of this thread."""
    return get_ident() == _main


def _after_fork() -> None:
    global _main
    _main = get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def wait_for(fd: int, timeout_ms: int, to_write: bool = False) -> bool:
    """Wait until it can be read (or written, as well), for `timeout_ms` at most, however many signals come.
    Whether it can."""
    if not hasattr(select, "poll"):
        return any(select.select([fd], [fd] if to_write else [], [], timeout_ms / 1e3))
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT if to_write else select.POLLIN)
    return bool(poller.poll(timeout_ms))


class Watch:
    """Descriptors and their sources. `wait` calls the `ready` of those whose descriptors are."""

    def __init__(self) -> None:
        self._sources: dict[int, Source] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._selector = selectors.DefaultSelector() if self._epoll is None else None

    def add(self, fd: int, source: Source) -> None:
        """Watch for reading."""
        self._sources[fd] = source
        if self._epoll is not None:
            self._epoll.register(fd, select.EPOLLIN)
        elif self._selector is not None:
            self._selector.register(fd, selectors.EVENT_READ)

    def want_write(self, fd: int, wanted: bool) -> None:
        """Watch a descriptor for writing, too, or no longer."""
        if self._epoll is not None:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)
        elif self._selector is not None:
            read = selectors.EVENT_READ
            self._selector.modify(fd, read | selectors.EVENT_WRITE if wanted else read)

    def remove(self, fd: int) -> None:
        """Watch it no longer. Before it is closed."""
        del self._sources[fd]
        if self._epoll is not None:
            self._epoll.unregister(fd)
        elif self._selector is not None:
            self._selector.unregister(fd)

    def wait(self, timeout_ms: int) -> int:
        """Wait until a descriptor is ready, for `timeout_ms` at most; how many are."""
        sources = self._sources
        if self._epoll is not None:
            events = self._epoll.poll(timeout_ms / 1e3, EVENTS_MAX)
            for fd, event in events:
                source = sources.get(fd)  # an earlier one may have removed it
                if source is not None:
                    source.ready(bool(event & ~select.EPOLLOUT), bool(event & select.EPOLLOUT))
            return len(events)
        assert self._selector is not None
        selected = self._selector.select(timeout_ms / 1e3)
        for key, mask in selected:
            source = sources.get(key.fd)
            if source is not None:
                source.ready(bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE))
        return len(selected)

    def close(self) -> None:
        """Idempotent."""
        if self._epoll is not None:
            self._epoll.close()
        if self._selector is not None:
            self._selector.close()
