"""Common ground of our ZeroMQ sockets: options by endpoint, and quick questions.

The questions use plain integers: pyzmq's enums cost a quarter of a microsecond at every use, and
these are asked for every message.
"""

from __future__ import annotations

import os
from itertools import repeat

import zmq

from .endpoints import Endpoint
from .errors import no_descriptors
from .wire import owned

HEARTBEAT_MS = 2_000  # over tcp, where a dead machine closes nothing; ipc needs none
CONTEXT_DESCRIPTORS = 16  # of a context with its threads, one socket, and its monitor: 12 on Linux
SOCKET_DESCRIPTORS = 6  # of one more socket with its connection and its monitor: 4 on Linux

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


def require_descriptors(count: int) -> None:
    """Raise Overloaded unless this process may open `count` descriptors more.

    libzmq ends the process, by an assertion, when it lacks one for a context: so it is asked for none
    that may not be there. Another thread may be faster; then it is as it was without this question.
    """
    try:
        # In one piece, so that a signal's exception leaves none open: see transport/wire/__init__.py.
        list(map(owned, map(os.open, repeat(os.devnull, count), repeat(os.O_RDONLY | os.O_CLOEXEC))))
    except OSError as error:
        raise no_descriptors(error) from error


def readable(socket: Socket) -> bool:
    """Whether a message can be received without waiting."""
    return bool(socket.getsockopt(_EVENTS) & POLLIN)  # type: ignore[operator]


def has_more(socket: Socket) -> bool:
    """Whether the message that is being received has another part."""
    return bool(socket.getsockopt(_RCVMORE))
