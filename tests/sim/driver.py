"""One of a client's drivers: the real Engine, on links of the network and by the world's clock.

As client/link.py and its users: a line, which one thread waits on at a time, and looks at the clock now and
then; or the I/O thread's link, which is woken in time. Nothing is decided here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchyard.client.connection import LOOK_AROUND_MS
from batchyard.client.engine import Engine
from batchyard.client.request import Request
from batchyard.transport import codec, errors
from batchyard.transport import messages as m

from .clock import MS, US
from .network import Link
from .tickets import SimSession

if TYPE_CHECKING:
    from .client import SimClient

RETRY_NS = 20 * MS


class Driver:
    """`is_line`: one request or map at a time. `user` is told when something may have come."""

    def __init__(self, client: SimClient, is_line: bool) -> None:
        self.client = client
        self.is_line = is_line
        self.engine = Engine(client.numbers, "the yard", client.connect_timeout_ns, self._ring)
        self.session: SimSession | None = None
        self.link: Link | None = None  # greeted or welcome
        self.user: Any = None
        self._wakes_ns: int | None = None
        self._retry_ns = 0
        self._planned = False
        self._rung = False
        self._welcome_heard = False

    @property
    def is_connected(self) -> bool:
        return self.engine.session is not None

    def ask(self, question: Request) -> None:
        self.engine.ask(question, self.client.world.clock.now_ns)
        self.act_soon()

    # ---- turns --------------------------------------------------------------------------------

    def act_soon(self) -> None:
        """What gathers meanwhile leaves as one message."""
        if not self._planned:
            self._planned = True
            world = self.client.world
            world.clock.after(world.rng.randrange(100 * US), lambda: self.client.when_awake(self._act))

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self.client.world.clock.after(0, lambda: self.client.when_awake(self._look))

    def _look(self) -> None:
        self._rung = False
        self.engine.expire(self.client.world.clock.now_ns)
        self._act()

    def _act(self) -> None:
        self._planned = False
        if self not in self.client.drivers:
            return  # an idle line that was closed
        if not self.is_line and self.is_connected and self.session is not None and self.session.lost:
            self.lose(errors.BrokerLost("another connection of the client has ended"))
        if self.is_connected:
            self._send()
        elif self.engine.wants_connection:
            self._connect()
        self.client.settle(self)
        if self.user is not None:
            self.user.go_on()
            self.submitted()
        if self.is_connected and self.link is not None:
            self._send()
        self._plan_tick()

    def submitted(self) -> None:
        """The engine has been given requests. It may have seen that its session is over: as Line.step."""
        if self._welcome_heard and not self.is_connected:
            self.client.note_lost(self, False)
            self.lose(None)

    def _plan_tick(self) -> None:
        """Look at the clock when the engine is due: a line may be late by as much as it looks around."""
        world = self.client.world
        due_ns = self.engine.next_due_ns()
        if due_ns is None:
            return
        if self.is_line and due_ns > world.clock.now_ns:
            due_ns += world.rng.randrange(LOOK_AROUND_MS * MS)
        if self._wakes_ns is not None and self._wakes_ns <= due_ns:
            return
        self._wakes_ns = due_ns

        def tick() -> None:
            if self._wakes_ns == due_ns:
                self._wakes_ns = None
                self.engine.expire(world.clock.now_ns)
                self._act()

        world.clock.at(due_ns, lambda: self.client.when_awake(tick))

    # ---- the connection -----------------------------------------------------------------------

    def _connect(self) -> None:
        world = self.client.world
        if self.link is not None:
            return  # it has greeted
        if world.clock.now_ns < self._retry_ns:
            return
        if world.broker is None:
            self._refused(errors.BrokerLost("nobody is there"))
            return
        self.session = self.client.open()
        self.link = Link(world, world.broker.clients, self)
        handle = self.session.memory.segment.handle if self.session.memory is not None else None
        self.link.to_broker(codec.encode([m.Hello(handle, self.client.name)]))

    def _refused(self, error: errors.BatchyardError) -> None:
        world = self.client.world
        self._hang_up()
        self.engine.refused(error)
        self._retry_ns = world.clock.now_ns + RETRY_NS
        world.clock.at(self._retry_ns, lambda: self.client.when_awake(self.act_soon))

    def _send(self) -> None:
        assert self.link is not None
        for messages, frames, requests in self.engine.take_envelopes():
            for request in requests:
                if not request.is_question:
                    self.client.check_sent(request)
            self.link.to_broker(codec.encode(messages), [bytes(frame) for frame in frames])

    def receive(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        """The network's: an envelope has come."""
        self.client.when_awake(lambda: self._received(link, payload, frames))

    def _received(self, link: Link, payload: bytes, frames: Sequence[Any]) -> None:
        client, world = self.client, self.client.world
        link.unread -= 1
        if link is not self.link:
            return
        messages = codec.broker_to_client.decode(payload)
        for message in messages:
            world.trace(client.name, "is told", type(message).__name__)
            if isinstance(message, m.Refused):
                known = self.is_connected and link.open and not world.faults.get("queue_full")
                assert not known, f"a connection that is in order was refused: {message.text}"
        if not self.is_connected:
            self._welcome(messages[0])
        else:
            self._note_losses(messages)
            self.engine.received(messages, frames, world.clock.now_ns)
            if not self.is_connected:
                self.lose(None)
        self._act()

    def _welcome(self, message: Any) -> None:
        assert self.session is not None
        if isinstance(message, m.Refused):
            self._refused(errors.from_wire(message.code, message.text))
        elif self.session.lost:
            self._refused(errors.BrokerLost("the broker went away meanwhile"))
        else:
            assert isinstance(message, m.Welcome)
            self._welcome_heard = True
            self.engine.connected(self.session, self.client.world.clock.now_ns)

    def link_ended(self, link: Link) -> None:
        """The network's: the connection is over."""
        self.client.when_awake(lambda: self._ended(link))

    def _ended(self, link: Link) -> None:
        if link is not self.link:
            return
        if self.is_connected:
            self.lose(errors.BrokerLost("the broker went away"))
        else:
            self._refused(errors.BrokerLost("the broker went away"))
        self._act()

    def _note_losses(self, messages: Sequence[Any]) -> None:
        refused = next((message for message in messages if isinstance(message, m.Refused)), None)
        if refused is not None:
            alone = len(self.engine.pending) == 1 and refused.code == errors.Code.UNKNOWN_CONNECTION
            self.client.note_lost(self, alone)

    def lose(self, error: errors.BatchyardError | None) -> None:
        """As Link.lose: the session is given up, and so are its idle lines."""
        session = self.session
        if error is not None:
            self.client.note_lost(self, False)
            self.engine.lost(error, self.client.world.clock.now_ns)
        self._hang_up()
        if session is not None:
            self.client.give_up(session)
        self.act_soon()

    def close(self, error: Exception | None = None) -> None:
        """Let go of the connection; `error`: whoever waits for something is told so."""
        if error is not None:
            self.engine.end(error)
        self._hang_up()

    def _hang_up(self) -> None:
        link, self.link, self.session = self.link, None, None
        self._welcome_heard = False
        if link is not None and link.open:
            link.to_broker(codec.encode([m.Bye()]))
            link.close_in_order()

    @property
    def links(self) -> list[Link]:
        return [self.link] if self.link is not None else []

    def at_rest(self) -> bool:
        engine = self.engine
        return not (engine.pending or engine.room or engine.wants_connection or self._planned)
