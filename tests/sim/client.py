"""A client's process: the real Channel, Backlog, Signature and SlotMemory, driven as futures.py drives
them; mapping.py drives the real Window beside it.

Every request is a Ticket, which must be settled exactly once, in time, with its own result or with
an error that it can have had. Results are looked at again when they are dropped: nobody may have
written over them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from batchyard.broker.core import LOSSES_MAX
from batchyard.client.channel import Pending, Settled
from batchyard.client.connection import refusal
from batchyard.client.futures import GRACE_NS
from batchyard.client.reply import Reply
from batchyard.client.resubmit import Backlog, Ended
from batchyard.client.signature import Signature
from batchyard.transport import codec, errors
from batchyard.transport import messages as m

from .clock import MS, US
from .mapping import SimMap
from .memory import ClientMemory
from .models import ALONE_ROWS, FINE, MAX_BATCH, POISON, Array, make_inputs
from .network import Link
from .tickets import ClientSession, Conn, Ticket

if TYPE_CHECKING:
    from .world import World

OUTCOME_LATE_NS_MAX = 50 * MS  # after its deadline: the first promise
HOLD_NS_MAX = 20 * MS  # how long a user keeps a result
RETRY_NS = 30 * MS
DESCRIBE_NS = 700 * MS


class SimClient:
    """One life of a client's process. `inline`: it has no memory in common with the broker."""

    def __init__(self, world: World, name: str, inline: bool) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.closed = False
        self.stopped_until_ns = 0
        self.session: ClientSession | None = None
        self.tickets: list[Ticket] = []  # not settled
        self.maps: list[SimMap] = []  # not over
        self.backlog = Backlog(lambda ticket: not ticket.outcome)
        self._numbers = count(1)
        self.holding = 0  # results that the user has not dropped
        self._inline = inline
        self._conns: dict[Link, Conn] = {}
        self._inbox: list[tuple[Link, bytes, Sequence[Any]]] = []

    # ---- connections --------------------------------------------------------------------------

    def connect(self) -> None:
        """A new session with one or two connections, as soon as there is a broker."""
        world = self.world
        if self.closed or (self.session is not None and not self.session.lost):
            return
        if world.broker is None:
            world.clock.after(RETRY_NS, lambda: self.when_awake(self.connect))
            return
        memory = None if self._inline else ClientMemory(world, world.rng.choice((4, 16, 64)) << 10)
        self.session = session = ClientSession(memory, self._numbers)
        for _ in range(world.rng.randrange(1, 3)):
            session.conns.append(self.greet(session))
        for mapping in list(self.maps):
            mapping.connect()

    def greet(self, session: ClientSession) -> Conn:
        """A new connection of the session."""
        assert self.world.broker is not None
        link = Link(self.world, self.world.broker.clients, self)
        conn = self._conns[link] = Conn(session, link)
        handle = session.memory.segment.handle if session.memory is not None else None
        self.put(conn, m.Hello(handle, self.name))
        return conn

    def close(self) -> None:
        """The user closes the client."""
        self.closed = True
        for conn in list(self._conns.values()):
            self._close(conn, errors.Cancelled("closed"))
        if self.session is not None:
            self.session.lost = True
        self._settle_ended(self.backlog.end(errors.Cancelled("closed")))

    def die(self) -> None:
        self.alive = False
        for ticket in self.tickets:
            ticket.client_died = True
        self.tickets.clear()
        self.maps.clear()
        for conn in self._conns.values():
            if self.world.rng.random() < 0.5:
                conn.link.reset()
            else:
                conn.link.close_in_order()

    def link_ended(self, link: Link) -> None:
        conn = self._conns.get(link)
        if self.alive and conn is not None:
            self.when_awake(lambda: self._lose(conn, errors.BrokerLost("the broker went away")))

    def _lose(self, conn: Conn, error: errors.BatchyardError) -> None:
        """The broker is gone: the session is given up, and its other connections end when they are idle."""
        if conn.closed:
            return
        conn.session.lost = True
        lost = error if isinstance(error, errors.BrokerLost) else errors.BrokerLost(str(error))
        now_ns = self.world.clock.now_ns
        for expires_ns, pending in conn.expiries.living():
            self._add_lost(conn, pending, expires_ns - GRACE_NS, lost, now_ns)
        if conn.mapping is not None:
            conn.mapping.lose(lost)
            conn.mapping = None
        self._close(conn, error)
        for other in conn.session.conns:
            self._close_if_idle(other)
        self.world.clock.after(self.world.rng.randrange(RETRY_NS), lambda: self.when_awake(self.connect))

    def _add_lost(
        self, conn: Conn, pending: Pending, due_ns: int, error: errors.BrokerLost, now_ns: int
    ) -> None:
        """As futures.py: what had no outcome waits for the next broker, or ends."""
        pending.settled = True
        ticket = pending.waiter
        ticket.pending, ticket.lost = None, True
        self.world.count("lost")
        self._settle_ended(self.backlog.add(pending, conn.session.memory, error, due_ns, now_ns))
        pending.waiter = None
        self.world.clock.at(due_ns, lambda: self.when_awake(self._expire_backlog))

    def _expire_backlog(self) -> None:
        self._settle_ended(self.backlog.expire(self.world.clock.now_ns, self.has_link()))

    def has_link(self) -> bool:
        """Whether a broker has answered in this session."""
        session = self.session
        return session is not None and not session.lost and any(conn.greeted for conn in session.conns)

    def _settle_ended(self, ended: Sequence[Ended]) -> None:
        for ticket, error in ended:
            self.check(ticket, error)

    def _ask_again(self, session: ClientSession) -> None:
        conn = next((conn for conn in session.conns if conn.greeted and not conn.closed), None)
        if conn is None or session.lost:
            return
        for model in self.backlog.models:
            signature = session.signatures.get(model)
            if signature is None:
                continue
            submitted, ended = self.backlog.ask_again(conn.channel, signature, self.world.clock.now_ns)
            for pending, frames, due_ns in submitted:
                self.world.count("asked_again")
                assert self._is_idempotent(pending.waiter), f"{pending.waiter.number} may run twice"
                self._under_way(conn, pending, frames, due_ns + GRACE_NS)
            self._settle_ended(ended)

    def _under_way(self, conn: Conn, pending: Pending, frames: Sequence[Any], expires_ns: int) -> None:
        ticket: Ticket = pending.waiter
        ticket.pending, ticket.conn = pending, conn
        self.put(conn, pending.message, frames)
        conn.expiries.add(expires_ns, pending)
        self.world.clock.at(expires_ns, lambda: self.when_awake(lambda: self._expire(conn)))

    def _close(self, conn: Conn, error: errors.BatchyardError) -> None:
        if conn.closed:
            return
        conn.closed = True
        self._settle(conn.channel.lose(error))
        waiting = [ticket.number for ticket in self.tickets if ticket.conn is conn and ticket.pending]
        assert not waiting, f"the connection is lost, and {waiting} wait for it"
        if conn.link.open:
            conn.link.to_broker(codec.encode([m.Bye()]))
            conn.link.close_in_order()
        del self._conns[conn.link]

    def _close_if_idle(self, conn: Conn) -> None:
        if conn.mapping is not None:
            return
        if conn.session.lost and not conn.closed and not conn.channel.pending and not conn.outbox:
            self._close(conn, errors.Cancelled("idle"))

    # ---- sending ------------------------------------------------------------------------------

    def conns(self) -> list[Conn]:
        return [conn for conn in self._conns.values() if conn.greeted]

    def put(self, conn: Conn, message: Any, frames: Sequence[Any] = ()) -> None:
        conn.outbox.append((message, frames))
        if len(conn.outbox) == 1:
            delay_ns = self.world.rng.randrange(100 * US)
            self.world.clock.after(delay_ns, lambda: self.when_awake(lambda: self._flush(conn)))

    def _flush(self, conn: Conn) -> None:
        gathered: list[Any] = []
        for message, frames in conn.outbox:
            if frames:
                if gathered:
                    conn.link.to_broker(codec.encode(gathered))
                    gathered = []
                conn.link.to_broker(codec.encode([message]), [bytes(frame) for frame in frames])
            else:
                gathered.append(message)
        if gathered:
            conn.link.to_broker(codec.encode(gathered))
        conn.outbox = []
        self._close_if_idle(conn)

    def describe(self, conn: Conn, model: str) -> None:
        pending = conn.channel.describe(model)
        pending.waiter = (conn, model)
        self.put(conn, pending.message)

        def give_up() -> None:  # as session.describe does
            if conn.channel.pending.pop(pending.number, None) is not None and not conn.closed:
                self.describe(conn, model)

        self.world.clock.after(DESCRIBE_NS, lambda: self.when_awake(give_up))

    def submit(self) -> None:
        """A user asks for something, if there is a connection to ask on."""
        world, rng, session = self.world, self.world.rng, self.session
        conns = [c for c in session.conns if c.greeted and not c.closed] if session is not None else []
        if session is None or session.lost or not conns or not session.signatures:
            world.count("not_connected")
            return
        conn = rng.choice(conns)
        model = rng.choice(sorted(session.signatures))
        rows = rng.choice((1, 1, 1, 2, 3, MAX_BATCH[model], 2 * MAX_BATCH[model] + 1))
        does = world.what_an_item_does()
        number = world.next_number()
        shape_rows = ALONE_ROWS if model == "alone" else rows
        again = world.again(model)
        if again is not None:  # what somebody has asked before
            does, inputs = again
            shape_rows = len(inputs[0])
        else:
            inputs = make_inputs(model, number, shape_rows, does, rng.randrange(1000), rng.choice((4, 6)))
            world.asked.setdefault(model, []).append((does, inputs))
        inputs = [array.copy() for array in inputs]  # to be written over, when they have been taken
        ticket = Ticket(number, model, does, inputs)
        deadline_ns = rng.choice((0, 0, 2, 8, 30, 200, 900)) * MS
        timeout_ns = rng.choice((50, 400, 1500)) * MS
        given: Any = {spec.spec.name: array for spec, array in zip(session.signatures[model].inputs, inputs, strict=True)}
        try:
            if session.memory is not None and rng.random() < 0.2:
                given = {name: self._in_shared_memory(session.memory, array) for name, array in given.items()}
            pending, frames = conn.channel.submit(
                session.signatures[model], given, rng.choice((0, 1, 2, 2, 3)), deadline_ns, 0.0
            )
        except errors.ArenaExhausted:
            world.count("arena_full")
            return
        self.asked(ticket, min(deadline_ns or timeout_ns, timeout_ns))
        pending.waiter = ticket
        if pending.arrays is not None and session.memory is not None and does == FINE and world.happens("change"):
            ticket.changed = True  # a user who does not keep to the rules
            overwrite = lambda: self._overwrite(ticket, given)  # noqa: E731
            world.clock.after(rng.randrange(2 * MS), lambda: self.when_awake(overwrite))
        self._under_way(conn, pending, frames, ticket.sent_ns + ticket.patience_ns + GRACE_NS)
        for array in inputs:
            array[...] = -1  # the caller's own again
        if rng.random() < 0.12:
            world.clock.after(rng.randrange(8 * MS), lambda: self.when_awake(lambda: self._cancel(ticket)))

    def asked(self, ticket: Ticket, patience_ns: int) -> None:
        """A user has a ticket."""
        ticket.patience_ns = patience_ns
        self.begins(ticket)
        self.tickets.append(ticket)
        self.world.count("requests")
        self.world.trace(self.name, "asks", ticket.number, ticket.model, ticket.does, patience_ns)

    def begins(self, ticket: Ticket) -> None:
        """Its time begins now."""
        ticket.sent_ns = self.world.clock.now_ns
        ticket.due_ns = ticket.sent_ns + ticket.patience_ns + OUTCOME_LATE_NS_MAX

    def map(self) -> None:
        """A user asks for several things, a window of them at once."""
        session = self.session
        if session is None or session.lost or not session.signatures:
            self.world.count("not_connected")
            return
        self.world.count("maps")
        self.maps.append(SimMap(self, self.world.rng.choice(sorted(session.signatures))))

    @staticmethod
    def _in_shared_memory(memory: ClientMemory, array: Array) -> Array:
        """What `client.empty` gives, filled."""
        placed = memory.array(memory.alloc(array.nbytes), array.dtype, array.shape)
        placed[...] = array
        return placed

    @staticmethod
    def _overwrite(ticket: Ticket, given: dict[str, Array]) -> None:
        """The user writes over inputs that lie in shared memory, while their request is under way."""
        if not ticket.outcome:
            for array in given.values():
                array[:, -1] += 1

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.outcome:
            return
        self.world.count("cancel")
        conn, pending = ticket.conn, ticket.pending
        self.ended(ticket, "cancelled")
        message = conn.channel.abandon(pending) if conn is not None and pending is not None else None
        if message is not None and conn is not None:
            self.put(conn, message)

    def _expire(self, conn: Conn) -> None:
        for pending in conn.expiries.due(self.world.clock.now_ns):
            message = conn.channel.abandon(pending)
            self.world.count("abandoned")
            self._settle([(pending, errors.DeadlineExceeded("no answer before the deadline"))])
            if message is not None and not conn.closed:
                self.put(conn, message)

    # ---- being answered -----------------------------------------------------------------------

    def receive(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        self._inbox.append((link, payload, frames))
        self.when_awake(self._read)

    def _read(self) -> None:
        inbox, self._inbox = self._inbox, []
        for link, payload, frames in inbox:
            link.unread -= 1
            conn = self._conns.get(link)
            if conn is None:
                continue
            for message in codec.broker_to_client.decode(payload):
                self.world.trace(self.name, "is told", type(message).__name__)
                if isinstance(message, m.Refused):
                    known = conn.greeted and link.open and not self.world.faults.get("queue_full")
                    assert not known, f"a connection that is in order was refused: {message.text}"
                    self._lose(conn, refusal(message))
                    break
                if isinstance(message, m.Welcome):
                    conn.greeted = True
                    for model in self.world.config.models if conn.mapping is None else [conn.mapping.model]:
                        self.describe(conn, model)
                    continue
                self._settle(conn.channel.handle(message, frames))
            if conn.mapping is not None and not conn.closed:
                conn.mapping.go_on()
            self._close_if_idle(conn)
            if self.backlog and self.session is not None:
                self._ask_again(self.session)

    def _settle(self, settled: Sequence[Settled]) -> None:
        for pending, outcome in settled:
            if pending.signature is not None and pending.waiter is None:
                pending.waiter = outcome  # a map's
                continue
            waiter, pending.waiter = pending.waiter, None
            if isinstance(waiter, Ticket):
                waiter.pending = None
                self.check(waiter, outcome)
            elif waiter is not None:
                self._described(*waiter, outcome)

    def _described(self, conn: Conn, model: str, outcome: Any) -> None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            conn.session.signatures[model] = Signature(outcome[0])
            if conn.mapping is not None and conn.mapping.model == model:
                conn.mapping.begin(conn)
        except errors.BatchyardError:
            if conn.mapping is not None:
                conn.mapping.refuse()
            elif not conn.closed and self.world.running:
                again = lambda: conn.closed or self.describe(conn, model)  # noqa: E731
                self.world.clock.after(RETRY_NS, lambda: self.when_awake(again))

    def check(self, ticket: Ticket, outcome: Any) -> None:
        world = self.world
        if isinstance(outcome, Reply):
            assert ticket.does == FINE, "an item that can't be run has a result"
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
        if kind is errors.ModelFailed:
            mixed = not self._is_idempotent(ticket) and "was swapped between the parts" in str(outcome)
            assert ticket.does == POISON or ticket.changed or mixed, f"{ticket.number} failed for another's fault: {outcome}"
        elif kind is errors.WorkerLost:
            assert world.deaths >= (LOSSES_MAX if self._is_idempotent(ticket) else 1), "too few died"
        elif kind is errors.DeadlineExceeded:
            assert world.clock.now_ns >= ticket.sent_ns + ticket.patience_ns, "too early"
        elif kind is errors.UnknownModel:
            assert world.faults.get("unload_model"), f"{ticket.number}: {outcome}"
        elif kind is errors.BrokerLost:
            if self._is_idempotent(ticket):
                assert world.clock.now_ns >= ticket.sent_ns + ticket.patience_ns, f"{ticket.number}: {outcome}"
                assert ticket.lost, "its broker is there"
                assert not self.has_link(), f"{ticket.number} had another broker"
        elif kind is errors.ArenaExhausted:
            assert ticket.lost, "what was under way needs no room"
        elif kind is not errors.Overloaded:
            raise AssertionError(f"request {ticket.number} failed: {outcome!r}")
        self.ended(ticket, kind.__name__)

    def ended(self, ticket: Ticket, outcome: str) -> None:
        world = self.world
        assert not ticket.outcome, f"request {ticket.number} ended twice: {ticket.outcome}, {outcome}"
        ticket.outcome = outcome
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
        return not (
            self.tickets or self.maps or self.holding or any(c.channel.pending or c.outbox for c in self._conns.values())
        )


def _equal(arrays: list[Array], expected: list[Array]) -> bool:
    return len(arrays) == len(expected) and all(map(np.array_equal, arrays, expected))
