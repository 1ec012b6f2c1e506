"""A worker's process: the real Worker, Memory checks and Runner around a simulated model.

It reads its messages in order, one at a time, and loads beside that; a batch takes time, and may hang, or end the process.
Until a batch is answered, or the process is dead, its bytes count as held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchyard.broker.requests import NEVER_NS
from batchyard.gpuworker.child import GOODBYE_NS, RECONNECT_S
from batchyard.gpuworker.watchdog import GRACE_NS, LOOK_S, ORPHAN_NS
from batchyard.gpuworker.worker import Worker
from batchyard.transport import codec
from batchyard.transport import messages as m

from .clock import MS, SECOND, US
from .memory import WorkerMemory
from .models import Killed, SimModel
from .network import Link

if TYPE_CHECKING:
    from .world import World

RECONNECT_NS = int(RECONNECT_S * 1e9)


class SimWorker:
    """One life of a worker's child process."""

    def __init__(self, world: World, name: str, pid: int) -> None:
        self.world = world
        self.name = name
        self.pid = pid
        self.alive = True
        self.stopped_until_ns = 0
        self.hangs_next = False
        self.memory = WorkerMemory(world)
        self.session = Worker("sim", pid, self._send, self._start_load, self.memory)
        self.link: Link | None = None
        self._unsent: list[tuple[bytes, Sequence[Any]]] = []  # for the broker that we try to reach
        self._inbox: deque[tuple[Link | None, Any, int]] = deque()
        self._loaded: deque[tuple[Any, Any]] = deque()  # what the loader's thread has finished
        self._busy = False
        self._loads_until_ns = 0
        self._leaves = False  # its device is lost
        self._runs_out = False  # it goes to a better provider when it has run what it was lent

    def start(self) -> None:
        self._connect()
        self.session.register()

    # ---- the connection -----------------------------------------------------------------------

    def _connect(self) -> None:
        broker = self.world.broker
        if not self.alive or self.link is not None:
            return
        if broker is None:
            self.world.clock.after(RECONNECT_NS, self._connect)
            return
        self.link = Link(self.world, broker.workers, self)
        unsent, self._unsent = self._unsent, []
        for payload, frames in unsent:
            self.link.to_broker(payload, frames)

    def _send(self, messages: list[Any], frames: Sequence[Any] = ()) -> None:
        self.world.trace(self.name, "says", *[type(message).__name__ for message in messages])
        payload = codec.encode(messages)
        if self.link is None:
            self._unsent.append((payload, list(frames)))
        else:
            self.link.to_broker(payload, list(frames))  # into nothing, where the broker is gone

    def receive(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        if self.alive:
            epoch = link.listener.broker.core.epoch
            self._inbox.append((link, codec.broker_to_worker.decode(payload), epoch))
            self._go_on()

    def link_ended(self, link: Link) -> None:
        """The end comes behind what has arrived: the worker learns of it when it has handled that."""
        if self.alive and link is self.link:
            self._inbox.append((link, None, 0))
            self._go_on()

    def _reconnect(self) -> None:
        """As child.py: it waits a little, greets whoever comes, and goes on."""
        self.link = None
        self._busy = True

        def go_on() -> None:
            if not self.alive:
                return
            self.session.register()
            self._connect()
            self._resume()

        self.world.clock.after(RECONNECT_NS + self.world.rng.randrange(5 * MS), go_on)

    # ---- the work -----------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Handle what has come, up to the next thing that takes time."""
        while self.alive and (self._loaded or self._inbox) and not self._busy:
            if self.world.clock.now_ns < self.stopped_until_ns:
                self._busy = True
                self.world.clock.at(self.stopped_until_ns, self._resume)
                return
            if self._loaded:
                self.session.loaded(*self._loaded.popleft())
                continue
            link, messages, epoch = self._inbox[0]
            if messages is None:
                self._inbox.popleft()
                self._reconnect()
                return
            if link is not None:
                link.unread -= 1
                self._inbox[0] = (None, messages, epoch)
            if not messages:
                self._inbox.popleft()
                continue
            message = messages.pop(0)
            takes_ns = 0 if self._leaves else self._takes_ns(message, epoch)
            if takes_ns:
                self._busy = True
                if takes_ns > 0:
                    self.world.clock.after(takes_ns, lambda message=message, epoch=epoch: self._finish(message, epoch))  # type: ignore[misc]
                return
            self.session.handle(message)
            if self.session.dismissed:
                if self._runs_out and any(type(m_) is m.LentBatch for _, rest, _ in self._inbox for m_ in rest or ()):
                    self.world.violated(f"{self.name} was lent a batch behind its dismissal")
                self.world.kill(self.pid)

    def _takes_ns(self, message: Any, epoch: int) -> int:
        """0: nothing worth counting; -1: for ever."""
        rng = self.world.rng
        if isinstance(message, m.LentBatch):
            if self.hangs_next:
                self.hangs_next = False
                self.world.count("hang")
                began_ns = self.world.clock.now_ns
                until_ns = began_ns + message.lease_ns + GRACE_NS if message.lease_ns else NEVER_NS
                self._watch(began_ns, until_ns, epoch)
                return -1
            takes_ns = 300 * US + message.rows * rng.randrange(100 * US, 600 * US)
            if self.world.happens("slow_run"):
                takes_ns *= rng.randrange(5, 30)
            return takes_ns
        return 0

    def _watch(self, began_ns: int, until_ns: int, epoch: int) -> None:
        """gpuworker/watchdog.py: its own watch ends a run, where the broker does not, or is no more."""
        now_ns, broker = self.world.clock.now_ns, self.world.broker
        is_orphan = (broker is None or broker.core.epoch != epoch) and now_ns > began_ns + ORPHAN_NS
        if self.alive and (now_ns > until_ns or is_orphan):
            self.world.count("watched_end")
            self.world.kill(self.pid)
        elif self.alive:
            self.world.clock.after(int(LOOK_S * SECOND), lambda: self._watch(began_ns, until_ns, epoch))

    def _resume(self) -> None:
        self._busy = False
        self._go_on()

    def _finish(self, message: Any, epoch: int) -> None:
        """The run, or the load, has come to its end."""
        if not self.alive:
            return
        now_ns = self.world.clock.now_ns
        if now_ns < self.stopped_until_ns:
            self.world.clock.at(self.stopped_until_ns, lambda: self._finish(message, epoch))
            return
        if isinstance(message, m.LentBatch) and self.world.device_breaks():
            self._leave()  # as gpuworker/child.py does; what it holds comes back when it is dead
        elif isinstance(message, m.LentBatch):
            model: Any = self.session._models.get((message.model, message.revision))
            if model is not None:
                model.took_ns = 300 * US + message.rows * 350 * US
            try:
                self.session.handle(message)
            except Killed:
                self.world.count("killed_by_item")
                self.world.kill(self.pid)
                return
            answer_ns = self.link.latest_arrives_ns if self.link is not None else 0
            self.world.given_back(self.pid, epoch, message.batch, answer_ns)
            if self.world.device_heals() and not self._runs_out:
                self._runs_out = True
                self.session.leave("it goes to a better provider", runs_on=True)
        else:
            self.session.handle(message)
        self._busy = False
        self._go_on()

    def _leave(self) -> None:
        self._leaves = True
        self.session.leave("its device is lost")
        self.world.clock.after(GOODBYE_NS, lambda: self.alive and self.world.kill(self.pid))

    def _start_load(self, key: Any, message: m.Load, baseline_revision: Any) -> None:
        """gpuworker/loader.py: one after the other, while batches are run."""
        rng = self.world.rng
        takes_ns = rng.randrange(1, 400 if self.world.happens("slow_load") else 20) * MS
        self._loads_until_ns = max(self._loads_until_ns, self.world.clock.now_ns) + takes_ns
        outcome: Any = "this file is broken today"
        if not self.world.happens("load_fails"):
            sizes = {1, 2, 4, message.max_batch} if rng.random() < 0.8 else set()
            warmup_ns = {rows: 300 * US + rows * 350 * US for rows in sorted(sizes)}
            model = SimModel(message, warmup_ns, self.world.sizes())
            outcome = model, None if baseline_revision is None else 0.5

        def finish() -> None:
            self._loaded.append((key, outcome))
            self._go_on()

        self.world.clock.at(self._loads_until_ns, finish)

    def die(self) -> None:
        """SIGKILL: what the kernel has taken is still delivered, or not."""
        self.alive = False
        if self.link is not None and self.link.open:
            if self.world.rng.random() < 0.5:
                self.link.reset()
            else:
                self.link.close_in_order()
