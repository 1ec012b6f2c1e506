"""What holds on every wire: one suite over stream.py (a unix socket) and libzmq.py (tcp)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.errors import EndpointInUse
from batchyard.transport.wire import Bounds, Carrier, Ended
from batchyard.transport.wire.watch import Watch

from .driven import BOUNDS, Server, drain, receive_often, until_full

Connect = Callable[..., Any]

MESSAGES = [
    [b""],
    [b"hello"],
    [b"x" * 255],
    [b"x" * 256],
    [b"payload", b"", b"y" * 5000, b"z" * 70_000],
    [b"m" * (3 << 20)],
    [b"a", b"b" * (20 << 20), b"c"],
    [b"last"],
]


def test_messages_arrive_whole_and_in_order_and_so_do_the_answers(server: Server, connect: Connect) -> None:
    server.on_message = lambda peer, parts: peer.send(parts)
    connection = connect()
    answers: list[list[bytes]] = []
    for parts in MESSAGES:
        connection.send(parts)
    server.until(lambda: len(answers) == len(MESSAGES), lambda: answers.extend(drain(connection)))
    assert server.messages == MESSAGES
    assert answers == MESSAGES


def test_peers_are_told_apart_and_owned_by_their_reader(server: Server, connect: Connect) -> None:
    def answer(peer: Any, parts: list[bytes]) -> None:
        peer.owner = peer.owner or parts[0]
        peer.send([b"to " + peer.owner])

    server.on_message = answer
    connections = [connect() for _ in range(5)]
    for _ in range(3):
        for number, connection in enumerate(connections):
            connection.send([b"%d" % number])
    got: dict[int, list[list[bytes]]] = {number: [] for number in range(5)}

    def read() -> None:
        for number, connection in enumerate(connections):
            got[number] += drain(connection)

    server.until(lambda: all(len(found) == 3 for found in got.values()), read)
    assert got == {number: [[b"to %d" % number]] * 3 for number in range(5)}


def test_a_connection_may_be_made_before_anybody_listens(
    endpoint: Endpoint, serving: Carrier, connect: Connect
) -> None:
    connection = connect()
    connection.send([b"early"])
    assert connection.receive(30) is None
    server = Server(serving, endpoint.clients)
    try:
        server.until(lambda: server.messages, lambda: connection.receive(0))
        assert server.messages == [[b"early"]]
    finally:
        server.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_signals_do_not_prolong_a_wait(server: Server, connect: Connect) -> None:
    """pyzmq begins a `recv` anew after each: under a profiler's timer no time-out came."""
    connection = connect()
    ticks: list[int] = []

    def tick(*_: object) -> None:
        ticks.append(1)
        assert len(ticks) < 400, "the wait of 50 ms goes on"

    before = signal.signal(signal.SIGALRM, tick)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        assert connection.receive(50) is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_has_come_is_told_by_the_descriptors_or_is_called_unread(server: Server, connect: Connect) -> None:
    """A client's first `submit` over tcp slept over its answer: libzmq says nothing of a message that comes
    before a look has found none."""
    connection = connect()
    server.on_message = lambda peer, parts: [peer.send([b"%d" % n]) for n in range(2)]
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    found: list[Any] = []
    # A wait that ends with a message, and no look after it.
    server.until(lambda: found, lambda: found.extend(filter(None, [connection.receive(1000)])))
    watch = Watch()
    for fd in connection.watched:
        watch.add(fd, SimpleNamespace(ready=lambda *_: None))  # type: ignore[arg-type]
    server.until(lambda: connection.unread or watch.wait(0))
    assert connection.receive(1000) == [b"1"]
    for number in range(20):  # nor where a send comes in between
        connection.send([b"more"])
        server.until(lambda number=number: len(server.messages) == number + 2)
        for _ in range(2):
            server.until(lambda: connection.unread or watch.wait(0))
            assert any(connection.receive(1000) for _ in range(15))
    watch.close()


def test_an_end_is_reported_once_and_a_send_afterwards_says_so(server: Server, connect: Connect) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    peer = server.arrived[0][0]
    connection.close()
    server.until(lambda: server.arrived[-1][1] is None)
    assert server.arrived == [(peer, [b"hello"]), (peer, None)]
    assert peer.ended
    with pytest.raises(Ended):
        peer.send([b"too late"])
    server.turn(0)
    assert len(server.arrived) == 2


def test_the_other_side_learns_that_the_listener_is_gone(server: Server, connect: Connect) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    server.close()
    with pytest.raises(Ended) as ended:
        receive_often(connection)
    assert ended.value.why == "closed"
    with pytest.raises(Ended):
        connection.receive(0)


def test_a_peer_that_is_closed_learns_it_and_is_not_heard_of_again(server: Server, connect: Connect) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    server.arrived[0][0].close()
    ended: list[bool] = []

    def look() -> None:
        try:
            connection.receive(0)
        except Ended:
            ended.append(True)

    server.until(lambda: ended, look)
    assert len(server.arrived) == 1


def test_who_sends_to_a_peer_that_does_not_read_is_never_held_up_and_learns_it(
    server: Server, connect: Connect
) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    peer = server.arrived[0][0]
    began_s = time.monotonic()
    sent = until_full(lambda: peer.send([b"x" * 10_000]), server.listener.flush)
    assert sent >= BOUNDS.outbox_messages
    assert time.monotonic() - began_s < 20
    # What was taken is delivered when the peer reads after all.
    got: list[list[bytes]] = []
    server.until(lambda: len(got) == sent, lambda: got.extend(drain(connection)))
    assert all(parts == [b"x" * 10_000] for parts in got)


def test_who_sends_to_a_listener_that_does_not_read_is_never_held_up_and_learns_it(
    server: Server, connect: Connect
) -> None:
    connection = connect()
    connection.send([b"hello"])
    server.until(lambda: server.messages)
    sent = 1 + until_full(lambda: connection.send([b"y" * 10_000]))
    assert connection.unsent
    server.until(lambda: len(server.messages) == sent, connection.flush)
    assert not connection.unsent


def test_a_part_too_many_is_seen_and_the_connection_goes_on(server: Server, connect: Connect) -> None:
    connection = connect()
    connection.send([b"p"] * 1000)
    connection.send([b"next"])
    server.until(lambda: len(server.messages) == 2)
    assert server.messages == [[b"p"] * (BOUNDS.parts + 1), [b"next"]]


def test_a_frame_past_the_bound_ends_the_connection(
    endpoint: Endpoint, serving: Carrier, connect: Connect
) -> None:
    server = Server(serving, endpoint.clients, Bounds(frame_bytes=10_000, parts=4))
    try:
        connection = connect()
        connection.send([b"good"])
        server.until(lambda: server.messages)
        connection.send([b"x" * 10_001])
        server.until(lambda: server.arrived[-1][1] is None)
        assert server.messages == [[b"good"]]
    finally:
        server.close()


def test_strangers_are_dismissed_by_age_and_by_number_and_those_who_are_admitted_are_not(
    server: Server, connect: Connect
) -> None:
    connections = [connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        connection.send([b"%d" % number])
        server.until(lambda number=number: len(server.messages) == number + 1)  # type: ignore[misc]
    for _ in range(3):
        server.turn(0)
    server.listener.admit(server.arrived[0][0])
    server.listener.admit(server.arrived[3][0])
    assert len(server.listener.strangers) == 2
    assert server.listener.dismiss_strangers(100, 50, 10) == 0
    assert server.listener.dismiss_strangers(149, 50, 10) == 0
    assert server.listener.dismiss_strangers(149, 50, 1) == 1
    assert server.listener.dismiss_strangers(150, 50, 10) == 1
    assert len(server.listener.strangers) == 0
    ended = set()

    def look() -> None:
        for number, connection in enumerate(connections):
            try:
                connection.receive(0)
            except Ended:
                ended.add(number)

    server.until(lambda: len(ended) == 2, look)
    assert ended == {1, 2}


def test_two_do_not_listen_at_one_address(endpoint: Endpoint, serving: Carrier, server: Server) -> None:
    watch = Watch()
    with pytest.raises(EndpointInUse, match="in use"):
        serving.listen(endpoint.clients, watch, BOUNDS)
    watch.close()


def test_a_flood_of_one_peer_does_not_keep_another_waiting(server: Server, connect: Connect) -> None:
    flooding, quiet = connect(), connect()
    for connection in (flooding, quiet):
        connection.send([b"hello"])
    server.until(lambda: len(server.messages) == 2)
    for _ in range(180):
        flooding.send([b"f"])
    quiet.send([b"q"])
    server.until(lambda: [b"q"] in server.messages)
    server.until(lambda: len(server.messages) == 183)
    assert server.messages.count([b"f"]) == 180


def test_closing_is_idempotent(server: Server, connect: Connect) -> None:
    connection = connect()
    connection.close()
    connection.close()
    server.close()
    server.listener.close()
