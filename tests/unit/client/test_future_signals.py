"""A signal's handler may raise at any instruction of a thread that waits for a future: whoever settles it must
not wait for that thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from batchyard.client.future import InferFuture, harden
from batchyard.client.request import Request

from ...striking import struck

INSTRUCTIONS_MAX = 5_000


def is_free(future: Future[Any]) -> bool:
    """Whether another thread could settle it."""
    found: list[bool] = []

    def look() -> None:
        found.append(future._condition.acquire(blocking=False))
        if found[0]:
            future._condition.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def held_at(make: Callable[[], Future[Any]]) -> list[int]:
    """The instructions of `result(0)`, `done()` and `add_done_callback` at which an exception leaves it locked."""
    held = []
    for verb in ("result", "done", "add_done_callback"):
        for instruction in range(1, INSTRUCTIONS_MAX):
            future = make()
            call = {
                "result": lambda future=future: future.result(0),
                "done": future.done,
                "add_done_callback": lambda future=future: future.add_done_callback(print),
            }[verb]
            is_within = struck(call, instruction)
            if not is_free(future):
                held.append(instruction)
                with suppress(RuntimeError):
                    future._condition.release()
            if not is_within:
                break
    return held


def new() -> InferFuture:
    return InferFuture(Request("net", None, 0, 0, 0, 0), lambda _: None)


def test_no_exception_of_a_signal_leaves_a_future_locked() -> None:
    assert held_at(new) == []


def test_pythons_own_future_shows_that_this_test_can_fail() -> None:
    assert held_at(Future)
    hardened: Future[Any] = Future()
    harden(hardened)
    assert type(hardened._condition) is not threading.Condition
