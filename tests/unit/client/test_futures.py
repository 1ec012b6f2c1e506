"""How the futures of `submit` end when the I/O thread does."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import zmq
from batchyard.client.channel import Channel, Pending
from batchyard.client.futures import InferFuture, IoThread
from batchyard.transport.errors import BrokerLost, Cancelled


class FakeConnection:
    """A connection on which nothing ever comes."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.channel = Channel(None, count(1))
        self.socket = context.socket(zmq.PAIR)
        self.monitor = context.socket(zmq.PAIR)

    def close(self) -> None:
        self.socket.close(0)
        self.monitor.close(0)


class FakeSession:
    def __init__(self, context: zmq.Context[Any]) -> None:
        self.lost = False
        self._context = context

    def connect(self, *patience: Any) -> FakeConnection:
        return FakeConnection(self._context)

    def give_up(self) -> None:
        self.lost = True


def under_way(io: IoThread) -> InferFuture:
    future = InferFuture(io)
    pending = Pending(1, None, 1)
    pending.waiter = future
    io._channel.pending[1] = pending
    return future


@pytest.mark.parametrize(("lost", "error"), [(False, Cancelled), (True, BrokerLost)])
def test_futures_say_whether_the_user_closed_the_client_or_the_broker_went_away(
    lost: bool, error: type[Exception]
) -> None:
    with zmq.Context() as context:
        session: Any = FakeSession(context)
        io = IoThread(session)
        future = under_way(io)
        session.lost = lost
        io.close()
        assert isinstance(future.exception(5), error)


def test_a_bug_on_the_thread_ends_every_future_instead_of_leaving_it_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: IoThread) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(IoThread, "_serve", lambda self: (under_way(self), fail(self)))
    with zmq.Context() as context:
        session: Any = FakeSession(context)
        io = IoThread(session)
        io._thread.join(5)
        assert session.lost
        assert isinstance(io._lost, BrokerLost)
        assert not io._channel.pending
