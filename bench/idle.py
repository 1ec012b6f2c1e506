"""What a yard costs while nobody asks for anything: CPU time of its processes, from /proc (Linux).

Owns reading /proc/<pid>/stat and walking from a process to its children. The clock tick there is
10 ms, so over 10 s a process is known to 0.1 % of a core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")


def is_supported() -> bool:
    return (PROC / "self" / "stat").exists()


def _fields(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on (state, ppid, ...); None when it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets


def cpu_s(pid: int) -> float:
    """User and system time that the process has used, in seconds; 0.0 when it is gone."""
    fields = _fields(pid)
    if fields is None:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: fields 14, 15


def descendants(pid: int) -> list[int]:
    """The live children of `pid`, their children, and so on, without `pid` itself."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def idle_share(roots: Mapping[str, int], duration_s: float) -> dict[str, float]:
    """The share of one core that each named process and its descendants use in `duration_s` of nothing."""
    pids = {name: [pid, *descendants(pid)] for name, pid in roots.items()}
    before_s = {name: sum(map(cpu_s, group)) for name, group in pids.items()}
    started_s = time.perf_counter()
    time.sleep(duration_s)
    elapsed_s = time.perf_counter() - started_s
    return {name: (sum(map(cpu_s, group)) - before_s[name]) / elapsed_s for name, group in pids.items()}
