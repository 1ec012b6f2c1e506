"""`map`'s engine: a window of requests under way on one connection, results in order.

No futures and no thread: the caller's own thread fills the window, waits, and hands results out.
Places that have come free are filled together, so that requests leave as one message.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..transport import messages as m
from ..transport.errors import ArenaExhausted, DeadlineExceeded
from .channel import Pending
from .connection import Connection, refusal
from .reply import Reply
from .signature import Signature

_END = object()
REFILL_SHARE = 8  # refill when an eighth of the window is free: one message for many requests


class Window:
    """At most `size` requests at once, each with so long to run; `patience_s` is the caller's."""

    def __init__(
        self,
        connection: Connection,
        signature: Signature,
        size: int,
        priority: int,
        deadline_ns: int,
        patience_s: float,
    ) -> None:
        self._connection = connection
        self._signature = signature
        self._size = size
        self._priority = priority
        self._deadline_ns = deadline_ns
        self._patience_s = patience_s
        self._under_way: deque[tuple[Pending, float]] = deque()  # in order, with when to give up
        self._kept: list[Any] = []  # an input that the arena had no room for

    def results(self, inputs: Iterable[Any]) -> Iterator[Reply]:
        """One reply per input, in order. The first error is raised."""
        source = iter(inputs)
        under_way = self._under_way
        share = max(1, self._size // REFILL_SHARE)
        more = True
        while True:
            if more and self._size - len(under_way) >= share:
                more = self._fill(source)
            if not under_way:
                return
            pending, give_up_s = under_way[0]
            if pending.waiter is None:
                if more:
                    more = self._fill(source)
                self._await(pending, give_up_s)
            under_way.popleft()
            if isinstance(pending.waiter, Exception):
                raise pending.waiter
            yield pending.waiter

    def _fill(self, source: Iterator[Any]) -> bool:
        """Submit until the window or the arena is full; False when there is no more input.

        Raises ArenaExhausted only when nothing is under way that will give room back.
        """
        gathered: list[Any] = []
        give_up_s = time.monotonic() + self._patience_s
        channel = self._connection.channel
        more = True
        while len(self._under_way) < self._size:
            entry = self._kept.pop() if self._kept else next(source, _END)
            if entry is _END:
                more = False
                break
            try:
                pending, frames = channel.submit(
                    self._signature, entry, self._priority, self._deadline_ns, 0.0
                )
            except ArenaExhausted:
                if not self._under_way:
                    raise
                self._kept.append(entry)  # for when a result has been handed out
                break
            self._under_way.append((pending, give_up_s))
            if frames:
                self._connection.send([pending.message], frames)
            else:
                gathered.append(pending.message)
        if gathered:
            self._connection.send(gathered)
        return more

    def _await(self, pending: Pending, give_up_s: float) -> None:
        while pending.waiter is None:
            if not self._receive():
                self._connection.check()
                if time.monotonic() >= give_up_s:
                    raise DeadlineExceeded("no answer in time")

    def _receive(self) -> bool:
        """Note what the next envelope settles; False when none came."""
        messages, frames = self._connection.receive()
        for message in messages:
            if type(message) is m.Refused:
                raise refusal(message)
            for pending, outcome in self._connection.channel.handle(message, frames):
                pending.waiter = outcome
        return bool(messages)

    def cancel(self) -> None:
        """Nobody wants the rest."""
        cancels = (self._connection.channel.abandon(pending) for pending, _ in self._under_way)
        messages = [cancel for cancel in cancels if cancel is not None]
        self._under_way.clear()
        if messages:
            self._connection.send(messages)
