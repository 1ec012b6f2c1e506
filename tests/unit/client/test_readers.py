"""Descriptors for an event loop that cannot watch any, as Windows' own."""

from __future__ import annotations

import asyncio
import select
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.client import readers
from batchyard.client.readers import add_readers


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
