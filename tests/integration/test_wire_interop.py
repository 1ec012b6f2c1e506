"""Our ZMTP and libzmq's, at either end of a unix socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.tests.unit.transport.wire.driven import BOUNDS, Server, drain
from batchyard.transport.wire.stream import Streams

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not zmq.has("ipc"), reason="this system's ZeroMQ has no ipc"),
]
MANY_PARTS = [b"%d" % number for number in range(16)]
MESSAGES = [
    [b""],
    [b"hello"],
    [b"x" * 255],
    [b"x" * 256],
    MANY_PARTS,
    [b"payload", b"", b"y" * 100_000],
    [b"m" * (8 << 20)],
    [b"last"],
]


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('i')}/s"


@pytest.fixture
def zmq_socket() -> Iterator[Any]:
    context: Any = zmq.Context()

    def make(kind: int, **options: Any) -> Any:
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        return socket

    yield make
    context.destroy(0)


def received(socket: Any) -> list[list[bytes]]:
    found = []
    while socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        found.append(socket.recv_multipart())
    return found


def test_a_dealer_of_libzmq_talks_to_our_router(address: str, zmq_socket: Any) -> None:
    server = Server(Streams(), address)
    server.on_message = lambda peer, parts: peer.send(parts)
    dealers = [zmq_socket(zmq.DEALER) for _ in range(3)]
    answers: list[list[list[bytes]]] = [[], [], []]
    for dealer in dealers:
        dealer.connect(address)
        for parts in MESSAGES:
            dealer.send_multipart(parts)

    def read() -> None:
        for dealer, got in zip(dealers, answers, strict=True):
            got += received(dealer)

    server.until(lambda: all(len(got) == len(MESSAGES) for got in answers), read)
    assert answers == [MESSAGES] * 3
    assert not server.arrived[0][0].chose_identity
    dealers[0].close()
    server.until(lambda: server.arrived[-1][1] is None)
    server.close()


def test_our_dealer_talks_to_a_router_of_libzmq(address: str, zmq_socket: Any) -> None:
    router = zmq_socket(zmq.ROUTER)
    router.bind(address)
    connection = Streams().connect(address, BOUNDS)
    for parts in MESSAGES:
        connection.send(parts)
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    asked: list[list[bytes]] = []
    answers: list[list[bytes]] = []
    for _ in range(1000):
        poller.poll(10)
        for identity, *parts in received(router):
            asked.append(parts)
            router.send_multipart([identity, *parts])
        answers += drain(connection)
        if len(answers) == len(MESSAGES):
            break
    assert asked == MESSAGES
    assert answers == MESSAGES
    router.close()
    for _ in range(1000):
        if drain(connection) == [[]]:
            break
        time.sleep(0.005)
    else:
        raise AssertionError("the router's end was not seen")
    connection.close()


def test_a_req_of_libzmq_and_one_that_chose_its_identity_are_let_in(address: str, zmq_socket: Any) -> None:
    server = Server(Streams(), address)
    server.on_message = lambda peer, parts: peer.send(parts)
    req = zmq_socket(zmq.REQ)
    req.connect(address)
    req.send(b"question")
    got: list[Any] = []
    server.until(lambda: got, lambda: got.extend(received(req)))
    assert server.messages == [[b"", b"question"]]
    assert got == [[b"question"]]
    named = zmq_socket(zmq.DEALER, IDENTITY=b"me")
    named.connect(address)
    named.send(b"hello")
    server.until(lambda: len(server.messages) == 2)
    assert server.arrived[-1][0].chose_identity
    server.close()


def test_a_socket_of_libzmq_that_does_not_fit_is_turned_away(address: str, zmq_socket: Any) -> None:
    server = Server(Streams(), address)
    subscriber = zmq_socket(zmq.SUB)
    subscriber.connect(address)
    server.until(lambda: server.arrived)
    assert server.arrived[0][1] is None
    assert not server.messages
    server.close()


def test_a_peer_with_heartbeats_stays_connected_and_one_of_ours_answers_them(
    address: str, zmq_socket: Any
) -> None:
    """libzmq pings every 20 ms, and gives up when nothing comes for 200."""
    beats = {"HEARTBEAT_IVL": 20, "HEARTBEAT_TIMEOUT": 200, "HEARTBEAT_TTL": 200}
    server = Server(Streams(), address)
    dealer = zmq_socket(zmq.DEALER, **beats)
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.connect(address)
    dealer.send(b"hello")
    server.until(lambda: server.messages)
    until_s = time.monotonic() + 0.8
    turns = 0
    while time.monotonic() < until_s:
        server.turn()
        turns += 1
    assert turns > 20, "no PING came"
    assert not monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN
    assert len(server.arrived) == 1
    dealer.disable_monitor()
    monitor.close()
    server.close()

    router = zmq_socket(zmq.ROUTER, **beats)
    router.bind(address + "2")
    connection = Streams().connect(address + "2", BOUNDS)
    connection.send([b"hello"])
    for _ in range(500):
        assert connection.receive(10) is None
        if router.poll(0):
            break
    until_s = time.monotonic() + 0.8
    while time.monotonic() < until_s:
        assert connection.receive(25) is None
    router.send_multipart([router.recv_multipart()[0], b"still here"])
    got: list[Any] = []
    for _ in range(200):
        got += drain(connection)
        if got:
            break
        time.sleep(0.005)
    assert got == [[b"still here"]]
    connection.close()


def test_libzmq_connects_again_to_a_listener_that_was_started_again(
    address: str, zmq_socket: Any, tmp_path: Path
) -> None:
    dealer = zmq_socket(zmq.DEALER, RECONNECT_IVL=10)
    dealer.connect(address)
    for life in range(3):
        server = Server(Streams(), address)
        dealer.send(b"life %d" % life)
        server.until(lambda server=server: server.messages)  # type: ignore[misc]
        assert server.messages == [[b"life %d" % life]]
        server.close()
