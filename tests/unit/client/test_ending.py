"""The end of the program: clients first, all told before any is waited for, within one bound; forks begin anew."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from typing import Any

import pytest
from batchyard.client import AsyncClient, Client, ending


class Guest:
    """Notes what is asked of it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log
        self.give_up_s = 0.0

    def stop(self) -> None:
        self._log.append(f"stop {self.name}")

    def close_by(self, give_up_s: float) -> None:
        self._log.append(f"close {self.name}")
        self.give_up_s = give_up_s

    def begin_anew(self) -> None:
        self._log.append(f"anew {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(ending, "_has_begun", False)
    monkeypatch.setattr(ending, "_clients", type(ending._clients)())
    monkeypatch.setattr(ending, "_yards", [])
    return []


def test_clients_end_before_yards_and_all_are_told_first(log: list[str]) -> None:
    yard, client = Guest("yard", log), Guest("client", log)
    ending.keep(yard)
    ending.watch(client)
    before_s = time.monotonic()
    ending._end()
    assert log == ["stop client", "stop yard", "close client", "close yard"]
    assert client.give_up_s <= time.monotonic() + ending.END_S
    assert before_s <= yard.give_up_s <= time.monotonic() + ending.CLOSE_S


def test_all_clients_share_one_bound(log: list[str]) -> None:
    clients = [Guest(str(number), log) for number in range(9)]
    for client in clients:
        ending.watch(client)
    ending._end()
    assert len({client.give_up_s for client in clients}) == 1


def test_a_client_that_is_gone_or_a_yard_that_was_closed_is_not_closed_again(log: list[str]) -> None:
    yard = Guest("yard", log)
    ending.keep(yard)
    ending.forget(yard)
    ending.forget(yard)
    ending.watch(Guest("client", log))
    ending._end()
    assert log == []


def test_a_forked_child_begins_anew_and_has_no_yard(log: list[str]) -> None:
    yard, client = Guest("yard", log), Guest("client", log)
    ending.keep(yard)
    ending.watch(client)
    ending._after_fork()
    assert log == ["anew client", "anew yard"]
    ending._end()
    assert log[2:] == ["stop client", "close client"]


def test_only_a_daemon_thread_stays_where_the_end_cuts_it_off(log: list[str]) -> None:
    passed = []
    ending.cut_off()  # the program goes on
    ending._end()
    ending.cut_off()  # the main thread, in an atexit handler
    for daemon in (False, True):
        thread = threading.Thread(target=lambda: passed.append(ending.cut_off()), daemon=daemon)
        thread.start()
        thread.join(None if not daemon else 0.01)
        assert thread.is_alive() is daemon
    assert len(passed) == 1


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("url", ["ipc:///no/yard", "http://127.0.0.1:1"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_neither_pickled_nor_copied(kind: Any, url: str, act: Any) -> None:
    """A copy closed the client that it was made of, when it ended."""
    client = kind(url)
    with pytest.raises(TypeError, match=r"Client can't be pickled or copied.*pass the yard's url, and make one in each"):
        act(client)
    with pytest.raises(TypeError, match="can't be pickled or copied"):
        act(client.sequence("vad"))
