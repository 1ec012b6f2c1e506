"""What a connection makes of the wire: sends that are refused, ends, and what each of them means."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.client.connection import BrokerConnection, HandshakeLost, NotSent
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import (
    BrokerLost,
    Overloaded,
    Unauthorized,
    UnknownConnection,
)
from batchyard.transport.wire import Ended, Full

WELCOME = codec.encode([m.Welcome(7, 1 << 20)])
IPC, TCP = "ipc:///tmp/yard", "tcp://127.0.0.1:7070"


class Wire:
    """A carrier and its one connection: what it gives, in order; an exception is raised."""

    def __init__(self, *gives: Any) -> None:
        self.gives = list(gives)
        self.sent: list[Any] = []
        self.along: list[int | None] = []
        self.full = False
        self.undelivered = False
        self.closed = False

    lends = False

    def connect(
        self, address: str, bounds: Any, descriptor: int | None = None, descriptors_max: int = 0
    ) -> Wire:
        self.along.append(descriptor)
        return self

    def send(self, parts: Any) -> None:
        if self.full:
            raise Full("9 messages wait")
        self.sent += codec.client_to_broker.decode(parts[0])

    def receive(self, timeout_ms: int) -> Any:
        given = self.gives.pop(0) if self.gives else None
        if isinstance(given, Exception):
            raise given
        return given

    def close(self) -> None:
        self.closed = True


def connected(wire: Wire, url: str = IPC) -> BrokerConnection:
    carrier: Any = wire
    return BrokerConnection(carrier, Endpoint.parse(url), None)


def test_it_greets_and_is_welcomed_and_says_goodbye_only_then() -> None:
    wire = Wire([WELCOME])
    connection = connected(wire)
    assert [type(message) for message in wire.sent] == [m.Hello]
    assert wire.along == [None]
    assert connection.welcomed(0)
    connection.close()
    connection.close()
    assert [type(message) for message in wire.sent] == [m.Hello, m.Bye]
    assert wire.closed
    unwelcome = Wire()
    connected(unwelcome).close()
    assert [type(message) for message in unwelcome.sent] == [m.Hello]


@pytest.mark.parametrize(
    ("why", "url", "kind", "said"),
    [
        ("closed", IPC, BrokerLost, "went away"),
        ("closed", TCP, BrokerLost, "went away"),
        ("handshake", TCP, HandshakeLost, "during the handshake"),
        ("denied", IPC, Unauthorized, "is another user's"),
        ("key", TCP, Unauthorized, "does not admit this client's key"),
        ("mechanism", TCP, Unauthorized, "disagree on CURVE"),
        ("protocol", IPC, BrokerLost, "is no broker"),
    ],
)
def test_an_end_before_the_welcome_says_whose_turn_it_is(why: Any, url: str, kind: type, said: str) -> None:
    connection = connected(Wire(Ended("the end", why)), url)
    with pytest.raises(kind, match=said):
        connection.welcomed(0)


def test_an_end_behind_a_message_that_was_never_delivered_says_that_nothing_was_run() -> None:
    wire = Wire([WELCOME], Ended("the end"), Ended("the end"))
    connection = connected(wire)
    connection.welcomed(0)
    with pytest.raises(BrokerLost, match="went away") as lost:
        connection.receive(0)
    assert not isinstance(lost.value, UnknownConnection)
    wire.undelivered = True
    with pytest.raises(UnknownConnection, match="before it was asked"):
        connection.receive(0)


def test_what_a_full_wire_refuses_is_an_overload_and_a_cancel_is_no_loss() -> None:
    wire = Wire([WELCOME])
    connection = connected(wire)
    connection.welcomed(0)
    wire.full = True
    with pytest.raises(Overloaded, match="does not read: 9 messages wait") as full:
        connection.send([m.Cancel([1])])
    assert isinstance(full.value, NotSent)
    assert full.value.retry_after_s > 0
    connection.tell([m.Cancel([1])])
    connection.close()
