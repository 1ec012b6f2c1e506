"""The side of a unix socket that accepts: peers in turn, strangers, credentials by the kernel's word."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Sequence

from ..errors import EndpointInUse
from . import Arrival, Bounds, Descriptor, Ended, Listener, Parts, Peer
from .stream import ANCILLARY_BYTES, NO_DESCRIPTORS, Stream, credentials_of
from .watch import Watch
from .zmtp import ROUTER

BACKLOG = 1024  # connections that the kernel keeps until we accept them
ACCEPTED_MAX = 64  # at one look
PEER_SHARE = 16  # messages of one peer, before it is another's turn
LOOK_BYTES = 1024  # the cost of a look at a peer beside its messages, as bytes

class StreamPeer(Peer):
    """An accepted connection."""

    __slots__ = ("_listener", "is_paused", "is_ready", "stream", "writes")

    def __init__(self, listener: StreamListener, sock: socket.socket, bounds: Bounds) -> None:
        super().__init__(sock.fileno())
        self._listener = listener
        self.stream = Stream(sock, ROUTER, bounds)
        self.stream.descriptors_max = 1 if ANCILLARY_BYTES else 0
        self.is_ready = False  # in the listener's round
        self.is_paused = False
        self.writes = False  # watched for writing

    @property
    def credentials(self) -> tuple[int, int] | None:
        sock = self.stream.socket
        credentials = credentials_of(sock) if sock is not None else None
        return credentials if credentials and credentials[0] > 0 else None  # 0: of another PID namespace

    @property
    def chose_identity(self) -> bool:
        return bool(self.stream.receiver.identity)

    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        if self.ended:
            raise Ended("the connection has ended")
        self.stream.put(parts, along, along_bytes)
        self._listener.unwritten[self] = None

    def take_descriptor(self) -> Descriptor | None:
        return self.stream.take_descriptor()

    def close(self) -> None:
        self._listener.forget(self)

    def ready(self, readable: bool, writable: bool) -> None:
        if writable:
            self.write()
        if readable and not self.is_ready and not self.is_paused:
            self.is_ready = True
            self._listener.line.append(self)
            self._listener.has_more = True

    def write(self) -> None:
        """Flush, and watch for writing while something is left."""
        self.stream.flush()
        self.watch_writing()

    def watch_writing(self) -> None:
        """Watch for room to write while something is left."""
        wanted = self.stream.blocked
        if wanted != self.writes and not self.ended:
            self.writes = wanted
            self._listener.watch.want_write(self.fd, wanted)


class StreamListener(Listener):
    """A listening unix socket and its peers."""

    def __init__(self, path: str, watch: Watch, bounds: Bounds) -> None:
        self.watch = watch
        self.has_more = False
        self.unwritten: dict[StreamPeer, None] = {}  # have something in their outboxes
        self.strangers: dict[StreamPeer, int] = {}  # when they were first seen here; 0: not yet
        self._bounds = bounds
        self._peers: dict[StreamPeer, None] = {}
        self.line: deque[StreamPeer] = deque()  # may have something to read, in turn
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._spare: int | None = None
        try:
            self._socket.setblocking(False)
            self._socket.bind(path)
            self._path = path
            self._inode = os.stat(path).st_ino
            self._socket.listen(BACKLOG)
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            watch.add(self._socket.fileno(), self)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRINUSE:
                raise EndpointInUse(
                    f"ipc://{path} is in use by another process: stop it, or choose another --url"
                ) from None
            raise

    # ---- accepting ------------------------------------------------------------------------------

    def ready(self, readable: bool, writable: bool) -> None:
        for _ in range(ACCEPTED_MAX):
            try:
                sock, _address = self._socket.accept()
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._turn_away()
                return  # all are accepted, or one has gone already
            sock.setblocking(False)
            peer = StreamPeer(self, sock, self._bounds)
            self._peers[peer] = None
            self.strangers[peer] = 0
            self.watch.add(peer.fd, peer)
            peer.write()  # our greeting

    def _turn_away(self) -> None:
        """There is no descriptor for a new connection. Left in the backlog, it would wake us again and again:
        the spare descriptor lets it in, and out."""
        if self._spare is None:
            return
        os.close(self._spare)
        self._spare = None
        try:
            self._socket.accept()[0].close()
        except OSError:
            pass  # it is gone, or another thread was faster
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass

    # ---- reading --------------------------------------------------------------------------------

    def _put_in_line(self, peer: StreamPeer) -> None:
        peer.is_ready = True
        self.line.append(peer)

    def pause(self, peer: Peer) -> None:
        assert isinstance(peer, StreamPeer)
        peer.is_paused = True  # its descriptor stays watched: the broker has work of its, and does not sleep

    def resume(self, peer: Peer) -> None:
        assert isinstance(peer, StreamPeer)
        if peer.is_paused and not peer.ended:
            peer.is_paused = False
            if not peer.is_ready:
                self._put_in_line(peer)
            self.has_more = True

    def receive(self, messages_max: int, bytes_max: int) -> list[Arrival]:
        arrivals: list[Arrival] = []
        line = self.line
        while line and messages_max > 0 and bytes_max > 0:
            peer = line.popleft()
            peer.is_ready = False
            if peer.ended or peer.is_paused:
                continue
            stream = peer.stream
            inbox = stream.inbox
            if not inbox:
                if stream.receiver.has_more:
                    stream.read_on()
                elif stream.end is None:
                    stream.read()
                    bytes_max -= LOOK_BYTES
                if stream.outbox:
                    self.unwritten[peer] = None  # a PONG
            for _ in range(min(len(inbox), PEER_SHARE, messages_max)):
                parts = inbox.popleft()
                arrivals.append((peer, parts))
                messages_max -= 1
                bytes_max -= len(parts[0])
            if inbox or stream.receiver.has_more:
                self._put_in_line(peer)
            elif stream.end is not None:
                if stream.end.why == "protocol":
                    peer.violation = str(stream.end)
                self.forget(peer)
                arrivals.append((peer, None))
        self.has_more = bool(line)
        return arrivals

    # ---- writing --------------------------------------------------------------------------------

    def flush(self) -> None:
        if self.unwritten:
            peers, self.unwritten = self.unwritten, {}
            for peer in peers:
                if not peer.ended:
                    stream = peer.stream
                    stream.flush()
                    if stream.blocked or peer.writes:
                        peer.watch_writing()
                    if stream.end is not None and not peer.is_ready:
                        self._put_in_line(peer)
                        self.has_more = True

    # ---- peers ---------------------------------------------------------------------------

    def admit(self, peer: Peer, descriptors_max: int = 0) -> None:
        assert isinstance(peer, StreamPeer)
        self.strangers.pop(peer, None)
        peer.stream.descriptors_max = descriptors_max if ANCILLARY_BYTES else 0
        peer.stream.descriptors.clear()

    def dismiss_strangers(self, now_ns: int, within_ns: int, strangers_max: int) -> int:
        dismissed = 0
        for peer, since_ns in list(self.strangers.items()):
            if not since_ns:
                self.strangers[peer] = since_ns = now_ns
            if now_ns - since_ns >= within_ns or len(self.strangers) > strangers_max:
                self.forget(peer)
                dismissed += 1
        return dismissed

    def forget(self, peer: StreamPeer) -> None:
        """Close a connection, whose end is not reported any more. Idempotent."""
        if peer.ended:
            return
        peer.ended = True
        self._peers.pop(peer, None)
        self.strangers.pop(peer, None)
        self.watch.remove(peer.fd)
        peer.stream.flush()
        peer.stream.close()

    def close(self) -> None:
        for peer in list(self._peers):
            self.forget(peer)
        if self._socket.fileno() >= 0:
            self.watch.remove(self._socket.fileno())
            self._socket.close()
            self._remove()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _remove(self) -> None:
        """The socket's file, unless another's lies there by now."""
        try:
            found = os.lstat(self._path)
            if stat.S_ISSOCK(found.st_mode) and found.st_ino == self._inode:
                os.unlink(self._path)
        except OSError:
            pass  # it is gone already
