"""What every ZeroMQ socket of ours has in common: options by endpoint, and quick questions.

The questions use plain integers: pyzmq's enums cost a quarter of a microsecond at every use, and
these are asked for every message.
"""

from __future__ import annotations

import zmq

from .endpoints import Endpoint

HEARTBEAT_MS = 2_000  # over tcp, where a dead machine closes nothing; ipc needs none

NOBLOCK = int(zmq.NOBLOCK)
MORE_NOBLOCK = int(zmq.SNDMORE | zmq.NOBLOCK)
POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)
_RCVMORE = int(zmq.RCVMORE)

Socket = zmq.Socket[bytes]


def configure(socket: Socket, endpoint: Endpoint) -> None:
    """Options that follow from the endpoint. Before bind or connect."""
    socket.setsockopt(zmq.LINGER, 0)
    if not endpoint.is_ipc:
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    if endpoint.is_ipv6:
        socket.setsockopt(zmq.IPV6, 1)


def readable(socket: Socket) -> bool:
    """Whether a message can be received without waiting."""
    return bool(socket.getsockopt(_EVENTS) & POLLIN)  # type: ignore[operator]


def has_more(socket: Socket) -> bool:
    """Whether the message that is being received has another part."""
    return bool(socket.getsockopt(_RCVMORE))
