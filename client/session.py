"""A client's life with one broker: its shared memory, its models, and the connections it has made.

When the broker goes away the whole session is given up, memory and all, because a worker of the
lost broker may still write into slots; the client makes a new session on its next call.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from itertools import count
from math import inf
from typing import TypeVar

import zmq

from ..transport import segments
from ..transport.endpoints import Endpoint
from ..transport.errors import BrokerLost, DeadlineExceeded, InvalidRequest, SegmentRefused
from ..transport.keys import KeyFolder
from ..transport.messages import ModelInfo
from ..transport.sockets import CONTEXT_DESCRIPTORS, SOCKET_DESCRIPTORS, require_descriptors
from .connection import Connection
from .memory import SlotMemory
from .signature import Signature

T = TypeVar("T")


def _close_sockets(context: zmq.Context[zmq.Socket[bytes]], sockets: set[zmq.Socket[bytes]]) -> None:
    """A session that was never closed has been collected. The collector would end the context in any
    order, and that waits for open sockets for ever; this comes first, and then the context goes."""
    while sockets:
        sockets.pop().close(0)


def check_name(model: object) -> None:
    """Raise InvalidRequest unless it can be a model's name: "" would ask for all of them."""
    if not isinstance(model, str) or not model:
        raise InvalidRequest(f"a model is asked for by its name, not by {model!r}")


class Settings:
    """What a client was made with. Raises InvalidRequest for a URL or segment that can't be."""

    def __init__(
        self,
        url: str,
        arena_bytes: int,
        keys: KeyFolder | None,
        segment: str | None,
        connect_timeout_s: float,
    ) -> None:
        self.endpoint = Endpoint.parse(url)
        self.arena_bytes = arena_bytes
        self.keys = keys
        self.connect_timeout_s = connect_timeout_s
        # Over ipc both sides see one memory. Over tcp tensors travel as frames, unless the local
        # yard has no other way in (Windows) and the caller says so.
        self.segment = segment or (segments.default_backend() if self.endpoint.is_ipc else "frames")


class Session:
    """Connections are borrowed by one thread at a time and returned; there are as many as were
    ever needed at once."""

    def __init__(self, settings: Settings, numbers: count[int]) -> None:
        """`numbers` are the client's own: no two requests of it share one, in whichever session."""
        self.settings = settings
        self.pid = os.getpid()
        self.lost = False
        self.signatures: dict[str, Signature] = {}
        self.memory: SlotMemory | None = None
        require_descriptors(CONTEXT_DESCRIPTORS)
        if settings.segment != "frames":
            self.memory = SlotMemory(settings.arena_bytes, settings.segment)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._open_sockets: set[zmq.Socket[bytes]] = set()
        weakref.finalize(self, _close_sockets, self._context, self._open_sockets).atexit = False
        self._numbers = numbers
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._lent: set[Connection] = set()

    def connect(self, give_up_s: float = inf) -> Connection:
        """A new connection, the caller's to close or to give back. Raises BrokerLost when nobody
        answers by `give_up_s` (time.monotonic) or within the connect timeout."""
        connection = self.greet()
        try:
            connection.await_welcome(
                max(0.0, min(self.settings.connect_timeout_s, give_up_s - time.monotonic()))
            )
        except SegmentRefused as error:
            connection.close()
            if self.lost or self._closed:  # another call has given this session's memory up meanwhile
                raise BrokerLost("the broker went away while this call connected") from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def greet(self) -> Connection:
        """A new connection that is not welcome yet."""
        require_descriptors(SOCKET_DESCRIPTORS)
        s = self.settings
        return Connection(self._context, s.endpoint, s.keys, self.memory, self._numbers, self._open_sockets)

    def borrow(self, give_up_s: float = inf) -> Connection:
        """A connection for the calling thread alone, until `give_back`."""
        try:
            connection = self._idle.pop()  # atomic; a lock would cost as much as the pop
        except IndexError:
            connection = self.connect(give_up_s)
        self._lent.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        self._lent.discard(connection)
        self._idle.append(connection)
        if self.lost or self._closed:
            self._close_idle()

    def discard(self, connection: Connection) -> None:
        """The broker of a borrowed connection is gone, and so is this session."""
        self.give_up()
        self._lent.discard(connection)
        connection.close()

    def describe(self, connection: Connection, model: str, give_up_s: float) -> list[ModelInfo]:
        """Ask for a model's metadata ("": all), waiting until it is ready or has failed."""
        started_s = time.monotonic()
        pending = connection.channel.describe(model)
        connection.send([pending.message])
        try:
            infos: list[ModelInfo] = connection.wait(pending, give_up_s)
        except DeadlineExceeded:
            connection.channel.pending.pop(pending.number, None)
            waited_s = give_up_s - started_s
            raise DeadlineExceeded(f"no worker has loaded {model!r} within {waited_s:.3g} s") from None
        return infos

    def signature(self, connection: Connection, model: str, give_up_s: float) -> Signature:
        """The model's signature, asked for once. Raises ModelFailed, UnknownModel, DeadlineExceeded."""
        found = self.signatures.get(model)
        if found is None:
            check_name(model)
            found = Signature(self.describe(connection, model, give_up_s)[0], self.signatures)
            self.signatures[model] = found
        return found

    @property
    def busy(self) -> bool:
        """Whether some other call is under way, which will give slots back."""
        return len(self._lent) > 1

    def recover_slots(self) -> None:
        """Read what idle connections were told: slots of abandoned requests come back."""
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            connection.drain()
            self._idle.insert(0, connection)  # at the far end: the next pop gets another one

    def give_up(self) -> None:
        """The broker is gone: nothing of this session is used again."""
        self.lost = True
        self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def close(self) -> None:
        """Close every idle connection and the memory. Borrowed ones are closed when given back."""
        self._closed = True
        self._close_idle()
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        # No term(): it would wait for a socket that some thread still holds. The context ends
        # with its last reference.
