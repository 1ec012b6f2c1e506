"""A user's `map`: the real Window on a connection of its own, driven as window.results drives it.

The real one waits in the user's thread; here every message and every timer lets it go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from batchyard.client.resubmit import nobody_came
from batchyard.client.window import Window
from batchyard.transport import errors

from .clock import MS
from .models import ALONE_ROWS, MAX_BATCH, make_inputs
from .tickets import Conn, Ticket

if TYPE_CHECKING:
    from .client import SimClient

WORD_NS = 20 * MS  # as client.BROKERS_WORD_S


class SimMap:
    """From the user's call to the last result, or the first error."""

    def __init__(self, client: SimClient, model: str) -> None:
        rng = client.world.rng
        self.model = model
        self._client = client
        self._patience_ns = rng.choice((50, 400, 1500)) * MS
        self._tickets: deque[Ticket] = deque()  # in order, with those of which nothing was taken out
        self._conn: Conn | None = None
        self._begun = False
        self._lost: errors.BrokerLost | None = None
        self._give_up_ns = 0
        self._window = Window(
            self._inputs(rng.randrange(1, 14)), rng.choice((1, 3, 8)), 2, self._patience_ns,
            (self._patience_ns + WORD_NS) / 1e9,
        )  # fmt: skip
        self.connect()

    def _inputs(self, number_of: int) -> Iterator[Any]:
        client, rng = self._client, self._client.world.rng
        for _ in range(number_of):
            does = client.world.what_an_item_does()
            number = client.world.next_number()
            rows = ALONE_ROWS if self.model == "alone" else rng.choice((1, 2, MAX_BATCH[self.model]))
            inputs = make_inputs(self.model, number, rows, does, rng.randrange(1000), 4)
            ticket = Ticket(number, self.model, does, inputs)
            client.asked(ticket, self._patience_ns)
            self._tickets.append(ticket)
            assert self._conn is not None
            signature = self._conn.session.signatures[self.model]
            yield {want.spec.name: array for want, array in zip(signature.inputs, inputs, strict=True)}
            for array in inputs:
                array[...] = -1  # the caller's own again, when the next is asked for

    # ---- its connection -----------------------------------------------------------------------

    def connect(self) -> None:
        """A connection of the client's session, if there is one."""
        session = self._client.session
        if self._conn is None and session is not None and not session.lost and self._client.world.broker:
            self._conn = self._client.greet(session)
            self._conn.mapping = self
            self._begun = False

    def begin(self, conn: Conn) -> None:
        """The model's signature is known."""
        if conn is self._conn and not self._begun:
            self._begun = True
            self._window.begin(conn.channel, conn.session.signatures[self.model])
            self.go_on()

    def refuse(self) -> None:
        """The broker can't serve the model: the user is told so."""
        if not self._begun:
            self._end(None)

    def lose(self, error: errors.BrokerLost) -> None:
        """The connection ended. As results: on to the next, or the end."""
        world = self._client.world
        begun, self._conn, self._begun = self._begun, None, False
        self._lost = self._lost or error
        for ticket in self._tickets:
            ticket.lost = True
        if begun:
            try:
                self._give_up_ns = int(self._window.lose(error, world.clock.now_ns / 1e9) * 1e9)
            except errors.BrokerLost as final:
                self._end(final)
                return
            world.clock.at(self._give_up_ns, lambda: self._client.when_awake(self._give_up))
        elif not self._window.under_way:
            self._end(None)  # the user's first call found no broker
            return
        self.connect()

    def _give_up(self) -> None:
        waits = self._lost is not None and self._window.under_way and not self._begun
        if waits and self._client.world.clock.now_ns >= self._give_up_ns:
            # With a link the real one waits for the model's description, in session.describe.
            linked = self._client.has_link()
            self._end(errors.DeadlineExceeded("no worker") if linked else nobody_came(self._lost, 0))

    # ---- its results --------------------------------------------------------------------------

    def go_on(self) -> None:
        """One round of results(): fill, send, and take out what has come."""
        world, window = self._client.world, self._window
        while self._begun and self._conn is not None:
            self._lost = None
            now_s = world.clock.now_ns / 1e9
            try:
                kept = self._tickets[-1] if window._kept else None
                envelopes = window.fill(now_s) if window.wants_filling else []
                if kept is not None:
                    self._client.begins(kept)  # its input was waiting for room; its time begins with it
                for messages, frames in envelopes:
                    for message in messages:
                        self._client.put(self._conn, message, frames)
                window.expire(now_s)
                if window.waits:
                    due_ns = int(window.under_way[0][1] * 1e9) + 1
                    world.clock.at(due_ns, lambda: self._client.when_awake(self.go_on))
                    return
                if not window.under_way:
                    self._end(None)
                    return
                reply = window.take()
            except errors.ArenaExhausted as error:
                self._end(error if self._tickets and self._tickets[0].lost else None)
                return
            except errors.BatchyardError as error:
                self._end(error)
                return
            self._client.check(self._tickets.popleft(), reply)
            del reply

    def _end(self, error: errors.BatchyardError | None) -> None:
        """The first error is the user's; the rest is cancelled, and the connection is given back."""
        client, conn = self._client, self._conn
        if self not in client.maps:
            return
        client.maps.remove(self)
        self._conn = None
        if error is not None and self._tickets:
            client.check(self._tickets.popleft(), error)
        for ticket in self._tickets:
            client.ended(ticket, "cancelled")
        if conn is not None:
            for message in self._window.cancel() if self._begun else ():
                client.put(conn, message)
            self._begun = False
            conn.mapping = None
            client.world.clock.after(0, lambda: client.when_awake(lambda: client._close_if_idle(conn)))
