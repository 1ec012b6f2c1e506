"""The broker's process: the real core, front and back, driven in virtual time as loop.py drives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from batchyard.broker import events as e
from batchyard.broker.back import Back
from batchyard.broker.config import YardConfig
from batchyard.broker.front import Front
from batchyard.broker.loop import DRAIN_MAX, SLOW_CHECK_NS, TURN
from batchyard.transport.deadlines import sleep_ms

from .clock import MS, US
from .core_watch import WatchedCore
from .memory import SimArenas, SimInline
from .network import Link, Router

if TYPE_CHECKING:
    from .world import World

CLIENTS_MAX = 64
INLINE_ARENA_BYTES = 32 << 10
DEATH_NOTICE_NS_MAX = 2 * MS


class _Loopback:
    """What front and back ask of an Endpoint."""

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


class SimBroker:
    """One life of the broker, from its start to its crash."""

    def __init__(self, world: World, config: YardConfig, epoch: int, pid: int, unread_max: int) -> None:
        self.world = world
        self.alive = True
        self.stopped_until_ns = 0
        self.core = WatchedCore(world, config, epoch, pid)
        self.clients = Router(self, "clients", unread_max)
        self.workers = Router(self, "workers", 10_000)
        self.arenas = SimArenas(world)
        endpoint: Any = _Loopback()
        self.front = Front(
            self.clients, endpoint, self.core, self.arenas, CLIENTS_MAX, self._act, self._settle_clients  # type: ignore[arg-type]
        )
        self.front.inline = SimInline(world, self.front._register_own, INLINE_ARENA_BYTES)
        self.back = Back(
            self.workers, endpoint, self.core, self.arenas, self._act, self._settle_workers,  # type: ignore[arg-type]
            self._credentials,
        )  # fmt: skip
        self.back.sentinels.close()
        self.sentinels = SimSentinels(world)
        self.back.sentinels = self.sentinels  # type: ignore[assignment]
        self._inboxes: dict[Router, deque[tuple[Link, bytes, Sequence[Any]]]] = {
            self.workers: deque(),
            self.clients: deque(),
        }
        self._wake_ns: int | None = None
        self._slow_due_ns = 0
        self._due_ns: int | None = None
        self._acted = False
        self.orders: set[int] = set()  # of operators, not yet answered
        self._order_sequence = 0

    def _credentials(self, fd: int) -> tuple[int, int] | None:
        """What the kernel knows of the process at the other end of a worker's connection."""
        pids = [getattr(link.peer, "pid", None) for link in self.workers.links() if link.fd == fd]
        return (pids[0], 0) if pids and pids[0] is not None else None

    # ---- from outside -------------------------------------------------------------------------

    def receive(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        self._inboxes[link.router].append((link, payload, frames))
        self.wake_after(self.world.rng.randrange(50 * US))

    def process_died(self, pid: int) -> None:
        """The kernel's word, a little later."""

        def report() -> None:
            self.sentinels.died(pid)
            self._slow_due_ns = 0
            self.wake_after(0)

        self.world.clock.after(self.world.rng.randrange(DEATH_NOTICE_NS_MAX), report)

    def order(self, make: Callable[[int], e.Event]) -> None:
        """An operator wants a model changed: `make` is told whom to answer."""
        self._order_sequence += 1
        self.orders.add(self._order_sequence)
        self._act(self.core.handle(make(self._order_sequence), self.world.clock.now_ns))
        self.wake_after(0)

    def crash(self) -> None:
        self.alive = False
        for router in (self.clients, self.workers):
            for link in router.links():
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
        """One round of Loop.run()."""
        now_ns = self.world.clock.now_ns
        if not self.alive:
            return
        if now_ns < self.stopped_until_ns:
            self.wake_after(self.stopped_until_ns - now_ns)
            return
        ready = self._drain(self.workers, self.back, now_ns)
        ready = self._drain(self.clients, self.front, now_ns) or ready
        if now_ns >= self._slow_due_ns or not ready:
            for worker in self.sentinels.dead():
                self.back._gone(worker, now_ns)
            self._settle_workers()
            self._settle_clients()
            self._slow_due_ns = now_ns + SLOW_CHECK_NS
        if ready or self._acted or (self._due_ns is not None and self._due_ns <= now_ns):
            self._act(self.core.handle(TURN, now_ns))
            self._acted = False
            self.back.flush()
            self.front.flush()
            self.core.tally()
            self._due_ns = self.core.next_deadline_ns()
        if any(self._inboxes.values()) or self._acted:
            self.wake_after(1)
        self.wake_after(max(0, self._slow_due_ns - now_ns) if ready else 3_600_000 * MS)
        if self._due_ns is not None:
            self.wake_after(sleep_ms(self._due_ns, now_ns) * MS)

    def _drain(self, router: Router, side: Front | Back, now_ns: int) -> bool:
        inbox = self._inboxes[router]
        ready = bool(inbox)
        for _ in range(DRAIN_MAX):
            if not inbox:
                break
            link, payload, frames = inbox.popleft()
            fd = link.fd if link.identity not in side.known else -1
            side.receive(link.identity, payload, list(frames), fd, now_ns)
        return ready

    def _settle_clients(self) -> None:
        reports, self.clients.reports = self.clients.reports, []
        for begun, fd in reports:
            (self.front.accepted if begun else self.front.ended)(fd, self.world.clock.now_ns)

    def _settle_workers(self) -> None:
        reports, self.workers.reports = self.workers.reports, []
        for begun, fd in reports:
            if begun:
                self.back.accepted(fd)
            else:
                self.back.ended(fd, self.world.clock.now_ns)

    def _act(self, actions: list[e.Action]) -> None:
        for action in actions:
            self._acted = True
            if isinstance(action, e.ToClient):
                self.front.reply(action)
            elif isinstance(action, e.ToWorker):
                self.back.tell(action)
            elif isinstance(action, e.ToAdmin):
                self.orders.remove(action.admin)
                self.world.count(f"order_{type(action.message).__name__}")
            elif isinstance(action, e.Quarantine):
                self.world.count("quarantined")
                digest = self.front.digest(action.arena, action.inputs)
                if digest:
                    told = e.Quarantined(action.model, action.inputs, digest)
                    self.core.handle(told, self.world.clock.now_ns)
            elif isinstance(action, e.KillWorker):
                self.world.count("hung_killed")
                self.world.check_hung(self.pid_of(action.worker))
                self.back.kill(action.worker)
            else:
                self.arenas.close(action.arena)
                self.back.detach(action.arena)

    def pid_of(self, worker: int) -> int:
        return self.core.workers[worker].pid

    # ---- at the end ---------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What a broker without clients must not hold."""
        found = self.core.at_rest()
        own = self.front.inline._number
        if self.front.inline.used_bytes:
            found.append(f"{self.front.inline.used_bytes} bytes of tensors that came as frames")
        if self.orders:
            found.append(f"{len(self.orders)} orders of operators were not answered")
        found += [f"arena {number} is open" for number in self.arenas.open_names if number != own]
        if self.front.known or self.front._by_conn:
            found.append("a client is still known")
        return found
