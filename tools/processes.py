"""The CPU time, wake-ups, memory and children of processes, from /proc (Linux).

Owns reading /proc/<pid> and walking from a process to its children. The clock tick in `stat` is 10 ms, so
over 10 s a process is known to 0.1 % of a core; `schedstat` counts nanoseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process so far, all its threads together, and its memory now."""

    cpu_ns: int
    wake_ups: int  # times that a thread went to sleep by itself, and so was woken
    threads: int
    own_bytes: int  # its share of memory: pages that n processes have count for one n-th (PSS)


def usage(pid: int) -> Usage:
    """Raises OSError for a process that is gone."""
    cpu_ns = wake_ups = 0
    threads = [entry for entry in (PROC / str(pid) / "task").iterdir() if entry.is_dir()]
    for thread in threads:
        cpu_ns += int((thread / "schedstat").read_text().split()[0])
        wake_ups += _number((thread / "status").read_text(), "voluntary_ctxt_switches")
    own_kib = _number((PROC / str(pid) / "smaps_rollup").read_text(), "Pss")
    return Usage(cpu_ns, wake_ups, len(threads), own_kib * 1024)


def _number(text: str, name: str) -> int:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])
