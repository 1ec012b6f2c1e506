"""The loop in this process, with real sockets; and one round of it over a wire that only pretends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.broker import events as e
from batchyard.broker import server as server_module
from batchyard.broker.clients import Client
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.loop import TURN
from batchyard.broker.server import Server
from batchyard.transport import codec, endpoints
from batchyard.transport import messages as m
from batchyard.transport.tensors import Tensor, TensorSpec

from .wires import Arenas, Broker, FakeListener, FakePeer

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
def running(loop: Server) -> Iterator[None]:
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


def made(kind: type[Server], endpoint: endpoints.Endpoint) -> Server:
    config = YardConfig({"model": ModelConfig("model", Path("model.onnx"))})
    return kind(endpoint, Core(config, 1, os.getpid()), config, None)


def test_who_connects_while_the_broker_still_binds_is_welcomed(
    endpoint: endpoints.Endpoint, dealer: Any
) -> None:
    class Hurried(Server):
        """Somebody's connection is complete before the next socket is bound."""

        def _listen(self, address: str, bounds: Any) -> Any:
            listener = super()._listen(address, bounds)
            if address == endpoint.clients:
                dealer.connect(address)
                dealer.send(codec.encode([m.Hello(None, "hurried")]))
                self._watch.wait(PATIENCE_MS)
            return listener

    with running(made(Hurried, endpoint)):
        assert dealer.poll(PATIENCE_MS)
        (welcome,) = codec.broker_to_client.decode(dealer.recv())
        assert isinstance(welcome, m.Welcome)


def test_a_loop_that_sleeps_ends_when_it_is_told_and_woken(endpoint: endpoints.Endpoint) -> None:
    with running(made(Server, endpoint)):
        pass


def test_a_loop_that_is_told_gives_notice_first_and_told_again_ends(
    endpoint: endpoints.Endpoint, dealer: Any
) -> None:
    config = YardConfig({"model": ModelConfig("model", Path("model.onnx"))}, notice_ns=3600 * 10**9)
    core = Core(config, 1, os.getpid())
    server = Server(endpoint, core, config, None)
    with running(server):
        server.stop()
        dealer.connect(endpoint.clients)
        dealer.send_multipart([codec.encode([m.Hello(None, "late")])])
        assert dealer.poll(PATIENCE_MS), "it serves on"
        dealer.recv()
        dealer.send(codec.encode([m.Describe(1, "")]))
        assert dealer.poll(PATIENCE_MS)
        (described,) = codec.broker_to_client.decode(dealer.recv())
        assert "is being stopped" in described.models[0].reason


def test_a_frame_that_is_too_large_ends_its_connection_unread(
    endpoint: endpoints.Endpoint, dealer: Any
) -> None:
    loop = made(Server, endpoint)
    assert server_module.BOUNDS.frame_bytes == m.INLINE_BYTES_MAX
    assert server_module.WORKER_BOUNDS.frame_bytes == m.ANSWER_BYTES_MAX
    with running(loop):
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dealer.connect(endpoint.admin)
        dealer.send(bytes(codec.PAYLOAD_BYTES_MAX + 1))
        assert monitor.poll(PATIENCE_MS)
        dealer.disable_monitor()
        monitor.close(0)


# ---- one round ----------------------------------------------------------------------------------


class Flushed(FakeListener):
    """Counts its flushes."""

    count = 0

    def flush(self) -> None:
        self.count += 1
        self.unwritten = {}


@pytest.mark.parametrize("side", ["clients", "workers", "operators"])
def test_what_a_listener_has_to_write_leaves_in_the_same_round(side: str) -> None:
    """An answer to a PING, or to an order that a worker's message has carried out: the next message may not come
    for long."""
    broker = Broker()
    broker.loop.round(1)  # looks around
    listener = Flushed()
    getattr(broker, side).listener = listener
    broker.loop.round(2)
    assert listener.count == 0, "nothing to write costs nothing"
    listener.unwritten = {FakePeer(): None}
    broker.loop.round(3)
    assert listener.count == 1


@pytest.mark.interpreted
def test_a_turn_is_due_only_while_something_waits_or_a_deadline_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(Arenas())
    turns: list[int] = []
    handle = broker.core.handle

    def noted(event: Any, now_ns: int) -> Any:
        if event is TURN:
            turns.append(now_ns)
        return handle(event, now_ns)

    monkeypatch.setattr(broker.core, "handle", noted)
    broker.hear_worker(FakePeer(), codec.encode([m.Register(4711, ["cpu"])]))
    broker.loop.round(2)
    assert turns == []
    broker.core.handle(e.ArenaOpened(1, 4096), 0)
    broker.core.handle(e.ClientJoined(1, 1), 0)
    spec = [TensorSpec("x", 1, ["n", 4])]
    broker.core.handle(e.WorkerSaid(1, m.Loaded("net", 1, spec, spec, True, "", 4, "cpu", "", {})), 0)
    client = FakePeer()
    broker.clients.known[client] = Client(client, 1, 1, False)
    submit = m.Submit(1, "net", 2, 0, [Tensor(1, [1, 4], 0)], [])
    broker.hear(client, codec.encode([submit]))
    assert turns == [1], "the request is lent in the round that read it"
    assert len(broker.core.batches) == 1
    broker.hear(client, codec.encode([m.Cancel([1])]))
    assert turns == [1], "nothing waits"
