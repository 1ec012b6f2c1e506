"""The workers' side of the broker over a wire that only pretends."""

from __future__ import annotations

import pytest
from batchyard.broker import events as e
from batchyard.broker.clients import Client
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import Tensor, TensorSpec
from batchyard.transport.wire import Ended, Full

from .wires import Arenas, Broker, FakePeer

REGISTER = codec.encode([m.Register(4711, ["cpu"])])
SPEC = [TensorSpec("x", 1, ["n", 4])]
LOADED = codec.encode([m.Loaded("net", 1, SPEC, SPEC, True, "", 4, "cpu", "", {})])


class Sentinels:
    """Processes that the test kills; `watched`: none can be, where it is False."""

    fd = None

    def __init__(self) -> None:
        self.watched = True
        self.killed: list[int] = []
        self.ended: list[int] = []

    def kill(self, worker: int) -> bool:
        if self.watched:
            self.killed.append(worker)
        return self.watched

    def dead(self) -> list[int]:
        ended, self.ended = self.ended, []
        return ended

    def forget(self, worker: int) -> None:
        pass


@pytest.fixture
def sentinels() -> Sentinels:
    return Sentinels()


@pytest.fixture
def broker(sentinels: Sentinels) -> Broker:
    made = Broker(Arenas())
    made.workers.sentinels.close()
    made.workers.sentinels = sentinels  # type: ignore[assignment]
    return made


def lent(broker: Broker, peer: FakePeer) -> None:
    """A worker joins, and is lent a batch."""
    for payload in (REGISTER, LOADED):
        broker.hear_worker(peer, payload)
    core = broker.core
    core.handle(e.ArenaOpened(7, 4096), 0)
    core.handle(e.ClientJoined(7, 7), 0)
    client = FakePeer()
    broker.clients.known[client] = Client(client, 7, 7, False)
    broker.hear(client, codec.encode([m.Submit(1, "net", 2, 0, [Tensor(1, [1, 4], 0)], [])]))
    assert core.batches


def test_a_worker_registers_once_and_is_known_by_its_own_word_where_the_kernel_says_none(broker: Broker) -> None:
    peer = FakePeer()
    for _ in range(2):
        broker.hear_worker(peer, REGISTER)
    assert [worker.pid for worker in broker.core.workers.values()] == [4711]
    assert broker.refused["worker_registered"] == 1


def test_a_worker_whose_connection_has_ended_is_gone_when_it_holds_nothing(
    broker: Broker, sentinels: Sentinels
) -> None:
    peer = FakePeer()
    broker.hear_worker(peer, REGISTER)
    broker.hear_worker(peer, None)
    assert not broker.workers.known
    assert not broker.core.workers
    assert peer.closed
    assert sentinels.killed == []


def test_a_worker_that_holds_a_batch_when_its_connection_ends_is_killed_and_then_gone(
    broker: Broker, sentinels: Sentinels
) -> None:
    peer = FakePeer()
    lent(broker, peer)
    broker.hear_worker(peer, None)
    assert sentinels.killed == [1]
    assert broker.core.batches, "it may still write"
    sentinels.ended = [1]
    broker.loop.look_soon()
    broker.loop.round(2)
    assert not broker.core.workers
    assert not broker.core.batches


def test_a_worker_that_cannot_be_watched_is_gone_with_its_connection(
    broker: Broker, sentinels: Sentinels
) -> None:
    sentinels.watched = False
    peer = FakePeer()
    lent(broker, peer)
    broker.hear_worker(peer, None)
    assert not broker.core.workers
    assert not broker.core.batches


def test_a_worker_that_answers_and_then_ends_its_connection_is_not_killed(
    broker: Broker, sentinels: Sentinels
) -> None:
    peer = FakePeer()
    lent(broker, peer)
    (batch,) = broker.core.batches
    broker.reported.arrivals.append((peer, [codec.encode([m.Done(1, batch, 1, 1, 1, 0, [])])]))
    broker.hear_worker(peer, None)
    assert sentinels.killed == []
    assert not broker.core.workers


@pytest.mark.parametrize("failure", [Ended("gone"), Full("it does not read")])
def test_a_worker_that_cannot_be_told_anything_is_cut_off(broker: Broker, failure: Exception) -> None:
    broker.hear_worker(FakePeer(failure), REGISTER)
    broker.loop.round(2)
    assert not broker.core.workers
    assert not broker.workers.known
    assert broker.refused["worker_unreachable"] == 1


@pytest.mark.parametrize("failure", [Ended("gone"), Full("it does not read")])
def test_what_a_worker_says_behind_the_message_over_which_it_was_cut_off_is_nobodys(
    broker: Broker, failure: Exception
) -> None:
    peer = FakePeer()
    broker.hear_worker(peer, REGISTER)
    peer.fails = failure
    for payload in (b"no message", LOADED):  # both are read at once
        broker.reported.arrivals.append((peer, [payload]))
    broker.loop.round(2)
    assert not broker.core.workers
    assert not broker.workers.known


@pytest.mark.parametrize("secret", ["", "sesam", "5ec ", "5ec\u00e9"])
def test_a_stranger_without_the_yards_secret_is_no_worker_and_stays_a_stranger(secret: str) -> None:
    broker, peer = Broker(Arenas(), secret="5ec"), FakePeer()
    broker.hear_worker(peer, codec.encode([m.Register(4711, ["cpu"], "", secret), *codec.worker_to_broker.decode(LOADED)]))
    assert not broker.core.workers
    assert peer not in broker.reported.admitted
    assert broker.refused == {"worker_unauthorized": 1}
    (refused,) = codec.broker_to_worker.decode(peer.sent[0][0])
    assert isinstance(refused, m.Refused)
    assert refused.code == Code.UNAUTHORIZED
    broker.hear_worker(peer, codec.encode([m.Register(4711, ["cpu"], "", "5ec")]))  # it has learned it
    assert len(broker.core.workers) == 1
    broker.workers.sentinels.close()


def test_connections_that_never_register_are_closed_and_counted(broker: Broker) -> None:
    broker.reported.dismissals = lambda *which: 2
    broker.workers.look_around(0)
    assert broker.refused["never_greeted"] == 2
