"""Bounds on a connection: the time and size of a request's head, the number of connections, and the time in
which the answer is read.

uvicorn bounds none of these, and most apply before the token is checked. Owns the timers and counts; uvicorn
owns the rest of the protocol.
"""

from __future__ import annotations

import asyncio
import sys

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 1 << 16  # of the path, the headers, and trailers of one request
OBJECT_BYTES = 64  # what a header takes beside its text
HEAD_WITHIN_S = 20.0
READ_WITHIN_S = 60.0  # anything of an answer that waits to be read
DESCRIPTORS_MAX = 1 << 14  # more are of no use to anything here


class HeadTooLong(Exception):
    """It ends in uvicorn's plain 400, like everything that is no HTTP."""


def connection_of(connections_max: int) -> type[HttpToolsProtocol]:
    """The class of uvicorn's connections; past `connections_max`, new ones are closed at once."""

    class Bounded(Connection):
        pass

    Bounded.connections_max = connections_max
    return Bounded


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits on everything except the body."""

    connections_max: int
    _in_head = True
    _watch: asyncio.TimerHandle | None = None  # runs while a head is waited for
    _reader: asyncio.TimerHandle | None = None  # runs while an answer waits to be read
    _head_bytes = 0  # of the message: what its headers take
    _silent_bytes = 0  # received since the parser has last said anything: it keeps them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            transport.close()
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._forget_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._silent_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._silent_bytes > HEAD_BYTES_MAX:
            self.send_400_response("Invalid HTTP request received.")
        elif self._in_head or (self._is_answered() and self.timeout_keep_alive_task is None):
            self._watch_head()  # or the end of a body that nobody wants: that has its time, too

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        if self._watch is None:
            self._watch = self.loop.call_later(HEAD_WITHIN_S, self._too_late)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _too_late(self) -> None:
        self._watch = None
        if self._is_answered():
            self.transport.close()
        else:  # the head of the next request: while this one runs it may not have been read
            self._watch_head()

    # ---- a client that does not read --------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._forget_reader()
        super().resume_writing()

    def _watch_reader(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(READ_WITHIN_S, self._look_at_reader, unread_bytes)

    def _look_at_reader(self, unread_bytes: int) -> None:
        if self.transport.get_write_buffer_size() >= unread_bytes:
            self.transport.abort()
        else:
            self._watch_reader()

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    # ---- what the parser says -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._silent_bytes = self._head_bytes = 0
        self._unwatch()  # what was waited for before
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent_bytes = 0
        super().on_message_complete()

    def _count(self, nbytes: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += nbytes + OBJECT_BYTES
        if self._head_bytes > HEAD_BYTES_MAX:
            raise HeadTooLong


def descriptors() -> int:
    """How many this process may have open, within reason; the system's soft limit is raised for it."""
    if sys.platform == "win32":
        return DESCRIPTORS_MAX
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
