"""The wire over libzmq: tcp with or without CURVE, and systems that have no unix sockets.

Owns the context, the admission by keys, and the side that connects. libzmq_listener.py accepts.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..endpoints import Endpoint
from ..sockets import (
    CONTEXT_DESCRIPTORS,
    NOBLOCK,
    SOCKET_DESCRIPTORS,
    Socket,
    configure,
    has_more,
    readable,
    require_descriptors,
)
from . import Bounds, Carrier, Connection, Descriptor, Ended, Full, Listener, Part, Parts, Why
from .watch import Watch, gets_signals, wait_for

if TYPE_CHECKING:
    from ..keys import KeyFolder

CLIENT_SOCKETS_MAX = 65_536  # of a process; libzmq's own bound is 1,023
RECONNECT_MS = 20
GOODBYE_MS = 20  # for unsent messages when a connection is closed: the last one to go may wait for them

_ENDINGS: dict[int, tuple[Why, str]] = {
    int(zmq.EVENT_DISCONNECTED): ("closed", "the other side closed the connection"),
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): ("key", "our key is not admitted"),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): ("protocol", "the other side breaks the rules of ZMTP"),
    # The other side died, or it does not know the key that ours is encrypted for.
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): ("handshake", "the connection was closed in its handshake"),
}
_CONNECTION_EVENTS = sum(_ENDINGS)
_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_FD = int(zmq.FD)


class ZmqConnection(Connection):
    """A DEALER and its monitor. libzmq makes the connection again when it is lost, so an end that was
    reported is final: later messages would be another broker's."""

    def __init__(self, socket: Socket, address: str, bounds: Bounds, open_sockets: set[Socket]) -> None:
        self._socket = socket
        self._bounds = bounds
        self._open_sockets = open_sockets
        self._outbox: deque[list[bytes]] = deque()  # messages that libzmq had no room for
        self._outbox_bytes = 0
        self._end: Ended | None = None
        self._timeout_ms = 0
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, bounds.frame_bytes)
        self._monitor: Socket = socket.get_monitor_socket(_CONNECTION_EVENTS)
        open_sockets.add(self._monitor)
        try:
            socket.connect(address)
            self._watched = tuple(int(one.getsockopt(_FD)) for one in (socket, self._monitor))
        except BaseException:
            self.close()
            raise

    @property
    def watched(self) -> tuple[int, ...]:
        return self._watched

    @property
    def unsent(self) -> bool:
        return bool(self._outbox)

    @property
    def unread(self) -> bool:
        return not self._socket.closed and (readable(self._socket) or readable(self._monitor))

    @property
    def blocked_on(self) -> int | None:
        return None

    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        if self._outbox:
            self.flush()
        if self._outbox or not self._try(parts):
            if (
                len(self._outbox) >= self._bounds.outbox_messages
                or self._outbox_bytes > self._bounds.outbox_bytes
            ):
                raise Full(f"{len(self._outbox)} messages more than libzmq keeps have not been read")
            kept = [bytes(part) for part in parts]
            self._outbox.append(kept)
            self._outbox_bytes += sum(map(len, kept))

    def _try(self, parts: Parts) -> bool:
        try:
            if len(parts) == 1:
                self._socket.send(parts[0], NOBLOCK)
            else:
                self._socket.send_multipart(parts, NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            self._end = self._end or Ended(f"the connection failed: {error}")
        return True

    def flush(self) -> None:
        outbox = self._outbox
        while outbox and self._try(outbox[0]):
            self._outbox_bytes -= sum(map(len, outbox.popleft()))

    def receive(self, timeout_ms: int) -> list[Part] | None:
        if self._outbox:
            self.flush()
        socket = self._socket
        try:
            if timeout_ms <= 0:
                first: Part = socket.recv(NOBLOCK)
            elif gets_signals():
                try:
                    first = socket.recv(NOBLOCK)
                except zmq.Again:
                    wait_for(self._watched[0], timeout_ms)  # of an event that is no message, too
                    first = socket.recv(NOBLOCK)
            else:
                if timeout_ms != self._timeout_ms:
                    self._timeout_ms = timeout_ms
                    socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
                first = socket.recv()
        except zmq.Again:
            self._look()
            return None
        except zmq.ZMQError as error:
            raise self._end or Ended(f"the connection failed: {error}") from error
        parts = [first]
        while has_more(socket):
            parts.append(socket.recv(copy=False).buffer)
        return parts

    def _look(self) -> None:
        """Raise Ended when the connection has ended."""
        if self._end is None and readable(self._monitor):
            report = recv_monitor_message(self._monitor)
            why, text = _ENDINGS[report["event"]]
            if report["value"] == _MISMATCH:
                why, text = "mechanism", "the two sides disagree on CURVE"
            self._end = Ended(text, why)
        if self._end is not None:
            raise self._end

    def close(self) -> None:
        if self._end is None or str(self._end) != "this side closed the connection":
            self.flush()
        self._end = Ended("this side closed the connection")
        if not self._socket.closed:  # see _close_sockets
            self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(GOODBYE_MS)
        self._open_sockets.discard(self._monitor)
        self._open_sockets.discard(self._socket)


class _Shared:
    """The one context of all clients of this process. It is never ended: that would wait for sockets which
    threads hold, and a signal makes libzmq give up amid it (EINTR), with its descriptors and threads lost.

    Sockets of carriers that are gone are closed by whoever comes next: a destructor can be interrupted.
    """

    def __init__(self) -> None:
        self._context: zmq.Context[Socket] | None = None
        self._lock = threading.Lock()
        self._carriers: list[tuple[weakref.ref[Sockets], set[Socket]]] = []
        self._parents: list[object] = []  # a forked child's: not its own to end

    def get(self) -> zmq.Context[Socket]:
        with self._lock:
            if self._context is None:
                require_descriptors(CONTEXT_DESCRIPTORS)
                context: zmq.Context[Socket] = zmq.Context()
                context.set(zmq.MAX_SOCKETS, CLIENT_SOCKETS_MAX)
                self._context = context
            return self._context

    def note(self, carrier: Sockets, open_sockets: set[Socket]) -> None:
        self.sweep()
        self._carriers.append((weakref.ref(carrier), open_sockets))
        weakref.finalize(carrier, self.sweep).atexit = False

    def sweep(self) -> None:
        """Close what carriers have left that are gone."""
        for entry in list(self._carriers):
            carrier, open_sockets = entry
            if carrier() is None:
                _close_sockets(None, open_sockets)
                with suppress(ValueError):
                    self._carriers.remove(entry)

    def after_fork(self) -> None:
        self._parents.append((self._context, self._carriers))
        self._context, self._carriers = None, []
        self._lock = threading.Lock()


_shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.after_fork)


class Sockets(Carrier):
    """A ZeroMQ context. `serves`: with the handler that lets in `keys` alone."""

    def __init__(self, endpoint: Endpoint, keys: KeyFolder | None, serves: bool) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._serves = serves
        self._zap: Any = None
        self._open: set[Socket] = set()
        if serves:
            require_descriptors(CONTEXT_DESCRIPTORS)
        self._context: zmq.Context[Socket] = zmq.Context() if serves else _shared.get()
        if serves:
            weakref.finalize(self, _close_sockets, self._context, self._open).atexit = False
        else:
            _shared.note(self, self._open)

    def _socket(self, kind: int) -> Socket:
        require_descriptors(SOCKET_DESCRIPTORS)
        socket = self._context.socket(kind)
        self._open.add(socket)  # at once: what is noted is closed, whatever comes in between
        configure(socket, self._endpoint)
        return socket

    def listen(self, address: str, watch: Watch, bounds: Bounds) -> Listener:
        from .libzmq_listener import ZmqListener

        if self._keys is not None and self._zap is None:
            from ..keys import Zap

            self._zap = Zap(self._context, self._keys)
        socket = self._socket(zmq.ROUTER)
        if self._keys is not None:
            self._keys.apply_server(socket)
        return ZmqListener(socket, address, watch, bounds, self._open.discard)

    def connect(
        self, address: str, bounds: Bounds, descriptor: int | None = None, descriptors_max: int = 0
    ) -> ZmqConnection:
        socket = self._socket(zmq.DEALER)
        try:
            if self._keys is not None:
                self._keys.apply_client(socket)
        except BaseException:
            socket.close(0)
            self._open.discard(socket)
            raise
        return ZmqConnection(socket, address, bounds, self._open)

    def close(self) -> None:
        if self._zap is not None:
            self._zap.stop()
            self._zap = None
        if self._serves:
            self._context.term()
        else:
            _shared.sweep()


def _close_sockets(context: zmq.Context[Any] | None, open_sockets: Iterable[Socket]) -> None:
    """A carrier has been collected. The collector would end a context of its own in any order, and that waits
    for open sockets for ever; this comes first, and then the context goes."""
    sockets = list(open_sockets)
    for socket in sockets:
        # Before any is closed: libzmq's thread waits for ever to tell of an event whose listener is gone, and
        # with it every other socket. A signal may interrupt this between two of them.
        if not socket.closed and socket.type != zmq.PAIR:
            socket.disable_monitor()
    for socket in sockets:
        socket.close(0)
