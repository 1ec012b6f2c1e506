"""Work of clients that is left over when a round has done its share: no envelope and no round takes 5 ms.

Owns the order in which it goes on: each client in turn, a share each. A client of whom something waits is not
read from meanwhile, where the wire can choose; else its messages wait here. Knows no message: a piece of
work is a generator of events, whose maker counts in `spent` what it has done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from ..transport.wire import Listener, Peer
from . import events as e

# Counted in requests: some 12 us each.
ROUND_WORK = 256  # in one round
PEER_WORK = 256  # for one client, before it is another's turn: no less than our clients put into one envelope
LEFT_OVER_WORK = 128  # in one round, of earlier ones: the rest is for what has just come
WAITING_BYTES_MAX = 64 << 20  # of messages that wait here: past that, nobody's are read

Parts = list[Any]  # a message that was not begun
Work = Generator[e.Event | None, None, None]  # None: something was done, and is no event


class Backlog:
    """`begin(peer, parts)` turns a message into work."""

    def __init__(self, listener: Listener, begin: Callable[[Peer, Parts], Work]) -> None:
        self.spent = 0  # in this round
        self._listener = listener
        self._begin = begin
        self._waiting: dict[Peer, deque[Work | Parts]] = {}  # in turn
        self._nbytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._waiting

    @property
    def is_full(self) -> bool:
        return self._nbytes > WAITING_BYTES_MAX

    def run(self, peer: Peer, parts: Parts) -> Iterator[e.Event]:
        """The events of a message that has just come: all of them, or this client's share."""
        if self.spent >= ROUND_WORK or peer in self._waiting:
            self._put_off(peer, parts)
            return
        until = self.spent + PEER_WORK
        work = self._begin(peer, parts)
        for event in work:
            if event is not None:
                yield event
            if self.spent >= until:
                self._put_off(peer, work)
                return

    def catch_up(self) -> Iterator[e.Event]:
        """The events of some of the waiting messages."""
        for peer in list(self._waiting):
            if self.spent >= LEFT_OVER_WORK:
                return
            waiting = self._waiting.pop(peer, None)
            if waiting is None:
                continue  # it was dropped meanwhile
            yield from self._some(peer, waiting)
            if peer.ended:
                self._let_go(waiting)
            elif waiting:
                self._waiting[peer] = waiting  # behind the others
            else:
                self._listener.resume(peer)

    def _some(self, peer: Peer, waiting: deque[Work | Parts]) -> Iterator[e.Event]:
        until = min(self.spent + PEER_WORK, LEFT_OVER_WORK)
        while waiting and not peer.ended and self.spent < until:
            work = waiting.popleft()
            if isinstance(work, list):
                self._let_go((work,))
                work = self._begin(peer, work)
            for event in work:
                if event is not None:
                    yield event
                if self.spent >= until:
                    waiting.appendleft(work)
                    break

    def drop(self, peer: Peer) -> None:
        self._let_go(self._waiting.pop(peer, ()))

    def _put_off(self, peer: Peer, work: Work | Parts) -> None:
        waiting = self._waiting.get(peer)
        if waiting is None:
            waiting = self._waiting[peer] = deque()
            self._listener.pause(peer)
        waiting.append(work)
        if isinstance(work, list):
            self._nbytes += sum(map(len, work))

    def _let_go(self, waiting: Iterable[Work | Parts]) -> None:
        for work in waiting:
            if isinstance(work, list):
                self._nbytes -= sum(map(len, work))
