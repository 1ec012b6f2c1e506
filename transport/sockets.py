"""Common ground of our ZeroMQ sockets: options by endpoint, and quick questions.

The questions use plain integers: pyzmq's enums cost a quarter of a microsecond at every use, and
these are asked for every message.
"""

from __future__ import annotations

import os

import zmq

from .endpoints import Endpoint
from .errors import no_descriptors

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
    opened = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401  # what is there is closed
    except OSError as error:
        raise no_descriptors(error) from error
    finally:
        for fd in opened:
            os.close(fd)


def readable(socket: Socket) -> bool:
    """Whether a message can be received without waiting."""
    return bool(socket.getsockopt(_EVENTS) & POLLIN)  # type: ignore[operator]


def has_more(socket: Socket) -> bool:
    """Whether the message that is being received has another part."""
    return bool(socket.getsockopt(_RCVMORE))
