"""The engine with a connection: each request ends once, and its slots come back once, exactly when no worker
can touch them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from batchyard.client.memory import SlotMemory
from batchyard.client.outbox import REQUESTS_PER_ENVELOPE
from batchyard.client.reply import Reply
from batchyard.client.request import Request
from batchyard.client.signature import Signature
from batchyard.tests.unit.client.yard import MS, RECEIPT, Side, X, info
from batchyard.transport import messages as m
from batchyard.transport.errors import (
    ArenaExhausted,
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    ModelFailed,
    Overloaded,
    UnknownModel,
)
from batchyard.transport.tensors import Tensor, TensorSpec

BIG = np.zeros((15_000, 4), np.float32)  # 240 kB in, 180 kB out: two at once in an arena of a mebibyte


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    made.connect()
    yield made
    made.close()


def memory_of(side: Side) -> SlotMemory:
    assert side.session.memory is not None
    return side.session.memory


def reply_of(request: Request) -> Reply:
    outcome = request.take()
    assert isinstance(outcome, Reply)
    return outcome


# ---- requests and answers -----------------------------------------------------------------------


def test_a_request_names_its_slots_and_its_result_is_a_view_of_one(side: Side) -> None:
    request = side.submit()
    (message,) = side.sent()
    (tensor,), (slot,) = message.inputs, message.outputs
    assert (tensor.dtype, tensor.shape, tensor.frame, slot.nbytes) == (1, [2, 4], 0, 24)
    assert (side.read(request) == X).all()
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    side.write(request, y)
    assert side.complete(request) == [request]
    reply = reply_of(request)
    np.testing.assert_array_equal(reply.value, y)
    assert reply.receipt.queue_ns == 5
    assert (reply.receipt.rows, reply.receipt.copied_bytes, reply.receipt.provider) == (3, 40, "cpu")


def test_on_completion_the_input_slot_is_free_and_the_output_slot_with_its_last_view(side: Side) -> None:
    request = side.submit()
    both = side.session.used
    side.complete(request)
    assert 0 < side.session.used < both
    view = reply_of(request).value[1:, ::2]  # type: ignore[call-overload,index]
    assert side.session.used > 0
    del view
    assert side.session.used == 0
    assert side.engine.pending == {}


def test_several_requests_are_completed_by_one_message(side: Side) -> None:
    requests = [side.submit() for _ in range(3)]
    assert side.complete(*requests) == requests
    for request in requests:
        request.take()
    assert side.session.used == 0


def test_a_failure_is_a_typed_error_and_frees_everything(side: Side) -> None:
    request = side.submit()
    side.hear(m.Failed(1, Overloaded.code, "too much under way", 2_000_000))
    error = request.outcome
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(0.002)
    assert side.session.used == 0


def test_a_failure_while_a_worker_holds_the_slots_frees_them_only_when_released(side: Side) -> None:
    request = side.submit()
    used = side.session.used
    assert side.hear(m.Failed(1, DeadlineExceeded.code, "late", 0, True)) == [request]
    assert isinstance(request.outcome, DeadlineExceeded)
    assert side.session.used == used
    assert side.hear(m.Released([1])) == []
    assert side.session.used == 0
    assert side.hear(m.Released([1])) == []  # nothing is freed twice


def test_an_answer_in_frames_frees_every_slot_and_joins_its_parts(side: Side) -> None:
    request = side.submit()
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts = [[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [1, 3], 0, 2)]]
    side.hear(m.Answer(1, 9, RECEIPT, parts), frames=[y[:1].tobytes(), y[1:].tobytes()])
    np.testing.assert_array_equal(reply_of(request).value, y)
    assert side.session.used == 0


@pytest.mark.parametrize(
    ("parts", "frames"),
    [
        ([[Tensor(1, [2, 3], 0, 1)]], []),
        ([[Tensor(1, [2, 3], 0, 2)]], [bytes(24)]),
        ([[Tensor(1, [2, 3], 0, 0)]], [bytes(24)]),
        ([[Tensor(1, [2, 3], 0, 1)]], [bytes(23)]),
        ([[Tensor(99, [2, 3], 0, 1)]], [bytes(24)]),
        ([[Tensor(1, [1 << 32, 1 << 32], 0, 1)]], [b""]),
        ([[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [1, 4], 0, 2)]], [bytes(12), bytes(16)]),
        ([[Tensor(1, [1, 3], 0, 1)], []], [bytes(12)]),
        ([[Tensor(1, [1, 3], 0, 1)], [Tensor(1, [], 0, 2)]], [bytes(12), bytes(4)]),
        ([], []),
        ([[]], []),
        ([[Tensor(1, [2, 3], 0, 1), Tensor(1, [2, 3], 0, 1)]], [bytes(24)]),
    ],
)
def test_a_damaged_answer_is_an_error_of_that_request_alone(side: Side, parts: Any, frames: Any) -> None:
    request = side.submit()
    side.hear(m.Answer(1, 9, RECEIPT, parts), frames=frames)
    assert isinstance(request.outcome, MalformedMessage)
    assert side.session.used == 0


def test_a_cancelled_request_does_not_end_again_however_the_broker_ends_it(side: Side) -> None:
    endings: list[list[Any]] = [
        [m.Completed([1], [5], RECEIPT)],
        [m.Failed(2, Cancelled.code, "cancelled")],
        [m.Failed(3, Cancelled.code, "cancelled", 0, True), m.Released([3])],
        [m.Answer(4, 9, RECEIPT, [[Tensor(1, [2, 3], 0, 1)]])],
    ]
    for number, messages in enumerate(endings, start=1):
        request = side.submit()
        side.sent()
        side.engine.cancel(request)
        side.engine.cancel(request)  # once is enough
        assert side.sent() == [m.Cancel([number])]
        assert side.session.used > 0, "a worker may still write into it"
        for message in messages:
            assert side.hear(message, frames=[bytes(24)]) == []
        assert isinstance(request.outcome, Cancelled)
        assert side.session.used == 0
    assert side.engine.pending == {}


def test_what_is_cancelled_before_it_was_sent_never_leaves(side: Side) -> None:
    request, kept = side.submit(), side.submit()
    side.engine.cancel(request)
    assert [message.request for message in side.sent()] == [2]
    assert list(side.engine.pending.values()) == [kept]


def test_cancelling_what_has_ended_says_nothing(side: Side) -> None:
    request = side.submit()
    side.sent()
    side.hear(m.Failed(1, Cancelled.code, "cancelled"))
    side.engine.cancel(request)
    assert side.sent() == []


def test_a_second_outcome_is_ignored(side: Side) -> None:
    request = side.submit()
    assert side.complete(request) == [request]
    request.take()
    completed = m.Completed([1], [5], RECEIPT)
    for message in (completed, m.Failed(1, 8, "no"), m.Answer(1, 0, RECEIPT, []), m.Released([1])):
        assert side.hear(message) == []
    assert side.session.used == 0


def test_messages_about_requests_that_never_were_are_ignored(side: Side) -> None:
    request = side.submit()
    for message in (
        m.Completed([99], [5], RECEIPT),
        m.Failed(99, 8, "no"),
        m.Failed(99, 8, "no", 0, True),
        m.Released([98, 99]),
        m.Answer(99, 0, RECEIPT, []),
        m.Described(99, []),
        m.Welcome(1, 1),
    ):
        assert side.hear(message) == []
    assert list(side.engine.pending.values()) == [request]


def test_a_broker_that_answers_as_if_it_were_another_kind_does_not_end_the_client(side: Side) -> None:
    question = side.ask()
    assert side.hear(m.Completed([1], [5], RECEIPT)) == []
    assert question.outcome is None
    side.session.signatures["net"] = Signature(info([TensorSpec("y", 1, ["n", "found"])]))
    request = side.submit()
    side.complete(request)  # but no slot was reserved
    assert isinstance(request.outcome, MalformedMessage)
    assert side.session.used == 0


# ---- what leaves --------------------------------------------------------------------------------


def apart(messages: list[Any]) -> list[m.Submit]:
    return [each for message in messages for each in message.apart()]


def test_requests_that_are_alike_leave_in_columns_and_others_do_not(side: Side) -> None:
    """By rows, by priority, by shape, and by what goes between them."""
    requests = [side.submit(np.full((rows, 4), rows, np.float32)) for rows in (2, 2, 2, 1, 1, 2)]
    urgent = side.request()
    urgent.priority = 0
    side.engine.submit(urgent, side.now_ns)
    ((messages, _, left),) = side.engine.take_envelopes()
    assert left == [*requests, urgent]
    assert apart(messages) == [request.message for request in left]
    assert [len(message.more.requests) if message.more else 0 for message in messages] == [2, 1, 0, 0]
    assert all(request.message.more is None for request in left)  # it may be sent again, by itself
    free = Side(knows=info(inputs=[TensorSpec("x", 1, ["n", "width"])]))
    free.connect()
    widths = [free.submit(np.ones((2, width), np.float32)) for width in (3, 3, 4, 4)]
    ((messages, _, _),) = free.engine.take_envelopes()
    assert apart(messages) == [request.message for request in widths]
    assert len(messages) == 2
    side.engine.cancel(requests[0])
    last = [side.submit(), side.submit()]
    side.engine.cancel(last[0])
    ((messages, _, _),) = side.engine.take_envelopes()
    assert messages == [m.Cancel([requests[0].message.request]), last[1].message]


def test_texts_never_leave_in_columns_for_shapes_do_not_say_how_long_they_are() -> None:
    side = Side(knows=info(inputs=[TensorSpec("x", 8, ["n"])]))
    side.connect()
    texts = [side.submit(np.array([text], object)) for text in ("a", "a", "aa")]
    ((messages, _, _),) = side.engine.take_envelopes()
    assert messages == [request.message for request in texts]


def test_requests_leave_together_in_order_and_frames_by_themselves(side: Side) -> None:
    requests = [side.submit() for _ in range(REQUESTS_PER_ENVELOPE + 2)]
    first, second = side.engine.take_envelopes()
    assert [len(apart(envelope[0])) for envelope in (first, second)] == [REQUESTS_PER_ENVELOPE, 2]
    assert first[2] + second[2] == requests
    inline = Side(None)
    inline.connect()
    question, request = inline.ask(), inline.submit()
    envelopes = inline.engine.take_envelopes()
    assert [(type(messages[0]), len(frames)) for messages, frames, _ in envelopes] == [(m.Describe, 0), (m.Submit, 1)]
    assert [envelope[2] for envelope in envelopes] == [[question], [request]]


def test_a_lone_request_is_taken_alone(side: Side) -> None:
    request = side.submit()
    assert side.engine.outbox.take_only(request) is request.message
    assert request.is_sent
    assert side.sent() == []
    first, second = side.submit(), side.submit()
    assert side.engine.outbox.take_only(second) is None
    assert side.sent() == [first.message, second.message]


def test_what_the_broker_does_not_read_ends_at_once_and_frees_its_slots(side: Side) -> None:
    request = side.submit()
    question = side.ask()
    for _, _, requests in side.engine.take_envelopes():
        side.engine.unsent(requests, Overloaded("it does not read"))
    assert isinstance(request.outcome, Overloaded)
    assert isinstance(question.outcome, Overloaded)
    assert side.session.used == 0
    assert side.engine.pending == {}
    assert side.engine.take_outcomes() == [request, question]
    assert side.hear(m.Failed(1, Code.CANCELLED, "late")) == []


# ---- signatures ---------------------------------------------------------------------------------


def test_what_was_learned_of_a_model_is_kept_until_it_is_another(side: Side) -> None:
    def told(said: m.ModelInfo) -> Signature:
        question = side.ask()
        side.hear(m.Described(side.sent()[-1].request, [said]))
        assert question.outcome is not None
        return side.session.signatures["net"]

    known = told(info())
    assert told(info(workers=[m.WorkerInfo(7, 1, "cpu", "host", {})])) is known
    assert told(info(revision=2)) is not known


def test_a_signature_is_asked_for_once_and_what_waits_for_it_leaves_then() -> None:
    side = Side()
    session = side.connect(knows=False)
    requests = [side.submit() for _ in range(3)]
    (question,) = side.sent()
    assert question == m.Describe(question.request, "net")
    assert side.hear(m.Described(question.request, [info()])) == []
    assert [message.inputs[0].shape for message in side.sent()] == [[2, 4]] * 3
    assert "net" in session.signatures
    assert side.complete(*requests) == requests
    side.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (m.Described(4, [info(state=m.ModelState.FAILED, reason="broken")]), ModelFailed),
        (m.Failed(4, UnknownModel.code, "no such model"), UnknownModel),
    ],
)
def test_a_model_that_cannot_be_served_ends_what_waits_for_it(answer: Any, kind: type) -> None:
    side = Side()
    side.connect(knows=False)
    side.submit(model="other")
    requests = [side.submit() for _ in range(2)]
    other, question = side.sent()
    answer.request = question.request
    assert side.hear(answer) == requests
    assert {type(request.outcome) for request in requests} == {kind}
    assert other.request in side.engine.pending
    side.close()


def test_a_user_learns_what_there_is_and_the_first_request_need_not_ask_again() -> None:
    side = Side()
    side.connect(knows=False)
    question = side.ask()
    (message,) = side.sent()
    side.hear(m.Described(message.request, [info()]))
    assert question.outcome == [info()]
    side.submit()
    assert [type(message) for message in side.sent()] == [m.Submit]
    everything = side.ask("")
    (message,) = side.sent()
    side.hear(m.Described(message.request, []))
    assert everything.outcome == []
    side.close()


def test_a_name_that_no_model_can_have_is_not_asked_for(side: Side) -> None:
    for request in (side.submit(model="n" * 5000), side.ask("n" * 5000)):
        assert isinstance(request.outcome, UnknownModel)
    assert side.sent() == []


@pytest.mark.parametrize(
    ("code", "asks_anew"),
    [(Code.UNKNOWN_MODEL, True), (Code.INVALID_REQUEST, True), (Code.MODEL_FAILED, False), (Code.CANCELLED, False)],
)
def test_after_a_refusal_about_the_model_its_signature_is_asked_for_anew(
    side: Side, code: Code, asks_anew: bool
) -> None:
    side.submit()
    side.hear(m.Failed(1, code, "no"))
    assert bool(side.session.signatures) != asks_anew


def test_an_array_that_does_not_fit_may_be_for_another_model_of_that_name(side: Side) -> None:
    request = side.submit(np.zeros((2, 5), np.float32))
    assert isinstance(request.outcome, InvalidRequest)
    assert side.session.signatures == {}
    assert side.session.used == 0
    assert side.engine.pending == {}


# ---- room ---------------------------------------------------------------------------------------


def test_what_has_no_room_waits_for_it_in_order(side: Side) -> None:
    first, second = side.submit(BIG), side.submit(BIG)
    waiting = side.submit(BIG)
    small = side.submit()  # there would be room for it, but others came first
    assert side.engine.room
    assert side.sent() == [first.message, second.message]
    side.hear(m.Failed(1, 8, "no"))
    assert waiting.message is not None
    assert small.message is not None
    assert side.sent() == [waiting.message, small.message]
    assert not side.engine.room


def test_a_bell_is_rung_when_slots_come_back_from_elsewhere(side: Side) -> None:
    memory = memory_of(side)
    held = memory.array(memory.alloc(900_000), np.dtype(np.uint8), (900_000,))
    side.submit()  # under way, so some is owed
    waiting = side.submit(BIG)
    assert waiting.message is None
    before = side.bells
    del held
    assert side.bells > before
    side.engine.expire(side.now_ns)
    assert waiting.message is not None


def test_room_is_given_in_order_between_engines_of_one_client(side: Side) -> None:
    other = Side()
    other.sessions.append(side.session)
    other.engine.connected(side.session, side.now_ns)
    busy = [side.submit(BIG), side.submit(BIG)]
    mine, others = other.submit(BIG), side.submit(BIG)
    side.hear(m.Failed(busy[0].message.request, 8, "no"))
    assert others.message is None, "it came second"
    assert other.bells
    other.engine.expire(other.now_ns)
    assert mine.message is not None


def test_when_nothing_will_give_room_back_a_request_does_not_wait_for_long(side: Side) -> None:
    memory = memory_of(side)
    held = memory.array(memory.alloc(900_000), np.dtype(np.uint8), (900_000,))
    waiting = side.submit(BIG, 60_000 * MS)
    side.wait(80 * MS)
    assert waiting.outcome is None, "results may be dropped in the meantime"
    side.wait(50 * MS)
    assert isinstance(waiting.outcome, ArenaExhausted)
    assert "arena_bytes" in str(waiting.outcome)
    assert not memory._line
    del held


def test_as_long_as_something_is_under_way_room_is_waited_for_until_the_end(side: Side) -> None:
    side.submit(BIG, 60_000 * MS)
    side.submit(BIG, 60_000 * MS)
    waiting = side.submit(BIG, 300 * MS)
    side.wait(290 * MS)
    assert waiting.outcome is None
    side.wait(50 * MS)
    assert isinstance(waiting.outcome, ArenaExhausted)


def test_who_waits_no_longer_leaves_the_line_and_gives_back_what_he_was_given(side: Side) -> None:
    busy = [side.submit(BIG), side.submit(BIG)]
    first, second = side.submit(BIG), side.submit(BIG)
    side.engine.cancel(first)
    side.hear(m.Failed(busy[0].message.request, 8, "no"))
    assert second.message is not None
    third = side.submit(BIG)
    memory = memory_of(side)
    assert third.want is not None
    for request in (busy[1], second):
        side.engine.pending.pop(request.message.request).give_back(memory)
    memory.serve()
    assert third.want.offsets is not None
    side.engine.cancel(third)
    assert side.session.used == 0


def test_more_than_the_whole_arena_is_refused_at_once(side: Side) -> None:
    request = side.submit(np.zeros((60_000, 4), np.float32))  # 960 kB in, and 720 kB out
    assert isinstance(request.outcome, ArenaExhausted)
    assert side.session.used == 0


def test_an_impatient_request_is_refused_when_there_is_no_room(side: Side) -> None:
    side.submit(BIG), side.submit(BIG)
    request = side.request(BIG)
    request.is_patient = False
    side.engine.submit(request, side.now_ns)
    assert isinstance(request.outcome, ArenaExhausted)


# ---- time ---------------------------------------------------------------------------------------


def test_what_the_broker_forgets_ends_a_little_after_its_deadline(side: Side) -> None:
    request = side.submit(timeout_ns=100 * MS)
    side.sent()
    side.wait(100 * MS)
    assert request.outcome is None
    side.wait(45 * MS)
    assert isinstance(request.outcome, DeadlineExceeded)
    assert side.sent() == [m.Cancel([1])]
    assert side.engine.next_due_ns() is None
    assert side.session.used > 0
    side.hear(m.Released([1]))
    assert side.session.used == 0


def test_a_model_that_is_not_loaded_in_time_is_said_so() -> None:
    side = Side()
    side.connect(knows=False)
    request = side.submit(timeout_ns=100 * MS)
    question = side.ask()
    side.wait(1_000 * MS)
    for late in (request, question):
        assert isinstance(late.outcome, DeadlineExceeded)
        assert "no worker has loaded 'net'" in str(late.outcome)
    side.close()


# ---- arrays -------------------------------------------------------------------------------------


def test_an_array_that_lies_in_the_arena_is_not_copied_and_lives_until_the_end(side: Side) -> None:
    memory = memory_of(side)
    mine = memory.array(memory.alloc(64), np.dtype(np.float32), (4, 4))
    mine[:] = 7
    request = side.submit(mine[1:3])
    assert memory.bytes_copied == 0
    assert request.message.inputs[0].offset == memory.offset_of(mine) + 16  # type: ignore[operator]
    del mine
    used = side.session.used
    side.hear(m.Failed(1, 8, "no"))
    assert side.session.used < used
    assert side.session.used == 0


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1, :4], np.s_[:, 1:5]])
def test_a_part_that_is_not_contiguous_is_copied(side: Side, view: Any) -> None:
    memory = memory_of(side)
    mine = memory.array(memory.alloc(64), np.dtype(np.float32), (2, 8))
    mine[:] = np.arange(16).reshape(2, 8)
    request = side.submit(mine[view])
    assert memory.bytes_copied == 32
    assert (side.read(request) == mine[view]).all()


def test_without_an_arena_tensors_travel_as_frames_both_ways() -> None:
    side = Side(None)
    side.connect()
    request = side.submit(np.asfortranarray(X))
    ((message,), frames, _) = side.engine.take_envelopes()[0]
    assert message.inputs == [Tensor(1, [2, 4], 0, 1)]
    assert message.outputs == []
    assert [bytes(frame) for frame in frames] == [X.tobytes()]
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    side.hear(m.Answer(1, 9, RECEIPT, [[Tensor(1, [2, 3], 0, 1)]]), frames=[y.tobytes()])
    np.testing.assert_array_equal(reply_of(request).value, y)


def test_without_an_arena_empty_and_scalar_tensors_travel_too() -> None:
    net = info(
        inputs=[TensorSpec("a", 1, []), TensorSpec("b", 1, [0])],
        outputs=[TensorSpec("y", 1, []), TensorSpec("z", 7, [0])],
        batchable=False,
    )
    side = Side(None, net)
    side.connect()
    request = side.submit({"a": np.float32(3)[()], "b": np.zeros(0, np.float32)})
    ((_, frames, _),) = side.engine.take_envelopes()
    assert [bytes(frame) for frame in frames] == [np.float32(3).tobytes(), b""]
    parts = [[Tensor(1, [], 0, 1), Tensor(7, [0], 0, 2)]]
    side.hear(m.Answer(1, 9, RECEIPT, parts), frames=[np.float32(5).tobytes(), b""])
    reply = reply_of(request)
    assert reply.outputs["y"] == 5
    assert reply.outputs["z"].shape == (0,)


def test_what_is_kept_is_the_engines_own(side: Side) -> None:
    x = np.full((1, 4), 5, np.float32)
    request = side.request({"x": x})
    request.keep()
    x[:] = -1
    side.engine.submit(request, side.now_ns)
    assert (side.read(request) == 5).all()


def test_requests_whose_outputs_are_foreseen_leave_in_columns_too() -> None:
    """A model does not say the sizes of its output; its first answer does."""
    side = Side(knows=info([TensorSpec("y", 1, None)]))
    side.connect()
    first = side.submit()
    side.sent()
    tensor = m.Answer(first.message.request, 5, RECEIPT, [[Tensor(1, [2, 3], 0, 1)]])
    side.hear(tensor, frames=[np.zeros(6, np.float32).tobytes()])
    assert isinstance(first.outcome, Reply)
    requests = [side.submit() for _ in range(3)]
    ((messages, _, _),) = side.engine.take_envelopes()
    assert [len(message.more.requests) for message in messages] == [2]
    assert apart(messages) == [request.message for request in requests]
    assert [slot.shape for slot in requests[2].message.outputs] == [[2, 3]]
