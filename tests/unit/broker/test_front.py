"""The clients' side of the broker over a socket that only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from batchyard.broker import events as e
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.front import Front
from batchyard.broker.inline import InlineTensors
from batchyard.transport import codec
from batchyard.transport import messages as m


class Unreachable:
    """A socket whose every peer has just left."""

    def send(self, data: bytes, flags: int = 0) -> None:
        raise zmq.ZMQError(zmq.EHOSTUNREACH)


class OwnArena(InlineTensors):
    arena = 1


def test_a_client_that_is_dropped_amid_its_own_message_ends_there() -> None:
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    socket: Any = Unreachable()
    nothing: Any = None
    actions: list[Any] = []

    def act(wanted: list[Any]) -> None:
        for action in wanted:
            actions.append(action)
            front.reply(action)

    front = Front(socket, nothing, core, nothing, 8, act, lambda: None)
    front.inline = OwnArena(lambda segment: 1)
    core.handle(e.ArenaOpened(1, 4096, pinned=True), 0)
    describes = [m.Describe(1, "nothing"), m.Describe(2, "nothing"), m.Cancel([3])]
    payload = codec.encode([m.Hello(None, "test"), *describes])
    front.receive(b"\0abcd", payload, [], -1, 0)
    assert len(actions) == 1, "the first answer could not be sent"
    assert not core.connections
    assert not front.known
