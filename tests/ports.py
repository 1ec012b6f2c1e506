"""Ports for servers of tests and campaigns."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

# Below those that Linux gives to connections: else another test's connection may have the port before the server
# listens, and after thousands of them hardly any ports in a row are free for a minute.
PORTS = range(10_000, 32_000)
_draws = random.SystemRandom()  # a test may have seeded the other one, and so may the run beside this one


def free_port(count: int = 1, host: str = "127.0.0.1") -> int:
    """The first of so many ports in a row at which a server can listen."""
    for _ in range(1000):
        first = _draws.choice(PORTS)
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            return first
    raise AssertionError(f"no {count} free ports in a row")
