"""The lifeline: a child process that ends when its starter dies, however it dies.

Owns one idea: the starter keeps the write end of the child's stdin open and never writes. When
the starter is gone, even by SIGKILL, the kernel closes that end and the child reads EOF. Portable,
where a parent-death signal is Linux's alone (and tied to the starting thread). No imports of ours.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

EXIT_CODE = 3  # "my starter died": not to be taken for a crash in a supervisor's log


def hold(on_end: Callable[[], None] | None = None, fd: int = 0) -> threading.Thread:
    """Watch `fd` (stdin) from a daemon thread; at EOF call `on_end`, by default `os._exit(3)`.

    Only for a process that was given a pipe as stdin (`processes.ChildProcess` does): under
    /dev/null the end is at once. A process that the starter forks without exec keeps the write
    end open too, and delays the end until it is gone. `on_end` runs on the watching thread.
    """
    thread = threading.Thread(target=_watch, args=(fd, on_end), name="lifeline", daemon=True)
    thread.start()
    return thread


def _watch(fd: int, on_end: Callable[[], None] | None) -> None:
    try:
        while os.read(fd, 4096):
            pass  # nothing should be written here; it is dropped
    except OSError:
        pass  # a closed or broken stdin is an end as well
    if on_end is None:
        os._exit(EXIT_CODE)  # no clean-up: it could wait for the very peer that died
    on_end()
