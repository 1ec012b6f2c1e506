"""The only file of the broker with sockets and a clock: reads, asks the core, carries out its answer.

A turn: drain workers first, then clients, at most DRAIN_MAX messages each; tell the core that the
turn is over; send what it wants, workers first; sleep until the next message or deadline. Nothing
here decides who runs when. Peers' bytes are never trusted: what does not decode, comes from an
unknown connection, or points nowhere is counted, answered and dropped.

Waking up is the largest cost of a small request, so for `spin_ns` after the last message the loop
polls instead of sleeping, giving way to whoever wants the processor (measured on 2 cores: a relayed
round trip 41 us with it, 48 us without; zmq.proxy 40 us).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..transport import codec
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, Code, MalformedMessage, Overloaded, WrongVersion
from ..transport.keys import KeyFolder, start_zap
from ..transport.sockets import MORE_NOBLOCK, NOBLOCK, POLLIN, Socket, configure, has_more, readable
from . import events as e
from .arenas import Arenas
from .core import Core
from .inline import INLINE_BYTES_MAX, InlineTensors
from .peers import Sentinels, credentials

DRAIN_MAX = 64  # messages from one socket in one turn
FRAMES_MAX = 4096  # parts of one message; a part bomb is read away and refused
QUEUE_MAX = 10_000  # messages to a peer that does not read; then it counts as gone
SLOW_CHECK_NS = 5_000_000  # how often a busy loop looks at connections, deaths and the admin socket
TURN = e.Turn()

log = logging.getLogger("batchyard.broker")


class Client:
    """A greeted client connection."""

    __slots__ = ("arena", "conn", "fd", "identity", "inline")

    def __init__(self, identity: bytes, fd: int, conn: int, arena: int, inline: bool) -> None:
        self.identity = identity
        self.fd = fd
        self.conn = conn
        self.arena = arena
        self.inline = inline


class WorkerPeer:
    """A registered worker's connection, and the arenas that it has been told of."""

    __slots__ = ("attached", "fd", "identity", "worker")

    def __init__(self, identity: bytes, fd: int, worker: int) -> None:
        self.identity = identity
        self.fd = fd
        self.worker = worker
        self.attached: set[int] = set()


class Loop:
    """Binds the endpoint's three sockets and serves until `stop()` or an exception from a signal."""

    def __init__(
        self, endpoint: Endpoint, core: Core, limits_clients: int, spin_ns: int, keys: KeyFolder | None
    ):
        self._endpoint = endpoint
        self._core = core
        self._clients_max = limits_clients
        self._spin_ns = spin_ns
        self._context: zmq.Context[Socket] = zmq.Context()
        self._zap = start_zap(self._context, keys) if keys is not None else None
        self._keys = keys
        self._poller = zmq.Poller()
        self._frontend = self._bind(endpoint.clients)
        self._backend = self._bind(endpoint.workers)
        self._admin = self._bind(endpoint.admin)
        self._frontend_monitor = self._monitor(self._frontend)
        self._backend_monitor = self._monitor(self._backend)
        self._sentinels = Sentinels()
        if self._sentinels.fd is not None:
            self._poller.register(self._sentinels.fd, zmq.POLLIN)
        self._arenas = Arenas()
        self._inline = InlineTensors(self._register_own)
        self._clients: dict[bytes, Client] = {}
        self._by_conn: dict[int, Client] = {}
        self._conn_sequence = 0
        self._workers: dict[bytes, WorkerPeer] = {}
        self._by_worker: dict[int, WorkerPeer] = {}
        self._worker_sequence = 0
        self._to_clients: dict[bytes, list[Any]] = {}
        self._to_workers: dict[int, list[Any]] = {}
        self._stopping = False
        self._slow_due_ns = 0
        self._unsent = False  # something was put into a queue outside of a turn

    # ---- running ----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Returns after `stop()`."""
        clock = time.monotonic_ns
        spin_ns = self._spin_ns
        give_way = getattr(os, "sched_yield", lambda: None)  # not on Windows
        core, frontend, backend = self._core, self._frontend, self._backend
        poll = zmq.zmq_poll
        both = [(backend, POLLIN), (frontend, POLLIN)]
        awake_until_ns = 0
        due_ns: int | None = None
        while not self._stopping:
            ready = poll(both, 0)
            if ready:
                for socket, _ in ready:
                    if socket is backend:
                        self._drain(backend, self._workers, self._from_worker)
                    else:
                        self._drain(frontend, self._clients, self._from_client)
            now_ns = clock()
            if now_ns >= self._slow_due_ns:
                self._look_around()
                self._slow_due_ns = now_ns + SLOW_CHECK_NS
            if ready or self._unsent or (due_ns is not None and due_ns <= now_ns):
                self._carry_out(core.handle(TURN, now_ns))
                self._flush()
                self._unsent = False
                core.tally()
                due_ns = core.next_deadline_ns()
                awake_until_ns = now_ns + spin_ns
            elif now_ns < awake_until_ns:
                give_way()
            else:
                self._poller.poll(None if due_ns is None else (due_ns - now_ns) // 1_000_000 + 1)
                self._slow_due_ns = 0

    def stop(self) -> None:
        """Make `run` return after its turn."""
        self._stopping = True

    def close(self) -> None:
        """Close every socket and arena. Workers and clients see the connection end."""
        self._sentinels.close()
        for watched in (self._frontend, self._backend):
            watched.disable_monitor()
        for socket in (
            self._frontend,
            self._backend,
            self._admin,
            self._frontend_monitor,
            self._backend_monitor,
        ):
            socket.close(linger=0)
        if self._zap is not None:
            self._zap.stop()
        self._context.term()
        self._arenas.close_all()

    # ---- sockets ----------------------------------------------------------------------------

    def _bind(self, address: str) -> Socket:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer is an error, not silence
        configure(socket, self._endpoint)
        socket.setsockopt(zmq.MAXMSGSIZE, INLINE_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
        if self._keys is not None:
            self._keys.apply_server(socket)
        socket.bind(address)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _monitor(self, socket: Socket) -> Socket:
        monitor: Socket = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller.register(monitor, zmq.POLLIN)
        return monitor

    def _drain(self, socket: Socket, known: dict[bytes, Any], handle: Any) -> None:
        """Read up to DRAIN_MAX messages: [identity, payload, frames...]."""
        for _ in range(DRAIN_MAX):
            identity = socket.recv()
            fd = -1
            if identity in known:
                payload: Any = socket.recv()
            else:  # a copy would not know the descriptor that it came by
                frame = socket.recv(copy=False)
                payload = frame.bytes
                fd = _source_fd(frame)
            frames: list[Any] = []
            while has_more(socket):
                frame = socket.recv(copy=False)
                if len(frames) <= FRAMES_MAX:  # one too many is kept, to be seen
                    frames.append(frame.buffer)
            handle(identity, payload, frames, fd)
            if not readable(socket):
                return

    # ---- clients ----------------------------------------------------------------------------

    def _from_client(self, identity: bytes, payload: bytes, frames: list[Any], fd: int) -> None:
        try:
            if len(frames) > FRAMES_MAX:
                raise MalformedMessage(f"a message has at most {FRAMES_MAX} frames")
            messages = codec.client_to_broker.decode(payload)
        except BatchyardError as error:
            self._refuse(identity, "version" if isinstance(error, WrongVersion) else "malformed", error)
            return
        client = self._clients.get(identity)
        now_ns = time.monotonic_ns()
        for message in messages:
            if isinstance(message, m.Submit) and client is not None:
                self._submit(client, message, frames, now_ns)
            elif isinstance(message, m.Hello):
                client = self._greet(identity, message, fd, client)
            elif client is None:
                text = "this broker has not been greeted on this connection (was it restarted?)"
                self._refuse(identity, "unknown_connection", _coded(Code.UNKNOWN_CONNECTION, text))
                return
            elif isinstance(message, m.Cancel):
                self._carry_out(self._core.handle(e.CancelAsked(client.conn, message), now_ns))
            elif isinstance(message, m.Describe):
                self._carry_out(self._core.handle(e.DescribeAsked(client.conn, message), now_ns))
            else:
                self._client_gone(client)
                return

    def _submit(self, client: Client, message: m.Submit, frames: Sequence[Any], now_ns: int) -> None:
        if client.inline:
            try:
                model = self._core.models.get(message.model)
                self._inline.lay(client.conn, message, frames, model)
            except BatchyardError as error:
                self._core.counters.refuse(error.code.name.lower())
                retry_ns = int(error.retry_after_s * 1e9) if isinstance(error, Overloaded) else 0
                failed = m.Failed(message.request, error.code, str(error), retry_ns)
                self._to_clients.setdefault(client.identity, []).append(failed)
                return
        self._carry_out(self._core.handle(e.Submitted(client.conn, client.arena, message), now_ns))

    def _greet(self, identity: bytes, message: m.Hello, fd: int, client: Client | None) -> Client | None:
        try:
            if client is not None:
                raise _coded(Code.INVALID_REQUEST, "this connection has been greeted already")
            if len(identity) != 5 or identity[0]:
                # ROUTER's own identities are a zero byte and 32 bits; a peer that chose its own
                # could sit where another has just left.
                raise _coded(Code.UNAUTHORIZED, "a connection does not choose its own routing id")
            if len(self._clients) >= self._clients_max:
                raise _coded(Code.OVERLOADED, f"the yard has {self._clients_max} clients (clients_max)")
            arena = self._open_arena(message, fd)
        except BatchyardError as error:
            self._refuse(identity, "hello", error)
            return client
        # The descriptor may be one that a former connection had: its end is reported before the
        # number is free again, so the report is read now, or it would end this connection.
        self._look_for_ended_clients()
        self._conn_sequence += 1
        client = Client(identity, fd, self._conn_sequence, arena, message.segment is None)
        self._clients[identity] = self._by_conn[client.conn] = client
        self._core.handle(e.ClientJoined(client.conn, arena), 0)
        welcome = m.Welcome(self._core.epoch, INLINE_BYTES_MAX)
        self._to_clients.setdefault(identity, []).append(welcome)
        log.debug("client %d joined: %s", client.conn, message.client)
        return client

    def _open_arena(self, message: m.Hello, fd: int) -> int:
        if message.segment is None:
            return self._inline.arena
        if not self._endpoint.is_loopback:
            raise _coded(Code.UNAUTHORIZED, "shared memory is for clients on this machine; send frames")
        pid, uid = credentials(fd) or (0, None)
        number, is_new = self._arenas.open(message.segment, pid, uid)
        if is_new:
            self._core.handle(e.ArenaOpened(number, message.segment.nbytes), 0)
        return number

    def _register_own(self, segment: Any) -> int:
        number = self._arenas.add_own(segment)
        self._core.handle(e.ArenaOpened(number, segment.nbytes, pinned=True), 0)
        return number

    def _client_gone(self, client: Client) -> None:
        if self._clients.pop(client.identity, None) is None:
            return
        self._to_clients.pop(client.identity, None)
        self._carry_out(self._core.handle(e.ClientGone(client.conn), time.monotonic_ns()))
        del self._by_conn[client.conn]
        log.debug("client %d left", client.conn)

    def _refuse(self, identity: bytes, reason: str, error: BatchyardError) -> None:
        """Answer a message that could not be taken. Several in one turn get one answer."""
        self._core.counters.refuse(reason)
        queue = self._to_clients.setdefault(identity, [])
        if not queue or type(queue[-1]) is not m.Refused:
            queue.append(m.Refused(error.code, str(error)))

    # ---- workers ----------------------------------------------------------------------------

    def _from_worker(self, identity: bytes, payload: bytes, frames: list[Any], fd: int) -> None:
        try:
            messages = codec.worker_to_broker.decode(payload)
        except BatchyardError as error:
            self._core.counters.refuse("worker_malformed")
            log.error("a worker's message was refused: %s", error)
            self._send(self._backend, identity, [m.Refused(error.code, str(error))])
            return
        peer = self._workers.get(identity)
        for message in messages:
            if isinstance(message, m.Register):
                self._register(identity, message, fd, peer)
            elif peer is None:
                text = "register first (was the broker restarted?)"
                self._core.counters.refuse("worker_unknown")
                self._send(self._backend, identity, [m.Refused(Code.UNKNOWN_CONNECTION, text)])
                return
            else:
                if isinstance(message, m.Loaded):
                    log.info("worker %d serves %s by %s", peer.worker, message.model, message.provider)
                elif isinstance(message, m.LoadFailed):
                    log.error("worker %d cannot serve %s: %s", peer.worker, message.model, message.text)
                event = e.WorkerSaid(peer.worker, message, frames)
                self._carry_out(self._core.handle(event, time.monotonic_ns()))

    def _register(self, identity: bytes, message: m.Register, fd: int, peer: WorkerPeer | None) -> None:
        if peer is not None:
            self._core.counters.refuse("worker_registered")
            return
        self._look_for_ended_workers()  # as in _greet
        found = credentials(fd)
        pid = found[0] if found else message.pid
        self._worker_sequence += 1
        peer = WorkerPeer(identity, fd, self._worker_sequence)
        self._workers[identity] = self._by_worker[peer.worker] = peer
        if self._endpoint.is_loopback:
            self._sentinels.watch(peer.worker, pid)
        log.info("worker %d joined: process %d", peer.worker, pid)
        self._carry_out(self._core.handle(e.WorkerJoined(peer.worker, pid), time.monotonic_ns()))

    def _worker_gone(self, worker: int) -> None:
        peer = self._by_worker.pop(worker, None)
        if peer is None:
            return
        del self._workers[peer.identity]
        self._to_workers.pop(worker, None)
        self._sentinels.forget(worker)
        log.warning("worker %d is gone", worker)
        self._carry_out(self._core.handle(e.WorkerGone(worker), time.monotonic_ns()))

    # ---- what is looked at now and then --------------------------------------------------------

    def _look_around(self) -> None:
        """Connections that ended, processes that died, and the admin socket."""
        for worker in self._sentinels.dead():
            self._worker_gone(worker)
        self._look_for_ended_clients()
        self._look_for_ended_workers()
        while readable(self._admin):
            identity, payload, *_ = self._admin.recv_multipart()
            self._answer_admin(identity, payload)

    def _look_for_ended_workers(self) -> None:
        for fd in self._disconnected(self._backend_monitor):
            for peer in [peer for peer in self._workers.values() if peer.fd == fd]:
                # Its process may live and still write: it must be dead before its batches run again.
                holds_batches = bool(self._core.workers[peer.worker].leases)
                if not (holds_batches and self._sentinels.kill(peer.worker)):
                    self._worker_gone(peer.worker)

    def _look_for_ended_clients(self) -> None:
        for fd in self._disconnected(self._frontend_monitor):
            for client in [client for client in self._clients.values() if client.fd == fd]:
                self._client_gone(client)

    @staticmethod
    def _disconnected(monitor: Socket) -> list[int]:
        descriptors = []
        while readable(monitor):
            descriptors.append(recv_monitor_message(monitor)["value"])
        return descriptors

    def _answer_admin(self, identity: bytes, payload: bytes) -> None:
        try:
            codec.admin_to_broker.decode(payload)
        except BatchyardError as error:
            self._core.counters.refuse("admin_malformed")
            self._send(self._admin, identity, [m.Refused(error.code, str(error))])
            return
        counters = self._core.counters.snapshot() | self._core.gauges() | self._arenas.snapshot()
        counters["inline_copied_bytes"] = self._inline.copied_bytes
        counters["inline_used_bytes"] = self._inline.used_bytes
        self._send(self._admin, identity, [m.SnapshotTaken(counters)])

    # ---- carrying out -------------------------------------------------------------------------

    def _carry_out(self, actions: list[e.Action]) -> None:
        if actions:
            self._unsent = True
        for action in actions:
            if isinstance(action, e.ToClient):
                self._reply(action)
            elif isinstance(action, e.ToWorker):
                peer = self._by_worker.get(action.worker)
                if peer is not None:
                    queue = self._to_workers.setdefault(peer.worker, [])
                    message = action.message
                    if isinstance(message, m.Batch):
                        for item in message.items:
                            if item.arena not in peer.attached:
                                peer.attached.add(item.arena)
                                queue.append(m.Attach(item.arena, self._arenas.handle(item.arena)))
                    queue.append(message)
            else:
                self._close_arena(action.arena)

    def _close_arena(self, arena: int) -> None:
        self._arenas.close(arena)
        for peer in self._workers.values():
            if arena in peer.attached:
                peer.attached.discard(arena)
                self._to_workers.setdefault(peer.worker, []).append(m.Detach(arena))

    def _reply(self, action: e.ToClient) -> None:
        client = self._by_conn.get(action.conn)
        if client is None:
            return
        message = action.message
        if client.inline:
            self._reply_inline(client, action)
        elif action.frames:
            self._send(self._frontend, client.identity, [message], action.frames)
        elif client.identity in self._clients:
            self._to_clients.setdefault(client.identity, []).append(message)

    def _reply_inline(self, client: Client, action: e.ToClient) -> None:
        """The same reply for a connection without an arena: tensors become frames, slots are freed."""
        message = action.message
        conn = client.conn
        if isinstance(message, m.Completed):
            for number, queue_ns in zip(message.requests, message.queue_ns, strict=True):
                answer, frames = self._inline.answer(conn, number, queue_ns, message.batch)
                self._send(self._frontend, client.identity, [answer], frames)
            return
        if isinstance(message, m.Answer) or (isinstance(message, m.Failed) and not message.held):
            self._inline.release(conn, message.request)
        elif isinstance(message, m.Released):
            for number in message.requests:
                self._inline.release(conn, number)
        self._send(self._frontend, client.identity, [message], action.frames)

    def _flush(self) -> None:
        """Send what has gathered: one message to each peer."""
        if self._to_workers:
            for worker, messages in self._to_workers.items():
                peer = self._by_worker.get(worker)
                if peer is not None:
                    self._send(self._backend, peer.identity, messages)
            self._to_workers.clear()
        if self._to_clients:
            waiting = self._to_clients
            self._to_clients = {}
            for identity, messages in waiting.items():
                self._send(self._frontend, identity, messages)

    def _send(
        self, socket: Socket, identity: bytes, messages: Sequence[Any], frames: Sequence[Any] = ()
    ) -> None:
        """Send without waiting. A client that is gone, or that does not read, is dropped."""
        try:
            socket.send(identity, MORE_NOBLOCK)
            if frames:
                socket.send_multipart([codec.encode(messages), *frames], NOBLOCK)
            else:
                socket.send(codec.encode(messages), NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._core.counters.refuse("unreachable" if error.errno == zmq.EHOSTUNREACH else "not_reading")
            client = self._clients.get(identity) if socket is self._frontend else None
            if client is not None:
                self._client_gone(client)


def _coded(code: Code, text: str) -> BatchyardError:
    error = BatchyardError(text)
    error.code = code  # type: ignore[misc]
    return error


def _source_fd(frame: Any) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, KeyError, TypeError):
        return -1
