"""The workers' side of the broker over a socket that only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.broker.back import Back
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint


class Silent:
    """A socket that takes whatever it is given: that a peer is gone is not seen by sending."""

    def send(self, data: bytes, flags: int = 0) -> None:
        pass


@pytest.mark.parametrize("ended", [False, True], ids=["unseen", "ended"])
def test_a_worker_whose_connection_has_ended_before_its_greeting_was_read_is_not_remembered(ended: bool) -> None:
    """Whatever the kernel says of its descriptor: that is another connection's by now."""
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    socket: Any = Silent()
    nothing: Any = None
    endpoint = Endpoint.parse("tcp://127.0.0.1:9")
    back = Back(socket, endpoint, core, nothing, lambda actions: None, lambda: None, lambda fd: (4711, 0))
    try:
        if ended:
            back.accepted(10)
            back.ended(10, 0)
        back.receive(b"\0abcd", codec.encode([m.Register(1, ["cpu"])]), [], 10, 0)
        back.flush()
        assert not back.known
        assert not core.workers
        assert core.counters.snapshot()["refused"]["worker_gone"] == 1
    finally:
        back.sentinels.close()


class Failing:
    """A socket that can send to nobody."""

    def __init__(self, errno: int) -> None:
        self.errno = errno

    def send(self, data: bytes, flags: int = 0) -> None:
        raise zmq.ZMQError(self.errno)


@pytest.mark.parametrize(
    ("errno", "stays"),
    [
        # Its connection's end was reported before its greeting was read: nobody will report it again.
        (zmq.EHOSTUNREACH, 0),
        (zmq.EAGAIN, 1),  # it does not read just now
    ],
)
def test_a_worker_that_left_before_its_greeting_was_read_is_buried(errno: int, stays: int) -> None:
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    socket: Any = Failing(errno)
    nothing: Any = None
    endpoint = Endpoint.parse("tcp://127.0.0.1:9")  # where the kernel does not say who a peer is

    def act(actions: list[Any]) -> None:
        for action in actions:
            back.tell(action)

    back = Back(socket, endpoint, core, nothing, act, lambda: None, lambda fd: None)
    try:
        back.accepted(7)
        back.receive(b"\0abcd", codec.encode([m.Register(4711, ["cpu"])]), [], 7, 0)
        assert len(core.workers) == 1
        back.flush()
        assert len(core.workers) == len(back.known) == stays
        assert core.counters.snapshot()["refused"]["worker_unreachable"] == 1
    finally:
        back.sentinels.close()
