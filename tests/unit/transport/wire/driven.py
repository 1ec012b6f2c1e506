"""A listener and a connection that a test drives, as the broker's loop and a client drive theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from batchyard.transport.wire import Bounds, Carrier, Ended, Full, Listener, Peer
from batchyard.transport.wire.watch import Watch

BOUNDS = Bounds(
    frame_bytes=64 << 20, parts=16, message_bytes=128 << 20, outbox_messages=200, outbox_bytes=64 << 20
)
WITHIN_S = 15.0


connections: list[Any] = []  # of the test that runs: they are driven in turns with the server


class Server:
    """A listener that is driven as the broker's loop drives its own, and remembers what has arrived."""

    def __init__(self, carrier: Carrier, address: str, bounds: Bounds = BOUNDS) -> None:
        self.watch = Watch()
        self.listener: Listener = carrier.listen(address, self.watch, bounds)
        self.arrived: list[tuple[Peer, list[bytes] | None]] = []
        self.on_message: Callable[[Peer, list[bytes]], None] = lambda peer, parts: None

    def turn(self, timeout_ms: int = 25) -> None:
        self.watch.wait(0 if self.listener.has_more else timeout_ms)
        for peer, parts in self.listener.receive(64, 1 << 20):
            copied = None if parts is None else [bytes(part) for part in parts]
            self.arrived.append((peer, copied))
            if copied is not None:
                self.on_message(peer, copied)
        self.listener.flush()
        for connection in connections:
            connection.flush()

    def until(self, is_over: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> None:
        give_up_s = time.monotonic() + WITHIN_S
        while time.monotonic() < give_up_s:
            if is_over():
                return
            self.turn()
            meanwhile()
        raise AssertionError(f"it does not come to that; {len(self.arrived)} things have arrived")

    @property
    def messages(self) -> list[list[bytes]]:
        return [parts for _, parts in self.arrived if parts is not None]

    def close(self) -> None:
        self.listener.close()
        self.watch.close()


def drain(connection: Any) -> list[list[bytes]]:
    """What a connection has received; ends with [] when the connection has ended."""
    found: list[list[bytes]] = []
    try:
        while (parts := connection.receive(0)) is not None:
            found.append([bytes(part) for part in parts])
    except Ended:
        found.append([])
    return found


def receive_often(connection: Any) -> list[bytes]:
    """The next message, or what ends the connection."""
    give_up_s = time.monotonic() + WITHIN_S
    while time.monotonic() < give_up_s:
        parts = connection.receive(25)
        if parts is not None:
            return [bytes(part) for part in parts]
    raise AssertionError("nothing comes")


def until_full(send: Callable[[], Any], flush: Callable[[], Any] = lambda: None) -> int:
    """How many sends were taken before Full."""
    for sent in range(200_000):
        try:
            send()
        except Full:
            return sent
        flush()
    raise AssertionError("there is room without end")
