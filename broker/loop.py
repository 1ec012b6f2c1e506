"""The broker's loop: the clock, the sockets, and the order of things; it decides nothing else.

A turn: read from workers first, then from clients, at most DRAIN_MAX messages each; tell the core
that the turn is over; send what it wants, workers first; sleep until the next message or deadline.

Waking up is the largest cost of a small request, so for `spin_ns` after the last message the loop
polls instead of sleeping, giving way to whoever wants the processor (measured on 2 cores: a relayed
round trip 41 us with it, 48 us without; zmq.proxy 40 us).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from socket import socketpair
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..transport import codec
from ..transport import messages as m
from ..transport.deadlines import sleep_ms
from ..transport.endpoints import Endpoint
from ..transport.errors import EndpointInUse
from ..transport.keys import KeyFolder, start_zap
from ..transport.sockets import POLLIN, Socket, configure, has_more, readable
from . import events as e
from .admin import Admin
from .arenas import Arenas
from .back import Back
from .config import YardConfig
from .core import Core
from .descriptors import raise_limit
from .front import FRAMES_MAX, Front

DRAIN_MAX = 64  # messages from one socket in one turn
DRAIN_BYTES_MAX = 1 << 20  # or so many bytes of payloads, whichever comes first
QUEUE_MAX = 1_000  # messages to a peer that does not read; then it counts as gone
SLOW_CHECK_NS = 5_000_000  # how often a busy loop looks at connections, deaths and the admin socket
TURN = e.Turn()


class Loop:
    """Binds the endpoint's three sockets and serves until `stop()`, or an exception.

    `wake_fd`: a byte written to it, as `signal.set_wakeup_fd` does, ends the loop's sleep.
    """

    def __init__(self, endpoint: Endpoint, core: Core, config: YardConfig, keys: KeyFolder | None) -> None:
        self._endpoint = endpoint
        self._core = core
        self._spin_ns = config.spin_ns
        self._version = metadata.version("batchyard")
        self._context: zmq.Context[Socket] = zmq.Context()
        self._zap = start_zap(self._context, keys) if keys is not None else None
        self._keys = keys
        self._poller = zmq.Poller()
        self._woken, self._wake = socketpair()
        self._wake.setblocking(False)
        self._poller.register(self._woken.fileno(), zmq.POLLIN)
        self.wake_fd = self._wake.fileno()
        descriptors_max = raise_limit()
        self._frontend, self._backend = self._socket(), self._socket()
        self._admin_socket = self._socket(codec.PAYLOAD_BYTES_MAX)  # no frames there
        # Before they listen: a connection that nobody reported would count as one that has ended.
        self._frontend_monitor = self._monitor(self._frontend)
        self._backend_monitor = self._monitor(self._backend)
        self._bind(self._frontend, endpoint.clients)
        self._bind(self._backend, endpoint.workers)
        self._bind(self._admin_socket, endpoint.admin)
        self._arenas = Arenas(descriptors_max)
        self._front = Front(
            self._frontend,
            endpoint,
            core,
            self._arenas,
            config.limits.clients_max,
            self._act,
            self._settle_clients,
            descriptors_max,
        )
        self._back = Back(self._backend, endpoint, core, self._arenas, self._act, self._settle_workers)
        self._admin = Admin(self._admin_socket, core, config, self._act, self._snapshot)
        if self._back.sentinels.fd is not None:
            self._poller.register(self._back.sentinels.fd, zmq.POLLIN)
        self._stopping = False
        self._slow_due_ns = 0
        self._acted = False  # there may be something to lend or to send: a turn is due

    # ---- running ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Returns after `stop()`."""
        clock = time.monotonic_ns
        give_way = getattr(os, "sched_yield", lambda: None)  # not on Windows
        core, front, back = self._core, self._front, self._back
        poll = zmq.zmq_poll
        both = [(self._backend, POLLIN), (self._frontend, POLLIN)]
        awake_until_ns = 0
        due_ns: int | None = None
        while not self._stopping:
            ready = poll(both, 0)
            for socket, _ in ready:
                if socket is self._backend:
                    self._drain(socket, back.known, back.receive)
                else:
                    self._drain(socket, front.known, front.receive)
            now_ns = clock()
            if now_ns >= self._slow_due_ns:
                self._look_around(now_ns)
                self._slow_due_ns = now_ns + SLOW_CHECK_NS
            if ready or self._acted or (due_ns is not None and due_ns <= now_ns):
                self._act(core.handle(TURN, now_ns))
                self._acted = False  # before sending: who can't be reached is dropped, and that is acted on
                back.flush()
                front.flush()
                core.tally()
                due_ns = core.next_deadline_ns()
                awake_until_ns = now_ns + self._spin_ns
            elif now_ns < awake_until_ns:
                give_way()
            else:
                self._poller.poll(sleep_ms(due_ns, now_ns))
                self._slow_due_ns = 0

    def stop(self) -> None:
        """Make `run` return after its turn; for a signal's handler."""
        self._stopping = True

    def close(self) -> None:
        """Close every socket and arena. Workers and clients see the connection end."""
        self._back.sentinels.close()
        for watched in (self._frontend, self._backend):
            watched.disable_monitor()
        monitors = (self._frontend_monitor, self._backend_monitor)
        for socket in (self._frontend, self._backend, self._admin_socket, *monitors):
            socket.close(linger=0)
        if self._zap is not None:
            self._zap.stop()
        self._context.term()
        self._woken.close()
        self._wake.close()
        self._arenas.close_all()

    # ---- sockets ------------------------------------------------------------------------------

    def _socket(self, frame_bytes_max: int = m.INLINE_BYTES_MAX) -> Socket:
        socket = self._context.socket(zmq.ROUTER)
        configure(socket, self._endpoint)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an unknown peer is an error, not silence
        socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
        if self._keys is not None:
            self._keys.apply_server(socket)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    @staticmethod
    def _bind(socket: Socket, address: str) -> None:
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise EndpointInUse(
                    f"{address} is in use by another process: stop it, or choose another --url"
                ) from None
            raise

    def _monitor(self, socket: Socket) -> Socket:
        monitor: Socket = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._poller.register(monitor, zmq.POLLIN)
        return monitor

    @staticmethod
    def _drain(socket: Any, known: Mapping[bytes, Any], receive: Callable[..., None]) -> None:
        """Read up to DRAIN_MAX messages: [identity, payload, frames...]."""
        clock = time.monotonic_ns
        nbytes = 0
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
            receive(identity, payload, frames, fd, clock())
            nbytes += len(payload)
            if nbytes > DRAIN_BYTES_MAX or not readable(socket):
                return

    # ---- what is looked at now and then -------------------------------------------------------

    def _look_around(self, now_ns: int) -> None:
        """Processes that died, connections that ended, and the admin socket."""
        self._back.bury(now_ns)
        self._settle_workers()
        self._settle_clients()
        self._front.hang_up(now_ns)
        self._admin.look(now_ns)

    def _settle_clients(self) -> None:
        for event, fd in _reports(self._frontend_monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._front.accepted(fd, time.monotonic_ns())
            else:
                self._front.ended(fd, time.monotonic_ns())

    def _settle_workers(self) -> None:
        for event, fd in _reports(self._backend_monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._back.accepted(fd)
            else:
                self._back.ended(fd, time.monotonic_ns())

    def _snapshot(self) -> dict[str, Any]:
        rooms = self._core.snapshot() | self._arenas.snapshot() | self._front.inline.snapshot()
        return rooms | {"version": self._version}

    # ---- carrying out -------------------------------------------------------------------------

    def _act(self, actions: list[e.Action]) -> None:
        """Hand the core's wishes to the side that they are for; they are sent when the turn ends."""
        self._acted = True  # even where nothing is to be sent: a lost worker's requests are to be lent
        for action in actions:
            if isinstance(action, e.ToClient):
                self._front.reply(action)
            elif isinstance(action, e.ToWorker):
                self._back.tell(action)
            elif isinstance(action, e.ToAdmin):
                self._admin.answer(action)
            elif isinstance(action, e.KillWorker):
                self._back.kill(action.worker)
            elif isinstance(action, e.Quarantine):
                digest = self._front.digest(action.arena, action.inputs)
                if digest:
                    told = e.Quarantined(action.model, action.inputs, digest)
                    self._core.handle(told, time.monotonic_ns())
            else:
                self._arenas.close(action.arena)
                self._back.detach(action.arena)


def _reports(monitor: Socket) -> list[tuple[int, int]]:
    """(event, descriptor) of what has happened to a socket's connections, in order."""
    reports = []
    while readable(monitor):
        said = recv_monitor_message(monitor)
        reports.append((said["event"], said["value"]))
    return reports


def _source_fd(frame: Any) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, KeyError, TypeError):
        return -1
