"""The I/O thread across connections: what is under way goes on to the next one, and ends when there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import zmq
from batchyard.client.channel import Channel, Pending
from batchyard.client.futures import InferFuture, IoThread
from batchyard.client.session import Settings
from batchyard.client.signature import Signature
from batchyard.transport import messages as m
from batchyard.transport.errors import BrokerLost, Cancelled, ModelFailed, Unauthorized
from batchyard.transport.tensors import TensorSpec

SOON_S = 5.0  # no test waits for as long
X = np.ones((1, 4), np.float32)


def info(idempotent: bool = True, state: m.ModelState = m.ModelState.READY) -> m.ModelInfo:
    x, y = TensorSpec("x", 1, ["n", 4]), TensorSpec("y", 1, ["n", 3])
    return m.ModelInfo("net", state, "broken", 1, [x], [y], True, "", 8, [], idempotent)


class FakeConnection:
    """A connection whose broker is this test: what is sent is noted; `lose` ends it."""

    def __init__(self, context: zmq.Context[Any], numbers: count[int]) -> None:
        self.channel = Channel(None, numbers)
        self.socket = context.socket(zmq.PAIR)
        self.monitor = context.socket(zmq.PAIR)
        self._ending = context.socket(zmq.PAIR)
        name = f"inproc://{id(self)}"
        self.monitor.bind(name)
        self._ending.connect(name)
        self.sent: list[Any] = []
        self.heard = threading.Condition()
        self.closed = False

    def welcomed(self) -> bool:
        return True

    def send(self, messages: list[Any], frames: Any = ()) -> None:
        with self.heard:
            self.sent += messages
            self.heard.notify_all()

    def wait_for(self, kind: type) -> Any:
        """The latest message of a kind, as soon as there is one."""
        with self.heard:
            assert self.heard.wait_for(lambda: any(type(x) is kind for x in self.sent), SOON_S)
            return [message for message in self.sent if type(message) is kind][-1]

    def check(self) -> None:
        raise BrokerLost("the broker went away")

    def lose(self) -> None:
        self._ending.send(b"")

    def close(self) -> None:
        self.closed = True
        for each in (self.socket, self.monitor, self._ending):
            each.close(0)


class FakeSession:
    def __init__(self, sessions: FakeSessions) -> None:
        self.lost = False
        self.signatures: dict[str, Signature] = {}
        self._sessions = sessions

    def greet(self) -> FakeConnection:
        return self._sessions.greet()

    def give_up(self) -> None:
        self.lost = True


class FakeSessions:
    """`answers` is what happens when one greets: a connection is made by default."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.settings = Settings("ipc:///tmp/nobody", 1 << 20, None, "frames", SOON_S)
        self.current: FakeSession | None = None
        self.connections: list[FakeConnection] = []
        self.refusal: Callable[[], Exception] | None = None
        self.is_idempotent = True
        self._context = context
        self._numbers = count(1)
        self._made = threading.Condition()

    def open(self) -> FakeSession:
        if self.current is None or self.current.lost:
            self.current = FakeSession(self)
        return self.current

    def greet(self) -> FakeConnection:
        if self.refusal is not None:
            raise self.refusal()
        with self._made:
            self.connections.append(FakeConnection(self._context, self._numbers))
            self._made.notify_all()
            return self.connections[-1]

    def connection(self, number: int) -> FakeConnection:
        with self._made:
            assert self._made.wait_for(lambda: len(self.connections) > number, SOON_S)
            return self.connections[number]

    def use(self, work: Any, give_up_s: float) -> None:
        assert self.current is not None
        self.current.signatures["net"] = Signature(info(self.is_idempotent))


@pytest.fixture
def sessions() -> Iterator[Any]:
    with zmq.Context() as context:
        yield FakeSessions(context)


@pytest.fixture
def io(sessions: Any) -> Iterator[IoThread]:
    thread = IoThread(sessions)
    yield thread
    thread.close()


def submit(io: IoThread, timeout: float = 60.0) -> InferFuture:
    return io.submit("net", X, 2, int(timeout * 1e9), timeout)


def describe(io: IoThread, connection: FakeConnection, state: m.ModelState = m.ModelState.READY) -> None:
    """The broker answers the thread's question, on the thread, as if the message had come."""
    asked = connection.wait_for(m.Describe)
    (pending, infos), *_ = connection.channel.handle(m.Described(asked.request, [info(state=state)]), [])
    pending.waiter.settle(infos)
    io._wake()


def test_closing_ends_what_is_under_way_with_cancelled(io: IoThread) -> None:
    future = submit(io)
    io.close()
    assert isinstance(future.exception(SOON_S), Cancelled)


def test_what_is_under_way_when_the_broker_goes_is_asked_again_of_the_next(
    io: IoThread, sessions: Any
) -> None:
    future = submit(io)
    first = sessions.connection(0)
    sent = first.wait_for(m.Submit)
    first.lose()
    second = sessions.connection(1)
    describe(io, second)
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
    sessions.connection(0).lose()
    describe(io, sessions.connection(1), m.ModelState.FAILED)
    assert isinstance(future.exception(SOON_S), ModelFailed)


def test_a_first_call_is_told_at_once_why_it_is_not_let_in(io: IoThread, sessions: Any) -> None:
    sessions.refusal = lambda: Unauthorized("not you")
    with pytest.raises(Unauthorized, match="not you"):
        submit(io)


def test_a_first_call_waits_no_longer_than_its_own_patience(io: IoThread, sessions: Any) -> None:
    sessions.refusal = lambda: BrokerLost("nobody")
    with pytest.raises(BrokerLost, match="no broker answers"):
        submit(io, 0.05)


def test_what_waits_for_a_broker_can_be_cancelled_and_is_not_asked_again(io: IoThread, sessions: Any) -> None:
    cancelled, kept = submit(io), submit(io)
    sessions.connection(0).wait_for(m.Submit)
    sessions.connection(0).lose()
    second = sessions.connection(1)
    second.wait_for(m.Describe)
    assert cancelled.cancel()
    describe(io, second)
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


def test_a_bug_on_the_thread_ends_every_future_instead_of_leaving_it_for_ever(
    io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(link: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(io, "_expire", fail)
    future = submit(io)
    io._wake()
    error = future.exception(SOON_S)
    assert isinstance(error, BrokerLost)
    assert "a bug" in str(error)
    io._thread.join(SOON_S)
    assert sessions.current.lost
    late = Pending(99, None, 1)
    late.waiter = other = InferFuture(io)
    io._put((None, None, (), 0, late))  # it was being prepared meanwhile
    assert other.exception(0) is error
