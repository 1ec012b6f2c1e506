"""The network: connections that deliver in order and late, and that may break and lose their suffix.

A Link is one connection of a peer (a client's or a worker's process) with one listener of the broker.
Links deliver independently, so messages of different peers overtake each other; those of one link
never do. To the broker it is a Peer of the wire. An end comes behind what has arrived, as over a unix
socket, or, in some worlds, as soon as it is heard of, as over libzmq.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchyard.transport.wire import Ended, Full, Peer

from .clock import US

if TYPE_CHECKING:
    from .world import World

DELAY_NS_MAX = 300 * US
NOTICE_NS_MAX = 2_000 * US  # until an end is reported to the other side


class Link:
    """A connection. `peer` has `receive(link, payload, frames)` and `link_ended(link)`."""

    def __init__(self, world: World, listener: SimListener, peer: Any) -> None:
        self.world = world
        self.listener = listener
        self.peer = peer
        self.open = True
        self.unread = 0  # messages to the peer that it has not read
        self._last_ns = [0, 0]  # when the latest message of each direction arrives
        self.far = SimPeer(self)
        listener.admit_link(self)

    def _arrives_ns(self, direction: int) -> int:
        delay_ns = self.world.rng.randrange(DELAY_NS_MAX)
        arrives_ns = max(self._last_ns[direction], self.world.clock.now_ns + delay_ns)
        self._last_ns[direction] = arrives_ns
        return arrives_ns

    @property
    def latest_arrives_ns(self) -> int:
        """When the broker has everything that was sent so far."""
        return self._last_ns[0]

    def to_broker(self, payload: bytes, frames: Sequence[Any] = ()) -> None:
        def arrive() -> None:
            if self.open:
                self.listener.arrive(self.far, [payload, *frames])

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
        self.listener.forget(self)
        notice_ns = self.world.rng.randrange(NOTICE_NS_MAX)
        self.world.clock.after(notice_ns, lambda: self.peer.link_ended(self))

    def close_in_order(self) -> None:
        """End the connection behind what was sent on it."""
        self.world.clock.at(self._last_ns[0], self.reset)

    def hang_up(self) -> None:
        """The broker ends it, behind what it has sent."""
        self.world.clock.at(self._last_ns[1], self.reset)


class SimPeer(Peer):
    """A link's far end, as clients.py and workers.py know it."""

    __slots__ = ("link",)

    def __init__(self, link: Link) -> None:
        super().__init__(-1)
        self.link = link

    @property
    def credentials(self) -> tuple[int, int] | None:
        pid = getattr(self.link.peer, "pid", None)
        return None if pid is None else (pid, 0)

    @property
    def chose_identity(self) -> bool:
        return False

    def send(self, parts: Sequence[Any]) -> None:
        link = self.link
        if self.ended or (not link.open and link.listener.tells_at_once):
            raise Ended("the other side is gone")
        if not link.open:
            return  # written into a socket whose end we have not read yet
        if link.unread >= link.listener.unread_max:
            link.world.count("queue_full")
            raise Full("it does not read")
        link.to_peer(bytes(parts[0]), [bytes(part) for part in parts[1:]])

    def take_descriptor(self) -> None:
        return None

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.link.listener.drop(self)
            self.link.hang_up()


class SimListener:
    """One of the broker's listeners: what has arrived, and has not been read."""

    def __init__(self, broker: Any, name: str, unread_max: int) -> None:
        self.broker = broker
        self.name = name
        self.unread_max = unread_max
        self.tells_at_once: bool = broker.world.rng.random() < 0.3
        self.inbox: deque[tuple[SimPeer, list[Any] | None]] = deque()
        self._links: dict[Link, None] = {}
        self._paused: set[Peer] = set()
        self.strangers: dict[Peer, None] = {}
        self.unwritten: dict[Peer, None] = {}

    def admit_link(self, link: Link) -> None:
        self._links[link] = None
        self.strangers[link.far] = None

    def arrive(self, peer: SimPeer, parts: list[Any]) -> None:
        if not peer.ended:
            self.inbox.append((peer, parts))
            self.broker.wake_after(self.broker.world.rng.randrange(50 * US))

    def forget(self, link: Link) -> None:
        """The link is broken; the broker is told of it a little later."""
        del self._links[link]

        def report() -> None:
            peer = link.far
            if peer.ended:
                return
            if self.tells_at_once:
                self.drop(peer)
                self.inbox.appendleft((peer, None))
            else:
                self.inbox.append((peer, None))
            self.broker.wake_after(0)

        self.broker.world.clock.after(self.broker.world.rng.randrange(NOTICE_NS_MAX), report)

    def drop(self, peer: SimPeer) -> None:
        """Nothing more of it is read."""
        self.strangers.pop(peer, None)
        self.inbox = deque(arrival for arrival in self.inbox if arrival[0] is not peer)

    def receive(self, messages_max: int, bytes_max: int) -> list[tuple[SimPeer, list[Any] | None]]:
        arrivals = []
        waiting: list[tuple[SimPeer, list[Any] | None]] = []
        while self.inbox and len(arrivals) < messages_max:
            peer, parts = self.inbox.popleft()
            if peer in self._paused:
                waiting.append((peer, parts))
                continue
            if parts is None:
                peer.ended = True
                self.strangers.pop(peer, None)
            arrivals.append((peer, parts))
        self.inbox.extendleft(reversed(waiting))
        return arrivals

    def pause(self, peer: Peer) -> None:
        self._paused.add(peer)

    def resume(self, peer: Peer) -> None:
        self._paused.discard(peer)

    @property
    def has_more(self) -> bool:
        return any(peer not in self._paused for peer, _ in self.inbox)

    def flush(self) -> None:
        pass

    def admit(self, peer: Peer, descriptors_max: int = 0) -> None:
        del self.strangers[peer]  # whoever is admitted twice is a mistake

    def dismiss_strangers(self, now_ns: int, within_ns: int, strangers_max: int) -> int:
        return 0  # a world is over before that

    def links(self) -> list[Link]:
        return list(self._links)
