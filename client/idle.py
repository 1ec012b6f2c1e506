"""Shared memory that nobody uses goes back to the system, while the program holds its client.

Owns one daemon thread per process. It runs while some arena holds more than KEPT_BYTES, and looks at each now
and then; a slab that was free at IDLE_LOOKS looks in a row is given back.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from ..transport.errors import InvalidRequest
from . import ending

LOOK_S = 15.0
IDLE_LOOKS = 4  # about a minute
KEPT_BYTES = 4 << 20  # that an idle client may hold


class Holder(Protocol):
    """What holds memory."""

    def trim(self) -> bool:
        """Give back what has been idle. Whether there may be more to give back later."""


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def watch(holder: Holder) -> None:
    """Look at the holder from now on, until it holds little."""
    global _thread
    with _lock:
        _holders.add(holder)
        if _thread is None:
            thread = threading.Thread(target=_look, name="batchyard-idle", daemon=True)
            try:
                ending.start(thread)
            except (InvalidRequest, RuntimeError):
                return  # the program is ending: all of its memory goes back soon
            _thread = thread


def _look() -> None:
    global _thread
    wait = threading.Event().wait  # nobody sets it
    while True:
        wait(LOOK_S)
        _trim_all()
        with _lock:
            if not _holders:
                _thread = None
                return


def _trim_all() -> None:
    """In a function of its own: a thread that waits must not hold what it has looked at."""
    for holder in list(_holders):
        if not holder.trim():
            _holders.discard(holder)


def _after_fork() -> None:
    """A forked child has neither the thread nor its parent's memory."""
    global _lock, _thread
    _lock = threading.Lock()
    _thread = None
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
