"""The clients' side of the broker over a socket that only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from batchyard.broker import events as e
from batchyard.broker import front as front_module
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.front import GREET_WITHIN_NS, Front
from batchyard.broker.inline import InlineTensors
from batchyard.transport import codec
from batchyard.transport import messages as m


class Unreachable:
    """A socket whose every peer has just left."""

    def send(self, data: bytes, flags: int = 0) -> None:
        raise zmq.ZMQError(zmq.EHOSTUNREACH)


class OwnArena(InlineTensors):
    arena = 1


class Answering(InlineTensors):
    """Two results that were laid out for a connection."""

    arena = 1
    left = 2

    def answer(
        self, conn: int, number: int, queue_ns: int, batch: m.BatchReceipt
    ) -> tuple[m.Answer, list[bytes]]:
        self.left -= 1
        return m.Answer(number, queue_ns, batch, []), []

    def holds(self, conn: int) -> bool:
        return self.left > 0


def test_a_client_that_is_dropped_among_several_results_is_forgotten() -> None:
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    socket: Any = Unreachable()
    nothing: Any = None
    front = Front(socket, nothing, core, nothing, 8, lambda actions: None, lambda: None)
    front.inline = Answering(lambda segment: 1)
    core.handle(e.ArenaOpened(1, 4096, pinned=True), 0)
    front.receive(b"\0abcd", codec.encode([m.Hello(None, "test")]), [], -1, 0)
    receipt = m.BatchReceipt(2, 0, 0, 0, 0, 1, "cpu", 1)
    front.reply(e.ToClient(1, m.Completed([1, 2], [0, 0], receipt)))
    assert not front.known
    assert not front._by_conn


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


def listening(monkeypatch: Any, descriptors_max: int = 1000) -> tuple[Front, Core, list[int]]:
    """A Front that only listens, and whom it hangs up on."""
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    core.handle(e.ArenaOpened(1, 4096, pinned=True), 0)
    nothing: Any = None
    made = Front(nothing, nothing, core, nothing, 8, lambda actions: None, lambda: None, descriptors_max)
    made.inline = OwnArena(lambda segment: 1)
    hung_up: list[int] = []
    monkeypatch.setattr(front_module, "hang_up", hung_up.append)
    return made, core, hung_up


HELLO = codec.encode([m.Hello(None, "test")])


def test_a_connection_that_does_not_greet_in_time_is_closed_and_one_that_does_is_not(
    monkeypatch: Any,
) -> None:
    front, core, hung_up = listening(monkeypatch)
    for fd in (10, 11, 12):
        front.accepted(fd, 0)
    front.receive(b"\0abcd", HELLO, [], 11, 0)
    front.ended(12, 0)
    front.hang_up(GREET_WITHIN_NS - 1)
    assert hung_up == []
    front.hang_up(GREET_WITHIN_NS)
    assert hung_up == [10]
    assert core.counters.snapshot()["refused"]["never_greeted"] == 1


def test_of_too_many_connections_that_do_not_greet_the_oldest_are_closed(monkeypatch: Any) -> None:
    front, _, hung_up = listening(monkeypatch, descriptors_max=40)
    for fd in range(12):
        front.accepted(fd, fd)
    front.hang_up(100)
    assert hung_up == [0, 1, 2]  # a quarter of the descriptors is not reached any more


def test_a_client_whose_connection_has_ended_before_its_greeting_was_read_is_not_remembered(
    monkeypatch: Any,
) -> None:
    front, core, _ = listening(monkeypatch)
    front.accepted(10, 0)
    front.ended(10, 0)
    front.receive(b"\0abcd", HELLO, [], 10, 0)
    assert not front.known
    assert core.snapshot()["clients"] == 0


def test_a_client_whose_descriptor_is_one_of_the_last_is_refused(monkeypatch: Any) -> None:
    front, core, _ = listening(monkeypatch, descriptors_max=40)
    front.accepted(40, 0)
    front.receive(b"\0abcd", HELLO, [], 40, 0)
    assert not front.known
    assert core.counters.snapshot()["refused"]["hello"] == 1
