"""What only libzmq's wire has: connections that are ended from another thread than their own."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import zmq
from batchyard.tests.ports import free_port
from batchyard.tests.striking import CutOff
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.wire import libzmq, libzmq_listener
from batchyard.transport.wire.libzmq_listener import hang_up

from .driven import Server


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint.parse(f"tcp://127.0.0.1:{free_port(3)}")


def test_the_number_of_a_connection_that_has_ended_is_left_alone(
    server: Server, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another's by then: that one would be ended."""
    hung_up: list[int] = []
    for _ in range(2):
        connect().send([b"hello"])
    server.until(lambda: len(server.messages) == 2)
    first, second = (peer for peer, _ in server.arrived)
    monkeypatch.setattr(libzmq_listener, "hang_up", hung_up.append)
    second.close()
    assert hung_up == [second.fd]
    first.ended = True
    first.close()
    assert hung_up == [second.fd]


def test_who_is_hung_up_on_sees_the_end_and_the_descriptor_stays_its_owners() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hang_up(ours.fileno())
        assert theirs.recv(1) == b""
        os.fstat(ours.fileno())
        hang_up(ours.fileno())


def test_a_number_that_is_no_socket_any_more_is_left_alone() -> None:
    read, write = os.pipe()
    try:
        hang_up(read)
        hang_up(1 << 30)
        os.write(write, b"x")
        assert os.read(read, 1) == b"x"
    finally:
        os.close(read)
        os.close(write)


def test_what_a_carrier_left_is_closed_in_any_order_though_a_signal_interrupts_it(
    server: Server, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq's thread would wait for ever to tell a monitor that is closed of the connection's end, and serve
    nobody else of this process."""
    left = connect()
    left.send([b"hello"])
    server.until(lambda: len(server.messages) == 1)
    closed: list[Any] = []

    def close(self: Any, linger: Any = None) -> None:
        if closed:
            raise CutOff
        closed.append(self)
        plain(self, linger)

    plain = zmq.Socket.close
    with monkeypatch.context() as patch:
        patch.setattr(zmq.Socket, "close", close)
        with pytest.raises(CutOff):
            libzmq._close_sockets(None, [left._monitor, left._socket])
    assert closed == [left._monitor]
    (peer, _), *_ = server.arrived
    peer.close()
    connect().send([b"and another"])
    server.until(lambda: len(server.messages) == 2)
