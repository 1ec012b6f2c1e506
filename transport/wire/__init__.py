"""The wire: whole messages between processes, whichever way they are carried.

One interface, two ways to carry it, one conformance suite over both:

    stream.py   ZMTP 3.1 spoken by ourselves over unix sockets (zmtp.py has the bytes, watch.py the waiting)
    libzmq.py   pyzmq: tcp, CURVE, and systems without unix sockets

A message is a list of parts, as in ZeroMQ. A connection is an object: its end comes in order, behind
everything that arrived before it. No send waits: messages that the other side does not read are kept
up to a bound, and then `Full` is raised. Everything that a peer can send is bounded before it is kept.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from ..endpoints import Endpoint
    from ..keys import KeyFolder
    from .watch import Watch

Part = bytes | bytearray | memoryview
Parts = Sequence[Part]
Why = Literal["closed", "denied", "handshake", "key", "mechanism", "protocol"]

MESSAGE_BYTES_MAX = 1 << 30
OUTBOX_MESSAGES_MAX = 1_000
OUTBOX_BYTES_MAX = 64 << 20
ALONG_MAX = 32  # descriptors that go with one message


@dataclass(frozen=True)
class Bounds:
    """How much one connection may make this process keep.

    frame_bytes, message_bytes: past them the connection is closed.
    parts: of a message. One more is kept, so that its reader can refuse it; the rest is read away.
    outbox_messages, outbox_bytes: unread messages to the peer. The last one may go past outbox_bytes,
        because a message can be larger than that by itself.
    """

    frame_bytes: int
    parts: int
    message_bytes: int = MESSAGE_BYTES_MAX
    outbox_messages: int = OUTBOX_MESSAGES_MAX
    outbox_bytes: int = OUTBOX_BYTES_MAX


class Ended(Exception):
    """The connection is over. `why`: "key" (our key is not admitted), "mechanism" (only one side wants
    CURVE), "protocol" (a side breaks the rules of ZMTP), "handshake" (closed during libzmq's), "denied" (by
    the system: another user's socket), else "closed"."""

    def __init__(self, text: str, why: Why = "closed") -> None:
        super().__init__(text)
        self.why: Why = why


class Full(Exception):
    """The peer does not read, and its outbox is full. Nothing of the message was kept."""


def _owner_class(name: str) -> Any:
    """`select.NAME`, or None where the system has none. gevent takes both out of the module: a second copy of
    the extension still has them."""
    spec = select.__spec__
    if not hasattr(select, name) and spec is not None and spec.loader is not None and "gevent" in sys.modules:
        copy = module_from_spec(spec)
        spec.loader.exec_module(copy)
        return getattr(copy, name, None)
    return getattr(select, name, None)


# owned(number): an object that closes the descriptor when it dies. C code from end to end, and without a
# warning: a signal's exception in a constructor or destructor of ours would lose the number.
_Owner: Any = _owner_class("epoll") or _owner_class("kqueue")
owned: Callable[[int], Any] = _Owner.fromfd if _Owner is not None else int  # elsewhere none is passed


class Descriptor:
    """An open file descriptor of this process, which `owner` (see `owned`) closes with its last reference."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    @property
    def number(self) -> int:
        number: int = self._owner.fileno()
        return number

    def detach(self) -> int:
        """A copy, to be closed by the caller. This one is closed."""
        number = os.dup(self.number)
        self._owner = None
        return number


class Peer(ABC):
    """A connection that a listener has accepted. `owner` is for its reader."""

    __slots__ = ("ended", "fd", "owner", "violation")

    def __init__(self, fd: int) -> None:
        self.fd = fd  # the number of its descriptor; -1: not known
        self.owner: Any = None
        self.ended = False  # its end has been reported, or it was closed here
        self.violation = ""  # why we closed it: it broke the rules of ZMTP

    @property
    @abstractmethod
    def credentials(self) -> tuple[int, int] | None:
        """(pid, uid) of the process that connected, by the kernel's word; None where it does not say."""

    @property
    @abstractmethod
    def chose_identity(self) -> bool:
        """Whether the peer named itself (ZeroMQ's routing id)."""

    @abstractmethod
    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        """Send a message, at the latest with the listener's `flush`. The parts are the caller's again.
        `along`: descriptors that go with it, for `along_bytes` of memory; only where `lends`. Raises Full,
        Ended."""

    @abstractmethod
    def take_descriptor(self) -> Descriptor | None:
        """The file descriptor that came along next; None: none came."""

    @abstractmethod
    def close(self) -> None:
        """End the connection; its end is not reported any more. Idempotent."""


Arrival = tuple[Peer, list[Part] | None]  # a message, or (None) the end of its connection


class Listener(ABC):
    """Accepts connections at one address. A peer is a stranger until `admit`: only strangers are dismissed
    for their silence. A stranger may pass one descriptor; afterwards, as many as it was admitted for.

    Three attributes tell a loop what is left to do, at no cost. `has_more`: `receive` has something that no
    descriptor will tell of, so don't sleep. `unwritten`: not empty while `flush` has something to write.
    `strangers`: connections that are not admitted, and when they were first seen.
    """

    has_more: bool
    unwritten: Mapping[Any, Any]
    strangers: Mapping[Any, int]

    @abstractmethod
    def receive(self, messages_max: int, bytes_max: int) -> list[Arrival]:
        """Messages that have arrived, without waiting: about so many, in turns between the peers."""

    @abstractmethod
    def flush(self) -> None:
        """Write the outboxes, without waiting."""

    @abstractmethod
    def admit(self, peer: Peer, descriptors_max: int = 0) -> None:
        """The peer is known from now on. Of the descriptors that it passes, so many are kept until they are
        taken."""

    def pause(self, peer: Peer) -> None:  # noqa: B027  # not every carrier can
        """Read no more from this peer until `resume`, where the carrier can choose."""

    def resume(self, peer: Peer) -> None:  # noqa: B027
        """Read from it again."""

    @abstractmethod
    def dismiss_strangers(self, now_ns: int, within_ns: int, strangers_max: int) -> int:
        """Close strangers that were first seen here `within_ns` ago or earlier, and the oldest of more than
        `strangers_max`. How many were closed."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection, and listen no more. Idempotent."""


class Connection(ABC):
    """A connection that was made here, to a broker that is there or will be. For one thread at a time.
    `lends`: descriptors can go along with its messages, either way. `sends_beside`: while its thread waits
    for what is `watched`, another one may `send`."""

    lends = False
    sends_beside = False

    @property
    @abstractmethod
    def watched(self) -> tuple[int, ...]:
        """Descriptors that become readable when `receive` may have something; () until there is one. They
        tell it once: receive until nothing comes."""

    @property
    @abstractmethod
    def unsent(self) -> bool:
        """Whether something waits for the other side to read."""

    @property
    def unread(self) -> bool:
        """Whether anything has come of which `watched` does not tell: libzmq's descriptors tell of a message
        only after a look that found none, and a send may swallow it. To be asked before a wait for them."""
        return False

    @property
    def undelivered(self) -> bool:
        """Whether it is certain that the last message never reached the other side: it was gone by then."""
        return False

    @property
    @abstractmethod
    def blocked_on(self) -> int | None:
        """The descriptor to watch for writing, and then to call `flush`; None: nothing is unsent, or
        `watched` tells of room as well."""

    @abstractmethod
    def send(self, parts: Parts, along: Sequence[Descriptor] = (), along_bytes: int = 0) -> None:
        """Send without waiting. `along`: as a Peer's. Raises Full. A connection that has ended says so in
        `receive`."""

    def take_descriptor(self) -> Descriptor | None:
        """The descriptor that came along next, behind the last message or with it; None: none came."""
        return None

    @abstractmethod
    def flush(self) -> None:
        """Write the outbox, as far as that goes without waiting. Messages that were sent before the handshake
        go with a later `flush` or `receive`."""

    @abstractmethod
    def receive(self, timeout_ms: int) -> list[Part] | None:
        """The next message; None when none came for `timeout_ms`, or for as long again after a piece of one.
        Writes the outbox meanwhile. Raises Ended behind the last message."""

    @abstractmethod
    def close(self) -> None:
        """Give the outbox a last chance, without waiting, and end the connection. Idempotent."""


class Carrier(ABC):
    """One way to carry messages, and the common ground of its sockets."""

    @abstractmethod
    def listen(self, address: str, watch: Watch, bounds: Bounds) -> Listener:
        """Raises EndpointInUse."""

    @abstractmethod
    def connect(
        self, address: str, bounds: Bounds, descriptor: int | None = None, descriptors_max: int = 0
    ) -> Connection:
        """Begin to connect. `descriptor` goes along with the first message, where the carrier can; it stays
        the caller's. `descriptors_max`: of those that come along, so many are kept until they are taken.
        Raises Overloaded when this process has no descriptors left."""

    @abstractmethod
    def close(self) -> None:
        """Every listener and connection has been closed."""


class Source(Protocol):
    """Told by a Watch."""

    def ready(self, readable: bool, writable: bool) -> None:
        """Its descriptor is ready."""


def is_own(endpoint: Endpoint) -> bool:
    """Whether this endpoint's messages are carried by stream.py."""
    return endpoint.is_ipc and hasattr(socket, "AF_UNIX")


def carrier(endpoint: Endpoint, keys: KeyFolder | None = None, *, serves: bool = False) -> Carrier:
    """The carrier for an endpoint's addresses. `serves`: it listens, and `keys` list the admitted clients."""
    if is_own(endpoint):
        from .stream import Streams

        return Streams()
    from .libzmq import Sockets

    return Sockets(endpoint, keys, serves)
