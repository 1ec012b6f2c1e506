"""Waiting for descriptors: epoll on Linux, `selectors` elsewhere.

Owns one set of descriptors and the source behind each. Knows nothing of their messages.
"""

from __future__ import annotations

import select
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Source

EVENTS_MAX = 256  # reported in one wait; the rest in the next


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
