"""The child's connection: what it does with a broker that reads late, or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.gpuworker import child
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.messages import Register
from batchyard.transport.wire import Full


class Late:
    """A connection with no room for so many sends."""

    blocked_on = None

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.sent: list[Any] = []
        self.closed = False

    def send(self, message: list[Any]) -> None:
        if self.refusals:
            raise Full("no room")
        self.sent.append(message)

    def flush(self) -> None:
        self.refusals -= 1

    def close(self) -> None:
        self.closed = True


def line_over(monkeypatch: pytest.MonkeyPatch, *connections: Late) -> child._Line:
    left = list(connections)
    made = SimpleNamespace(connect=lambda *_: left.pop(0))
    monkeypatch.setattr(child, "carrier", lambda *_: made)
    monkeypatch.setattr(child, "RECONNECT_S", 0)
    return child._Line(Endpoint.parse("ipc:///tmp/nobody"), None)


def test_a_broker_that_reads_late_gets_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one was large, and the broker is busy: a worker that hung up would be killed for it."""
    late = Late(refusals=3)
    line_over(monkeypatch, late).send([Register(1, ["cpu"])], [b"frame"])
    assert [message[1:] for message in late.sent] == [[b"frame"]]
    assert not late.closed


def test_a_broker_that_never_reads_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "FULL_WAIT_S", 0)
    silent, following = Late(refusals=1), Late(refusals=0)
    line_over(monkeypatch, silent, following).send([Register(1, ["cpu"])])
    assert silent.closed
    assert not silent.sent
