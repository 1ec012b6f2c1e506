"""The broker's process: the real loop with its sides and its core, in virtual time; only sockets are pretended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batchyard.broker import events as e
from batchyard.broker.clients import Clients
from batchyard.broker.config import YardConfig
from batchyard.broker.loop import Loop
from batchyard.broker.workers import Workers

from .clock import MS
from .core_watch import WatchedCore
from .memory import SimArenas, SimInline
from .network import SimListener

if TYPE_CHECKING:
    from .world import World

CLIENTS_MAX = 64
INLINE_ARENA_BYTES = 32 << 10
DEATH_NOTICE_NS_MAX = 2 * MS


class _Loopback:
    """What the clients' side asks of an Endpoint."""

    is_loopback = True
    is_ipc = True


class SimSentinels:
    """Deaths of the world's processes."""

    fd = None

    def __init__(self, world: World) -> None:
        self._world = world
        self._pids: dict[int, int] = {}
        self._dead: list[int] = []

    def watch(self, worker: int, pid: int) -> bool:
        if self._world.is_dead(pid):
            return False
        self._pids[worker] = pid
        return True

    def kill(self, worker: int) -> bool:
        pid = self._pids.get(worker)
        if pid is not None:
            self._world.kill_soon(pid)
        return pid is not None

    def died(self, pid: int) -> None:
        self._dead += [worker for worker, own in self._pids.items() if own == pid]

    def dead(self) -> list[int]:
        dead, self._dead = self._dead, []
        for worker in dead:
            self.forget(worker)
        return dead

    def forget(self, worker: int) -> None:
        self._pids.pop(worker, None)


class SimOperators:
    """Operators without a socket: their orders are events already."""

    def __init__(self, world: World) -> None:
        self.listener = self
        self.strangers = 0
        self.unwritten: dict[Any, Any] = {}
        self.unanswered: set[int] = set()
        self._world = world
        self._sequence = 0
        self._asked: list[e.Event] = []

    def ask(self, make: Callable[[int], e.Event]) -> None:
        self._sequence += 1
        self.unanswered.add(self._sequence)
        self._asked.append(make(self._sequence))

    @property
    def has_more(self) -> bool:
        return bool(self._asked)

    def read(self, now_ns: int) -> list[e.Event]:
        asked, self._asked = self._asked, []
        return asked

    def write(self, action: e.ToAdmin) -> None:
        self.unanswered.remove(action.admin)
        self._world.count(f"order_{type(action.message).__name__}")

    def flush(self) -> None:
        pass


class SimBroker:
    """One life of the broker, from its start to its crash."""

    def __init__(self, world: World, config: YardConfig, epoch: int, pid: int, unread_max: int) -> None:
        self.world = world
        self.alive = True
        self.stopped_until_ns = 0
        self.core = WatchedCore(world, config, epoch, pid)
        self.clients = SimListener(self, "clients", unread_max)
        self.workers = SimListener(self, "workers", 10_000)
        self.arenas = SimArenas(world)
        endpoint: Any = _Loopback()
        clients: Any = self.clients
        workers: Any = self.workers
        arenas: Any = self.arenas
        core = self.core
        self.front = Clients(clients, endpoint, arenas, core.models, core.counters, epoch, CLIENTS_MAX)
        self.front.inline = SimInline(world, self.front._register_own, INLINE_ARENA_BYTES)
        self.back = Workers(workers, arenas, core.models, core.counters)
        self.back.sentinels.close()
        self.sentinels = SimSentinels(world)
        self.back.sentinels = self.sentinels  # type: ignore[assignment]
        self.orders = SimOperators(world)
        operators: Any = self.orders
        self.loop = Loop(core, self.front, self.back, operators, arenas, lambda timeout_ms: 0)
        self._wake_ns: int | None = None

    # ---- from outside -------------------------------------------------------------------------

    def process_died(self, pid: int) -> None:
        """The kernel's word, a little later."""

        def report() -> None:
            self.sentinels.died(pid)
            self.loop.look_soon()
            self.wake_after(0)

        self.world.clock.after(self.world.rng.randrange(DEATH_NOTICE_NS_MAX), report)

    def order(self, make: Callable[[int], e.Event]) -> None:
        """An operator wants a model changed: `make` is told whom to answer."""
        self.orders.ask(make)
        self.wake_after(0)

    def crash(self) -> None:
        self.alive = False
        for listener in (self.clients, self.workers):
            for link in listener.links():
                link.reset()

    # ---- the loop -----------------------------------------------------------------------------

    def wake_after(self, delay_ns: int) -> None:
        due_ns = self.world.clock.now_ns + delay_ns
        if not self.alive or (self._wake_ns is not None and self._wake_ns <= due_ns):
            return
        self._wake_ns = due_ns

        def wake() -> None:
            if self._wake_ns == due_ns:
                self._wake_ns = None
                self._turn()

        self.world.clock.at(due_ns, wake)

    def _turn(self) -> None:
        """The loop wakes up, works for a round, and sleeps."""
        now_ns = self.world.clock.now_ns
        if not self.alive:
            return
        if now_ns < self.stopped_until_ns:
            self.wake_after(self.stopped_until_ns - now_ns)
            return
        self.loop.round(now_ns)
        sleep_ms = self.loop.sleep_ms(now_ns)
        self.wake_after(sleep_ms * MS if sleep_ms else 1)

    # ---- at the end ---------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What a broker without clients must not hold."""
        found = self.core.at_rest()
        own = self.front.inline._number
        if self.front.inline.used_bytes:
            found.append(f"{self.front.inline.used_bytes} bytes of tensors that came as frames")
        if self.orders.unanswered:
            found.append(f"{len(self.orders.unanswered)} orders of operators were not answered")
        found += [f"arena {number} is open" for number in self.arenas.open_names if number != own]
        if self.front.known or self.front._by_conn:
            found.append("a client is still known")
        return found
