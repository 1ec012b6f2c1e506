"""The clients' side of the broker: their bytes become events, the core's actions become their bytes.

Owns the connections of clients, their greetings, and the arenas that they offer. It knows no core: what a
client may do to a request is decided elsewhere. A message that does not decode, comes from a connection
that has not greeted, or names no memory of its own is counted, answered, and dropped here.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..transport import codec, lent
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import (
    BatchyardError,
    Code,
    MalformedMessage,
    WrongVersion,
)
from ..transport.segments import Segment
from ..transport.wire import Descriptor, Ended, Full, Listener, Peer
from . import events as e
from .arenas import Arenas
from .backlog import Backlog, Work
from .contents import READ_BYTES_MAX, Contents
from .counters import Counters
from .inline import InlineTensors
from .models import Model
from .requests import refusal

DRAIN_MAX = 64  # messages read in one round
DRAIN_BYTES_MAX = 1 << 20  # or so many bytes of payloads, whichever comes first
LONG_BYTES = 16 << 10  # a longer payload is decoded message by message; finding them costs a request's work
DECODED_BYTES = 256  # of such a message cost as much as a request
CANCELS_MAX = 16  # requests that are cancelled in one go
CANCELS_WORK = 11  # what so many cost
FRAMES_MAX = 4096  # parts of one message; a part bomb is read away and refused
GREET_WITHIN_NS = 10_000_000_000  # a connection that has not greeted by then is closed

log = logging.getLogger("batchyard.broker")


@dataclass(eq=False, slots=True)
class Client:
    """A greeted client connection. `inline`: it has no arena, its tensors travel as frames. `borrows`: frames
    may come to it as segments."""

    peer: Peer
    conn: int
    arena: int
    inline: bool
    borrows: bool = False


class Clients:
    """`models` say how requests are laid out and compared. No client's descriptor has a number of
    `descriptors_max` or more. `events`: those beside the messages; the loop takes them."""

    def __init__(
        self,
        listener: Listener,
        endpoint: Endpoint,
        arenas: Arenas,
        models: Mapping[str, Model],
        counters: Counters,
        epoch: int,
        clients_max: int,
        descriptors_max: int = sys.maxsize,
    ) -> None:
        self.listener = listener
        self.events: list[e.Event] = []
        self.known: dict[Peer, Client] = {}
        self.inline = InlineTensors(self._register_own)
        self._endpoint = endpoint
        self._arenas = arenas
        self._models = models
        self._counters = counters
        self._epoch = epoch
        self._clients_max = clients_max
        self._descriptors_max = descriptors_max
        self._by_conn: dict[int, Client] = {}
        self._conn_sequence = 0
        self.outbox: dict[Peer, list[Any]] = {}
        self.backlog = Backlog(listener, lambda peer, parts: self._receive(peer, parts[0], parts[1:]))
        self.contents = Contents(arenas)

    # ---- bytes to events ----------------------------------------------------------------------

    def read(self, now_ns: int) -> Iterator[e.Event]:
        """The events of about DRAIN_MAX messages that have arrived, and of earlier ones that wait. One after
        the other: handling one may end the connection of the next, or close the arena that it names."""
        backlog = self.backlog
        backlog.spent = 0
        if backlog:
            yield from backlog.catch_up()
            if backlog.is_full:
                return
        for peer, parts in self.listener.receive(DRAIN_MAX, DRAIN_BYTES_MAX):
            if self.events:  # a connection that ended: its arena may be the next one's
                yield from self._beside()
            if parts is None:
                backlog.drop(peer)
                self._ended(peer)
            elif not peer.ended:  # else it was closed over an earlier message of its own
                yield from backlog.run(peer, parts)

    def _beside(self) -> list[e.Event]:
        events, self.events = self.events, []
        return events

    def _receive(self, peer: Peer, payload: Any, frames: Sequence[Any]) -> Work:
        """One message; None: a request was refused, which is work as well."""
        try:
            if len(frames) > FRAMES_MAX:
                raise MalformedMessage(f"a message has at most {FRAMES_MAX} frames")
            if len(payload) <= LONG_BYTES:
                messages: Iterable[m.ClientMessage] = codec.client_to_broker.decode(payload)
            else:
                self.backlog.spent += len(payload) // LONG_BYTES
                messages = self._decoded(peer, codec.client_to_broker.split(payload))
        except BatchyardError as error:
            self._refuse(peer, "version" if isinstance(error, WrongVersion) else "malformed", error)
            return
        client = self.known.get(peer)
        backlog = self.backlog
        for message in messages:
            if client is not None and peer not in self.known:
                return  # dropped while its own envelope was handled: it does not read, or is gone
            if isinstance(message, m.Submit) and client is not None:
                if message.more is None:
                    backlog.spent += 1
                    yield self._submit(client, message, frames)
                elif client.inline or not message.more.fits(message.width):
                    text = "columns of different lengths, or of requests that have no places in an arena"
                    self._refuse(peer, "malformed", MalformedMessage(text))
                    return
                else:
                    backlog.spent += 1 + len(message.more.requests)
                    yield from self._submit_together(client, message)
            elif isinstance(message, m.Hello):
                known, client = client, self._greet(peer, message, client)
                if client is None:
                    return
                if client is not known:
                    yield from self._beside()  # its arena, if that is new
                    yield e.ClientJoined(client.conn, client.arena)
            elif client is None:
                text = "this broker has not been greeted on this connection (was it restarted?)"
                self._refuse(peer, "unknown_connection", _coded(Code.UNKNOWN_CONNECTION, text))
                return
            elif isinstance(message, m.Cancel):
                for first in range(0, len(message.requests), CANCELS_MAX):
                    numbers = message.requests[first : first + CANCELS_MAX]
                    backlog.spent += 1 + len(numbers) * (CANCELS_WORK - 1) // CANCELS_MAX
                    yield e.CancelAsked(client.conn, m.Cancel(numbers))
            elif isinstance(message, m.Describe):
                backlog.spent += 1 if message.model else len(self._models)
                yield e.DescribeAsked(client.conn, message)
            else:
                self._drop(client)
                return

    def _decoded(self, peer: Peer, messages: Sequence[msgspec.Raw]) -> Iterator[m.ClientMessage]:
        """The messages of a long envelope, up to the first malformed one."""
        for message in messages:
            self.backlog.spent += len(memoryview(message)) // DECODED_BYTES
            try:
                yield codec.client_to_broker.decode_one(message)
            except MalformedMessage as error:
                self._refuse(peer, "malformed", error)
                return

    def _submit(self, client: Client, message: m.Submit, frames: Sequence[Any]) -> e.Submitted | None:
        model = self._models.get(message.model)
        if client.inline:
            try:
                self.inline.lay(client.conn, message, frames, model)
            except BatchyardError as error:
                name = message.model if model is not None else ""
                self._counters.turned_away(name, message.priority, error)
                self.outbox.setdefault(client.peer, []).append(refusal(message, error))
                return None
        digest = shared = b""
        if model is not None:
            if model.sharing.wants_digest and self.contents.read_bytes < READ_BYTES_MAX:
                digest = self.contents.digest(client.arena, message.inputs)
            if model.shared_inputs:
                shared = self.contents.shared(client.arena, model, message)
        return e.Submitted(client.conn, client.arena, message, digest, shared)

    def _submit_together(self, client: Client, message: m.Submit) -> Iterator[e.Submitted]:
        """Requests that are like one another: one event, unless what they contain has to be looked at."""
        model = self._models.get(message.model)
        if model is None or not (model.sharing.wants_digest or model.shared_inputs):
            yield e.Submitted(client.conn, client.arena, message)
            return
        if not model.sharing.wants_digest and self.contents.are_shared(client.arena, model, message):
            shared = self.contents.shared(client.arena, model, message)
            yield e.Submitted(client.conn, client.arena, message, b"", shared)
            return
        for each in message.apart():
            event = self._submit(client, each, ())
            if event is not None:
                yield event

    def read_content(self, action: e.Quarantine) -> None:
        """Report the digest of a content, if it still exists."""
        content = self.contents.digest(action.arena, action.inputs)
        if content:
            self.events.append(e.Quarantined(action.model, action.inputs, content))

    # ---- greetings ----------------------------------------------------------------------------

    def _greet(self, peer: Peer, message: m.Hello, client: Client | None) -> Client | None:
        try:
            if client is not None:
                raise _coded(Code.INVALID_REQUEST, "this connection has been greeted already")
            if peer.chose_identity:
                # Over libzmq it could sit where another has just left.
                raise _coded(Code.UNAUTHORIZED, "a connection does not choose its own routing id")
            if len(self.known) >= self._clients_max:
                raise _coded(Code.OVERLOADED, f"the yard has {self._clients_max} clients (clients_max)")
            if peer.fd >= self._descriptors_max:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            arena = self._open_arena(message, peer)
        except BatchyardError as error:
            self._refuse(peer, "hello", error)
            return client
        except OSError as error:  # out of descriptors or memory: the next one may have more luck
            text = f"no room for this client: {error.strerror}"
            self._refuse(peer, "hello", _coded(Code.OVERLOADED, text))
            return client
        self.listener.admit(peer)
        self._conn_sequence += 1
        client = Client(peer, self._conn_sequence, arena, message.segment is None, message.borrows)
        self.known[peer] = self._by_conn[client.conn] = client
        self.outbox.setdefault(peer, []).append(m.Welcome(self._epoch, m.INLINE_BYTES_MAX))
        log.debug("client %d joined: %s", client.conn, message.client)
        return client

    def _open_arena(self, message: m.Hello, peer: Peer) -> int:
        if message.segment is None:
            return self.inline.arena
        if not self._endpoint.is_loopback:
            text = 'shared memory is for clients on this machine; use segment="frames"'
            raise _coded(Code.UNAUTHORIZED, text)
        pid, uid = peer.credentials or (0, None)
        came = peer.take_descriptor()
        descriptor = came.detach() if came is not None else None
        number, is_new = self._arenas.open(message.segment, pid, uid, descriptor)
        if is_new:
            self.events.append(e.ArenaOpened(number, message.segment.nbytes))
        return number

    def _register_own(self, segment: Segment) -> int:
        number = self._arenas.add_own(segment)
        self.events.append(e.ArenaOpened(number, segment.nbytes, pinned=True))
        return number

    def _refuse(self, peer: Peer, reason: str, error: BatchyardError) -> None:
        """Answer a message that could not be taken. Several in one turn get one answer."""
        self._counters.refuse(reason)
        queue = self.outbox.setdefault(peer, [])
        if not queue or type(queue[-1]) is not m.Refused:
            queue.append(m.Refused(error.code, str(error)))

    # ---- connections that begin and end -------------------------------------------------------

    def look_around(self, now_ns: int) -> None:
        """End connections that do not greet: those that are too old, and the oldest of too many."""
        strangers_max = max(1, self._descriptors_max // 4)
        for _ in range(self.listener.dismiss_strangers(now_ns, GREET_WITHIN_NS, strangers_max)):
            self._counters.refuse("never_greeted")

    def _drop(self, client: Client) -> None:
        """The connection is over. Idempotent."""
        peer = client.peer
        if self.known.pop(peer, None) is None:
            return
        self.outbox.pop(peer, None)
        self.backlog.drop(peer)
        peer.close()
        self.events.append(e.ClientGone(client.conn))
        self._forget(client)
        log.debug("client %d left", client.conn)

    def _forget(self, client: Client) -> None:
        """Nothing more is to be written to it: replies to a connection that is gone still free the slots that
        were laid out for it."""
        if client.peer not in self.known and not self.inline.holds(client.conn):
            self._by_conn.pop(client.conn, None)

    def _ended(self, peer: Peer) -> None:
        """The connection has ended, behind its last message."""
        if peer.violation:
            self._counters.refuse("not_zmtp")
            log.debug("a connection was closed: %s", peer.violation)
        client = self.known.get(peer)
        if client is not None:
            self._drop(client)

    # ---- actions to bytes ---------------------------------------------------------------------

    def write(self, action: e.ToClient) -> None:
        """Queue a reply, or send it when frames go with it."""
        client = self._by_conn.get(action.conn)
        if client is None:
            return
        if client.inline:
            self._reply_inline(client, action)
        elif client.peer not in self.known:
            return  # dropped; half of its results would be worse than its connection's end
        elif action.frames:
            self._send_frames(client, action)
        else:
            self.outbox.setdefault(client.peer, []).append(action.message)

    def _reply_inline(self, client: Client, action: e.ToClient) -> None:
        """The same reply for a connection without an arena: tensors become frames, slots are freed."""
        message = action.message
        conn = client.conn
        if isinstance(message, m.Completed):
            for number, queue_ns in zip(message.requests, message.queue_ns, strict=True):
                answer, frames = self.inline.answer(conn, number, queue_ns, message.batch)
                self._send(client.peer, [answer], frames)
            self._forget(client)  # if it was dropped on the way
            return
        if action.is_of_question:
            pass  # it has no slots, and another client's request must not get those of its namesake
        elif isinstance(message, m.Answer) or (isinstance(message, m.Failed) and not message.held):
            self.inline.release(conn, message.request)
        elif isinstance(message, m.Released):
            for number in message.requests:
                self.inline.release(conn, number)
        if client.peer in self.known:
            self._send_frames(client, action)
        else:
            self._forget(client)

    def _send_frames(self, client: Client, action: e.ToClient) -> None:
        """Send a message with frames. Those that a worker has lent go on to a client that can map them; to
        another one they go as bytes."""
        message = action.message
        try:
            if not client.borrows or not any(type(frame) is lent.LentFrame for frame in action.frames):
                self._send(client.peer, [message], lent.plain(action.frames))
                return
            frames, segments, along, nbytes = lent.parted(action.frames)
        except OSError as error:
            text = f"no memory to send the answer: {error.strerror}"
            self._send(client.peer, [m.Failed(message.request, Code.OVERLOADED, text)])
            return
        message.lent = segments
        self._send(client.peer, [message], frames, along, nbytes)

    def flush(self) -> None:
        """Send the outbox: one message to each client."""
        if self.outbox:
            waiting, self.outbox = self.outbox, {}
            for peer, messages in waiting.items():
                self._send(peer, messages)
        self.listener.flush()

    def _send(
        self,
        peer: Peer,
        messages: Sequence[Any],
        frames: Sequence[Any] = (),
        along: Sequence[Descriptor] = (),
        along_bytes: int = 0,
    ) -> None:
        """Send without waiting. A client that is gone, or that does not read, is dropped."""
        try:
            if along:
                peer.send([codec.encode(messages), *frames], along, along_bytes)
                return
            for payload in codec.payloads(messages):
                peer.send([payload, *frames])  # frames belong to the only message there is
        except (Ended, Full) as error:
            self._counters.refuse("unreachable" if isinstance(error, Ended) else "not_reading")
            client = self.known.get(peer)
            if client is not None:
                self._drop(client)


def _coded(code: Code, text: str) -> BatchyardError:
    error = BatchyardError(text)
    error.code = code  # type: ignore[misc]
    return error
