"""Processes of this campaign as Linux shows them in /proc, and the one place that sends them signals.

Only descendants of this process are ever signalled: a pid that has become somebody else's is refused.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from batchyard.tools.processes import PROC, descendants

ARENA = "memfd:batchyard"  # as an arena is called in /proc
MAPPED = re.compile(rf"^([0-9a-f]+)-([0-9a-f]+) .*{ARENA}", re.MULTILINE)
REST_LOOKS = 20
REST_LOOK_S = 0.01
LOOK_S = 0.001  # how often a condition is looked at: the resolution of what is timed by it


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that this one has started, directly or not. Raises ProcessLookupError else."""
    if pid not in descendants(os.getpid()):
        raise ProcessLookupError(f"process {pid} is not one of this campaign's")
    os.kill(pid, number)


def kill(pid: int) -> int:
    """SIGKILL, and when it was sent (time.monotonic_ns)."""
    send(pid, signal.SIGKILL)
    return time.monotonic_ns()


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process is gone."""
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descriptors(pid: int) -> int:
    """Open file descriptors of a process at rest: the fewest of several looks, since a question to the
    admin socket that has just been answered is a descriptor for a moment more. 0 when it is gone."""
    fewest = _descriptors(pid)
    for _ in range(REST_LOOKS):
        time.sleep(REST_LOOK_S)
        fewest = min(fewest, _descriptors(pid))
    return fewest


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(PROC / str(pid) / "fd"))
    except OSError:
        return 0


def arena_descriptors(pid: int) -> int:
    """Descriptors by which a process holds clients' arenas; 0 when it is gone."""
    count = 0
    with suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with suppress(OSError):  # closed meanwhile
                count += ARENA in os.readlink(entry.path)
    return count


def arena_bytes_mapped(pid: int) -> int:
    """Bytes of clients' arenas that a process has mapped; 0 when it is gone."""
    try:
        maps = (PROC / str(pid) / "maps").read_text()
    except OSError:
        return 0
    return sum(int(stop, 16) - int(start, 16) for start, stop in MAPPED.findall(maps))


def segments_named() -> frozenset[str]:
    """Names of our segments in /dev/shm. On Linux, arenas are nameless: there should be none of ours."""
    return frozenset(path.name for path in Path("/dev/shm").glob("batchyard-*"))


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> int:
    """Wait for `condition`, and return when it was first seen true (time.monotonic_ns). Raises
    TimeoutError, which ends the campaign: what never comes back is no figure."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(LOOK_S)
    return time.monotonic_ns()
