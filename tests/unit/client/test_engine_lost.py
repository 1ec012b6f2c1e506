"""The engine without its broker: what is asked again, of whom, with how much time; and who is told what."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from batchyard.client.reply import Reply
from batchyard.client.request import Request, Stream
from batchyard.client.resubmit import MessageRefused
from batchyard.tests.unit.client.yard import CONNECT_NS, GONE, MS, Side, X, info
from batchyard.transport import messages as m
from batchyard.transport.errors import (
    BrokerLost,
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidRequest,
    Unauthorized,
    UnknownConnection,
)
from batchyard.transport.tensors import Tensor, TensorSpec

from ...striking import CLIENT, struck

BIG = np.zeros((15_000, 4), np.float32)


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    made.connect()
    yield made
    made.close()


def test_what_was_copied_is_read_from_the_slot_and_what_was_not_from_the_callers_array() -> None:
    inputs = [TensorSpec("x", 1, ["n", 4]), TensorSpec("b", 1, ["n", 2])]
    side = Side(knows=info(inputs=inputs))
    memory = side.connect().memory
    assert memory is not None
    copied = np.full((2, 4), 5, np.float32)
    placed = memory.array(memory.alloc(16), np.dtype(np.float32), (2, 2))
    placed[:] = 6
    request = side.submit({"x": copied, "b": placed})
    copied[:] = -1  # the caller's own again
    side.lose()
    assert request.given["b"] is placed  # so its slot is not given to another
    side.connect()
    assert (side.read(request) == 5).all()
    assert (side.read(request, 1) == 6).all()
    side.close()


def test_without_shared_memory_what_was_sent_is_kept() -> None:
    side = Side(None)
    side.connect()
    x = np.full((2, 4), 5, np.float32)
    side.submit(x)
    x[:] = -1
    side.lose()
    side.connect()
    ((_, frames, _),) = side.engine.take_envelopes()
    assert (np.frombuffer(frames[0], np.float32) == 5).all()


def test_it_is_submitted_anew_under_another_number_with_the_time_that_is_left(side: Side) -> None:
    x = np.full((2, 4), 7, np.float32)
    request = side.submit(x)
    (first,) = side.sent()
    x[:] = -1
    side.now_ns += 100 * MS
    side.lose()
    assert side.engine.wants_connection
    assert side.sent() == []
    side.now_ns += 300 * MS
    side.connect()
    (again,) = side.sent()
    assert again is request.message
    assert (again.priority, again.deadline_ns) == (1, 100 * MS)
    assert again.request != first.request
    assert (side.read(request) == 7).all()
    assert not side.engine.wants_connection
    assert side.complete(request) == [request]
    assert isinstance(request.take(), Reply)
    assert side.sessions[0].used > 0, "a worker of the lost broker may still write"
    assert request.given is None, "the lost session's memory is let go of"


def test_several_brokers_may_be_lost_one_after_another(side: Side) -> None:
    request = side.submit()
    for _ in range(3):
        side.lose()
        side.connect()
    assert [message.request for message in side.sent()] == [request.message.request]
    assert side.complete(request) == [request]


def test_what_has_come_or_was_cancelled_is_not_asked_again(side: Side) -> None:
    done, cancelled, later = side.submit(), side.submit(), side.submit()
    side.sent()
    side.hear(m.Failed(1, Code.MODEL_FAILED, "no", 0, True))  # a worker holds its slots
    side.engine.cancel(cancelled)
    side.lose()
    side.engine.cancel(later)
    assert not side.engine.wants_connection
    kept, also_cancelled = side.submit(), side.submit()
    side.engine.cancel(also_cancelled)
    side.connect()
    assert side.sent() == [kept.message]
    assert done.outcome is not None


def test_what_was_cancelled_without_a_broker_is_not_asked_though_it_needs_no_input() -> None:
    side = Side(knows=info(inputs=[TensorSpec("x", 1, ["n", 4], True)]))
    kept, cancelled = side.submit(None), side.submit(None)
    side.engine.cancel(cancelled)
    side.connect()
    assert side.sent() == [kept.message]
    side.close()


@pytest.mark.parametrize(
    ("error", "idempotent", "alone", "again"),
    [
        (GONE, True, False, True),
        (GONE, False, False, False),
        (GONE, False, True, False),
        (UnknownConnection("who?"), False, True, True),  # it has run nothing of ours
        (UnknownConnection("who?"), False, False, False),  # an earlier one may have run
        (UnknownConnection("who?"), True, False, True),
        (MessageRefused("nonsense"), True, True, False),  # the next would refuse it, too
    ],
)
def test_who_is_asked_again(error: BrokerLost, idempotent: bool, alone: bool, again: bool) -> None:
    side = Side(knows=info(idempotent=idempotent))
    side.connect()
    requests = [side.submit() for _ in range(1 if alone else 2)]
    side.sent()
    side.lose(error)
    for request in requests:
        assert (request.outcome is None) is again
        if not again:
            assert isinstance(request.outcome, BrokerLost)
            assert ("not idempotent" in str(request.outcome)) is not isinstance(error, MessageRefused)
    assert side.engine.take_outcomes() == ([] if again else requests)
    side.close()


def test_what_never_left_is_asked_again_whatever_its_model() -> None:
    side = Side(knows=info(idempotent=False))
    side.connect()
    request = side.submit()
    side.lose()
    assert request.outcome is None
    side.close()


@pytest.mark.parametrize(
    ("code", "again"), [(Code.UNKNOWN_CONNECTION, True), (Code.INVALID_REQUEST, False)]
)
def test_a_refused_connection_is_a_lost_one(side: Side, code: Code, again: bool) -> None:
    request = side.submit()
    question = side.ask()
    side.sent()
    side.hear(m.Refused(code, "no"), m.Released([1]))
    assert side.engine.session is None
    assert side.session.lost
    assert (request.outcome is None) is again
    assert (question.outcome is None) is again


def test_a_session_is_over_before_anything_of_it_is_let_go(side: Side) -> None:
    memory = side.session.memory
    assert memory is not None
    mine = memory.array(memory.alloc(64), np.dtype(np.float32), (2, 4))
    request = side.submit(mine)
    side.sent()
    side.engine.cancel(request)  # a worker still reads it
    was_lost: list[bool] = []
    bell = weakref.ref(mine.base, lambda _: was_lost.append(side.session.lost))
    del mine, request
    side.lose()
    assert was_lost == [True], bell


def test_nothing_new_is_placed_in_a_session_that_another_connection_has_given_up(side: Side) -> None:
    old = side.session
    old.lost = True
    request = side.submit()
    assert side.engine.session is None
    assert old.used == 0
    side.connect()
    assert [message.request for message in side.sent()] == [request.message.request]


def test_who_finds_the_session_over_has_lost_a_broker_like_those_before_him(side: Side) -> None:
    before = side.submit(timeout_ns=3 * CONNECT_NS)
    side.session.lost = True
    finder = side.submit(timeout_ns=3 * CONNECT_NS)
    without = side.submit(timeout_ns=3 * CONNECT_NS)  # as a first call
    side.wait(2 * CONNECT_NS)
    assert (before.outcome, finder.outcome) == (None, None)
    assert "no broker answers" in str(without.outcome)
    side.connect()
    assert side.sent() == [before.message, finder.message]


def test_what_another_thread_has_placed_is_sent_or_asked_of_the_next_broker(side: Side) -> None:
    old = side.session
    memory = old.memory
    for late in (False, True):
        request = side.request(np.full((2, 4), 3, np.float32))
        assert request.place(old.signatures["net"], memory, 90 + late, side.now_ns)
        if late:
            side.lose()
        side.engine.adopt(request, old, side.now_ns)
        if late:
            assert side.sent() == []
            side.connect()
        assert side.sent()[-1] == request.message
        assert (request.message.request == 90) is not late
        assert (side.read(request) == 3).all()
    used = old.used
    cancelled = side.request()
    cancelled.place(old.signatures["net"], memory, 99, side.now_ns)
    cancelled.outcome = Cancelled("meanwhile")
    side.engine.adopt(cancelled, old, side.now_ns)
    assert old.used == used


def test_what_its_caller_has_sent_is_not_sent_again_and_is_asked_of_the_next_broker(side: Side) -> None:
    memory = side.session.memory
    sent = side.request()
    assert sent.place(side.session.signatures["net"], memory, 90, side.now_ns)
    cancelled = side.request()
    assert cancelled.place(side.session.signatures["net"], memory, 91, side.now_ns)
    cancelled.outcome = Cancelled("meanwhile")
    used = side.session.used
    for request in (sent, cancelled):
        request.is_sent = True
        side.engine.adopt(request, side.session, side.now_ns)
    assert side.sent() == [m.Cancel([91])]
    assert side.session.used == used  # a worker may read there
    side.lose()
    side.connect()
    assert side.sent() == [sent.message]


def test_another_model_of_the_same_name_is_the_callers_error(side: Side) -> None:
    request = side.submit()
    side.lose()
    side.knows = info(inputs=[TensorSpec("x", 1, ["n", 9])])
    side.connect()
    assert isinstance(request.outcome, InvalidRequest)


def test_what_has_no_room_in_the_next_memory_waits_for_what_has(side: Side) -> None:
    side.arena = 2 << 20
    side.lose()
    side.connect()
    requests = [side.submit(BIG) for _ in range(3)]
    side.lose()
    side.arena = 1 << 20  # for two of the three
    side.connect()
    assert len(side.sent()) == 2
    side.complete(requests[0])
    del requests[0].outcome
    side.engine.expire(side.now_ns)
    assert side.sent() == [requests[2].message]


def test_what_waited_for_room_is_asked_of_the_next_broker(side: Side) -> None:
    busy = [side.submit(BIG), side.submit(BIG)]
    waiting = side.submit(BIG)
    memory = side.session.memory
    assert memory is not None
    side.lose()
    assert not memory._line
    side.arena = 2 << 20
    side.connect()
    assert [message.request for message in side.sent()] == [r.message.request for r in (*busy, waiting)]


def test_who_finds_no_broker_is_told_so_after_the_connect_timeout() -> None:
    side = Side()
    patient, hasty = side.submit(timeout_ns=60_000 * MS), side.submit(timeout_ns=50 * MS)
    question = side.request(None, 60_000 * MS)
    side.engine.ask(question, side.now_ns)
    assert side.engine.wants_connection
    side.engine.refused(BrokerLost("nobody is there"))
    side.wait(100 * MS)
    assert isinstance(hasty.outcome, BrokerLost)
    assert "no broker answers at ipc:///yard" in str(hasty.outcome)
    side.wait(CONNECT_NS - 200 * MS)
    assert patient.outcome is None
    side.wait(200 * MS)
    for request in (patient, question):
        assert isinstance(request.outcome, BrokerLost)
    assert not side.engine.wants_connection


def test_who_has_found_a_broker_in_time_has_all_the_time_that_he_asked_for() -> None:
    side = Side()
    request = side.submit(timeout_ns=60_000 * MS)
    assert side.engine.next_due_ns() == side.now_ns + CONNECT_NS
    side.connect()
    side.wait(CONNECT_NS + 100 * MS)
    assert request.outcome is None
    side.close()


def test_who_is_not_let_in_is_told_at_once_and_who_lost_a_broker_waits_for_another(side: Side) -> None:
    lost = side.submit(timeout_ns=400 * MS)
    side.now_ns += 100 * MS
    side.lose()
    new, question = side.submit(), side.ask()
    side.engine.refused(Unauthorized("not you"))
    for request in (new, question):
        assert isinstance(request.outcome, Unauthorized)
    assert lost.outcome is None
    side.wait(400 * MS)
    assert isinstance(lost.outcome, BrokerLost)
    assert "no other came within 0.32 s (not you)" in str(lost.outcome)


def test_whose_time_is_up_before_the_model_is_ready_again_is_told_so(side: Side) -> None:
    request = side.submit()
    side.lose()
    side.connect(knows=False)
    side.wait(1_000 * MS)
    assert isinstance(request.outcome, DeadlineExceeded)
    assert "ready again" in str(request.outcome)


def test_a_question_is_asked_of_the_next_broker(side: Side) -> None:
    question = side.ask()
    (first,) = side.sent()
    side.lose()
    side.connect()
    (again,) = side.sent()
    assert again.request != first.request
    side.hear(m.Described(again.request, [info()]))
    assert question.outcome == [info()]


def test_closing_ends_everything_once(side: Side) -> None:
    sent, waiting_for_room = side.submit(BIG), [side.submit(BIG), side.submit(BIG)]
    other = side.submit(X, model="other")
    question = side.ask()
    error = Cancelled("the client was closed")
    side.engine.end(error)
    for request in (sent, *waiting_for_room, other, question):
        assert request.outcome is error
    memory = side.session.memory
    assert memory is not None
    assert not memory._line
    assert not side.engine.wants_connection
    assert side.engine.next_due_ns() is None


# ---- a signal's handler raised between two instructions ------------------------------------------


class CutOff(Exception):
    pass


def test_losing_a_broker_may_be_interrupted_anywhere_and_done_again() -> None:
    places, is_within = 0, True
    while is_within:
        places += 1
        side = Side()
        side.connect()
        requests = [side.submit(np.full((2, 4), number, np.float32)) for number in range(2)]
        requests.append(side.submit(np.full((2, 4), 2, np.float32), model="unheard of"))
        question = side.ask("net")
        side.sent()
        unsent = side.submit(np.full((2, 4), 3, np.float32))
        is_within = struck(side.lose, places, CLIENT)
        if is_within:
            side.lose()
        side.connect()
        sent = side.sent()
        numbers = sorted(message.request for message in sent)
        assert len(sent) == 5, f"struck at look {places}: {sent}"
        assert numbers == sorted(side.engine.pending), f"struck at look {places}"
        assert question.outcome is None
        for number, request in enumerate([*requests[:2], unsent]):
            assert (side.read(request) == number + number // 2).all()
        assert requests[2].outcome is None
        side.close()
    assert places > 50


def test_answers_of_the_lost_connection_are_not_read_from_the_new_ones_memory(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = side.submit()
    side.sent()

    def interrupted(*_: Any) -> None:
        raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr(Request, "pick_up", interrupted)
        with pytest.raises(CutOff):
            side.lose()
    side.write(request, np.full((2, 3), 5, np.float32))
    assert side.complete(request) == [request]
    assert isinstance(request.outcome, Reply)
    assert (request.outcome.value == 5).all()


def test_what_an_exception_took_out_of_every_table_ends(side: Side) -> None:
    strays = [side.submit(), side.submit()]
    kept = side.submit()
    for request in strays:
        del side.engine.pending[request.message.request]
    strays[1].outcome = GONE  # it had one
    side.engine.end_strays([*strays, kept], BrokerLost("struck"))
    assert str(strays[0].outcome) == "struck"
    assert strays[1].outcome is GONE
    assert kept.outcome is None


def test_an_answer_of_a_stream_is_never_asked_for_again_wherever_it_was_interrupted() -> None:
    class Struck:
        """In place of the answers that nobody has taken: an exception comes before it is kept."""

        def __len__(self) -> int:
            return 0

        def append(self, _: Any) -> None:
            raise CutOff

    side = Side(None, knows=info(streams=True))
    side.connect()
    request = side.request()
    stream = request.stream = Stream(lambda: None)
    side.engine.submit(request, side.now_ns)
    side.sent()
    stream.answers = Struck()  # type: ignore[assignment]
    answer = m.Streamed(request.message.request, [Tensor(1, [2, 3], 0, 1)])
    with pytest.raises(CutOff):
        side.hear(answer, frames=[bytes(24)])
    side.lose()
    assert isinstance(request.outcome, BrokerLost)
