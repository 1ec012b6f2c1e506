"""What a client keeps of one broker: idle connections, each of which may owe slots."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from batchyard.client.session import Session, Settings
from batchyard.transport.errors import InvalidRequest


class FakeConnection:
    def __init__(self) -> None:
        self.drained = 0
        self.closed = False

    def drain(self) -> list[Any]:
        self.drained += 1
        return []

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def session() -> Any:
    made = Session(Settings("ipc:///tmp/nobody", 1 << 20, None, "frames", 1.0), count(1))
    yield made
    made.close()


def test_recovering_slots_reads_every_idle_connection(session: Any) -> None:
    idle = [FakeConnection() for _ in range(4)]
    for connection in idle:
        session.give_back(connection)
    session.recover_slots()
    assert [connection.drained for connection in idle] == [1, 1, 1, 1]
    assert len({id(session.borrow()) for _ in idle}) == 4


def test_a_connection_given_back_to_a_lost_session_is_closed(session: Any) -> None:
    connection = FakeConnection()
    session.give_up()
    session.give_back(connection)
    assert connection.closed


def test_closing_closes_what_is_idle_at_once_and_what_is_borrowed_on_its_return(session: Any) -> None:
    idle, borrowed = FakeConnection(), FakeConnection()
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
        Session(Settings("ipc:///tmp/nobody", 1 << 20, None, "clay tablets", 1.0), count(1))
