"""The workers' side of the broker: registrations, what workers say, and the batches they are lent.

Owns the workers' ROUTER from the first message on (loop.py polls and reads it), and the watch over
their processes: a worker counts as gone when it can't touch memory any more, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from ..transport import codec
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, Code
from ..transport.sockets import MORE_NOBLOCK, NOBLOCK, Socket
from . import events as e
from .arenas import Arenas
from .core import Core
from .peers import Sentinels, credentials

log = logging.getLogger("batchyard.broker")


class WorkerPeer:
    """A registered worker's connection, and the arenas that it has been told of."""

    __slots__ = ("attached", "complained_of", "fd", "identity", "worker")

    def __init__(self, identity: bytes, fd: int, worker: int) -> None:
        self.identity = identity
        self.fd = fd
        self.worker = worker
        self.attached: set[int] = set()
        self.complained_of = False  # in the log, once: it must not fill with what a peer sends


class Back:
    """`act` carries out what the core wants; `settle_endings` reads the reports of connections."""

    def __init__(
        self,
        socket: Socket,
        endpoint: Endpoint,
        core: Core,
        arenas: Arenas,
        act: Callable[[list[e.Action]], None],
        settle_endings: Callable[[], None],
        credentials: Callable[[int], tuple[int, int] | None] = credentials,
    ) -> None:
        self.known: dict[bytes, WorkerPeer] = {}
        self._credentials = credentials
        self._open: set[int] = set()  # descriptors of connections that have not ended
        self.sentinels = Sentinels()
        self._socket = socket
        self._endpoint = endpoint
        self._core = core
        self._arenas = arenas
        self._act = act
        self._settle_endings = settle_endings
        self._by_worker: dict[int, WorkerPeer] = {}
        self._worker_sequence = 0
        self._outbox: dict[int, list[Any]] = {}

    # ---- what workers say ---------------------------------------------------------------------

    def receive(self, identity: bytes, payload: bytes, frames: list[Any], fd: int, now_ns: int) -> None:
        """Handle one message. `fd` is the descriptor it came by, when the connection is unknown."""
        peer = self.known.get(identity)
        try:
            messages = codec.worker_to_broker.decode(payload)
        except BatchyardError as error:
            self._core.counters.refuse("worker_malformed")
            if peer is not None and not peer.complained_of:
                peer.complained_of = True
                log.error("a message of worker %d was refused: %s", peer.worker, error)
            self._send(identity, [m.Refused(error.code, str(error))])
            return
        for message in messages:
            if isinstance(message, m.Register):
                peer = self._register(identity, message, fd, peer, now_ns)
            elif peer is None:
                self._core.counters.refuse("worker_unknown")
                text = "register first (was the broker restarted?)"
                self._send(identity, [m.Refused(Code.UNKNOWN_CONNECTION, text)])
                return
            else:
                if isinstance(message, m.Loaded | m.LoadFailed) and message.model in self._core.models:
                    if isinstance(message, m.Loaded):
                        log.info("worker %d serves %s by %s", peer.worker, message.model, message.provider)
                    else:
                        log.error("worker %d cannot serve %s: %s", peer.worker, message.model, message.text)
                elif isinstance(message, m.Leaving):
                    log.warning("worker %d leaves: %s", peer.worker, message.text)
                self._act(self._core.handle(e.WorkerSaid(peer.worker, message, frames), now_ns))

    def _register(
        self, identity: bytes, message: m.Register, fd: int, peer: WorkerPeer | None, now_ns: int
    ) -> WorkerPeer | None:
        if peer is not None:
            self._core.counters.refuse("worker_registered")
            return peer
        self._settle_endings()  # the descriptor may be one that a former connection had; see front.py
        if fd >= 0 and fd not in self._open:
            # It ended before its greeting was read: nothing would ever tell of this worker's end. (What the
            # kernel says of the number would not do: it may be another connection's by now.)
            self._core.counters.refuse("worker_gone")
            return None
        found = self._credentials(fd)
        pid = found[0] if found else message.pid
        self._worker_sequence += 1
        peer = WorkerPeer(identity, fd, self._worker_sequence)
        self.known[identity] = self._by_worker[peer.worker] = peer
        if found:  # never a claim: a peer could name any process of ours
            self.sentinels.watch(peer.worker, pid)
        fallen = f", {message.fallen}" if message.fallen else ""
        log.info("worker %d joined: process %d%s", peer.worker, pid, fallen)
        self._act(self._core.handle(e.WorkerJoined(peer.worker, pid, message.fallen), now_ns))
        return peer

    # ---- workers that end ---------------------------------------------------------------------

    def bury(self, now_ns: int) -> None:
        """Workers whose processes have ended."""
        for worker in self.sentinels.dead():
            self._gone(worker, now_ns)

    def accepted(self, fd: int) -> None:
        """There is a connection on this descriptor."""
        self._open.add(fd)

    def ended(self, fd: int, now_ns: int) -> None:
        """The kernel reports that the connection on this descriptor is closed."""
        self._open.discard(fd)
        for peer in [peer for peer in self.known.values() if peer.fd == fd]:
            self._cut_off(peer, now_ns)

    def _cut_off(self, peer: WorkerPeer, now_ns: int) -> None:
        # Its process may live and still write: it must be dead before its batches run again.
        holds_batches = bool(self._core.workers[peer.worker].leases)
        if not (holds_batches and self.sentinels.kill(peer.worker)):
            self._gone(peer.worker, now_ns)

    def kill(self, worker: int) -> None:
        """End a hung worker's process; its supervisor starts another."""
        log.error("worker %d has been running one batch for far too long; it is killed", worker)
        if not self.sentinels.kill(worker):
            log.error("worker %d cannot be killed from here: end its process", worker)

    def _gone(self, worker: int, now_ns: int) -> None:
        peer = self._by_worker.pop(worker, None)
        if peer is None:
            return
        del self.known[peer.identity]
        self._outbox.pop(worker, None)
        self.sentinels.forget(worker)
        log.warning("worker %d is gone", worker)
        self._act(self._core.handle(e.WorkerGone(worker), now_ns))

    # ---- what workers are told ----------------------------------------------------------------

    def tell(self, action: e.ToWorker) -> None:
        """Queue a message; a batch is preceded by the arenas that it refers to for the first time."""
        peer = self._by_worker.get(action.worker)
        if peer is None:
            return
        queue = self._outbox.setdefault(peer.worker, [])
        message = action.message
        if isinstance(message, m.Batch):
            for item in message.items:
                if item.arena not in peer.attached:
                    peer.attached.add(item.arena)
                    queue.append(m.Attach(item.arena, self._arenas.handle(item.arena)))
        queue.append(message)

    def detach(self, arena: int) -> None:
        """Tell every worker that has mapped the arena to unmap it."""
        for peer in self.known.values():
            if arena in peer.attached:
                peer.attached.discard(arena)
                self._outbox.setdefault(peer.worker, []).append(m.Detach(arena))

    def flush(self) -> None:
        """Send what has gathered: one message to each worker."""
        if self._outbox:
            waiting, self._outbox = self._outbox, {}
            for worker, messages in waiting.items():
                peer = self._by_worker.get(worker)
                if peer is not None:
                    self._send(peer.identity, messages)

    def _send(self, identity: bytes, messages: Sequence[Any]) -> None:
        """Send without waiting. A worker that can't be reached may have gone before it was known here,
        so that nobody will report it."""
        payloads = codec.payloads(messages)
        try:
            for payload in payloads:
                self._socket.send(identity, MORE_NOBLOCK)
                self._socket.send(payload, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._core.counters.refuse("worker_unreachable")
            peer = self.known.get(identity)
            if peer is not None and error.errno == zmq.EHOSTUNREACH:
                self._cut_off(peer, 0)
