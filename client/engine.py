"""The client's engine: requests from call to outcome, over one connection after another.

Everything that decides about a request lives here: whether there is room for it, whether the broker is gone,
whether it may be asked again, whether it is too late. Every driver asks the same engine the same way:

    submit(request), ask(question), cancel(request)     by the user
    connected, refused, lost, received, unsent          by the connection
    next_due_ns, expire                                 by the clock
    take_envelopes, take_outcomes, wants_connection     what is to be done

A request waits for a connection, for its model's signature, and for room; then it is placed and sent. Its
slots come back when the broker says that no worker can touch them, which may be after its outcome.

Pure: no socket, clock, thread, lock, or callback into a user's code. For one thread at a time. Threads share
the session: signatures, and memory, which locks by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Protocol

from ..transport import errors
from ..transport import messages as m
from ..transport.deadlines import Deadlines
from .memory import SlotMemory
from .outbox import Envelope, Outbox
from .reply import Reply
from .request import Outcome, Request, Stream
from .resubmit import may_ask_again, nobody_answers, not_again, refusal, too_late
from .room import Room
from .signature import Signature

FRESH_MAX = 1024  # requests whose deadlines nobody has looked at
ANSWERS_MAX = 65_536  # of one stream that nobody has taken
_UNKNOWN_BATCH = m.BatchReceipt(0, 0, 0, 0, 0, 0, "", 0)  # of a stream that has not ended
WAITING_MAX = 65_536  # requests of one engine that wait for a connection or a signature
# The broker tells of a passed deadline itself; so long after it we do. With the 25 ms after which a waiting
# thread looks up (connection.py) it is less than the promised 50 ms.
GRACE_NS = 20_000_000
_ABOUT_THE_MODEL = (errors.Code.INVALID_REQUEST, errors.Code.UNKNOWN_MODEL)


class Shared(Protocol):
    """What an engine uses of a session."""

    memory: SlotMemory | None  # None: tensors travel as frames
    signatures: dict[str, Signature]
    lost: bool  # nothing new is placed in its memory


class Engine:
    """`numbers` are the client's: no two of its requests share one. `url` is for error texts. `bell` is rung
    when there may be room (memory.py), and then `expire` is due. `session`: while there is a connection."""

    def __init__(
        self, numbers: count[int], url: str, connect_timeout_ns: int, bell: Callable[[], None]
    ) -> None:
        self.session: Shared | None = None
        self.pending: dict[int, Request] = {}  # on this connection, until their slots are released
        self._numbers = numbers
        self._url = url
        self._connect_timeout_ns = connect_timeout_ns
        self._waiting: dict[str, deque[Request]] = {}  # by model, for a connection or a signature
        self._questions: deque[Request] = deque()  # for a connection
        self.room = Room(bell)
        self._asked: dict[str, Request] = {}  # models whose signature is asked for on this connection
        self.outbox = Outbox()
        self._outcomes: list[Request] = []
        self._streams: dict[Stream, None] = {}
        self._fresh: list[Request] = []  # not yet in _dues: most end before anybody looks
        self._dues: Deadlines[Request] = Deadlines(lambda request: request.outcome is not None)
        self._why_refused: errors.BatchyardError | None = None

    # ---- by the user ----------------------------------------------------------------------------

    def submit(self, request: Request, now_ns: int) -> None:
        """Take a request on its way. It may end at once, when it can't be as it is."""
        fresh = self._fresh
        if fresh and fresh[-1].outcome is not None:
            fresh[-1] = request
        else:
            fresh.append(request)
            if len(fresh) > FRESH_MAX:
                self.next_due_ns()
        session = self.session
        if session is not None and session.lost:  # another connection of the client has ended
            self.lost(errors.BrokerLost("the broker went away"), now_ns)
            session = None
            request.pick_up(None, "the broker went away", now_ns)  # it has lost its broker like the others
        signature = session.signatures.get(request.model) if session is not None else None
        if signature is not None and session is not None:
            self._start(request, signature, session.memory, now_ns)
        elif len(request.model) > m.NAME_CHARS_MAX:
            self._end(request, _no_such_model(request.model))
        elif sum(map(len, self._waiting.values())) >= WAITING_MAX:
            self._end(request, errors.Overloaded(f"{WAITING_MAX} requests of this client wait for a broker"))
        else:
            self._waiting.setdefault(request.model, deque()).append(request)
            self._ask_signatures(now_ns)

    def ask(self, question: Request, now_ns: int) -> None:
        """Ask about a model ("": all of them); the outcome is a list of ModelInfo."""
        question.is_question = True
        self._fresh.append(question)
        if len(question.model) > m.NAME_CHARS_MAX:  # the broker would refuse the message
            self._end(question, _no_such_model(question.model))
        elif self.session is None:
            self._questions.append(question)
        else:
            self._send_question(question, now_ns)

    def adopt(self, request: Request, session: Shared, now_ns: int) -> None:
        """As `submit`, of a request that has been placed in this session's memory already, and perhaps sent:
        that is told before anything that came after it."""
        self._fresh.append(request)
        if request.is_sent:
            self.pending[request.message.request] = request
            if request.outcome is not None:
                self._let_go(request)
        elif request.outcome is not None:
            request.give_back(session.memory)
        elif session is self.session:
            self._placed(request)
        else:
            request.pick_up(session.memory, "the broker went away", now_ns)
            self._waiting.setdefault(request.model, deque()).append(request)
            self._ask_signatures(now_ns)

    def cancel(self, request: Request) -> None:
        """Nobody waits for it any more: its outcome is Cancelled, and is not among `take_outcomes`."""
        if request.outcome is None:
            request.outcome = errors.Cancelled("the caller cancelled it")
            self._let_go(request)

    def end(self, error: Exception) -> None:
        """Everything ends so: the client has been closed, or nobody can serve it."""
        session, self.session = self.session, None
        for request in self._everything():
            self.room.leave(request, session.memory if session is not None else None)
            self._end(request, error)
            request.give_back(None)
        self._forget_connection()
        self._waiting.clear()
        self._questions.clear()

    def end_strays(self, requests: Iterable[Request], error: errors.BatchyardError) -> None:
        """End those that have no outcome and are in no table: an exception of a signal's handler, between two
        instructions, lost them."""
        known = set(map(id, self._everything()))
        for request in requests:
            if request.outcome is None and id(request) not in known:
                self._end(request, error)

    # ---- by the connection ----------------------------------------------------------------------

    @property
    def wants_connection(self) -> bool:
        """Whether there is none, and somebody waits for one."""
        if self.session is not None:
            return False
        for model, queue in list(self._waiting.items()):
            while queue and queue[0].outcome is not None:
                queue.popleft()
            if queue:
                return True
            del self._waiting[model]
        while self._questions and self._questions[0].outcome is not None:
            self._questions.popleft()
        return bool(self._questions)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way on this connection, or waits for room in its session."""
        return bool(self.pending or self.room.wants or self._waiting)

    def connected(self, session: Shared, now_ns: int) -> None:
        """A broker has answered the greeting."""
        self.session = session
        self._why_refused = None
        questions, self._questions = self._questions, deque()
        for question in questions:
            if question.outcome is None:
                self._send_question(question, now_ns)
        self._ask_signatures(now_ns)

    def refused(self, error: errors.BatchyardError) -> None:
        """An attempt at a connection came to nothing. Unless it was only that nobody is there, new requests
        end so at once; those that lost their broker wait for another."""
        self._why_refused = error
        if isinstance(error, errors.BrokerLost):
            return
        for request in [*self._questions, *(r for queue in self._waiting.values() for r in queue)]:
            if not request.lost:
                self._end(request, error)

    def lost(self, error: errors.BatchyardError, now_ns: int) -> None:
        """The connection is over, and its whole session with it, because a worker of the lost broker may
        still write into the memory. What had no outcome waits for the next, where it may be asked again."""
        lost = error if isinstance(error, errors.BrokerLost) else errors.BrokerLost(str(error))
        session = self.session
        memory = None
        if session is not None:
            session.lost = True  # first of all: what is let go of below must not be handed out again
            memory = session.memory
        is_alone = len(self.pending) == 1
        carried: dict[str, deque[Request]] = {}
        questions: deque[Request] = deque()
        for request in self._everything():
            if request.outcome is not None or _is_our_own(request):
                request.give_back(None)  # arrays, but no slots
                continue
            self.room.leave(request, memory)
            if may_ask_again(lost, request, is_alone):
                request.pick_up(memory, str(lost), now_ns)
                if request.is_question:
                    questions.append(request)
                else:
                    carried.setdefault(request.model, deque()).append(request)
            else:
                self._end(request, not_again(lost, request))
                request.give_back(None)
        self._waiting, self._questions = carried, questions
        self._forget_connection()
        self.session = None  # last: a signal's exception on the way leaves `pending` with its own memory

    def received(self, messages: Sequence[m.BrokerToClient], frames: Sequence[Any], now_ns: int) -> None:
        """An envelope has come. If the broker refused the connection in it, `session` is None afterwards."""
        for message in messages:
            kind = type(message)
            if kind is m.Completed:
                self._completed(message.requests, message.queue_ns, message.batch)  # type: ignore
            elif kind is m.Answer:
                self._answered(message, frames)  # type: ignore[arg-type]
            elif kind is m.Failed:
                self._failed(message)  # type: ignore[arg-type]
            elif kind is m.Released:
                for number in message.requests:  # type: ignore[union-attr]
                    self._give_back(number)
            elif kind is m.Described:
                self._described(message, now_ns)  # type: ignore[arg-type]
            elif kind is m.Streamed:
                self._streamed(message, frames)  # type: ignore[arg-type]
            elif kind is m.Refused:
                self.lost(refusal(message), now_ns)  # type: ignore[arg-type]
                return
        if self.room.wants:
            self._serve(now_ns)

    def unsent(self, requests: Sequence[Request], error: errors.BatchyardError) -> None:
        """The broker does not read, and nothing of an envelope was sent."""
        for request in requests:
            request.is_sent = False
            if request.outcome is None:
                self._let_go(request)
                self._end(request, error)

    # ---- by the clock ---------------------------------------------------------------------------

    def next_due_ns(self) -> int | None:
        """When `expire` is due; None: never."""
        fresh = self._fresh
        for request in fresh:
            if request.outcome is None:
                due_ns = request.due_ns
                if request.message is None and self.session is None and not request.lost:
                    due_ns = min(due_ns, request.began_ns + self._connect_timeout_ns)
                self._dues.add(due_ns, request)
        fresh.clear()
        next_ns = self._dues.next_ns()
        look_ns = self.room.look_ns if self.room else None
        return look_ns if next_ns is None else next_ns if look_ns is None else min(look_ns, next_ns)

    def expire(self, now_ns: int) -> None:
        """End what is too late, and give room to whom there is room for."""
        if self.room:
            self._serve(now_ns)
        for request in self._dues.due(now_ns):
            if request.due_ns <= now_ns:
                error = too_late(request, now_ns, self._url, self.session is not None, self._why_refused)
                self._end(request, error if request.want is None else errors.ArenaExhausted(self.room.why))
                self._let_go(request)
            elif request.message is None and self.session is None and not request.lost:
                waited_s = (now_ns - request.began_ns) / 1e9
                self._end(request, nobody_answers(self._url, waited_s, self._why_refused))
            else:
                self._dues.add(request.due_ns, request)  # it has found a broker in time

    # ---- what is to be done ---------------------------------------------------------------------

    def take_envelopes(self) -> list[Envelope]:
        """What is to be sent now."""
        return self.outbox.take() if self.outbox.entries else []

    def take_outcomes(self) -> list[Request]:
        """Requests with a `waiter` that have come to an outcome since."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # ---- a request's way to the broker ----------------------------------------------------------

    def _start(self, request: Request, signature: Signature, memory: SlotMemory | None, now_ns: int) -> None:
        try:
            if request.expect is not None:
                signature = request.expect(signature)
            number = next(self._numbers)
            if request.place(signature, memory, number, now_ns):
                self.pending[number] = request
                self.outbox.entries.append((request.message, request))
                return
            if memory is not None and request.is_patient:
                self.room.wait(request, memory)
                return
            self._end(request, errors.ArenaExhausted("there is no room for it now in the arena"))
        except Exception as error:  # also an array's own
            self._end(request, error)

    def _placed(self, request: Request) -> None:
        self.pending[request.message.request] = request
        self.outbox.entries.append((request.message, request))

    def _serve(self, now_ns: int) -> None:
        """Place those who have been given room. Whom nobody will ever give any does not wait on."""
        memory = self.session.memory if self.session is not None else None
        assert memory is not None
        room = self.room
        for request, offsets in room.serve(memory, now_ns):
            try:
                request.fill(memory, offsets, next(self._numbers), now_ns)
            except Exception as error:
                self._end(request, error)
            else:
                self._placed(request)
        stuck = room.stuck(memory, now_ns)
        if stuck is not None:
            self._end(stuck, errors.ArenaExhausted(room.why))
            self._let_go(stuck)

    def _let_go(self, request: Request) -> None:
        """Nobody waits for it any more. Slots that a worker may touch stay in `pending`."""
        session = self.session
        if request.want is not None and session is not None:
            self.room.leave(request, session.memory)
        message = request.message
        if session is None or message is None:
            request.drop_arrays()
        elif not request.is_sent:
            request.message = None
            self._give_back(message.request)
        elif request.is_question:
            self.pending.pop(message.request, None)
        elif message.request in self.pending:
            self.outbox.entries.append((m.Cancel([message.request]), None))

    def _ask_signatures(self, now_ns: int) -> None:
        """Start what waits for a model that is known by now; ask for the others, once each."""
        session = self.session
        if session is None:
            return
        for model in list(self._waiting):
            signature = session.signatures.get(model)
            if signature is not None:
                for request in self._waiting.pop(model):
                    if request.outcome is None:
                        self._start(request, signature, session.memory, now_ns)
            elif model not in self._asked:
                question = self._asked[model] = Request(model, None, 0, 0, 0, now_ns)
                question.is_question = True
                self._send_question(question, now_ns)

    def _send_question(self, question: Request, now_ns: int) -> None:
        question.message = m.Describe(next(self._numbers), question.model)
        question.sent_ns = now_ns
        self._placed(question)

    # ---- the broker's words ---------------------------------------------------------------------

    def _completed(self, numbers: list[int], queue_ns: list[int], batch: m.BatchReceipt) -> None:
        # Plain and in one piece: a function entered costs 0.1 us, and thrice that after a sleep.
        memory = self.session.memory if self.session is not None else None
        for number, waited_ns in zip(numbers, queue_ns, strict=True):
            request = self.pending.pop(number, None)
            if request is None or memory is None or (signature := request.signature) is None:
                continue  # no request of ours: a broker that we don't know
            if request.outcome is not None:
                request.give_back(memory)
                continue
            if signature.output_tails is None:
                request.give_back(memory)
                self._end(request, errors.MalformedMessage("the broker's answer has no outputs"))
                continue
            arrays = []
            shapes = signature.output_shapes(request.rows)
            for offset, dtype, shape in zip(request.outputs, signature.output_dtypes, shapes, strict=True):
                arrays.append(memory.array(offset, dtype, shape))
            if request.inputs:
                memory.free(*request.inputs)
            request.arrays = None
            request.outcome = Reply(signature.output_names, arrays, waited_ns, batch)
            if request.waiter is not None:
                self._outcomes.append(request)

    def _answered(self, message: m.Answer, frames: Sequence[Any]) -> None:
        request = self._give_back(message.request)
        if request is not None and request.signature is not None and request.outcome is None:
            self._end(request, request.answer(message, frames))

    def _streamed(self, message: m.Streamed, frames: Sequence[Any]) -> None:
        """One of a stream's answers, for its driver to hand on."""
        request = self.pending.get(message.request)
        if request is None or request.outcome is not None or (stream := request.stream) is None:
            return
        answer = request.yielded(message, frames, _UNKNOWN_BATCH)
        if len(stream.answers) >= ANSWERS_MAX:
            answer = errors.Overloaded(f"{ANSWERS_MAX} answers wait for the caller to take them")
        if isinstance(answer, Exception):
            self._end(request, answer)
            self._let_go(request)
            return
        stream.count += 1  # first: a signal's exception in between must not have it asked for again
        stream.answers.append(answer)
        self._streams[stream] = None

    def take_streams(self) -> Iterable[Stream]:
        """Those with more answers since."""
        if not self._streams:
            return ()
        streams, self._streams = self._streams, {}
        return streams

    def _failed(self, message: m.Failed) -> None:
        request = (self.pending.get if message.held else self._give_back)(message.request)
        if request is None:
            return
        if request.signature is not None and message.code in _ABOUT_THE_MODEL:
            request.signature.doubt()
        error = errors.from_wire(message.code, message.text, message.retry_after_ns)
        if _is_our_own(request):
            self._end_model(request.model, error)
        self._end(request, error)

    def _described(self, message: m.Described, now_ns: int) -> None:
        request = self.pending.pop(message.request, None)
        if request is None or not request.is_question:
            return
        model = request.model
        if model and self.session is not None:
            known = self.session.signatures
            try:
                if model not in known or not known[model].still_holds(message.models[0]):
                    known[model] = Signature(message.models[0], known)
            except (errors.BatchyardError, IndexError) as error:
                if _is_our_own(request):
                    self._end_model(model, error)
            else:
                self._asked.pop(model, None)
                self._ask_signatures(now_ns)
        self._end(request, message.models)

    def _end_model(self, model: str, error: Exception) -> None:
        """This broker can't serve the model."""
        self._asked.pop(model, None)
        for request in self._waiting.pop(model, ()):
            self._end(request, error)

    def _give_back(self, number: int) -> Request | None:
        """Nobody can touch the request's slots any more."""
        request = self.pending.pop(number, None)
        if request is not None and self.session is not None:
            request.give_back(self.session.memory)
        return request

    def _end(self, request: Request, outcome: Outcome) -> None:
        if request.outcome is None:
            request.outcome = outcome
            if request.message is None:
                request.drop_arrays()
            if request.waiter is not None:
                self._outcomes.append(request)

    def _everything(self) -> Iterable[Request]:
        """Each once: what is being lost is in two tables for an instant."""
        waiting = [request for queue in self._waiting.values() for request in queue]
        return dict.fromkeys([*self.pending.values(), *self.room.waiting(), *waiting, *self._questions])

    def _forget_connection(self) -> None:
        self.pending.clear()
        self.room.clear()
        self._asked.clear()
        self.outbox.entries.clear()


def _is_our_own(question: Request) -> bool:
    """Whether it is the engine's own question, for which nobody waits."""
    return question.is_question and not question.due_ns


def _no_such_model(model: str) -> errors.UnknownModel:
    return errors.UnknownModel(f"no model is called {model[:80]!r}")
