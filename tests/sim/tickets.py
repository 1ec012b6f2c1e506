"""What a simulated user holds: a ticket for each request, and the session that the client's engines share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.client.request import Request
from batchyard.client.signature import Signature

from .memory import ClientMemory
from .models import Array, answers

if TYPE_CHECKING:
    from .driver import Driver


class Ticket:
    """One request of a user, and how it ended."""

    def __init__(self, number: int, model: str, does: int, inputs: list[Array]) -> None:
        self.number = number
        self.model = model
        self.does = does
        self.inputs = inputs  # the caller's, to be written over when they have been taken
        self.placed: dict[str, Array] = {}  # inputs in shared memory, which their user will write over
        self.expected = answers(model, inputs)
        self.sent_ns = 0
        self.patience_ns = 0
        self.due_ns = 0
        self.outcome = ""
        self.request: Request | None = None
        self.driver: Driver | None = None
        self.lost = False  # its broker went away at least once
        self.was_sent = False
        self.may_go_twice = False  # the broker that went away has run nothing of it
        self.client_died = False
        self.changed = False  # its user has written over its inputs: any result will do


class SimSession:
    """What the real Session holds: memory and signatures, for as long as the broker is there."""

    def __init__(self, memory: ClientMemory | None) -> None:
        self.memory = memory
        self.signatures: dict[str, Signature] = {}
        self.lost = False
