"""A client's life with one broker: its shared memory, what it knows of models, and its idle lines.

When the broker goes away the whole session is given up, memory and all, because a worker of the lost broker
may still write into slots. The first of the client's threads to need another session makes it.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ..transport import segments
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, BrokerLost, InvalidRequest, shown
from ..transport.keys import KeyFolder
from ..transport.wire import carrier
from .connection import BrokerConnection
from .memory import SlotMemory, reserved_bytes
from .signature import Signature

SECONDS_MAX = 1e9
CLOSED = "this client has been closed"
YARD_CLOSED = "the yard has been closed"


class Line(Protocol):
    """What a session asks of an idle line (link.py)."""

    def drain(self) -> None:
        """Handle what has come, without waiting."""

    def close(self) -> None:
        """Let go of the connection."""


class ClientClosed(BrokerLost):
    """The client, or its yard, has been closed: there will be no broker for it any more."""


def check_name(model: object) -> None:
    """Raise InvalidRequest unless it can be a model's name: "" would ask for all of them."""
    if not isinstance(model, str) or not model:
        found = shown(model)
        raise InvalidRequest(f"a model's name is a text that is not empty, such as 'resnet18', not {found}")
    if not model.isascii():
        try:
            model.encode()
        except UnicodeEncodeError:  # half a character: of a file's name, perhaps
            found = shown(model)
            raise InvalidRequest(f"a model's name is a text that UTF-8 can hold, not {found}") from None


def check_connect_timeout(seconds: object) -> None:
    """Raise InvalidRequest unless it is a time, which may be none at all."""
    if not _is_number(seconds) or not 0 <= seconds <= SECONDS_MAX:  # type: ignore[operator]
        raise InvalidRequest(
            f"connect_timeout is a number of seconds, from 0 to {SECONDS_MAX:,.0f}, not {shown(seconds)}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Settings:
    """What a client was made with. Raises InvalidRequest for a URL or segment that can't be."""

    def __init__(
        self,
        url: str,
        arena_bytes: int | None,
        keys: KeyFolder | None,
        segment: str | None,
        connect_timeout_s: float,
    ) -> None:
        self.endpoint = Endpoint.parse(url)
        self.keys = keys
        check_connect_timeout(connect_timeout_s)
        if arena_bytes is not None and (not isinstance(arena_bytes, int) or arena_bytes < 1):
            raise InvalidRequest(f"arena_bytes is a number of bytes, 1 or more, not {shown(arena_bytes)}")
        self.connect_timeout_s = connect_timeout_s
        # Over ipc both sides see one memory. Over tcp tensors travel as frames, unless the local
        # yard has no other way in (Windows) and the caller says so.
        self.segment = segment or (segments.default_backend() if self.endpoint.is_ipc else "frames")
        self.arena_bytes = arena_bytes if arena_bytes is not None else reserved_bytes(self.segment)


class Session:
    """`idle`: lines that no thread uses now; there are as many as were ever needed at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lost = False
        self.is_over = False  # lost or closed: nothing new is to be sent in it
        self.signatures: dict[str, Signature] = {}
        self.memory: SlotMemory | None = None
        self.idle: list[Any] = []
        self._carrier = carrier(settings.endpoint, settings.keys)
        if settings.segment != "frames":
            self.memory = SlotMemory(settings.arena_bytes, settings.segment)

    def greet(self) -> BrokerConnection:
        """A new connection, which the broker has not welcomed yet."""
        return BrokerConnection(self._carrier, self.settings.endpoint, self.memory)

    def give_back(self, line: Line) -> None:
        """A thread is done with its line."""
        self.idle.append(line)
        if self.is_over:
            self.close_idle()

    def recover_slots(self) -> None:
        """Read the messages of idle lines: they free the slots of abandoned requests."""
        for _ in range(len(self.idle)):
            try:
                line = self.idle.pop()
            except IndexError:
                return
            line.drain()
            self.idle.insert(0, line)  # at the far end: the next pop gets another one
        if self.is_over:
            self.close_idle()

    def give_up(self) -> None:
        """The broker is gone: nothing of this session is used again."""
        self.lost = self.is_over = True
        self.close_idle()

    def close_idle(self) -> None:
        while self.idle:
            try:
                line = self.idle.pop()  # atomic: another thread may be closing them, too
            except IndexError:
                return
            line.close()

    def close(self) -> None:
        """Close every idle line and the memory. Those in use are closed when given back."""
        self.is_over = True
        self.close_idle()
        if self.memory is not None:
            self.memory.close()
        self._carrier.close()


class Sessions:
    """A client's sessions, one after another. `current` is None before the first call and after the last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.current: Session | None = None
        self.numbers = count(1)  # of requests: no two of a client share one, in whichever session
        self._lock = threading.Lock()
        self._closed = ""  # why there is no other session
        self._bytes_copied_before = 0  # by sessions that are over

    @property
    def bytes_copied(self) -> int:
        session = self.current
        memory = session.memory if session is not None else None
        return self._bytes_copied_before + (memory.bytes_copied if memory is not None else 0)

    def open(self) -> Session:
        """The session, made anew if there is none or the broker of the last one went away. Raises
        ClientClosed."""
        with self._lock:
            if self._closed:
                raise ClientClosed(self._closed)
            session = self.current
            if session is None or session.lost:
                if session is not None:
                    self._retire(session)
                session = self.current = Session(self.settings)
            return session

    def end(self, why: str) -> None:
        """Make no other session. The present one goes on."""
        self._closed = self._closed or why

    def renew(self) -> None:
        """Go on with another session; calls under way come to their own end in this one. For after an
        exception that is none of ours: a signal's handler raised it, at any instruction of a call. Slots may
        have been lost then, and bytes of a connection; with the session they go."""
        with self._lock:
            session, self.current = self.current, None
        if session is not None:
            self._retire(session)
            with suppress(BatchyardError):  # the next call says what is wrong
                self.open()

    def _retire(self, session: Session) -> None:
        if session.memory is not None:
            self._bytes_copied_before += session.memory.bytes_copied
        session.close()

    def abandon(self) -> Session | None:
        """Forget the session without closing it: its sockets and memory are another process's."""
        self._lock = threading.Lock()
        session, self.current = self.current, None
        return session

    def close(self) -> None:
        """Close the session, and make no other. Calls under way come to their own end. Idempotent."""
        with self._lock:
            self._closed = CLOSED
            session, self.current = self.current, None
        if session is not None:
            self._retire(session)


def sessions_of(
    url: str,
    keys: str | os.PathLike[str] | None,
    connect_timeout_s: float,
    token: str | None,
    arena_bytes: int | None,
    segment: str | None,
) -> Sessions:
    """The sessions of a client with these arguments. Raises InvalidRequest."""
    if token is not None:
        raise InvalidRequest("token is for a gateway (http://, grpc://); a yard's broker takes keys")
    folder = KeyFolder(Path(keys)) if keys is not None else None
    return Sessions(Settings(url, arena_bytes, folder, segment, connect_timeout_s))
