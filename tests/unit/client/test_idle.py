"""The thread that looks after idle memory: it is there while something is watched, and then it is not."""

from __future__ import annotations

import threading
import weakref

import pytest
from batchyard.client import idle


class Holder:
    """Has something to give back at so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.done = threading.Event()

    def trim(self) -> bool:
        self.looks -= 1
        if self.looks <= 0:
            self.done.set()
        return self.looks > 0


def test_what_is_watched_is_looked_at_until_it_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "LOOK_S", 0.001)
    for _ in range(2):  # the thread ends, and begins again
        holder = Holder(3)
        idle.watch(holder)
        thread = idle._thread
        assert holder.done.wait(30)
        if thread is not None:
            thread.join(30)
        assert holder.looks == 0
        assert idle._thread is None


def test_what_is_watched_is_held_by_nobody_but_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "LOOK_S", 0.001)
    holder = Holder(1_000_000)
    looked = weakref.ref(holder)
    idle.watch(holder)
    thread = idle._thread
    assert thread is not None
    del holder
    thread.join(30)  # it ends when there is nothing left to look at
    assert looked() is None
    assert not thread.is_alive()
