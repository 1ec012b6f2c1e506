"""How many descriptors this process may hold, and which of them are kept free.

A client whose connection or arena has one of the last numbers is refused, and connections that never greet
are closed, so that workers, operators, and who is there already go on.
"""

from __future__ import annotations

import sys

RESERVE_FRACTION = 8  # one in so many descriptors is kept for short-lived uses


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
