"""What a simulated client has under way: tickets, connections, and the session that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from batchyard.client.channel import Channel, Pending
from batchyard.client.signature import Signature
from batchyard.transport.deadlines import Deadlines

from .memory import ClientMemory
from .models import Array, answers
from .network import Link

if TYPE_CHECKING:
    from .mapping import SimMap


class Ticket:
    """One request of a user, and how it ended."""

    def __init__(self, number: int, model: str, does: int, inputs: list[Array]) -> None:
        self.number = number
        self.model = model
        self.does = does
        self.expected = answers(model, inputs)
        self.sent_ns = 0
        self.patience_ns = 0
        self.due_ns = 0
        self.outcome = ""
        self.pending: Pending | None = None
        self.conn: Conn | None = None
        self.lost = False  # its broker went away at least once
        self.client_died = False
        self.changed = False  # its user has written over its inputs: any result will do


class Conn:
    """A connection and what waits to be sent on it."""

    def __init__(self, session: ClientSession, link: Link) -> None:
        self.session = session
        self.link = link
        self.greeted = False
        self.closed = False
        self.channel = Channel(session.memory, session.numbers)
        self.outbox: list[tuple[Any, Sequence[Any]]] = []
        self.expiries: Deadlines[Pending] = Deadlines(lambda pending: pending.settled)
        self.mapping: SimMap | None = None  # whose own it is


class ClientSession:
    """What the real Session holds: memory, numbers, signatures, for as long as the broker is there."""

    def __init__(self, memory: ClientMemory | None, numbers: count[int]) -> None:
        self.memory = memory
        self.numbers = numbers
        self.signatures: dict[str, Signature] = {}
        self.conns: list[Conn] = []
        self.lost = False
