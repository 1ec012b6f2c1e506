"""The way to a broker: one that dies while it is greeted is tried again, and keys that are not its own are told
as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.client import link as room
from batchyard.client import session
from batchyard.client.link import HANDSHAKES_MAX, Line
from batchyard.client.session import Sessions, Settings
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import BrokerLost, Unauthorized
from batchyard.transport.keys import KeyFolder
from batchyard.transport.wire import Ended

URL = "tcp://127.0.0.1:7070"
WELCOME = codec.encode([m.Welcome(7, 1 << 20)])
NONE = codec.encode([m.Described(1, [])])


class Carrier:
    """Makes connections; each gives what the script says next. `None` as a script: nothing ever comes."""

    def __init__(self, scripts: list[list[Any]]) -> None:
        self.scripts = scripts
        self.made = 0

    def connect(
        self, address: str, bounds: Any, descriptor: int | None = None, descriptors_max: int = 0
    ) -> Connection:
        self.made += 1
        return Connection(self.scripts.pop(0) if self.scripts else [])

    def close(self) -> None:
        pass


class Connection:
    undelivered = False

    def __init__(self, script: list[Any]) -> None:
        self.script = script

    def send(self, parts: Any) -> None:
        pass

    def receive(self, timeout_ms: int) -> Any:
        given = self.script.pop(0) if self.script else None
        if isinstance(given, Exception):
            raise given
        return given if given is None else [given]

    def close(self) -> None:
        pass


def line_over(
    scripts: list[list[Any]], monkeypatch: pytest.MonkeyPatch, keys: KeyFolder | None = None, wait_s: float = 30.0
) -> tuple[Line, Carrier]:
    carrier = Carrier(scripts)
    monkeypatch.setattr(session, "carrier", lambda endpoint, keys: carrier)
    monkeypatch.setattr(room, "RETRY_NS", 0)
    return Line(Sessions(Settings(URL, None, keys, "frames", wait_s))), carrier


@pytest.mark.parametrize("why", ["closed", "handshake"])
def test_a_broker_that_dies_while_it_is_greeted_is_tried_again(
    why: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = [[Ended("gone", why)] for _ in range(HANDSHAKES_MAX + 1)]
    line, carrier = line_over([*deaths, [WELCOME, NONE]], monkeypatch)
    assert line.describe("", 30.0) == []
    assert carrier.made == len(deaths) + 1


def test_a_yard_that_ends_every_handshake_has_other_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off = [[Ended("gone", "handshake")] for _ in range(2 * HANDSHAKES_MAX)]
    line, carrier = line_over([*cut_off], monkeypatch, KeyFolder(tmp_path))
    with pytest.raises(Unauthorized, match=f"ends every handshake: the server.key in {tmp_path} is not its own"):
        line.describe("", 30.0)
    assert carrier.made == HANDSHAKES_MAX


def test_a_call_that_found_no_broker_says_how_the_last_attempt_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    line, _ = line_over([[Ended("an HTTP answer", "protocol")]], monkeypatch, wait_s=0.001)
    with pytest.raises(BrokerLost, match=f"waited 0.*: what listens at {URL} is no broker: an HTTP answer; start"):
        line.describe("", 30.0)


def test_a_call_that_waits_for_a_broker_ends_at_once_when_its_yard_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, _ = line_over([], monkeypatch)
    line.step = lambda: (line.sessions.end("the yard has been closed"), Line.step(line))  # type: ignore[method-assign]
    with pytest.raises(BrokerLost, match="the yard has been closed"):
        line.describe("", 30.0)


def test_an_attempt_that_a_signal_has_torn_apart_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    line, carrier = line_over([[], [WELCOME, NONE]], monkeypatch)
    assert not line.connect(0)
    line.session = None  # as between two instructions of _refused
    assert line.describe("", 30.0) == []
    assert carrier.made == 2
