"""How many descriptors this process may hold, and which of them are kept free.

libzmq ends the whole process when it can't accept a connection over ipc for want of a descriptor
(an assertion in its ipc listener), so the broker stays away from the limit: a client whose connection
or arena has one of the last numbers is refused, and connections that never greet are closed.
"""

from __future__ import annotations

import socket
import sys

RESERVE_FRACTION = 8  # one in so many descriptors is kept for what comes and goes


def raise_limit() -> int:
    """Raise this process's limit on descriptors to the most that it may have, and return the first
    number that no client's descriptor may have; sys.maxsize where there is no limit to speak of."""
    try:
        import resource
    except ImportError:  # Windows: handles, by the million
        return sys.maxsize
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS refuses more than its kern.maxfilesperproc
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return soft - soft // RESERVE_FRACTION


def hang_up(fd: int) -> None:
    """End the connection on a descriptor that another thread owns: it sees the end, and closes it.

    Should the number be another's by now, then that connection's peer connects again.
    """
    try:
        borrowed = socket.socket(fileno=fd)
    except OSError:
        return  # closed since, or no socket any more
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
    finally:
        borrowed.detach()
