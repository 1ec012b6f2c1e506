"""The workers' side of the broker: their bytes become events, the core's actions become their bytes.

Owns the connections of workers and the watch over their processes. It knows no core. A worker is gone when
it can't touch memory any more, not before: so one whose connection ends while it holds batches is killed.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Container, Sequence
from typing import Any

from ..transport import codec, lent, secret
from ..transport import messages as m
from ..transport.errors import BatchyardError, Code, SegmentRefused
from ..transport.wire import ALONG_MAX, Ended, Full, Listener, Peer
from . import events as e
from .arenas import Arenas
from .counters import Counters
from .peers import Sentinels

DRAIN_MAX = 64  # messages read in one round
DRAIN_BYTES_MAX = 1 << 20  # or so many bytes of payloads, whichever comes first
GREET_WITHIN_NS = 10_000_000_000  # a connection that has not registered by then is closed
STRANGERS_MAX = 256  # or is the oldest of so many

log = logging.getLogger("batchyard.broker")


class WorkerPeer:
    """A registered worker's connection, and the arenas that it has attached."""

    __slots__ = ("attached", "complained_of", "peer", "worker")

    def __init__(self, peer: Peer, worker: int) -> None:
        self.peer = peer
        self.worker = worker
        self.attached: set[int] = set()
        self.complained_of = False  # in the log, once: a peer must not be able to fill it


class Workers:
    """`models`: the names that are served. `events`: the loop takes them. `secret`: a worker must know it;
    "": none is asked for, because the wire admits nobody else."""

    def __init__(
        self,
        listener: Listener,
        arenas: Arenas,
        models: Container[str],
        counters: Counters,
        secret: str = "",
    ) -> None:
        self.listener = listener
        self.events: list[e.Event] = []
        self.known: dict[Peer, WorkerPeer] = {}
        self.sentinels = Sentinels()
        self._arenas = arenas
        self._models = models
        self._counters = counters
        self._secret = secret.encode()
        self._by_worker: dict[int, WorkerPeer] = {}
        self._worker_sequence = 0
        self.outbox: dict[int, list[Any]] = {}

    # ---- bytes to events ----------------------------------------------------------------------

    def read(self, now_ns: int) -> list[e.Event]:
        """The events of about DRAIN_MAX messages that have arrived."""
        for peer, parts in self.listener.receive(DRAIN_MAX, DRAIN_BYTES_MAX):
            if parts is None:
                self._ended(peer)
            elif not peer.ended:  # else it was closed over an earlier message of its own
                self._receive(peer, parts[0], parts[1:])
        events = self.events
        if events:
            self.events = []
        return events

    def _receive(self, peer: Peer, payload: Any, frames: Sequence[Any]) -> None:
        worker = self.known.get(peer)
        try:
            messages = codec.worker_to_broker.decode(payload)
        except BatchyardError as error:
            self._counters.refuse("worker_malformed")
            if worker is not None and not worker.complained_of:
                worker.complained_of = True
                log.error("a message of worker %d was refused: %s", worker.worker, error)
            self._send(peer, [m.Refused(error.code, str(error))])
            return
        for message in messages:
            if isinstance(message, m.Register):
                worker = self._register(peer, message, worker)
                if worker is None:
                    return
            elif worker is None:
                self._counters.refuse("worker_unknown")
                text = "register first (was the broker restarted?)"
                self._send(peer, [m.Refused(Code.UNKNOWN_CONNECTION, text)])
                return
            else:
                if not isinstance(message, m.Done | m.Yielded):
                    self._log(worker.worker, message)
                elif isinstance(message, m.Done) and message.lent:
                    frames = self._borrowed(worker, message, frames)
                self.events.append(e.WorkerSaid(worker.worker, message, frames))

    def _borrowed(self, worker: WorkerPeer, message: m.Done, frames: Sequence[Any]) -> Sequence[Any]:
        """The frames of a Done with what the worker has lent. Where that can't be used, none: its requests
        are told that the answer lacked its tensors."""
        try:
            return lent.received(frames, message.lent, worker.peer.take_descriptor)
        except (SegmentRefused, OSError) as error:
            self._counters.refuse("worker_lent")
            log.error("an answer of worker %d was refused: %s", worker.worker, error)
            return ()

    def _log(self, worker: int, message: m.WorkerMessage) -> None:
        if isinstance(message, m.Loaded) and message.model in self._models:
            log.info("worker %d serves %s by %s", worker, message.model, message.provider)
        elif isinstance(message, m.LoadFailed) and message.model in self._models:
            log.error("worker %d cannot serve %s: %s", worker, message.model, message.text)
        elif isinstance(message, m.RunsAlone):
            log.warning("%s runs every request alone from now on: %s", message.model, message.reason)
        elif isinstance(message, m.Leaving):
            log.warning("worker %d leaves: %s", worker, message.text)

    def _register(self, peer: Peer, message: m.Register, worker: WorkerPeer | None) -> WorkerPeer | None:
        """The worker; None for a stranger, who knows no secret. It stays one, and is dismissed as such."""
        if worker is not None:
            self._counters.refuse("worker_registered")
            return worker
        if self._secret and not hmac.compare_digest(message.secret.encode(), self._secret):
            self._counters.refuse("worker_unauthorized")
            error = secret.required("worker")
            self._send(peer, [m.Refused(error.code, str(error))])
            return None
        self.listener.admit(peer, 2 * ALONG_MAX)  # it holds two batches at most
        credentials = peer.credentials
        pid = credentials[0] if credentials else message.pid
        self._worker_sequence += 1
        worker = WorkerPeer(peer, self._worker_sequence)
        self.known[peer] = self._by_worker[worker.worker] = worker
        if credentials:  # never a claim: a peer could name any process of ours
            self.sentinels.watch(worker.worker, pid)
        fallback_reason = f", {message.fallback_reason}" if message.fallback_reason else ""
        log.info("worker %d joined: process %d%s", worker.worker, pid, fallback_reason)
        self.events.append(e.WorkerJoined(worker.worker, pid, message.fallback_reason))
        return worker

    # ---- workers that end ---------------------------------------------------------------------

    def look_around(self, now_ns: int) -> list[e.Event]:
        """Workers whose processes have ended; and end connections that do not register."""
        for worker in self.sentinels.dead():
            self._gone(worker)
        for _ in range(self.listener.dismiss_strangers(now_ns, GREET_WITHIN_NS, STRANGERS_MAX)):
            self._counters.refuse("never_greeted")
        events = self.events
        if events:
            self.events = []
        return events

    def _ended(self, peer: Peer) -> None:
        """The connection has ended, behind its last message."""
        if peer.violation:
            self._counters.refuse("worker_not_zmtp")
            log.error("a worker's connection was closed: %s", peer.violation)
        worker = self.known.get(peer)
        if worker is not None:
            self.events.append(e.WorkerCutOff(worker.worker))

    def cut_off(self, action: e.CutOff) -> None:
        """Its connection is over. One that holds batches may live and still write: it must be dead before
        they run again."""
        if action.holds_batches:
            if not self.sentinels.kill(action.worker):
                self._gone(action.worker)
        else:
            self._forget(action.worker)

    def kill(self, action: e.KillWorker) -> None:
        """End a hung worker's process; its supervisor starts another."""
        worker = action.worker
        log.error("worker %d has been running one batch for far too long; it is killed", worker)
        if not self.sentinels.kill(worker):
            log.error("worker %d cannot be killed from here: end its process", worker)

    def _gone(self, worker: int) -> None:
        """The worker cannot touch memory any more."""
        if self._forget(worker):
            self.events.append(e.WorkerGone(worker))

    def _forget(self, worker: int) -> bool:
        """Forget a worker. Returns whether it was known."""
        known = self._by_worker.pop(worker, None)
        if known is None:
            return False
        del self.known[known.peer]
        known.peer.close()
        self.outbox.pop(worker, None)
        self.sentinels.forget(worker)
        log.warning("worker %d is gone", worker)
        return True

    # ---- actions to bytes ---------------------------------------------------------------------

    def write(self, action: e.ToWorker) -> None:
        """Queue a message; a batch is preceded by the arenas that it refers to for the first time."""
        worker = self._by_worker.get(action.worker)
        if worker is None:
            return
        queue = self.outbox.setdefault(worker.worker, [])
        message = action.message
        if isinstance(message, m.Batch):
            for item in message.items:
                if item.arena not in worker.attached:
                    worker.attached.add(item.arena)
                    queue.append(m.Attach(item.arena, self._arenas.handle(item.arena)))
        queue.append(message)

    def detach(self, arena: int) -> None:
        """Have every worker that has mapped the arena unmap it."""
        for worker in self.known.values():
            if arena in worker.attached:
                worker.attached.discard(arena)
                self.outbox.setdefault(worker.worker, []).append(m.Detach(arena))

    def flush(self) -> None:
        """Send the outbox: one message to each worker."""
        if self.outbox:
            waiting, self.outbox = self.outbox, {}
            for number, messages in waiting.items():
                worker = self._by_worker.get(number)
                if worker is not None:
                    self._send(worker.peer, messages)
        self.listener.flush()

    def _send(self, peer: Peer, messages: Sequence[Any]) -> None:
        """Send without waiting. A worker that can't be reached, or that does not read, is cut off: its
        batches would never be run."""
        try:
            for payload in codec.payloads(messages):
                peer.send((payload,))
        except (Ended, Full):
            self._counters.refuse("worker_unreachable")
            worker = self.known.get(peer)
            if worker is not None:
                self.events.append(e.WorkerCutOff(worker.worker))
