"""What a client keeps of one broker: idle lines, each of which may owe slots."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.client.session import ClientClosed, Session, Sessions, Settings
from batchyard.transport.errors import InvalidRequest


class FakeLine:
    def __init__(self) -> None:
        self.drained = 0
        self.closed = False

    def drain(self) -> None:
        self.drained += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def session() -> Any:
    made = Session(Settings("ipc:///tmp/nobody", 1 << 20, None, "frames", 1.0))
    yield made
    made.close()


def test_recovering_slots_reads_every_idle_line(session: Any) -> None:
    idle = [FakeLine() for _ in range(4)]
    for line in idle:
        session.give_back(line)
    session.recover_slots()
    assert [line.drained for line in idle] == [1, 1, 1, 1]
    assert {id(line) for line in session.idle} == {id(line) for line in idle}


def test_a_line_given_back_to_a_lost_session_is_closed(session: Any) -> None:
    line = FakeLine()
    session.give_up()
    session.give_back(line)
    assert line.closed


def test_closing_closes_what_is_idle_at_once_and_what_is_borrowed_on_its_return(session: Any) -> None:
    idle, borrowed = FakeLine(), FakeLine()
    session.give_back(idle)
    session.close()
    session.give_back(borrowed)
    assert idle.closed
    assert borrowed.closed


def test_shared_memory_is_the_default_over_ipc_and_frames_over_tcp() -> None:
    assert Settings("ipc:///tmp/nobody", 1, None, None, 1.0).segment in ("memfd", "named")
    assert Settings("tcp://127.0.0.1:7070", 1, None, None, 1.0).segment == "frames"


def test_a_url_or_segment_that_cannot_be_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(InvalidRequest):
        Settings("http://x", 1, None, None, 1.0)
    with pytest.raises(InvalidRequest):
        Session(Settings("ipc:///tmp/nobody", 1 << 20, None, "clay tablets", 1.0))


def test_a_session_is_made_when_there_is_none_and_after_the_last_was_lost() -> None:
    sessions = Sessions(Settings("ipc:///tmp/nobody", 1 << 20, None, None, 1.0))
    first = sessions.open()
    assert sessions.open() is first
    assert first.memory is not None
    first.memory.bytes_copied = 7
    first.give_up()
    second = sessions.open()
    assert second is not first
    assert sessions.bytes_copied == 7
    sessions.end("the yard has been closed")
    assert sessions.current is second, "what is under way is answered"
    with pytest.raises(ClientClosed, match="the yard has been closed"):
        sessions.open()
    sessions.close()
    with pytest.raises(ClientClosed, match="this client has been closed"):
        sessions.open()
