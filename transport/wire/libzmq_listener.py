"""The side of a ZeroMQ socket that accepts: a ROUTER whose connections are objects.

Owns the ROUTER, its monitor, and the bookkeeping by descriptor number that makes the objects: libzmq names
a connection by a routing id in its messages, and by a descriptor in the report of its end. An end is
reported as soon as it is heard of, which may be before the last messages are read.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import EndpointInUse
from ..sockets import MORE_NOBLOCK, NOBLOCK, Socket, has_more, readable
from . import Arrival, Bounds, Descriptor, Ended, Full, Listener, Part, Parts, Peer
from .watch import Watch

_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_FD = int(zmq.FD)
_OWN_IDENTITY_BYTES = 5  # a zero byte and 32 bits


class ZmqPeer(Peer):
    """A connection of a ROUTER, once it has said something."""

    __slots__ = ("_listener", "identity")

    def __init__(self, listener: ZmqListener, identity: bytes, fd: int) -> None:
        super().__init__(fd)
        self._listener = listener
        self.identity = identity

    @property
    def credentials(self) -> tuple[int, int] | None:
        return None  # these connections may come from anywhere

    @property
    def chose_identity(self) -> bool:
        return len(self.identity) != _OWN_IDENTITY_BYTES or bool(self.identity[0])

    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        if self.ended:
            raise Ended("the connection has ended")
        self._listener.send(self.identity, parts)

    def take_descriptor(self) -> Descriptor | None:
        return None

    def close(self) -> None:
        self._listener.settle()
        if not self.ended:  # else its number may be another connection's by now
            self._listener.forget(self)
            if self.fd >= 0:
                hang_up(self.fd)


class ZmqListener(Listener):
    """A ROUTER and its monitor."""

    def __init__(
        self, socket: Socket, address: str, watch: Watch, bounds: Bounds, closed: Callable[[Socket], None]
    ) -> None:
        self._socket = socket
        self._bounds = bounds
        self._watch = watch
        self._closed = closed
        self.has_more = True
        self.unwritten: dict[Any, Any] = {}  # libzmq's threads write
        self.strangers: dict[int, int] = {}  # descriptor -> when it was first seen here; 0: not yet
        self._known: dict[bytes, ZmqPeer] = {}
        self._by_fd: dict[int, list[ZmqPeer]] = {}  # of connections that have not ended
        self._endings: list[ZmqPeer] = []
        self._reported = True  # a descriptor was ready: the monitor may have something to say
        self._more = False
        self._sent = False  # a send may have swallowed the descriptor's signal
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer is an error, not silence
        socket.setsockopt(zmq.MAXMSGSIZE, bounds.frame_bytes)
        socket.setsockopt(zmq.SNDHWM, bounds.outbox_messages)
        # Before it listens: a connection that was not reported would count as one that has ended.
        self._monitor: Socket = socket.get_monitor_socket(_ACCEPTED | _DISCONNECTED)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            self._close_sockets()
            if error.errno == zmq.EADDRINUSE:
                raise EndpointInUse(
                    f"{address} is in use by another process: stop it, or choose another --url"
                ) from None
            raise
        self._fds = [int(one.getsockopt(_FD)) for one in (socket, self._monitor)]
        for fd in self._fds:
            watch.add(fd, self)

    def ready(self, readable: bool, writable: bool) -> None:
        self._reported = self.has_more = True

    def receive(self, messages_max: int, bytes_max: int) -> list[Arrival]:
        arrivals: list[Arrival] = []
        socket = self._socket
        self._more = True
        self._sent = False
        while messages_max > 0 and bytes_max > 0:
            if not readable(socket):
                self._more = False
                break
            identity = socket.recv()
            peer = self._known.get(identity)
            first: Any
            if peer is not None:
                first = socket.recv()
            else:  # a copy would not know the descriptor that it came by
                frame = socket.recv(copy=False)
                first = frame.bytes
                peer = self._meet(identity, _source_fd(frame))
            parts: list[Part] = [first]
            while has_more(socket):
                part = socket.recv(copy=False)
                if len(parts) <= self._bounds.parts:  # one too many is kept, to be seen
                    parts.append(part.buffer)
            messages_max -= 1
            bytes_max -= len(first)
            if peer is not None:
                arrivals.append((peer, parts))
        if self._reported:
            self.settle()
        endings, self._endings = self._endings, []
        self.has_more = self._more or self._sent or self._reported
        arrivals += [(peer, None) for peer in endings]
        return arrivals

    def _meet(self, identity: bytes, fd: int) -> ZmqPeer | None:
        """A peer's first message; None when its connection has ended meanwhile: nothing would ever report the
        end."""
        # The number may be one that a former connection had. Its end is reported before the number is
        # free again, so the reports are read now, or that one would end this connection.
        self.settle()
        if fd >= 0 and fd not in self._by_fd:
            return None
        peer = self._known[identity] = ZmqPeer(self, identity, fd)
        if fd >= 0:
            self._by_fd[fd].append(peer)
        return peer

    def settle(self) -> None:
        """Read the monitor's reports: connections that begin and end."""
        self._reported = False
        while readable(self._monitor):
            report = recv_monitor_message(self._monitor)
            fd = report["value"]
            if report["event"] == _ACCEPTED:
                self._by_fd[fd] = []
                self.strangers[fd] = 0
                continue
            self.strangers.pop(fd, None)
            for peer in self._by_fd.pop(fd, ()):
                if not peer.ended:
                    self._end(peer)
                    self._endings.append(peer)
                    self.has_more = True

    def _end(self, peer: ZmqPeer) -> None:
        peer.ended = True
        self._known.pop(peer.identity, None)

    def send(self, identity: bytes, parts: Parts) -> None:
        socket = self._socket
        self._sent = self.has_more = True
        try:
            socket.send(identity, MORE_NOBLOCK)
            if len(parts) == 1:
                socket.send(parts[0], NOBLOCK)
            else:
                socket.send_multipart(parts, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Ended("the other side is gone") from None
            if error.errno == zmq.EAGAIN:
                raise Full(f"{self._bounds.outbox_messages} messages have not been read") from None
            raise

    def flush(self) -> None:
        pass  # libzmq's threads write

    def admit(self, peer: Peer, descriptors_max: int = 0) -> None:
        assert isinstance(peer, ZmqPeer)
        self.strangers.pop(peer.fd, None)

    def dismiss_strangers(self, now_ns: int, within_ns: int, strangers_max: int) -> int:
        dismissed = 0
        for fd, since_ns in list(self.strangers.items()):
            if not since_ns:
                self.strangers[fd] = since_ns = now_ns
            if now_ns - since_ns >= within_ns or len(self.strangers) > strangers_max:
                del self.strangers[fd]
                hang_up(fd)
                dismissed += 1
        return dismissed

    def forget(self, peer: ZmqPeer) -> None:
        if not peer.ended:
            self._end(peer)

    def close(self) -> None:
        if not self._socket.closed:
            for fd in self._fds:
                self._watch.remove(fd)
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._closed(self._socket)


def _source_fd(frame: Any) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, KeyError, TypeError):
        return -1


def hang_up(fd: int) -> None:
    """End the connection on a descriptor that another thread owns: it sees the end, and closes it.

    Should the number be another's by now, then that connection's peer connects again.
    """
    try:
        borrowed = sockets.socket(fileno=fd)
    except OSError:
        return  # closed since, or no socket any more
    try:
        borrowed.shutdown(sockets.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
    finally:
        borrowed.detach()
