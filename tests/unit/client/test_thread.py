"""The I/O thread across connections: futures end once, callers are told, and what is under way goes on."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batchyard.client import ending
from batchyard.client.connection import NotSent
from batchyard.client.future import InferFuture
from batchyard.client.memory import SlotMemory
from batchyard.client.options import request_of
from batchyard.client.session import Settings
from batchyard.client.signature import Signature
from batchyard.client.stream import answers_of
from batchyard.client.thread import IoThread
from batchyard.transport import messages as m
from batchyard.transport.errors import (
    BrokerLost,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    Unauthorized,
)
from batchyard.transport.tensors import TensorSpec

SOON_S = 5.0  # no test waits for as long
X = np.ones((1, 4), np.float32)


def info(idempotent: bool = True, state: m.ModelState = m.ModelState.READY) -> m.ModelInfo:
    x, y = TensorSpec("x", 1, ["n", 4]), TensorSpec("y", 1, ["n", 3])
    return m.ModelInfo("net", state, "broken", 1, [x], [y], True, "", 8, [], idempotent)


class FakeConnection:
    """A connection whose broker is this test: what is sent is noted; `say` answers, `lose` ends it."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self.wire = SimpleNamespace(
            watched=(self._here.fileno(),), blocked_on=None, flush=lambda: None, sends_beside=False, unsent=False, unread=False
        )
        self.sent: list[Any] = []
        self.heard = threading.Condition()
        self.closed = False
        self.full = False
        self._says: deque[Any] = deque()

    def welcomed(self, timeout_ms: int) -> bool:
        return True

    def send(self, messages: list[Any], frames: Any = ()) -> None:
        if self.full:
            raise NotSent("the broker does not read")
        with self.heard:
            self.sent += messages
            self.heard.notify_all()

    def wait_for(self, kind: type, number: int = 1) -> Any:
        """The latest message of a kind, as soon as there are so many."""
        with self.heard:
            assert self.heard.wait_for(lambda: sum(type(x) is kind for x in self.sent) >= number, SOON_S)
            return [message for message in self.sent if type(message) is kind][-1]

    def receive(self, timeout_ms: int) -> Any:
        try:
            if not self._here.recv(1):
                raise BrokerLost("the broker went away")
        except BlockingIOError:
            return None
        return [self._says.popleft()], ()

    def say(self, message: Any) -> None:
        self._says.append(message)
        self._there.send(b"x")

    def describe(self, is_idempotent: bool = True, state: m.ModelState = m.ModelState.READY) -> None:
        """Answer the question about the model."""
        self.say(m.Described(self.wait_for(m.Describe).request, [info(is_idempotent, state)]))

    def lose(self) -> None:
        self._there.close()

    def close(self) -> None:
        self.closed = True
        for each in (self._here, self._there):
            each.close()


class FakeSession:
    def __init__(self, sessions: FakeSessions) -> None:
        self.lost = self.is_over = False
        self.signatures: dict[str, Signature] = {}
        self.memory = sessions.memory
        self._sessions = sessions
        if sessions.knows:
            self.signatures["net"] = Signature(info(sessions.is_idempotent))

    def greet(self) -> FakeConnection:
        return self._sessions.greet()

    def give_up(self) -> None:
        self.lost = self.is_over = True

    def recover_slots(self) -> None:
        """No line is idle."""


class FakeSessions:
    """`refusal` is what happens when one greets: a connection is made by default."""

    def __init__(self) -> None:
        self.settings = Settings("ipc:///tmp/nobody", 1 << 20, None, "frames", SOON_S)
        self.current: FakeSession | None = None
        self.connections: list[FakeConnection] = []
        self.refusal: Callable[[], Exception] | None = None
        self.is_idempotent = True
        self.knows = True
        self.memory: SlotMemory | None = None
        self.closed_on: list[threading.Thread] = []
        self.numbers = count(1)
        self._made = threading.Condition()

    def open(self) -> FakeSession:
        if self.current is None or self.current.lost:
            self.current = FakeSession(self)
        return self.current

    def greet(self) -> FakeConnection:
        if self.refusal is not None:
            raise self.refusal()
        with self._made:
            self.connections.append(FakeConnection())
            self._made.notify_all()
            return self.connections[-1]

    def close(self) -> None:
        self.closed_on.append(threading.current_thread())

    def connection(self, number: int) -> FakeConnection:
        with self._made:
            assert self._made.wait_for(lambda: len(self.connections) > number, SOON_S)
            return self.connections[number]


@pytest.fixture
def sessions() -> Any:
    return FakeSessions()


@pytest.fixture
def io(sessions: Any) -> Iterator[IoThread]:
    thread = IoThread(sessions)
    thread.start()
    yield thread
    thread.close_by(time.monotonic() + SOON_S)


def submit(io: IoThread, timeout: float = 60.0, x: Any = X) -> InferFuture:
    return io.submit(request_of("net", x, timeout=timeout))


def test_closing_ends_what_is_under_way_with_cancelled(io: IoThread) -> None:
    future = submit(io)
    io.close_by(time.monotonic() + SOON_S)
    assert isinstance(future.exception(SOON_S), Cancelled)


def test_a_callback_that_never_returns_does_not_hold_up_a_close(io: IoThread) -> None:
    future = submit(io)
    begun, goes_on = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        begun.set()
        assert goes_on.wait(SOON_S)

    future.add_done_callback(callback)
    io.stop()
    assert begun.wait(SOON_S)
    io.close_by(time.monotonic() + 0.001)
    assert io._thread.is_alive()
    goes_on.set()


def test_a_client_that_is_gone_leaves_its_sessions_to_the_thread(io: IoThread, sessions: Any) -> None:
    future = submit(io)
    io.leave()
    assert isinstance(future.exception(SOON_S), Cancelled)
    io._thread.join(SOON_S)
    assert io._thread in sessions.closed_on  # and once more from here, where the thread was quick


def test_a_client_that_is_gone_after_its_thread_closes_its_sessions_itself(io: IoThread, sessions: Any) -> None:
    io.close_by(time.monotonic() + SOON_S)
    io.leave()
    assert sessions.closed_on == [threading.current_thread()]


def test_the_programs_end_settles_futures_and_calls_nobody(
    io: IoThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    future = submit(io)
    future.add_done_callback(called.append)
    monkeypatch.setattr(ending, "_has_begun", True)
    io.close_by(time.monotonic() + SOON_S)
    with pytest.raises(Cancelled):
        future.result(SOON_S)  # on the main thread, which is no daemon
    assert not called


def test_what_is_under_way_when_the_broker_goes_is_asked_again_of_the_next(
    io: IoThread, sessions: Any
) -> None:
    future = submit(io)
    first = sessions.connection(0)
    sent = first.wait_for(m.Submit)
    first.lose()
    second = sessions.connection(1)
    again = second.wait_for(m.Submit)
    assert (again.model, again.inputs) == (sent.model, sent.inputs)
    assert again.request != sent.request
    assert 0 < again.deadline_ns < sent.deadline_ns
    assert first.closed
    assert not future.done()


def test_of_a_model_that_is_not_idempotent_nothing_is_asked_again(io: IoThread, sessions: Any) -> None:
    sessions.is_idempotent = False
    future = submit(io)
    sessions.connection(0).wait_for(m.Submit)
    sessions.connection(0).lose()
    error = future.exception(SOON_S)
    assert isinstance(error, BrokerLost)
    assert "not idempotent" in str(error)


def test_without_another_broker_it_ends_with_its_time_and_says_how_long_that_was(
    io: IoThread, sessions: Any
) -> None:
    future = submit(io, 0.2)
    sessions.connection(0).wait_for(m.Submit)
    sessions.refusal = lambda: Unauthorized("not you")
    sessions.connection(0).lose()
    error = future.exception(SOON_S)
    assert isinstance(error, BrokerLost)
    assert "no other came within 0." in str(error)
    assert "not you" in str(error)


def test_a_model_that_the_next_broker_cannot_load_ends_what_waits_for_it(io: IoThread, sessions: Any) -> None:
    future = submit(io)
    sessions.connection(0).wait_for(m.Submit)
    sessions.knows = False
    sessions.connection(0).lose()
    sessions.connection(1).describe(state=m.ModelState.FAILED)
    assert isinstance(future.exception(SOON_S), ModelFailed)


def test_a_first_call_is_told_at_once_why_it_is_not_let_in(io: IoThread, sessions: Any) -> None:
    sessions.refusal = lambda: Unauthorized("not you")
    with pytest.raises(Unauthorized, match="not you"):
        submit(io)


def test_a_first_call_waits_no_longer_than_its_own_patience(io: IoThread, sessions: Any) -> None:
    sessions.refusal = lambda: BrokerLost("nobody")
    with pytest.raises(BrokerLost, match="no broker answers"):
        submit(io, 0.05)


def test_a_first_call_returns_when_its_request_has_been_placed(io: IoThread, sessions: Any) -> None:
    sessions.knows = False
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(submit, io)
        connection = sessions.connection(0)
        connection.wait_for(m.Describe)
        assert not call.done()
        connection.describe()
        future = call.result(SOON_S)
    assert not future.done()
    connection.wait_for(m.Submit)


def test_what_is_wrong_with_a_call_is_raised_whether_the_model_is_known_or_not(
    io: IoThread, sessions: Any
) -> None:
    sessions.knows = False
    wrong = np.ones((1, 5), np.float32)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(submit, io, x=wrong)
        sessions.connection(0).describe()
        with pytest.raises(InvalidRequest):
            call.result(SOON_S)
    io._link.session.signatures["net"] = Signature(info())  # type: ignore[union-attr]
    with pytest.raises(InvalidRequest):
        submit(io, x=wrong)


def test_from_a_callback_a_request_waits_for_room_in_the_client(io: IoThread, sessions: Any) -> None:
    memory = sessions.memory = SlotMemory(1 << 16)
    big = np.ones((1_500, 4), np.float32)  # 24 kB in, 18 kB out: one at a time
    chained: list[InferFuture] = []
    submitted = threading.Event()

    def more(_: Any) -> None:
        big[:] = 7
        chained.append(submit(io, x=big))
        big[:] = -1  # the callback's own again
        submitted.set()

    first = submit(io, x=big)
    connection = sessions.connection(0)
    held = submit(io, x=X)
    first.add_done_callback(more)
    connection.say(m.Failed(connection.wait_for(m.Submit, 2).request, 8, "no"))
    assert held.exception(SOON_S) is not None
    number = next(message.request for message in connection.sent if type(message) is m.Submit)
    blocker = memory.array(memory.alloc(8_000), np.dtype(np.uint8), (8_000,))
    under_way = submit(io, x=X)
    connection.wait_for(m.Submit, 3)
    connection.say(m.Failed(number, 8, "no", 0, True))  # a worker still holds its slots
    assert submitted.wait(SOON_S)
    assert not chained[0].done()
    connection.say(m.Released([number]))
    del blocker
    sent = connection.wait_for(m.Submit, 4)
    assert (memory.view(sent.inputs[0].offset, np.dtype(np.float32), (1_500, 4)) == 7).all()
    assert not under_way.done()


def test_a_caller_waits_no_longer_for_a_thread_that_is_held_up_by_a_callback(
    io: IoThread, sessions: Any
) -> None:
    future = submit(io)
    connection = sessions.connection(0)
    goes_on = threading.Event()
    future.add_done_callback(lambda _: goes_on.wait(SOON_S))
    connection.say(m.Failed(connection.wait_for(m.Submit).request, 8, "no"))
    assert isinstance(future.exception(SOON_S), Exception)
    io._session = None  # so that the thread would have to place it
    with pytest.raises(DeadlineExceeded, match="done-callback"):
        submit(io, 0.05)
    goes_on.set()


def test_a_callback_that_has_returned_is_not_named_as_what_holds_the_thread_up(
    io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = submit(io)
    connection = sessions.connection(0)
    called, goes_on = threading.Event(), threading.Event()
    future.add_done_callback(lambda _: called.set())
    connection.say(m.Failed(connection.wait_for(m.Submit).request, 8, "no"))
    assert called.wait(SOON_S)
    monkeypatch.setattr(io, "_collect", lambda: goes_on.wait(SOON_S))
    io._session = None  # so that the thread would have to place it
    with pytest.raises(DeadlineExceeded, match="I/O thread had no time"):
        submit(io, 0.05)
    monkeypatch.undo()
    goes_on.set()


def test_a_stream_waits_no_longer_for_a_thread_that_is_held_up_by_a_callback(io: IoThread, sessions: Any) -> None:
    future = submit(io)
    connection = sessions.connection(0)
    goes_on = threading.Event()
    future.add_done_callback(lambda _: goes_on.wait(SOON_S))
    stream = answers_of(request_of("net", {"x": X}, timeout=0.05), io.submit)
    connection.say(m.Failed(connection.wait_for(m.Submit).request, 8, "no"))
    assert isinstance(future.exception(SOON_S), Exception)
    with pytest.raises(DeadlineExceeded, match="done-callback"):
        next(stream)
    assert not goes_on.is_set()
    goes_on.set()


def test_the_programs_end_ends_a_stream(
    io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = answers_of(request_of("net", {"x": X}, timeout=SOON_S), io.submit)
    monkeypatch.setattr(ending, "_has_begun", True)
    closer = threading.Thread(target=lambda: (sessions.connection(0).wait_for(m.Submit), io.stop()))
    closer.start()
    with pytest.raises(Cancelled):
        next(stream)
    closer.join()


def test_a_caller_of_whom_the_thread_has_heard_is_told_the_error_itself(
    io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told that its request has ended before its future had: where the process was stopped in between,
    `submit` raised the future's own TimeoutError."""
    settle = InferFuture.settle
    told: list[bool] = []

    def slow(future: InferFuture, outcome: Any) -> None:
        told.append(any(placed.locked() for *_, placed in io._callers))
        settle(future, outcome)

    monkeypatch.setattr(InferFuture, "settle", slow)
    sessions.refusal = lambda: Unauthorized("no")
    with pytest.raises(Unauthorized):
        submit(io)
    assert told == [True]


def test_what_waits_for_a_broker_can_be_cancelled_and_is_not_asked_again(io: IoThread, sessions: Any) -> None:
    cancelled, kept = submit(io), submit(io)
    sessions.connection(0).wait_for(m.Submit, 2)
    sessions.knows = False
    sessions.connection(0).lose()
    second = sessions.connection(1)
    second.wait_for(m.Describe)
    assert cancelled.cancel()
    second.describe()
    second.wait_for(m.Submit)
    assert len([message for message in second.sent if type(message) is m.Submit]) == 1
    assert not kept.done()


def test_a_callback_that_submits_when_there_is_no_broker_is_told_so_at_once(
    io: IoThread, sessions: Any
) -> None:
    sessions.is_idempotent = False
    future = submit(io)
    told: list[Any] = []
    ended = threading.Event()

    def retry(_: Any) -> None:
        try:
            submit(io)
        except BrokerLost as error:
            told.append(error)
        ended.set()

    future.add_done_callback(retry)
    sessions.connection(0).wait_for(m.Submit)
    sessions.connection(0).lose()
    assert ended.wait(SOON_S)
    assert "callback" in str(told[0])


def test_what_a_broker_that_does_not_read_has_no_room_for_ends_at_once_and_frees_its_slots(
    io: IoThread, sessions: Any
) -> None:
    first = submit(io)
    connection = sessions.connection(0)
    connection.wait_for(m.Submit)
    connection.full = True
    second = submit(io)
    assert isinstance(second.exception(SOON_S), Overloaded)
    assert len(io._link.engine.pending) == 1
    assert not first.done()
    assert first.cancel()  # nor does telling of it matter


def test_a_bug_on_the_thread_ends_every_future_instead_of_leaving_it_for_ever(
    io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    future = submit(io)
    sessions.connection(0).wait_for(m.Submit)
    monkeypatch.setattr(io, "_collect", fail)
    io._wake()
    error = future.exception(SOON_S)
    assert isinstance(error, BrokerLost)
    assert "a bug" in str(error)
    io._thread.join(SOON_S)
    assert sessions.current.lost
    late = request_of("net", X)
    other = late.waiter = InferFuture(late, io.cancel)
    io._put((late, None))  # it was being prepared meanwhile
    assert other.exception(0) is error
