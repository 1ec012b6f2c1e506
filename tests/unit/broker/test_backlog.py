"""Work that is done in slices: counted, not timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from batchyard.broker import backlog, books, clients, core, lanes, questions, taking
from batchyard.broker import events as e
from batchyard.broker.clients import Client
from batchyard.tests.sim import invariants
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import Tensor, TensorSpec

from .wires import Arenas, Broker, FakePeer

SPEC = [TensorSpec("x", 1, ["n", 4])]
MANY = 4000


class Yard(Broker):
    """A broker with two clients that have greeted, and what its core is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Arenas(), max_batch=32, **options)
        self.paused: list[FakePeer] = []
        self.said.pause = self.paused.append  # type: ignore[method-assign,assignment]
        self.said.resume = self.paused.remove  # type: ignore[method-assign,assignment]
        self.core.handle(e.ArenaOpened(7, 4096), 0)
        self.peers = [FakePeer(), FakePeer()]
        for conn, peer in enumerate(self.peers, 1):
            self.core.handle(e.ClientJoined(conn, 7), 0)
            client = self.clients.known[peer] = Client(peer, conn, 7, False)
            self.clients._by_conn[conn] = client

    def serve(self) -> None:
        self.hear_worker(FakePeer(), codec.encode([m.Register(4711, ["cpu"])]))
        self.core.handle(e.WorkerSaid(1, m.Loaded("net", 1, SPEC, SPEC, True, "", 32, "cpu", "", {})), 0)

    def say(self, peer: FakePeer, *messages: Any) -> None:
        self.said.arrivals.append((peer, [codec.encode(messages)]))

    def answers(self, peer: FakePeer) -> list[Any]:
        sent, peer.sent = peer.sent, []
        return [message for parts in sent for message in codec.broker_to_client.decode(parts[0])]

    def round(self, now_ns: int = 1) -> None:
        self.loop.round(now_ns)


def submit(number: int, deadline_ns: int = 0, model: str = "net") -> m.Submit:
    return m.Submit(number, model, 2, deadline_ns, [Tensor(1, [1, 4], 0)], [])


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.workers.sentinels.close()


def test_an_envelope_of_thousands_of_requests_takes_many_rounds_and_another_client_one(yard: Yard) -> None:
    flooder, other = yard.peers
    yard.say(flooder, *(submit(number, model="nope") for number in range(MANY)))
    yard.round()
    answered = len(yard.answers(flooder))
    assert 0 < answered <= backlog.PEER_WORK
    assert yard.paused == [flooder], "it is not read from meanwhile"
    assert yard.loop.sleep_ms(1) == 0
    yard.say(other, submit(1, model="nope"))
    yard.round()
    assert [answer.request for answer in yard.answers(other)] == [1]
    answered += len(yard.answers(flooder))
    for _ in range(MANY):
        if not yard.clients.backlog:
            break
        yard.round()
        answers = yard.answers(flooder)
        assert len(answers) <= backlog.ROUND_WORK
        answered += len(answers)
    assert answered == MANY
    assert yard.paused == []
    assert yard.loop.sleep_ms(1) > 0


def test_what_one_client_says_is_handled_in_its_order_however_it_is_cut(yard: Yard) -> None:
    flooder, _ = yard.peers
    for first in range(0, MANY, 1000):
        yard.say(flooder, *(submit(number, model="nope") for number in range(first, first + 1000)))
    answers: list[int] = []
    for _ in range(MANY):
        yard.round()
        answers += [answer.request for answer in yard.answers(flooder)]
        if not yard.clients.backlog:
            break
    assert answers == list(range(MANY))


def test_a_client_that_goes_takes_its_waiting_messages_along(yard: Yard) -> None:
    flooder, _ = yard.peers
    for _ in range(3):
        yard.say(flooder, *(submit(number, model="nope") for number in range(1000)))
    yard.round()
    assert yard.clients.backlog
    yard.said.arrivals.append((flooder, None))
    yard.round()
    assert not yard.clients.backlog
    assert yard.clients.backlog._nbytes == 0
    assert 1 not in yard.core.connections


def test_where_the_wire_cannot_choose_nobody_is_read_from_while_too_much_waits(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    flooder, other = yard.peers
    monkeypatch.setattr(backlog, "WAITING_BYTES_MAX", 1000)
    for _ in range(2):
        yard.say(flooder, *(submit(number, model="nope") for number in range(1000)))
    yard.round()
    yard.say(other, submit(1, model="nope"))
    yard.round()
    assert yard.answers(other) == []
    for _ in range(20):
        yard.round()
    assert len(yard.answers(other)) == 1


@pytest.mark.interpreted
def test_numbers_that_are_cancelled_are_work(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    flooder, _ = yard.peers
    asked: list[int] = []
    handle = yard.core.handle
    monkeypatch.setattr(
        yard.core, "handle",
        lambda event, now_ns: asked.append(len(event.message.requests)) or handle(event, now_ns)
        if isinstance(event, e.CancelAsked) else handle(event, now_ns),
    )  # fmt: skip
    yard.say(flooder, m.Cancel(list(range(m.REQUESTS_MAX))))
    yard.round()
    assert sum(asked) <= clients.CANCELS_MAX * (1 + backlog.ROUND_WORK // clients.CANCELS_WORK)
    while yard.clients.backlog:
        yard.round()
    assert sum(asked) == m.REQUESTS_MAX


def test_a_question_about_all_models_is_work_for_each(yard: Yard) -> None:
    flooder, _ = yard.peers
    yard.core.models.update({f"net{number}": yard.core.models["net"] for number in range(99)})
    yard.say(flooder, *(m.Describe(number, "") for number in range(50)))
    yard.round()
    assert len(yard.answers(flooder)) == -(-backlog.PEER_WORK // 100)


def test_a_long_envelope_is_decoded_message_by_message_up_to_one_that_is_none(yard: Yard) -> None:
    flooder, _ = yard.peers
    good = [[2, number, "nope", 2, 0, [], []] for number in range(900)]
    envelope = msgpack.packb([m.PROTOCOL_VERSION, [*good[:600], [2, -1, "x" * clients.LONG_BYTES], *good[600:]]])
    yard.said.arrivals.append((flooder, [envelope]))
    answers: list[Any] = []
    for _ in range(20):
        yard.round()
        answers += yard.answers(flooder)
    assert len(answers) == 601
    assert answers[-1].code == Code.INVALID_REQUEST
    assert yard.refused["malformed"] == 1


def test_one_message_may_not_be_longer_than_it_may_take_to_decode(yard: Yard) -> None:
    flooder, _ = yard.peers
    sizes = [[1, [1] * 64, 0, 0]] * 4000
    yard.said.arrivals.append((flooder, [msgpack.packb([m.PROTOCOL_VERSION, [[2, 1, "net", 2, 0, sizes, []]]])]))
    yard.round()
    (refused,) = yard.answers(flooder)
    assert f"at most {codec.CLIENT_MESSAGE_BYTES_MAX} bytes" in refused.text


# ---- in the core --------------------------------------------------------------------------------


def wait(yard: Yard, count: int, deadline_ns: int = 0) -> None:
    for number in range(count):
        yard.core.handle(e.Submitted(1, 7, submit(number, deadline_ns)), 0)


def lent(actions: list[Any]) -> list[Any]:
    return [a.message for a in actions if isinstance(a, e.ToWorker) and isinstance(a.message, m.Batch)]


def test_many_requests_that_expire_at_once_end_in_several_turns_and_are_never_lent(yard: Yard) -> None:
    yard.serve()
    wait(yard, 1000, 50)
    ended = 0
    for _ in range(20):
        actions = yard.core.handle(e.Turn(), 60)
        assert not lent(actions)
        failed = [a for a in actions if isinstance(a, e.ToClient)]
        assert len(failed) <= core.ENDED_MAX + 2 * 32  # and those that would have been lent
        ended += len(failed)
        if not yard.core.admission.rows:
            break
        assert yard.core.next_deadline_ns() is not None
        assert (yard.core.next_deadline_ns() or 0) <= 60
    assert ended == 1000
    assert not yard.core.admission.rows


def test_timely_requests_are_lent_while_many_others_still_expire(yard: Yard) -> None:
    yard.serve()
    wait(yard, 1000, 50)
    yard.core.handle(e.Submitted(2, 7, submit(5)), 55)
    batches = [batch for _ in range(20) for batch in lent(yard.core.handle(e.Turn(), 60))]
    assert [len(batch.items) for batch in batches] == [1]


def test_a_client_that_goes_with_many_requests_is_seen_off_in_several_turns(yard: Yard) -> None:
    yard.serve()
    wait(yard, 1000)
    actions = yard.core.handle(e.ClientGone(1), 1)
    assert sum(isinstance(a, e.ToClient) for a in actions) == core.ENDED_MAX
    assert yard.core.next_deadline_ns() == 0
    for _ in range(20):
        assert not lent(yard.core.handle(e.Turn(), 2))
        if 1 not in yard.core.connections:
            break
    assert not yard.core.admission.rows
    assert yard.core.next_deadline_ns() is None
    assert yard.core.arenas[7].connections == 1


def test_questions_that_waited_for_a_model_are_answered_in_several_turns(yard: Yard) -> None:
    for number in range(1000):
        yard.core.handle(e.DescribeAsked(1 + number % 2, m.Describe(number, "net")), 0)
    yard.core.handle(e.WorkerJoined(1, 4711), 0)
    loaded = m.Loaded("net", 1, SPEC, SPEC, True, "", 32, "cpu", "", {})
    rounds = [yard.core.handle(e.WorkerSaid(1, loaded), 0)]
    while yard.core.next_deadline_ns() == 0:
        rounds.append(yard.core.handle(e.Turn(), 0))
    told = [sum(isinstance(a, e.ToClient) for a in actions) for actions in rounds]
    assert max(told) == questions.ANSWERS_MAX
    assert sum(told) == 1000


def test_many_followers_of_a_run_are_answered_in_several_turns() -> None:
    yard = Yard(join=True)
    yard.serve()
    for number in range(1000):
        yard.core.handle(e.Submitted(1, 7, submit(number), b"d" * 16), 0)
    (batch,) = lent(yard.core.handle(e.Turn(), 1))
    assert len(batch.items) == 1
    outputs = [m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 1)])]
    done = m.Done(yard.core.epoch, batch.batch, 1, 1, 1, 0, outputs)
    rounds = [yard.core.handle(e.WorkerSaid(1, done, [bytes(16)]), 2)]
    invariants.check(yard.core)
    yard.core.handle(e.Submitted(2, 7, submit(1), b"d" * 16), 2)  # it has come too late to be one of them
    yard.core.handle(e.CancelAsked(1, m.Cancel([999])), 2)
    rounds[0] += yard.core.handle(e.Turn(), 2)
    while yard.core.next_deadline_ns() == 0:
        rounds.append(yard.core.handle(e.Turn(), 2))
    invariants.check(yard.core)
    told = [[a.message.request for a in actions if isinstance(a, e.ToClient)] for actions in rounds]
    assert max(map(len, told)) <= 2 * books.ANSWERS_MAX + 1
    assert sorted(number for each in told for number in each) == list(range(999))
    assert set(yard.core.connections[2].requests) == {1}
    yard.workers.sentinels.close()


def test_a_look_at_a_lane_of_late_requests_is_short_and_finds_the_timely_one(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.serve()
    worker = yard.core.workers[1]
    wait(yard, 2000, 500)
    yard.core.handle(e.Submitted(2, 7, submit(9)), 1)
    (lane,) = yard.core.policy.lanes
    looks: list[int] = []
    is_late = taking._is_late
    monkeypatch.setattr(taking, "_is_late", lambda *which: looks.append(1) or is_late(*which))
    worker.timings["net"].longest_ns = 10**9
    for _ in range(60):
        looks.clear()
        taking.heads(lane, worker, 1000)
        assert len(looks) <= taking.ASIDE_MAX + lanes.LATE_MAX + 1
    parts = taking.take_rows(lane, 32, 1000, worker.timings["net"])
    assert [part.request.conn for part in parts] == [2]


def test_all_who_ask_at_once_get_one_snapshot(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(yard.loop, "_snapshot", lambda: taken.append(1) or {})
    askers = [FakePeer() for _ in range(4)]
    yard.asked.arrivals.extend((peer, [codec.encode([m.Snapshot()] * 16)]) for peer in askers)
    yard.loop.look_soon()
    yard.round()
    assert [len(peer.sent) for peer in askers] == [16] * 4
    assert taken == [1]
