"""The loop by itself, in this process, with real sockets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.loop import Loop
from batchyard.transport import codec, endpoints
from batchyard.transport import messages as m

PATIENCE_MS = 10_000


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[endpoints.Endpoint]:
    found = endpoints.Endpoint.parse(f"ipc://{tmp_path}/yard")
    with endpoints.claim(found, None):
        yield found


@pytest.fixture
def dealer() -> Iterator[Any]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        yield socket


@contextmanager
def running(loop: Loop) -> Iterator[None]:
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        os.write(loop.wake_fd, b"\0")
        thread.join(PATIENCE_MS / 1e3)
        assert not thread.is_alive()
        loop.close()


def made(kind: type[Loop], endpoint: endpoints.Endpoint) -> Loop:
    config = YardConfig({"model": ModelConfig("model", Path("model.onnx"))})
    return kind(endpoint, Core(config, 1, os.getpid()), config, None)


def test_who_connects_while_the_broker_still_binds_is_welcomed(
    endpoint: endpoints.Endpoint, dealer: Any
) -> None:
    class Hurried(Loop):
        """Somebody's connection is complete before the next socket is bound."""

        def _bind(self, socket: Any, address: str, *limits: int) -> None:
            super()._bind(socket, address, *limits)
            if address == endpoint.clients:
                monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                dealer.connect(address)
                assert monitor.poll(PATIENCE_MS)
                dealer.disable_monitor()
                monitor.close(0)

    with running(made(Hurried, endpoint)):
        dealer.send(codec.encode([m.Hello(None, "hurried")]))
        assert dealer.poll(PATIENCE_MS)
        (welcome,) = codec.broker_to_client.decode(dealer.recv())
        assert isinstance(welcome, m.Welcome)


def test_a_loop_that_sleeps_ends_when_it_is_told_and_woken(endpoint: endpoints.Endpoint) -> None:
    with running(made(Loop, endpoint)):
        pass


def test_a_frame_that_is_too_large_ends_its_connection_unread(
    endpoint: endpoints.Endpoint, dealer: Any
) -> None:
    loop = made(Loop, endpoint)
    assert [s.getsockopt(zmq.MAXMSGSIZE) for s in (loop._frontend, loop._backend)] == [m.INLINE_BYTES_MAX] * 2
    with running(loop):
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(endpoint.admin)
        dealer.send(bytes(codec.PAYLOAD_BYTES_MAX + 1))
        assert monitor.poll(PATIENCE_MS)
        dealer.disable_monitor()
        monitor.close(0)
