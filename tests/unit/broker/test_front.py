"""The clients' side of the broker over a socket that only pretends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zmq
from batchyard.broker import events as e
from batchyard.broker import front as front_module
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.front import GREET_WITHIN_NS, HASHED_BYTES_MAX, Front
from batchyard.broker.inline import InlineTensors
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.digests import CONTENT_BYTES_MAX, digest
from batchyard.transport.tensors import Tensor


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


# ---- contents -----------------------------------------------------------------------------------


class Content:
    """Arenas whose every byte is 7, and which know what has been read."""

    def __init__(self, nbytes: int = 1 << 30) -> None:
        self.nbytes = nbytes
        self.read_bytes = 0

    def read(self, number: int, offset: int, nbytes: int) -> Any:
        if offset + nbytes > self.nbytes:
            return None
        self.read_bytes += nbytes
        return b"\7" * nbytes


def reading(join: bool = True, arenas: Content | None = None) -> tuple[Front, list[bytes]]:
    """A Front, and the digests that its core is told."""
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"), join=join)}), 1, 2)
    core.handle(e.ArenaOpened(1, 1 << 30), 0)
    core.handle(e.ClientJoined(1, 1), 0)
    nothing: Any = None
    front = Front(nothing, nothing, core, arenas or Content(), 8, lambda actions: None, lambda: None)  # type: ignore[arg-type]
    front.known[b"\0abcd"] = front_module.Client(b"\0abcd", 5, 1, 1, False)
    told: list[bytes] = []
    handle = core.handle

    def listen(event: Any, now_ns: int) -> Any:
        if isinstance(event, e.Submitted):
            told.append(event.digest)
        return handle(event, now_ns)

    core.handle = listen  # type: ignore[method-assign]
    return front, told


def ask(front: Front, count: int, *inputs: Tensor, model: str = "net") -> None:
    """So many requests in one message."""
    messages = [m.Submit(number, model, 2, 0, list(inputs), []) for number in range(1, count + 1)]
    front.receive(b"\0abcd", codec.encode(messages), [], -1, 0)


def test_a_digest_is_of_all_inputs_in_their_order() -> None:
    front, told = reading()
    ask(front, 1, Tensor(1, [2, 4], 0), Tensor(7, [2], 64))
    assert told == [digest([b"\7" * 32, b"\7" * 16])]


def test_contents_are_read_only_where_the_model_wants_it() -> None:
    content = Content()
    front, told = reading(join=False, arenas=content)
    ask(front, 1, Tensor(1, [2, 4], 0))
    ask(front, 1, Tensor(1, [2, 4], 0), model="unknown")
    assert told == [b"", b""]
    assert content.read_bytes == 0


@pytest.mark.parametrize(
    "inputs",
    [
        [Tensor(2, [CONTENT_BYTES_MAX + 1], 0)],
        [Tensor(2, [CONTENT_BYTES_MAX], 0), Tensor(2, [1], 0)],
        [Tensor(1, [1 << 40, 1 << 40], 0)],
        [Tensor(99, [4], 0)],
        [Tensor(2, [4], 1 << 30)],
    ],
    ids=["large", "large together", "more than there is", "unknown dtype", "outside"],
)
def test_what_is_too_large_or_not_there_has_no_digest(inputs: list[Tensor]) -> None:
    front, told = reading()
    ask(front, 1, *inputs)
    assert told == [b""]


def test_what_is_hashed_in_one_turn_is_bounded_and_the_next_turn_begins_anew() -> None:
    """One message may name the same mebibyte 4096 times; its requests are run by themselves then."""
    content = Content()
    front, told = reading(arenas=content)
    for _ in range(2):
        told.clear()
        content.read_bytes = 0
        ask(front, 1000, Tensor(2, [CONTENT_BYTES_MAX], 0))
        assert HASHED_BYTES_MAX <= content.read_bytes <= HASHED_BYTES_MAX + CONTENT_BYTES_MAX
        assert [bool(found) for found in told] == [True] * 4 + [False] * 996
        front._outbox.clear()
        front.flush()


def test_tensors_of_no_bytes_count_as_well() -> None:
    front, told = reading()
    ask(front, 4000, Tensor(2, [1], 0), Tensor(2, [1], 0))
    assert 0 < sum(map(bool, told)) < 2100


# ---- those who are dropped ----------------------------------------------------------------------


def test_a_client_that_was_dropped_is_told_nothing_more() -> None:
    """It may still be connected. Half of what it is owed would be worse than its connection's end."""
    core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"))}), 1, 2)
    nothing: Any = None

    def act(actions: list[Any]) -> None:
        for action in actions:
            front.reply(action)

    front = Front(nothing, nothing, core, nothing, 8, act, lambda: None)
    client = front_module.Client(b"\0abcd", 5, 1, 1, False)
    front.known[client.identity] = front._by_conn[1] = client
    act([e.ToClient(1, m.Released([1]))])
    assert front._outbox == {client.identity: [m.Released([1])]}
    core.handle = lambda event, now_ns: [e.ToClient(1, m.Released([2]))]  # type: ignore[method-assign]
    front.gone(client, 0)
    assert front._outbox == {}
