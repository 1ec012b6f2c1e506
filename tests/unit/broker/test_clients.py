"""The clients' side of the broker over a wire that only pretends."""

from __future__ import annotations

import os
from typing import Any

import pytest
from batchyard.broker import clients as room
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.clients import GREET_WITHIN_NS
from batchyard.broker.contents import READ_BYTES_MAX
from batchyard.broker.inline import InlineTensors
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.arena import Arena
from batchyard.transport.digests import CONTENT_BYTES_MAX, digest
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.segments import SegmentHandle
from batchyard.transport.tensors import Tensor, TensorSpec
from batchyard.transport.wire import Ended, Full

from .wires import Arenas, Broker, FakePeer


class OwnArena(InlineTensors):
    arena = 1


class Reserving(InlineTensors):
    """With an arena that is no segment."""

    class Segment:
        buffer = memoryview(bytearray(4096))

    def __init__(self, register: Any) -> None:
        super().__init__(register)
        self._segment: Any = self.Segment()
        self._arena = Arena(4096)
        self._number = 1


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


HELLO = codec.encode([m.Hello(None, "test")])


def listening(inline: type[InlineTensors] = OwnArena, **options: Any) -> Broker:
    """A broker with an arena for tensors that come as frames."""
    broker = Broker(**options)
    broker.clients.inline = inline(lambda segment: 1)
    broker.core.handle(e.ArenaOpened(1, 4096, pinned=True), 0)
    return broker


def test_a_client_that_is_dropped_among_several_results_is_forgotten() -> None:
    broker = listening(Answering)
    front = broker.clients
    peer = FakePeer()
    broker.hear(peer, HELLO)
    peer.fails = Ended("gone")
    receipt = m.BatchReceipt(2, 0, 0, 0, 0, 1, "cpu", 1)
    front.write(e.ToClient(1, m.Completed([1, 2], [0, 0], receipt)))
    assert not front.known
    assert not front._by_conn
    assert front.events == [e.ClientGone(1)]


def test_a_question_that_fails_frees_no_slots_of_a_request_with_its_number() -> None:
    """Else they would be another client's while a worker reads and writes there."""
    broker = listening(Reserving, arenas=Arenas())
    worker, peer = FakePeer(), FakePeer()
    spec = [TensorSpec("x", 1, ["n", 4])]
    loaded = m.Loaded("net", 1, spec, spec, True, "", 4, "cpu", "", {})
    broker.hear_worker(worker, codec.encode([m.Register(4711, ["cpu"]), loaded]))
    broker.hear(peer, HELLO)
    broker.hear(peer, codec.encode([m.Submit(7, "net", 2, 0, [Tensor(1, [1, 4], 0, 1)], [])]), bytes(16))
    used = broker.clients.inline.used_bytes
    broker.hear(peer, codec.encode([m.Describe(7, "no such model")]))
    assert broker.clients.inline.used_bytes == used > 0
    (batch,) = broker.core.batches
    broker.hear_worker(worker, codec.encode([m.Done(1, batch, 1, 1, 1, 0, [])]))
    told = [type(message) for parts in peer.sent for message in codec.broker_to_client.decode(parts[0])]
    assert told == [m.Welcome, m.Failed, m.Answer]
    assert broker.clients.inline.used_bytes == 0
    broker.workers.sentinels.close()


def test_a_client_that_is_dropped_amid_its_own_message_is_told_nothing_more() -> None:
    broker = listening()
    peer = FakePeer(Ended("gone"))
    describes = [m.Describe(1, "nothing"), m.Describe(2, "nothing"), m.Cancel([3])]
    broker.hear(peer, codec.encode([m.Hello(None, "test"), *describes]))
    assert peer.closed
    assert not broker.core.connections
    assert not broker.clients.known
    assert broker.refused["unreachable"] == 1, "it is tried once"


def test_connections_that_do_not_greet_are_closed_and_counted() -> None:
    broker = listening(descriptors_max=40)
    asked: list[tuple[int, int, int]] = []
    broker.said.dismissals = lambda *which: asked.append(which) or 3  # type: ignore[func-returns-value]
    broker.clients.look_around(77)
    assert asked == [(77, GREET_WITHIN_NS, 10)]  # a quarter of the descriptors
    assert broker.refused["never_greeted"] == 3


def test_who_greets_is_admitted_and_who_chose_his_identity_or_greets_twice_is_refused() -> None:
    broker = listening()
    peer, named = FakePeer(), FakePeer()
    named.named = True
    for each in (peer, named, peer):
        broker.hear(each, HELLO)
    assert broker.said.admitted == [peer]
    assert list(broker.clients.known) == [peer]
    assert broker.refused["hello"] == 2


def test_the_memfd_that_came_with_a_greeting_is_its_arena() -> None:
    opened: list[Any] = []

    class Noting:
        def open(self, *what: Any) -> tuple[int, bool]:
            opened.append(what)
            return 1, False

    broker = listening(arenas=Noting())
    broker.clients._endpoint = Endpoint.parse("ipc:///tmp/yard")
    handle = SegmentHandle("memfd", "7:1234", 4096)
    peer, far = FakePeer(credentials=(4711, 1000)), FakePeer()
    peer.descriptor, far.descriptor = os.memfd_create("peer"), os.memfd_create("far")
    came = [os.fstat(each.descriptor).st_ino for each in (peer, far)]
    for each in (peer, far):
        broker.hear(each, codec.encode([m.Hello(handle, "test")]))
    assert [what[:3] for what in opened] == [(handle, 4711, 1000), (handle, 0, None)]
    assert [os.fstat(what[3]).st_ino for what in opened] == came
    for what in opened:
        os.close(what[3])


def test_a_client_whose_connection_has_ended_is_forgotten() -> None:
    broker = listening()
    peer, stranger = FakePeer(), FakePeer()
    broker.hear(peer, HELLO)
    assert gauges.snapshot(broker.core)["clients"] == 1
    stranger.violation = "no ZMTP greeting"
    for each in (peer, stranger):
        each.ended = True
        broker.hear(each, None)
    assert not broker.clients.known
    assert gauges.snapshot(broker.core)["clients"] == 0
    assert broker.refused == {"not_zmtp": 1}


def test_a_client_that_does_not_read_is_dropped_and_its_connection_closed() -> None:
    broker = listening()
    peer = FakePeer()
    broker.hear(peer, HELLO)
    peer.fails = Full("it does not read")
    broker.hear(peer, codec.encode([m.Hello(None, "again")]))
    assert broker.loop.sleep_ms(1) == 0, "its end is not handled yet"
    broker.loop.round(2)
    assert peer.closed
    assert not broker.clients.known
    assert broker.refused["not_reading"] == 1


def test_a_client_whose_descriptor_is_one_of_the_last_is_refused() -> None:
    broker = listening(descriptors_max=40)
    broker.hear(FakePeer(fd=40), HELLO)
    assert not broker.clients.known
    assert broker.refused["hello"] == 1


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


PEER = FakePeer()


def reading(join: bool = True, arenas: Content | None = None) -> Broker:
    """A broker with a client that has an arena."""
    broker = Broker(arenas or Content(), join=join)
    broker.clients.known[PEER] = room.Client(PEER, 1, 1, False)
    return broker


def digests(broker: Broker, count: int, *inputs: Tensor, model: str = "net") -> list[bytes]:
    """Those of so many requests in one message."""
    messages = [m.Submit(number, model, 2, 0, list(inputs), []) for number in range(1, count + 1)]
    broker.said.arrivals.append((PEER, [codec.encode(messages)]))
    return [event.digest for event in broker.clients.read(0) if isinstance(event, e.Submitted)]


def test_a_digest_is_of_all_inputs_in_their_order() -> None:
    inputs = Tensor(1, [2, 4], 0), Tensor(7, [2], 64)
    assert digests(reading(), 1, *inputs) == [digest([b"\7" * 32, b"\7" * 16])]


def test_contents_are_read_only_where_the_model_wants_it() -> None:
    content = Content()
    broker = reading(join=False, arenas=content)
    assert digests(broker, 1, Tensor(1, [2, 4], 0)) == [b""]
    assert digests(broker, 1, Tensor(1, [2, 4], 0), model="unknown") == [b""]
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
    assert digests(reading(), 1, *inputs) == [b""]


def test_what_is_hashed_in_one_round_is_bounded_and_the_next_round_begins_anew() -> None:
    """One message may name the same mebibyte 4096 times; its requests are run by themselves then."""
    content = Content()
    broker = reading(arenas=content)
    for _ in range(2):
        content.read_bytes = 0
        seen = digests(broker, 60, Tensor(2, [CONTENT_BYTES_MAX], 0))
        assert READ_BYTES_MAX <= content.read_bytes <= READ_BYTES_MAX + CONTENT_BYTES_MAX
        assert [bool(each) for each in seen] == [True] * 4 + [False] * 56
        broker.clients.contents.read_bytes = 0


def test_tensors_of_no_bytes_count_as_well() -> None:
    assert 0 < sum(map(bool, digests(reading(), 60, *[Tensor(2, [1], 0)] * 200))) < 22


# ---- requests in columns ------------------------------------------------------------------------


def columns(*offsets: int, width: int = 1, **changed: Any) -> m.Submit:
    """Requests 1, 2, ... of `net`, each with as many inputs as `width`."""
    count = len(offsets) // width
    more = {"requests": list(range(2, count + 2)), "deadlines_ns": [0] * count, "offsets": list(offsets)} | changed
    return m.Submit(1, "net", 2, 0, [Tensor(1, [1, 4], 0) for _ in range(width)], [], m.More(**more))


def submitted(broker: Broker, message: m.Submit) -> list[e.Submitted]:
    broker.said.arrivals.append((PEER, [codec.encode([message])]))
    return [event for event in broker.clients.read(0) if isinstance(event, e.Submitted)]


def test_requests_in_columns_are_one_event() -> None:
    (event,) = submitted(reading(join=False), columns(64, 128))
    assert [each.request for each in event.message.apart()] == [1, 2, 3]
    assert [each.inputs[0].offset for each in event.message.apart()] == [0, 64, 128]


@pytest.mark.parametrize(
    "changed", [{"requests": [2]}, {"deadlines_ns": [0]}, {"offsets": [64]}, {"offsets": [64] * 3}, {"requests": []}]
)
def test_columns_of_different_lengths_are_malformed(changed: dict[str, Any]) -> None:
    broker = reading(join=False)
    assert submitted(broker, columns(64, 128, **changed)) == []
    assert broker.refused["malformed"] == 1


def test_who_has_no_arena_has_no_columns() -> None:
    broker = listening()
    peer = FakePeer()
    broker.hear(peer, HELLO)
    broker.hear(peer, codec.encode([columns(64)]))
    assert broker.refused["malformed"] == 1


def test_columns_whose_contents_matter_come_apart() -> None:
    """Identical work is found by each request's own digest."""
    events = submitted(reading(), columns(64, 128))
    assert [event.message.request for event in events] == [1, 2, 3]
    assert all(event.digest and event.message.more is None for event in events)


@pytest.mark.parametrize("is_same", [True, False])
def test_columns_stay_together_where_what_they_share_is_the_same(is_same: bool) -> None:
    class Varied(Content):
        def read(self, number: int, offset: int, nbytes: int) -> Any:
            return bytes([7 if is_same else offset % 251]) * nbytes

    broker = reading(join=False, arenas=Varied())
    model = broker.core.models["net"]
    spec = TensorSpec("x", 1, ["n", 4])
    model.describe(
        m.Loaded(
            "net", 1, [spec, TensorSpec("rate", 1, [1, 4])], [spec], True, "", 8, "cpu", "", {}, batch_axes=[0, -1, 0]
        )
    )
    events = submitted(broker, columns(64, 128, 192, 320, width=2))
    assert [len(event.message.apart()) for event in events] == ([3] if is_same else [1, 1, 1])
    assert len({event.shared for event in events}) == len(events)
    assert all(event.shared for event in events)


# ---- those who are dropped ----------------------------------------------------------------------


def test_a_client_that_was_dropped_is_told_nothing_more() -> None:
    """It may still be connected. Half of what it is owed would be worse than its connection's end."""
    broker = listening()
    front = broker.clients
    peer = FakePeer()
    broker.hear(peer, HELLO)
    sent = len(peer.sent)
    broker.said.arrivals.append((peer, [codec.encode([m.Bye()])]))
    assert list(front.read(0)) == []
    assert front.events == [e.ClientGone(1)]
    front.write(e.ToClient(1, m.Released([2])))
    front.flush()
    assert len(peer.sent) == sent


def test_who_comes_with_the_arena_of_one_that_ends_in_the_same_read_has_it_opened_anew() -> None:
    """Both are read before either end is handled: the arena must not be closed under the second."""
    opened = {"arena": 0}

    class Arenas:
        """One segment: open, or not."""

        def open(self, *what: Any) -> tuple[int, bool]:
            is_new = not opened["arena"]
            opened["arena"] = opened["arena"] or 7
            return 7, is_new

        def close(self, number: int) -> None:
            opened["arena"] = 0

    broker = listening(arenas=Arenas())
    broker.clients._endpoint = Endpoint.parse("ipc:///tmp/yard")
    hello = codec.encode([m.Hello(SegmentHandle("memfd", "7:1234", 4096), "test")])
    first, second, third = FakePeer(), FakePeer(), FakePeer()
    broker.hear(first, hello)
    broker.said.arrivals += [(first, None), (second, [hello]), (second, [codec.encode([m.Bye()])]), (third, [hello])]
    broker.loop.round(2)
    assert list(broker.clients.known) == [third]
    assert 7 in broker.core.arenas
    assert opened["arena"]
