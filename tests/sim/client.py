"""A client's process: users, and the real Engine for each of their lines and for the I/O thread (driver.py).

Every request is a Ticket, which must end exactly once, in time, with its own result or with an error that it
can have had. Results are looked at again when they are dropped: nobody may have written over them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from batchyard.broker.books import LOSSES_MAX
from batchyard.client.engine import GRACE_NS
from batchyard.client.reply import Reply
from batchyard.client.request import Request
from batchyard.transport import errors

from .clock import MS
from .driver import Driver
from .mapping import SimMap
from .memory import ClientMemory
from .models import ALONE_ROWS, FINE, INPUTS, MAX_BATCH, ODD, POISON, WIDTHS, Array, make_inputs
from .tickets import SimSession, Ticket

if TYPE_CHECKING:
    from .world import World

OUTCOME_LATE_NS_MAX = 50 * MS  # after its deadline: the first promise
HOLD_NS_MAX = 20 * MS  # how long a user keeps a result
LINE_SHARE = 0.4  # of all requests: `infer`, on a line of the calling thread


class SimClient:
    """One life of a client's process. `inline`: it has no memory in common with the broker."""

    def __init__(self, world: World, name: str, inline: bool) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.closed = False
        self.stopped_until_ns = 0
        self.session: SimSession | None = None
        self.tickets: list[Ticket] = []  # not ended
        self.maps: list[SimMap] = []  # not over
        self.numbers = count(1)
        self.connect_timeout_ns = world.rng.choice((60, 5_000)) * MS
        self.holding = 0  # results that the user has not dropped
        self._inline = inline
        self.io = Driver(self, is_line=False)
        self.drivers: list[Driver] = [self.io]
        self._idle: list[Driver] = []

    # ---- sessions and lines -------------------------------------------------------------------

    def open(self) -> SimSession:
        """As Sessions.open."""
        if self.session is None or self.session.lost:
            memory = None if self._inline else ClientMemory(self.world, self.world.rng.choice((4, 16, 64)) << 10)
            self.session = SimSession(memory)
        return self.session

    def give_up(self, session: SimSession) -> None:
        """As Session.give_up: idle lines are closed; others go on."""
        session.lost = True
        for line in [line for line in self._idle if line.session is session]:
            self._drop(line)
        if self.io.session is session:
            self.io.act_soon()

    def line(self) -> Driver:
        """A line for one user alone, until `leave`."""
        if self._idle:
            return self._idle.pop()
        line = Driver(self, is_line=True)
        self.drivers.append(line)
        return line

    def leave(self, line: Driver) -> None:
        line.user = None
        self._idle.append(line)
        if not line.is_connected or line.session is None or line.session.lost:
            self._drop(line)

    def _drop(self, line: Driver) -> None:
        if line in self._idle:
            self._idle.remove(line)
        line.close()
        self.drivers.remove(line)

    def connected(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.is_connected]

    def connect(self) -> None:
        """A user who asks what there is, so that there is a connection."""
        self.nudge(self.io)

    def nudge(self, driver: Driver) -> None:
        """Ask for something: who has been dropped learns of it so."""
        now_ns = self.world.clock.now_ns
        driver.ask(Request(next(iter(self.world.config.models)), None, 0, 0, now_ns + 60_000 * MS, now_ns))

    def close(self) -> None:
        """The user closes the client."""
        self.closed = True
        for driver in self.drivers:
            driver.close(errors.Cancelled("closed"))
        waiting = [ticket.number for ticket in self.tickets]
        assert not waiting, f"the client is closed, and {waiting} have not ended"

    def die(self) -> None:
        self.alive = False
        for ticket in self.tickets:
            ticket.client_died = True
        self.tickets.clear()
        self.maps.clear()
        for driver in self.drivers:
            for link in driver.links:
                if self.world.rng.random() < 0.5:
                    link.reset()
                else:
                    link.close_in_order()

    # ---- what users do ------------------------------------------------------------------------

    def submit(self) -> None:
        """A user asks for something, unless he has closed the client."""
        world, rng = self.world, self.world.rng
        if self.closed:
            return
        model = rng.choice(sorted(world.config.models))
        rows = rng.choice((1, 1, 1, 2, 3, MAX_BATCH[model], 2 * MAX_BATCH[model] + 1))
        does = world.what_an_item_does(model)
        number = world.next_number()
        shape_rows = ALONE_ROWS if model == "alone" else rows
        again = world.again(model)
        if again is not None:  # what somebody has asked before
            does, inputs = again
            shape_rows = len(inputs[0])
        else:
            inputs = make_inputs(model, number, shape_rows, does, rng.randrange(1000), rng.choice(WIDTHS.get(model, (4, 6))))
            world.asked.setdefault(model, []).append((does, inputs))
        ticket = Ticket(number, model, does, [array.copy() for array in inputs])
        deadline_ns = rng.choice((0, 0, 2, 8, 30, 200, 900)) * MS
        timeout_ns = rng.choice((50, 400, 1500)) * MS
        deadline_ns = deadline_ns or timeout_ns
        session = self.session
        given: Any = {spec.name: array for spec, array in zip(INPUTS[model], ticket.inputs, strict=True)}
        placed = session is not None and session.memory is not None and not session.lost and rng.random() < 0.2
        if placed:
            assert session is not None
            given = {name: self._in_shared_memory(session.memory, array) for name, array in given.items()}
        self.asked(ticket, min(deadline_ns, timeout_ns))
        driver = self.line() if rng.random() < LINE_SHARE else self.io
        if driver.is_line:
            driver.user = _OneRequest(self, driver, ticket)
        now_ns = world.clock.now_ns
        request = Request(
            model, given, rng.choice((0, 1, 2, 2, 3)), now_ns + deadline_ns, now_ns + ticket.patience_ns + GRACE_NS, now_ns
        )
        request.waiter = ticket
        ticket.request, ticket.driver = request, driver
        driver.engine.submit(request, now_ns)
        driver.submitted()
        if request.want is not None:
            world.count("arena_full")
        if placed and does == FINE and world.happens("change"):
            ticket.changed = True  # a user who does not keep to the rules
            ticket.placed = given
            del given  # held by the ticket alone, until it has ended
            world.clock.after(rng.randrange(2 * MS), lambda: self.when_awake(lambda: self._overwrite(ticket)))
        self.settle(driver)
        driver.act_soon()
        if rng.random() < 0.12:
            world.clock.after(rng.randrange(8 * MS), lambda: self.when_awake(lambda: self._cancel(ticket)))

    def asked(self, ticket: Ticket, patience_ns: int) -> None:
        """A user has a ticket, and its time begins."""
        ticket.patience_ns = patience_ns
        ticket.sent_ns = self.world.clock.now_ns
        ticket.due_ns = ticket.sent_ns + ticket.patience_ns + OUTCOME_LATE_NS_MAX
        self.tickets.append(ticket)
        self.world.count("requests")
        self.world.trace(self.name, "asks", ticket.number, ticket.model, ticket.does, patience_ns)

    def map(self) -> None:
        """A user asks for several things, a window of them at once."""
        if self.closed:
            return
        self.world.count("maps")
        self.maps.append(SimMap(self, self.world.rng.choice(sorted(self.world.config.models))))

    @staticmethod
    def _in_shared_memory(memory: Any, array: Array) -> Array:
        """What `client.empty` gives, filled; where there is no room, an array of the user's own."""
        try:
            placed: Array = memory.array(memory.alloc(array.nbytes), array.dtype, array.shape)
        except errors.ArenaExhausted:
            return array
        placed[...] = array
        return placed

    @staticmethod
    def _overwrite(ticket: Ticket) -> None:
        """The user writes over inputs that lie in shared memory, while their request is under way."""
        for array in ticket.placed.values():
            array[..., -1] += 1

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.outcome or ticket.request is None or ticket.driver is None:
            return
        self.world.count("cancel")
        self.ended(ticket, "cancelled")
        ticket.driver.engine.cancel(ticket.request)
        self.settle(ticket.driver)
        ticket.driver.act_soon()

    # ---- what becomes of it -------------------------------------------------------------------

    def settle(self, driver: Driver) -> None:
        """Tell users what their requests have come to; whose input has been taken writes over it."""
        for request in driver.engine.take_outcomes():
            ticket, request.waiter = request.waiter, None
            outcome = request.take()
            if isinstance(ticket, Ticket):
                if isinstance(outcome, errors.DeadlineExceeded) and str(outcome).startswith("no answer within"):
                    self.world.count("abandoned")
                self.check(ticket, outcome)
        for ticket in self.tickets:
            if ticket.inputs and ticket.request is not None and ticket.request.message is not None and not ticket.changed:
                for array in ticket.inputs:
                    array[...] = -1  # the caller's own again
                ticket.inputs = []

    def check_sent(self, request: Request) -> None:
        """A request leaves: for the second time only where it may run twice."""
        ticket = next(ticket for ticket in self.tickets if ticket.request is request)
        if ticket.was_sent:
            self.world.count("asked_again")
            allowed = self._is_idempotent(ticket) or ticket.may_go_twice
            assert allowed, f"{ticket.number} may run twice"
            left_ns = ticket.sent_ns + ticket.patience_ns - self.world.clock.now_ns
            assert request.message.deadline_ns <= max(1, left_ns) + 900 * MS, "it is given more time than it had"
        ticket.was_sent = True

    def note_lost(self, driver: Driver, may_go_twice: bool) -> None:
        """The driver's connection is about to be lost."""
        for ticket in self.tickets:
            if ticket.driver is driver and ticket.request is not None:
                ticket.lost = True
                ticket.may_go_twice = may_go_twice
                self.world.count("lost")

    def check(self, ticket: Ticket, outcome: Any) -> None:
        world = self.world
        if isinstance(outcome, Reply):
            assert ticket.does in (FINE, ODD), "an item that can't be run has a result"
            if ticket.changed:
                ticket.expected = [array.copy() for array in outcome.arrays]
            assert _equal(outcome.arrays, ticket.expected), f"request {ticket.number} has another's result"
            self.holding += 1
            kept = [outcome]

            def drop() -> None:
                assert _equal(kept[0].arrays, ticket.expected), f"the result of {ticket.number} was written over"
                kept.clear()
                self.holding -= 1

            world.clock.after(world.rng.randrange(HOLD_NS_MAX), drop)
            self.ended(ticket, "ok")
            return
        kind = type(outcome)
        is_over = world.clock.now_ns >= ticket.sent_ns + ticket.patience_ns
        if kind is errors.ModelFailed:
            mixed = not self._is_idempotent(ticket) and "the parts of this request do not belong together" in str(outcome)
            slow = world.config.models[ticket.model].run_ns_max and "longer than run_seconds_max" in str(outcome)
            unloadable = "cannot be served" in str(outcome)
            assert ticket.does == POISON or ticket.changed or mixed or slow or unloadable, f"{ticket.number} failed for another's fault: {outcome}"
        elif kind is errors.WorkerLost:
            assert world.deaths >= (LOSSES_MAX if self._is_idempotent(ticket) else 1), "too few died"
        elif kind is errors.DeadlineExceeded:
            assert is_over, "too early"
        elif kind is errors.UnknownModel:
            assert world.faults.get("unload_model"), f"{ticket.number}: {outcome}"
        elif kind is errors.BrokerLost:
            self._check_lost(ticket, str(outcome), is_over)
        elif kind is errors.ArenaExhausted:
            self._check_exhausted(ticket, str(outcome), is_over)
        elif kind is not errors.Overloaded:
            raise AssertionError(f"request {ticket.number} failed: {outcome!r}")
        self.ended(ticket, kind.__name__)

    def _check_lost(self, ticket: Ticket, text: str, is_over: bool) -> None:
        assert ticket.driver is not None
        if "not idempotent" in text:
            assert not self._is_idempotent(ticket), "it may run twice, and was given up"
            assert ticket.was_sent, "nobody has run it, and it was given up"
            return
        assert not ticket.driver.is_connected, f"{ticket.number} had another broker"
        if ticket.lost:
            assert is_over, f"{ticket.number}: {text}"
        else:
            waited_ns = self.world.clock.now_ns - ticket.sent_ns
            assert is_over or waited_ns >= self.connect_timeout_ns, "nobody has waited for a broker"

    def _check_exhausted(self, ticket: Ticket, text: str, is_over: bool) -> None:
        assert ticket.driver is not None
        session = ticket.driver.session
        assert session is not None
        assert session.memory is not None
        assert is_over or "exceed the whole arena" in text or not session.memory.is_owed, "room would have come back"

    def ended(self, ticket: Ticket, outcome: str) -> None:
        world = self.world
        assert not ticket.outcome, f"request {ticket.number} ended twice: {ticket.outcome}, {outcome}"
        ticket.outcome = outcome
        ticket.placed = {}
        self.tickets.remove(ticket)
        world.outcomes[outcome] = world.outcomes.get(outcome, 0) + 1
        world.trace(self.name, "has", ticket.number, outcome)
        late_ns = world.clock.now_ns - ticket.due_ns
        assert late_ns <= 0, f"request {ticket.number} ended {late_ns / MS:.3f} ms too late"

    def _is_idempotent(self, ticket: Ticket) -> bool:
        return self.world.config.models[ticket.model].idempotent

    # ---- time ---------------------------------------------------------------------------------

    def stop(self, for_ns: int) -> None:
        """SIGSTOP, and later SIGCONT; a stopped client can't be told anything."""
        self.stopped_until_ns = max(self.stopped_until_ns, self.world.clock.now_ns + for_ns)
        for ticket in self.tickets:
            ticket.due_ns += for_ns

    def when_awake(self, action: Callable[[], None]) -> None:
        """Now, or when the process goes on; not at all when it is dead."""
        if not self.alive:
            return
        if self.world.clock.now_ns < self.stopped_until_ns:
            self.world.clock.at(self.stopped_until_ns, lambda: self.when_awake(action))
        else:
            action()

    def at_rest(self) -> bool:
        return not (self.tickets or self.maps or self.holding) and all(driver.at_rest() for driver in self.drivers)


class _OneRequest:
    """`infer`: the line is given back when its one request has ended."""

    def __init__(self, client: SimClient, line: Driver, ticket: Ticket) -> None:
        self._client = client
        self._line = line
        self._ticket = ticket

    def go_on(self) -> None:
        if self._ticket.outcome:
            self._client.leave(self._line)


def _equal(arrays: list[Array], expected: list[Array]) -> bool:
    return len(arrays) == len(expected) and all(map(np.array_equal, arrays, expected))
