"""The network: connections that deliver in order and late, and that may break and lose their suffix.

A Link is one connection of a peer (a client's or a worker's DEALER) with one ROUTER of the broker.
Links deliver independently, so messages of different peers overtake each other; those of one link
never do. A descriptor number is used again as soon as its connection has ended, as a kernel would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zmq

from .clock import US

if TYPE_CHECKING:
    from .world import World

DELAY_NS_MAX = 300 * US
FD_FIRST = 1 << 30  # no descriptor of this process: the broker asks the kernel who is behind it
NOTICE_NS_MAX = 2_000 * US  # until an end is reported to the other side


class Link:
    """A connection. `peer` has `receive(link, payload, frames)` and `link_ended(link)`."""

    def __init__(self, world: World, router: Router, peer: Any) -> None:
        self.world = world
        self.router = router
        self.peer = peer
        self.open = True
        self.unread = 0  # messages to the peer that it has not read
        number, self.fd = router.admit(self)
        self.identity = b"\0" + number.to_bytes(4, "big")
        self._last_ns = [0, 0]  # when the latest message of each direction arrives

    def _arrives_ns(self, direction: int) -> int:
        delay_ns = self.world.rng.randrange(DELAY_NS_MAX)
        arrives_ns = max(self._last_ns[direction], self.world.clock.now_ns + delay_ns)
        self._last_ns[direction] = arrives_ns
        return arrives_ns

    def to_broker(self, payload: bytes, frames: Sequence[Any] = ()) -> None:
        def arrive() -> None:
            if self.open:
                self.router.broker.receive(self, payload, frames)

        if self.open:
            self.world.clock.at(self._arrives_ns(0), arrive)

    def to_peer(self, payload: bytes, frames: Sequence[Any] = ()) -> None:
        def arrive() -> None:
            if self.open:
                self.peer.receive(self, payload, frames)

        self.unread += 1
        self.world.clock.at(self._arrives_ns(1), arrive)

    def reset(self) -> None:
        """Break now: whatever has not arrived is lost, both ways. Both sides are told later."""
        if not self.open:
            return
        self.open = False
        self.router.forget(self)
        notice_ns = self.world.rng.randrange(NOTICE_NS_MAX)
        self.world.clock.after(notice_ns, lambda: self.peer.link_ended(self))

    def close_in_order(self) -> None:
        """End the connection behind what was sent on it."""
        self.world.clock.at(self._last_ns[0], self.reset)


class Router:
    """The broker's ROUTER, as front.py and back.py use it: sending only."""

    def __init__(self, broker: Any, name: str, unread_max: int) -> None:
        self.broker = broker
        self.name = name
        self.reports: list[tuple[bool, int]] = []  # (begun, descriptor): what the monitor has to say
        self._links: dict[bytes, Link] = {}
        self.unread_max = unread_max
        self._to: Link | None = None
        self._sequence = 0
        self._free_fds: list[int] = []

    def admit(self, link: Link) -> tuple[int, int]:
        self._sequence += 1
        fd = self._free_fds.pop(0) if self._free_fds else FD_FIRST + self._sequence
        self._links[b"\0" + self._sequence.to_bytes(4, "big")] = link
        self.reports.append((True, fd))
        return self._sequence, fd

    def forget(self, link: Link) -> None:
        del self._links[link.identity]
        self.reports.append((False, link.fd))
        self._free_fds.append(link.fd)
        self.broker.wake_after(self.broker.world.rng.randrange(NOTICE_NS_MAX))

    def links(self) -> list[Link]:
        return list(self._links.values())

    def send(self, data: bytes, flags: int = 0) -> None:
        if self._to is not None:
            link, self._to = self._to, None
            link.to_peer(data)
            return
        found = self._links.get(data)
        if found is None:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if found.unread >= self.unread_max:
            self.broker.world.count("queue_full")
            raise zmq.ZMQError(zmq.EAGAIN)
        self._to = found

    def send_multipart(self, parts: Sequence[Any], flags: int = 0) -> None:
        assert self._to is not None
        link, self._to = self._to, None
        link.to_peer(bytes(parts[0]), [bytes(part) for part in parts[1:]])
