"""The end of the program, for all that this package has open in it.

An `atexit` hook, which runs while every thread still does, closes what nobody closed: clients first, then
yards, all within a bound. What runs later, in destructors while the interpreter is taken down, must neither
lock nor join: daemon threads are frozen by then (for good, since Python 3.13), and may hold any lock. The
kernel closes what is left, and the broker and the yard's processes see that.

A forked child closes nothing of its parent's: what it inherits begins anew. What its parent has under way
(a `map` or a stream that is half read, a future) is its parent's: to go on there ends with an error.

Daemon threads go on while the hook runs. A call of theirs that the end cuts off would print a traceback on
the way out; it stays where it is instead, as the interpreter is about to make it anyway.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, NoReturn, Protocol, TypeVar

from ..transport.errors import BrokerLost, InvalidRequest

CLOSE_S = 1.0  # how long a `close` waits for a done-callback that runs
END_S = 0.5  # how long the end of the program does, for all of them


class Guest(Protocol):
    """What is open in this process."""

    def stop(self) -> None:
        """Ask what runs for it to end. Waits for nothing."""

    def close_by(self, give_up_s: float) -> None:
        """Close, waiting until `give_up_s` (time.monotonic) at most."""

    def begin_anew(self) -> None:
        """This is a forked child now: forget what is the parent's, without closing it."""


class OfThisProcess:
    """What has sockets, memory, or processes: a copy would close them when it ends."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} can't be pickled or copied, because its sockets and memory are this "
            "process's: pass the yard's url, and make one in each process"
        )


_clients: weakref.WeakSet[Any] = weakref.WeakSet()
_yards: list[Guest] = []  # a yard that nobody holds serves on: its clients may be held
_abandoned: list[Any] = []  # a parent's: kept, so that no destructor closes it here
_has_begun = False
_half_read: weakref.WeakSet[Any] = weakref.WeakSet()  # generators of `own`
_forks = 0  # between the first process and this one
T = TypeVar("T")


def watch(client: Guest) -> None:
    """Close this client at the program's end, unless it is gone by then."""
    _clients.add(client)


def keep(yard: Guest) -> None:
    """Keep this yard until the program's end, and close it there; until `forget`."""
    _yards.append(yard)


def forget(yard: Guest) -> None:
    if yard in _yards:
        _yards.remove(yard)


def abandon(*parents: object) -> None:
    """In a forked child: keep these open, because they are the parent's to close."""
    _abandoned.append(parents)


def forks() -> int:
    """A number that is another one in a forked child: for `check_own`."""
    return _forks


def check_own(number: int) -> None:
    """Raise BrokerLost in a process that was forked since `forks()` was this number."""
    if number != _forks:
        raise BrokerLost(
            "this process was forked while the request was under way: its answers are the parent's; make the "
            "request again here"
        )


def own(begin: Callable[..., Generator[T, None, None]], *arguments: Any) -> Generator[T, None, None]:
    """What this generator yields, in this process alone: a forked child would read its parent's connection
    in it, and tell the broker at its end that nobody waits any more."""
    number = _forks
    inner = begin(*arguments)
    _half_read.add(inner)
    try:
        for value in inner:
            yield value
            check_own(number)
    finally:
        if number == _forks:
            inner.close()


def has_begun() -> bool:
    """Whether the program is ending."""
    return _has_begun


def is_finalizing() -> bool:
    """Whether the interpreter is taken down: no other thread runs any more, and any lock may be held."""
    return sys.is_finalizing()


def start(thread: threading.Thread) -> None:
    """Start a thread of ours. Raises InvalidRequest where Python starts none any more: 3.12 does not once the
    main thread has ended, even while others go on."""
    try:
        thread.start()
    except KeyError as error:
        # Thread.start's own end, where a signal's exception came between its instructions.
        if error.__context__ is None:
            raise
        raise error.__context__ from None
    except RuntimeError as error:
        if not threading.main_thread().is_alive():
            raise InvalidRequest(
                "the main thread has ended, and this Python starts no thread after that: call `submit` or "
                "`serve` for the first time before, or let the main thread join yours"
            ) from error
        raise


def cut_off() -> None:
    """Called where a call is about to fail. A daemon thread does not return from here when it fails because
    the program is ending."""
    if _has_begun and threading.current_thread().daemon:
        threading.Event().wait()  # for ever, which is not long


def _end() -> None:
    global _has_begun
    _has_begun = True
    give_up_s = time.monotonic() + END_S
    clients, yards = list(_clients), list(_yards)
    for guest in (*clients, *yards):
        guest.stop()
    for client in clients:
        client.close_by(give_up_s)
    for yard in yards:
        yard.close_by(time.monotonic() + CLOSE_S)


def _after_fork() -> None:
    global _has_begun, _forks
    _has_begun = False
    _forks += 1
    # One reference too many on purpose: else the generators' `finally` would run at the child's exit.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(list(_half_read)))
    _half_read.clear()
    for guest in (*_clients, *_yards):
        guest.begin_anew()
    _yards.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
