"""Descriptors for an event loop that cannot watch any, as Windows' own."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.client import readers
from batchyard.client.loop import LoopLink
from batchyard.client.readers import add_readers
from batchyard.client.session import Sessions, Settings

SOON_S = 5.0  # no test waits for as long


class Blind(asyncio.SelectorEventLoop):
    def add_reader(self, fd: Any, callback: Any, *arguments: Any) -> None:
        if isinstance(fd, int) and fd != self._ssock.fileno():  # type: ignore[attr-defined]
            raise NotImplementedError
        super().add_reader(fd, callback, *arguments)


def test_each_readiness_is_one_call_and_the_end_waits_for_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `stop` on the loop's own thread held the loop up for half a second, until the helper looked."""
    timeouts: list[Any] = []

    def watched(*arguments: Any) -> Any:
        timeouts.extend(arguments[3:])
        return select.select(*arguments)

    monkeypatch.setattr(readers, "select", SimpleNamespace(select=watched))
    here, there = socket.socketpair()
    loop = Blind()

    async def main() -> None:
        called = asyncio.Queue[bytes]()
        stop = add_readers(loop, {here.fileno(): lambda: called.put_nowait(here.recv(1))})
        for letter in (b"a", b"b"):
            there.send(letter)
            assert await called.get() == letter
        stop()
        assert not stop.__self__._thread.is_alive()  # type: ignore[attr-defined]
        assert called.empty()

    with here, there:
        loop.run_until_complete(main())
    loop.close()
    assert timeouts == []


def watched(link: LoopLink, here: socket.socket, callback: Callable[[], None]) -> Any:
    """Have the link's loop watch a socket. Returns the helper."""
    link._stop_readers = stop = add_readers(link.loop, {here.fileno(): callback})
    return stop.__self__  # type: ignore[attr-defined]


@pytest.fixture
def link(tmp_path: Path) -> LoopLink:
    return LoopLink(Sessions(Settings(f"ipc://{tmp_path}", None, None, None, 1.0)), Blind())


def test_the_helper_ends_with_its_link_though_the_loop_was_closed_first(link: LoopLink) -> None:
    """A thread and three descriptors stayed for each loop that `asyncio.run` had closed."""
    here, there = socket.socketpair()
    with here, there:
        helper = watched(link, here, lambda: None)
        link.loop.close()
        link.unwatch()
        assert not helper._thread.is_alive()
    assert helper._wake_read.fileno() == helper._wake_write.fileno() == -1


def test_the_helper_ends_with_its_link_where_the_loop_closed_before_it_called_back(
    link: LoopLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = threading.Event()
    plan = link.loop.call_soon_threadsafe

    def noted(*arguments: Any) -> Any:
        handle = plan(*arguments)
        planned.set()
        return handle

    monkeypatch.setattr(link.loop, "call_soon_threadsafe", noted)
    here, there = socket.socketpair()
    with here, there:
        helper = watched(link, here, lambda: pytest.fail("the loop is closed"))
        there.send(b"a")
        assert planned.wait(SOON_S)
        link.loop.close()
        link.unwatch()
        assert not helper._thread.is_alive()


def test_a_loop_that_was_closed_watches_nothing_any_more(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    here, there = socket.socketpair()
    with here, there:
        stop = add_readers(loop, {here.fileno(): lambda: None})
        loop.close()
        stop()


def test_the_helper_ends_quietly_when_a_descriptor_is_closed_under_it(
    link: LoopLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    here, there = socket.socketpair()
    called = asyncio.Event()

    def close() -> None:
        here.close()
        called.set()

    with here, there:
        helper = watched(link, here, close)
        there.send(b"a")
        link.loop.run_until_complete(asyncio.wait_for(called.wait(), SOON_S))
        helper._thread.join(SOON_S)
        assert not helper._thread.is_alive()
        link.unwatch()
    link.loop.close()
    assert not failed
