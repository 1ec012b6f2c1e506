"""The broker's loop: the clock, the order of things, and the only one that holds the core.

    events = side.read(now_ns)             bytes become events (clients.py, workers.py, operators.py)
    actions = core.handle(event, now_ns)   the core decides
    side.write(action)                     actions become bytes, which leave with `flush`

A round reads from workers first, then from clients, at most DRAIN_MAX messages each. When something waits
to be lent, or a deadline has passed, the core is told that the round is over. Then everything is sent,
workers first. Rare things (deaths, strangers, operators) are looked at after that, never between a message
and its answer. Between rounds the loop sleeps until the next message or deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from ..transport import codec
from ..transport import messages as m
from ..transport.deadlines import sleep_ms
from . import events as e
from . import gauges
from .arenas import Arenas
from .clients import Clients
from .core import Core
from .operators import Operators
from .spinning import Spinning
from .workers import Workers

SLOW_CHECK_NS = 5_000_000  # how often a busy loop looks at deaths, strangers and the admin socket
STOPPING_LOOK_MS = 20  # how often a loop that is stopped looks whether it is done
STRANGERS_LOOK_MS = 1_000  # how often an idle one does, while a connection has not greeted
TURN = e.Turn()


class Loop:
    """`wait(timeout_ms)` sleeps until a descriptor is ready. `spin_ns`: see spinning.py. `notice_ns`:
    for how long a loop that is stopped says that it is not ready, and admits requests still. `stop_ns`: for
    how long it then goes on for those that it has admitted."""

    def __init__(
        self,
        core: Core,
        clients: Clients,
        workers: Workers,
        operators: Operators,
        arenas: Arenas,
        wait: Callable[[int], int],
        spin_ns: int = 0,
        stop_ns: int = 0,
        notice_ns: int = 0,
    ) -> None:
        self._core = core
        self._waiting = core.policy.lanes  # may hold something to lend
        self._counters = core.counters
        self._clients = clients
        self._workers = workers
        self._operators = operators
        self._arenas = arenas
        self._wait = wait
        self._spinning = Spinning(spin_ns)
        self._version = metadata.version("batchyard")
        self._writers: dict[type, Callable[[Any], None]] = {
            e.ToClient: clients.write,
            e.Quarantine: clients.read_content,
            e.ToWorker: workers.write,
            e.KillWorker: workers.kill,
            e.CutOff: workers.cut_off,
            e.ToAdmin: operators.write,
            e.CloseArena: self._close_arena,
        }
        self._stop_ns = stop_ns
        self._stops = 0  # how often it was told to
        self._notice_ns = notice_ns
        self._refuses_ns: int | None = None  # from when on; None: nobody has stopped it
        self._ends_ns: int | None = None  # at the latest; None: it admits requests
        self._due_ns: int | None = None
        self._slow_due_ns = 0

    # ---- running ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve. Returns after `stop()`."""
        clock = time.monotonic_ns
        spinning = self._spinning
        now_ns = clock()
        polls_until_ns = 0
        while not self._is_over(now_ns):
            polls = now_ns < polls_until_ns
            self._wait(0 if polls else self.sleep_ms(now_ns))
            now_ns = clock()
            if self.round(now_ns):
                polls_until_ns = now_ns + spinning.spin_ns
            elif polls:
                spinning.give_way()

    def stop(self) -> None:
        """Make `run` give notice, and return when what it has admitted is answered, or after `stop_ns`; told
        twice, after its round. For a signal's handler."""
        self._stops += 1

    def halt(self) -> None:
        """Make `run` return after its round."""
        self._stops += 2

    def _is_over(self, now_ns: int) -> bool:
        if not self._stops:
            return False
        if self._refuses_ns is None:
            self._refuses_ns = now_ns + self._notice_ns
            self._handle(e.Leaving(), now_ns)
        if now_ns < self._refuses_ns:
            return self._stops > 1
        if self._ends_ns is None:
            self._ends_ns = now_ns + self._stop_ns
            self._handle(e.Stopping(), now_ns)
        return self._stops > 1 or now_ns >= self._ends_ns or self._core.is_idle

    def close(self) -> None:
        """Idempotent. Sockets and arenas are closed by their owner."""
        self._spinning.close()

    def sleep_ms(self, now_ns: int) -> int:
        """For how long nothing is to be done, unless a message comes."""
        workers, clients, admin = self._workers, self._clients, self._operators.listener
        if workers.listener.has_more or clients.listener.has_more or admin.has_more:
            return 0
        if workers.events or clients.events or clients.backlog:
            return 0
        most_ms = sleep_ms(self._due_ns, now_ns)
        if self._refuses_ns is not None:
            return min(most_ms, STOPPING_LOOK_MS)
        if workers.listener.strangers or clients.listener.strangers or admin.strangers:
            return min(most_ms, STRANGERS_LOOK_MS)
        return most_ms

    # ---- one round ----------------------------------------------------------------------------

    def round(self, now_ns: int) -> bool:
        """Read, decide, write. Whether there was anything to do."""
        workers, clients, due_ns = self._workers, self._clients, self._due_ns
        is_due = happened = due_ns is not None and due_ns <= now_ns
        if workers.events or workers.listener.has_more:
            for event in workers.read(now_ns):
                happened = True
                self._handle(event, now_ns)
        if clients.listener.has_more or clients.backlog:
            for event in clients.read(now_ns):
                happened = True
                self._handle(event, now_ns)
        if clients.events:  # connections that have ended
            happened = True
            self._settle(now_ns)
        if is_due or (happened and self._waiting):
            self._handle(TURN, now_ns)
        if workers.outbox or workers.listener.unwritten:
            workers.flush()
        clients.contents.read_bytes = 0
        if clients.outbox or clients.listener.unwritten:
            clients.flush()
        if self._operators.listener.unwritten:  # a worker's message has answered an order
            self._operators.flush()
        if happened:
            if self._counters.unaccounted:
                self._counters.tally()
            self._due_ns = self._core.next_deadline_ns()
        if now_ns >= self._slow_due_ns or self._operators.listener.has_more:
            self._look_around(now_ns)
            self._slow_due_ns = now_ns + SLOW_CHECK_NS
        return happened

    def _handle(self, event: e.Event, now_ns: int) -> None:
        writers = self._writers
        for action in self._core.handle(event, now_ns):
            writers[type(action)](action)
        if self._clients.events or self._workers.events:
            self._settle(now_ns)

    def _settle(self, now_ns: int) -> None:
        """A side has events beside its messages: a connection that has ended, a content that was read."""
        for side in (self._workers, self._clients):
            events, side.events = side.events, []
            for event in events:
                self._handle(event, now_ns)

    def _close_arena(self, action: e.CloseArena) -> None:
        self._arenas.close(action.arena)
        self._workers.detach(action.arena)

    # ---- now and then -------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Some process has died."""
        self._slow_due_ns = 0

    def _look_around(self, now_ns: int) -> None:
        """Processes that died, connections that do not greet, and operators."""
        workers, clients, operators = self._workers, self._clients, self._operators
        self._spinning.look()
        clients.look_around(now_ns)
        for event in workers.look_around(now_ns):
            self._handle(event, now_ns)
            self._due_ns = now_ns  # there may be something to lend, or to send
        taken: bytes | None = None
        for event in operators.read(now_ns):
            if isinstance(event, e.SnapshotAsked):
                taken = taken or codec.encode([m.SnapshotTaken(self._snapshot())])  # one for all who ask now
                operators.answer(event.admin, taken)
            else:
                self._handle(event, now_ns)
                self._due_ns = now_ns
        operators.flush()

    def _snapshot(self) -> dict[str, Any]:
        rooms = gauges.snapshot(self._core) | self._arenas.snapshot() | self._clients.inline.snapshot()
        return rooms | {"version": self._version, "models_root": self._operators.models_root}
