"""`python -m batchyard.tests.fuzz.attack URL SEED SECONDS`: a process of strangers, against a broker.

Some speak ZeroMQ and then nonsense, some speak ZMTP by hand and break off, some speak neither. None
reads more than it must. Prints what it did, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

import zmq
from batchyard.transport import codec, segments
from batchyard.transport import messages as m
from batchyard.transport.endpoints import Endpoint

from .mutations import Mutator
from .targets import golden

PATIENCE_MS = 200
FLOOD = 2_000
PARTS = 5_000  # above the 4,096 that a message may have
PAYLOAD_BYTES = 5 << 20  # above the 4 MiB that a payload may have
HELD_BYTES = 8 << 20  # of a message that never ends
SIDES = {"clients": "client_to_broker", "workers": "worker_to_broker", "admin": "admin_to_broker"}
# ZMTP 3.1, mechanism NULL: the greeting, and READY with the kind of socket.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
READY = b"\x04" + bytes([len(_READY)]) + _READY


class Strangers:
    """One assault after another, each on sockets of its own."""

    def __init__(self, url: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._endpoint = Endpoint.parse(url)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._mutators = {side: Mutator(golden(direction), self.rng) for side, direction in SIDES.items()}
        self._segment = segments.create(1 << 16)
        self._assaults: list[Callable[[str], int]] = [
            *(self.nonsense, self.greeted_nonsense, self.parts, self.payload, self.flood),
            *(self.no_zmtp, self.broken_greeting, self.broken_frames, self.half_a_message, self.many),
        ]

    def attack(self) -> None:
        """One assault, on a side by chance; the clients' most often."""
        side = self.rng.choice(("clients", "clients", *SIDES))
        assault = self.rng.choice(self._assaults)
        try:
            self.done[assault.__name__.replace("_", " ")] += assault(side)
        except OSError:
            pass  # refused while it was writing: what it deserves

    # ---- with ZeroMQ: each returns how many inputs it sent ------------------------------------

    def _dealer(self, side: str) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, PATIENCE_MS)
        dealer.setsockopt(zmq.SNDTIMEO, PATIENCE_MS)
        if self.rng.random() < 0.05:
            dealer.setsockopt(zmq.ROUTING_ID, bytes([self.rng.randrange(1, 256)]) * self.rng.randrange(1, 9))
        dealer.connect(getattr(self._endpoint, side))
        return dealer

    def _say(self, dealer: zmq.Socket[bytes], side: str, messages: int) -> int:
        """Bent messages, now and then with frames. Returns how many were taken."""
        for sent in range(messages):
            frames = [self.rng.randbytes(16)] * self.rng.choice((0, 0, 0, 1, 3))
            try:
                dealer.send_multipart([self._mutators[side](), *frames])
            except zmq.Again:
                return sent  # the broker reads at its own pace
        return messages

    def nonsense(self, side: str) -> int:
        with self._dealer(side) as dealer:
            return self._say(dealer, side, 50)

    def greeted_nonsense(self, side: str) -> int:
        with self._dealer("clients") as dealer:
            handle = self._segment.handle if self.rng.random() < 0.7 else None
            dealer.send(codec.encode([m.Hello(handle, "stranger")]))
            dealer.poll(PATIENCE_MS)
            return 1 + self._say(dealer, "clients", 200)

    def parts(self, side: str) -> int:
        with self._dealer(side) as dealer:
            dealer.send_multipart([self._mutators[side](), *[b""] * PARTS])
        return 1

    def payload(self, side: str) -> int:
        with self._dealer(side) as dealer:
            dealer.send(self._mutators[side]().ljust(PAYLOAD_BYTES, b"\xc0"))
        return 1

    def flood(self, side: str) -> int:
        with self._dealer(side) as dealer:
            return self._say(dealer, side, FLOOD)

    # ---- by hand ------------------------------------------------------------------------------

    def _raw(self, side: str, *pieces: bytes) -> socket.socket:
        folder = self._endpoint.folder
        assert folder is not None
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(PATIENCE_MS / 1000)
        raw.connect(str(folder / side))
        for piece in pieces:
            raw.sendall(piece)
        return raw

    def no_zmtp(self, side: str) -> int:
        said = self.rng.choice((b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", self.rng.randbytes(2000)))
        self._raw(side, said).close()
        return 1

    def broken_greeting(self, side: str) -> int:
        bent = bytearray(GREETING + READY)
        for _ in range(self.rng.randrange(4)):
            bent[self.rng.randrange(len(bent))] = self.rng.randrange(256)
        self._raw(side, bytes(bent[: self.rng.randrange(len(bent) + 1)])).close()
        return 1

    def broken_frames(self, side: str) -> int:
        """Frames of ZMTP with flags, lengths, and commands that are none."""
        with self._raw(side, GREETING, READY) as raw:
            for _ in range(20):
                body = self._mutators[side]()
                head = self.rng.choice((
                    bytes([self.rng.randrange(256), len(body) & 0xFF]),
                    b"\x02" + self.rng.choice((len(body), 1 << 28, (1 << 28) + 1, 1 << 63)).to_bytes(8, "big"),
                    b"\x04" + bytes([len(body) & 0xFF]),
                ))  # fmt: skip
                raw.sendall(head + body)
        return 20

    def half_a_message(self, side: str) -> int:
        """Parts without a last one, and the connection ends in the middle of one."""
        with self._raw(side, GREETING, READY) as raw:
            piece = b"\x03" + (1 << 16).to_bytes(8, "big") + bytes(1 << 16)
            for _ in range(self.rng.randrange(HELD_BYTES >> 16)):
                raw.sendall(piece)
            raw.sendall(piece[: self.rng.randrange(len(piece))])
        return 1

    def many(self, side: str) -> int:
        """Connections that say nothing."""
        raws = [self._raw(side) for _ in range(100)]
        for raw in raws:
            raw.close()
        return len(raws)

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._segment.close()


def main(arguments: list[str]) -> int:
    url, seed, seconds = arguments
    parent = os.getppid()
    strangers = Strangers(url, int(seed))
    give_up_s = time.monotonic() + float(seconds)
    while time.monotonic() < give_up_s and os.getppid() == parent:
        strangers.attack()
    strangers.close()
    print(json.dumps(strangers.done))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
