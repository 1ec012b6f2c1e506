"""How much memory this process may use: the machine's, or its container's."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # version 2; in a container, its own
FALLBACK_BYTES = 1 << 30  # where nothing says how much there is


def container_bytes() -> int | None:
    """The container's limit; None where there is none."""
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        return int((CGROUP / "memory.max").read_text())
    return None


def memory_bytes() -> int:
    """The machine's memory, or the container's limit if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        total = FALLBACK_BYTES
    return min(total, container_bytes() or total)
