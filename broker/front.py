"""The clients' side of the broker: connections, greetings, their messages, and the replies.

Owns the clients' ROUTER from the first message on (loop.py polls and reads it). What does not
decode, comes from an unknown connection, or points nowhere is counted, answered, and dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from ..transport import codec
from ..transport import messages as m
from ..transport.digests import CONTENT_BYTES_MAX, digest
from ..transport.endpoints import Endpoint
from ..transport.errors import (
    BatchyardError,
    Code,
    InvalidRequest,
    MalformedMessage,
    WrongVersion,
)
from ..transport.segments import Segment
from ..transport.sockets import MORE_NOBLOCK, NOBLOCK, Socket
from ..transport.tensors import Tensor, nbytes_of
from . import events as e
from .arenas import Arenas
from .core import Core
from .descriptors import hang_up
from .inline import InlineTensors
from .peers import credentials

FRAMES_MAX = 4096  # parts of one message; a part bomb is read away and refused
HASHED_BYTES_MAX = 4 << 20  # of contents, in one turn: some 4 ms; what comes then is run by itself
READ_BYTES = 1024  # what reading a tensor costs beside its bytes, as bytes
GREET_WITHIN_NS = 10_000_000_000  # a connection that has not greeted by then is closed

log = logging.getLogger("batchyard.broker")


class Client:
    """A greeted client connection. `inline`: it has no arena, its tensors travel as frames."""

    __slots__ = ("arena", "conn", "fd", "identity", "inline")

    def __init__(self, identity: bytes, fd: int, conn: int, arena: int, inline: bool) -> None:
        self.identity = identity
        self.fd = fd
        self.conn = conn
        self.arena = arena
        self.inline = inline


class Front:
    """`act` carries out what the core wants; `settle_endings` reads the reports of ended connections;
    no client's descriptor has a number of `descriptors_max` or more."""

    def __init__(
        self,
        socket: Socket,
        endpoint: Endpoint,
        core: Core,
        arenas: Arenas,
        clients_max: int,
        act: Callable[[list[e.Action]], None],
        settle_endings: Callable[[], None],
        descriptors_max: int = sys.maxsize,
    ) -> None:
        self.known: dict[bytes, Client] = {}
        self.inline = InlineTensors(self._register_own)
        self._socket = socket
        self._endpoint = endpoint
        self._core = core
        self._arenas = arenas
        self._clients_max = clients_max
        self._descriptors_max = descriptors_max
        self._open: set[int] = set()  # descriptors of connections that have not ended
        self._ungreeted: dict[int, int] = {}  # descriptor -> when it was accepted, in that order
        self._act = act
        self._settle_endings = settle_endings
        self._by_conn: dict[int, Client] = {}
        self._conn_sequence = 0
        self._outbox: dict[bytes, list[Any]] = {}
        self._hashed_bytes = 0  # in this turn

    # ---- what clients say ---------------------------------------------------------------------

    def receive(self, identity: bytes, payload: bytes, frames: list[Any], fd: int, now_ns: int) -> None:
        """Handle one message. `fd` is the descriptor it came by, when the connection is unknown."""
        try:
            if len(frames) > FRAMES_MAX:
                raise MalformedMessage(f"a message has at most {FRAMES_MAX} frames")
            messages = codec.client_to_broker.decode(payload)
        except BatchyardError as error:
            self._refuse(identity, "version" if isinstance(error, WrongVersion) else "malformed", error)
            return
        client = self.known.get(identity)
        for message in messages:
            if client is not None and identity not in self.known:
                return  # dropped while its own envelope was handled: it does not read, or is gone
            if isinstance(message, m.Submit) and client is not None:
                self._submit(client, message, frames, now_ns)
            elif isinstance(message, m.Hello):
                client = self._greet(identity, message, fd, client, now_ns)
                if client is None:
                    return
            elif client is None:
                text = "this broker has not been greeted on this connection (was it restarted?)"
                self._refuse(identity, "unknown_connection", _coded(Code.UNKNOWN_CONNECTION, text))
                return
            elif isinstance(message, m.Cancel):
                self._act(self._core.handle(e.CancelAsked(client.conn, message), now_ns))
            elif isinstance(message, m.Describe):
                self._act(self._core.handle(e.DescribeAsked(client.conn, message), now_ns))
            else:
                self.gone(client, now_ns)
                return

    def _submit(self, client: Client, message: m.Submit, frames: Sequence[Any], now_ns: int) -> None:
        if client.inline:
            try:
                self.inline.lay(client.conn, message, frames, self._core.models.get(message.model))
            except BatchyardError as error:
                self._outbox.setdefault(client.identity, []).append(self._core.refused(message, error))
                return
        model = self._core.models.get(message.model)
        digest = b""
        if model is not None and model.identical.wants_digest and self._hashed_bytes < HASHED_BYTES_MAX:
            digest = self.digest(client.arena, message.inputs)
        self._act(self._core.handle(e.Submitted(client.conn, client.arena, message, digest), now_ns))

    def digest(self, arena: int, inputs: Sequence[Tensor]) -> bytes:
        """Of a request's content as it is now; b"" where it is too large, or not where it should be."""
        parts = []
        room = CONTENT_BYTES_MAX
        for tensor in inputs:
            try:
                nbytes = nbytes_of(tensor.dtype, tensor.shape)
            except InvalidRequest:  # the core will say so
                return b""
            room -= nbytes
            self._hashed_bytes += READ_BYTES + (nbytes if room >= 0 else 0)
            part = self._arenas.read(arena, tensor.offset, nbytes) if room >= 0 else None
            if part is None:
                return b""
            parts.append(part)
        return digest(parts)

    def _greet(
        self, identity: bytes, message: m.Hello, fd: int, client: Client | None, now_ns: int
    ) -> Client | None:
        try:
            if client is not None:
                raise _coded(Code.INVALID_REQUEST, "this connection has been greeted already")
            if len(identity) != 5 or identity[0]:
                # ROUTER's own identities are a zero byte and 32 bits; a peer that chose its own
                # could sit where another has just left.
                raise _coded(Code.UNAUTHORIZED, "a connection does not choose its own routing id")
            # The descriptor may be one that a former connection had: its end is reported before
            # the number is free again, so the report is read now, or it would end this connection.
            self._settle_endings()
            if fd >= 0 and fd not in self._open:
                # It ended before its greeting was read: nothing would ever tell of this client's end.
                self._core.counters.refuse("gone")
                return client
            if len(self.known) >= self._clients_max:
                raise _coded(Code.OVERLOADED, f"the yard has {self._clients_max} clients (clients_max)")
            if fd >= self._descriptors_max:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            arena = self._open_arena(message, fd, now_ns)
        except BatchyardError as error:
            self._refuse(identity, "hello", error)
            return client
        except OSError as error:  # out of descriptors or memory: the next one may have more luck
            text = f"no room for this client: {error.strerror}"
            self._refuse(identity, "hello", _coded(Code.OVERLOADED, text))
            return client
        self._ungreeted.pop(fd, None)
        self._conn_sequence += 1
        client = Client(identity, fd, self._conn_sequence, arena, message.segment is None)
        self.known[identity] = self._by_conn[client.conn] = client
        self._core.handle(e.ClientJoined(client.conn, arena), now_ns)
        self._outbox.setdefault(identity, []).append(m.Welcome(self._core.epoch, m.INLINE_BYTES_MAX))
        log.debug("client %d joined: %s", client.conn, message.client)
        return client

    def _open_arena(self, message: m.Hello, fd: int, now_ns: int) -> int:
        if message.segment is None:
            return self.inline.arena
        if not self._endpoint.is_loopback:
            raise _coded(Code.UNAUTHORIZED, "shared memory is for clients on this machine; send frames")
        pid, uid = credentials(fd) or (0, None)
        number, is_new = self._arenas.open(message.segment, pid, uid)
        if is_new:
            self._core.handle(e.ArenaOpened(number, message.segment.nbytes), now_ns)
        return number

    def _register_own(self, segment: Segment) -> int:
        number = self._arenas.add_own(segment)
        self._core.handle(e.ArenaOpened(number, segment.nbytes, pinned=True), 0)
        return number

    def _refuse(self, identity: bytes, reason: str, error: BatchyardError) -> None:
        """Answer a message that could not be taken. Several in one turn get one answer."""
        self._core.counters.refuse(reason)
        queue = self._outbox.setdefault(identity, [])
        if not queue or type(queue[-1]) is not m.Refused:
            queue.append(m.Refused(error.code, str(error)))

    # ---- connections that begin and end -------------------------------------------------------

    def accepted(self, fd: int, now_ns: int) -> None:
        """The kernel reports a new connection on this descriptor."""
        self._open.add(fd)
        self._ungreeted[fd] = now_ns

    def hang_up(self, now_ns: int) -> None:
        """End connections that do not greet: what is too old, and the oldest of what is too many."""
        while self._ungreeted:
            fd, accepted_ns = next(iter(self._ungreeted.items()))
            if now_ns - accepted_ns < GREET_WITHIN_NS and len(self._ungreeted) < self._descriptors_max // 4:
                return
            del self._ungreeted[fd]
            self._core.counters.refuse("never_greeted")
            hang_up(fd)

    def gone(self, client: Client, now_ns: int) -> None:
        """The connection is over. Idempotent."""
        if self.known.pop(client.identity, None) is None:
            return
        self._outbox.pop(client.identity, None)
        self._act(self._core.handle(e.ClientGone(client.conn), now_ns))
        self._forget(client)
        log.debug("client %d left", client.conn)

    def _forget(self, client: Client) -> None:
        """Replies to a connection that is gone still free the slots that were laid out for it."""
        if client.identity not in self.known and not self.inline.holds(client.conn):
            self._by_conn.pop(client.conn, None)

    def ended(self, fd: int, now_ns: int) -> None:
        """The kernel reports that the connection on this descriptor is closed."""
        self._open.discard(fd)
        self._ungreeted.pop(fd, None)
        for client in [client for client in self.known.values() if client.fd == fd]:
            self.gone(client, now_ns)

    # ---- what clients are told ----------------------------------------------------------------

    def reply(self, action: e.ToClient) -> None:
        """Queue a reply, or send it when frames go with it."""
        client = self._by_conn.get(action.conn)
        if client is None:
            return
        if client.inline:
            self._reply_inline(client, action)
        elif client.identity not in self.known:
            return  # dropped; half of what it is owed would be worse than its connection's end
        elif action.frames:
            self._send(client.identity, [action.message], action.frames)
        else:
            self._outbox.setdefault(client.identity, []).append(action.message)

    def _reply_inline(self, client: Client, action: e.ToClient) -> None:
        """The same reply for a connection without an arena: tensors become frames, slots are freed."""
        message = action.message
        conn = client.conn
        if isinstance(message, m.Completed):
            for number, queue_ns in zip(message.requests, message.queue_ns, strict=True):
                answer, frames = self.inline.answer(conn, number, queue_ns, message.batch)
                self._send(client.identity, [answer], frames)
            self._forget(client)  # if it was dropped on the way
            return
        if isinstance(message, m.Answer) or (isinstance(message, m.Failed) and not message.held):
            self.inline.release(conn, message.request)
        elif isinstance(message, m.Released):
            for number in message.requests:
                self.inline.release(conn, number)
        if client.identity in self.known:
            self._send(client.identity, [message], action.frames)
        else:
            self._forget(client)

    def flush(self) -> None:
        """Send what has gathered: one message to each client. A turn is over."""
        self._hashed_bytes = 0
        if self._outbox:
            waiting, self._outbox = self._outbox, {}
            for identity, messages in waiting.items():
                self._send(identity, messages)

    def _send(self, identity: bytes, messages: Sequence[Any], frames: Sequence[Any] = ()) -> None:
        """Send without waiting. A client that is gone, or that does not read, is dropped."""
        socket = self._socket
        payloads = codec.payloads(messages)  # before anything is sent: half a message can't be taken back
        try:
            for payload in payloads:
                socket.send(identity, MORE_NOBLOCK)
                if frames:  # they belong to the only message there is
                    socket.send_multipart([payload, *frames], NOBLOCK)
                else:
                    socket.send(payload, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._core.counters.refuse("unreachable" if error.errno == zmq.EHOSTUNREACH else "not_reading")
            client = self.known.get(identity)
            if client is not None:
                self.gone(client, 0)


def _coded(code: Code, text: str) -> BatchyardError:
    error = BatchyardError(text)
    error.code = code  # type: ignore[misc]
    return error
