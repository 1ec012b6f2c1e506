"""A lone request is sent by who submits it, while the I/O thread sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from batchyard.client import thread
from batchyard.client.future import InferFuture
from batchyard.client.memory import SlotMemory
from batchyard.client.thread import IoThread
from batchyard.transport import messages as m
from batchyard.transport.codec import client_to_broker
from batchyard.transport.errors import ModelFailed
from batchyard.transport.wire import Full

from .test_thread import SOON_S, FakeConnection, FakeSessions, submit

X = np.ones((1, 4), np.float32)


class Interrupt(BaseException):
    """A signal's."""


class Beside:
    """What the wire was asked to send beside its thread: messages, and by whom."""

    def __init__(self, connection: FakeConnection) -> None:
        self.senders: list[threading.Thread] = []
        self.raises: BaseException | None = None
        self._connection = connection
        connection.wire.sends_beside = True
        connection.wire.send = self._send

    def _send(self, parts: Any) -> None:
        if self.raises is not None:
            raise self.raises
        self.senders.append(threading.current_thread())
        self._connection.send(list(client_to_broker.decode(parts[0])))


@pytest.fixture
def sessions() -> Any:
    found = FakeSessions()
    found.memory = SlotMemory(1 << 16)
    return found


class Sleeps:
    """Tells when an I/O thread goes to sleep. `until` looks first: the thread may sleep already, and its next
    sleep be a minute away."""

    def __init__(self, io: IoThread) -> None:
        self.io = io
        self._begins = threading.Condition()
        self._wait = io._watch.wait
        io._watch.wait = self._tell  # type: ignore[method-assign]

    def _tell(self, timeout_ms: int) -> int:
        with self._begins:
            self._begins.notify_all()
        return self._wait(timeout_ms)

    def until(self, condition: Callable[[], bool]) -> None:
        with self._begins:
            assert self._begins.wait_for(condition, SOON_S)


@pytest.fixture
def sleeps(sessions: Any) -> Sleeps:
    return Sleeps(IoThread(sessions))


@pytest.fixture
def io(sleeps: Sleeps, sessions: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[IoThread]:
    monkeypatch.setattr(thread, "IN_A_ROW_NS", 0)
    io = sleeps.io
    io.start()
    first = submit(io)
    connection = sessions.connection(0)
    connection.say(m.Failed(connection.wait_for(m.Submit).request, 8, "no"))
    assert isinstance(first.exception(SOON_S), ModelFailed)
    sleeps.until(lambda: io._lent)
    yield io
    io.close_by(time.monotonic() + SOON_S)


def asked(connection: FakeConnection) -> list[int]:
    """The numbers of all requests that were sent."""
    submits = [message for message in connection.sent if type(message) is m.Submit]
    return [n for each in submits for n in (each.request, *(each.more.requests if each.more else ()))]


def failed(future: InferFuture, connection: FakeConnection, number: int) -> None:
    """The broker's answer comes to the future."""
    connection.say(m.Failed(number, 8, "no"))
    assert isinstance(future.exception(SOON_S), ModelFailed)


def test_the_caller_sends_and_the_thread_hears_the_answer(io: IoThread, sessions: Any) -> None:
    connection = sessions.connections[0]
    beside = Beside(connection)
    future = submit(io)
    assert beside.senders == [threading.current_thread()]
    failed(future, connection, connection.sent[-1].request)


def test_of_many_in_a_row_the_first(io: IoThread, sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "IN_A_ROW_NS", 60_000_000_000)
    connection = sessions.connections[0]
    io._direct_ns = -60_000_000_000
    beside = Beside(connection)
    futures = [submit(io) for _ in range(3)]
    with connection.heard:
        assert connection.heard.wait_for(lambda: len(asked(connection)) == 4, SOON_S)
    assert beside.senders == [threading.current_thread()]
    for future, number in zip(futures, asked(connection)[1:], strict=True):
        failed(future, connection, number)


def test_cancelled_at_once_it_is_the_brokers_to_cancel(io: IoThread, sessions: Any) -> None:
    connection = sessions.connections[0]
    beside = Beside(connection)
    future = submit(io)
    assert future.cancel()
    assert connection.wait_for(m.Cancel).requests == [connection.sent[1].request]
    assert len(beside.senders) == 1
    assert future.cancelled()


def test_where_the_broker_does_not_read_it_is_the_threads(io: IoThread, sessions: Any) -> None:
    connection = sessions.connections[0]
    Beside(connection).raises = Full("it does not read")
    future = submit(io)
    failed(future, connection, connection.wait_for(m.Submit, 2).request)


def test_a_signals_exception_there_costs_the_connection_and_no_request(
    io: IoThread, sleeps: Sleeps, sessions: Any
) -> None:
    connection = sessions.connections[0]
    beside = Beside(connection)
    first = submit(io)
    sleeps.until(lambda: io._lent)
    beside.raises = Interrupt()
    with pytest.raises(Interrupt):
        submit(io)
    second = sessions.connection(1)
    assert len(second.wait_for(m.Submit).inputs) == 1
    failed(first, second, second.sent[-1].request)
    assert connection.closed


def test_the_thread_looks_up_in_time(io: IoThread, sleeps: Sleeps, sessions: Any) -> None:
    Beside(sessions.connections[0])
    assert io._looks_up_ns > time.monotonic_ns() + 60_000_000_000  # it had nothing to look up for
    future = submit(io, 30.0)
    sleeps.until(lambda: io._looks_up_ns <= time.monotonic_ns() + 30_000_000_000)
    assert not future.done()
