"""Child processes: started with a lifeline, ended by handle, restarted with growing patience.

Owns `ChildProcess` (one child of ours, never anybody else's process) and `Backoff` (pure numbers;
the caller's loop reads the clock and waits). Knows nothing of brokers or workers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

DELAY_FIRST_S = 0.1
DELAY_MAX_S = 5.0
LIVED_LONG_ENOUGH_S = 10.0


class Backoff:
    """How long to wait before a dead child is started again: 0.1 s, doubling up to 5 s.

    A child that lived 10 s starts the row anew.
    """

    def __init__(
        self,
        first_s: float = DELAY_FIRST_S,
        max_s: float = DELAY_MAX_S,
        reset_after_s: float = LIVED_LONG_ENOUGH_S,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._reset_after_s = reset_after_s
        self._delay_s = 0.0
        self._started_s: float | None = None

    def next_delay_s(self, now_s: float) -> float:
        """The child was seen dead at `now_s`: seconds to wait. It is taken as started thereafter."""
        lived_s = 0.0 if self._started_s is None else now_s - self._started_s
        if self._delay_s == 0.0 or lived_s >= self._reset_after_s:
            self._delay_s = self._first_s
        else:
            self._delay_s = min(self._delay_s * 2.0, self._max_s)
        self._started_s = now_s + self._delay_s
        return self._delay_s


class ChildProcess:
    """One child process whose stdin is its lifeline (`lifeline.hold()` in the child).

    argv: the command line, as a list; no shell.
    env: the child's whole environment; None: ours.
    stdout, stderr: as for `subprocess.Popen`; None: ours.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        name: str = "child",
        *,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.name = name
        self._env = env
        self._stdout = stdout
        self._stderr = stderr
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child. OSError when the system cannot; starting a living child is our own bug."""
        assert self.poll() is not None or self._process is None, f"{self.name} is running already"
        self._close_pipes()
        # A session of its own: Ctrl-C in a terminal reaches the starter alone, which then ends its
        # children in order. If it cannot, the lifeline does.
        on_windows = sys.platform == "win32"
        self._process = subprocess.Popen(
            self.argv,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=not on_windows,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if on_windows else 0,
        )

    @property
    def pid(self) -> int | None:
        """The child's process id; None before the first start."""
        return self._process.pid if self._process is not None else None

    @property
    def stdout(self) -> IO[bytes] | None:
        """The read end of the child's output, when it was asked for with PIPE."""
        return self._process.stdout if self._process is not None else None

    def poll(self) -> int | None:
        """The exit code (minus the signal's number when killed); None while it lives or never did."""
        return self._process.poll() if self._process is not None else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; the exit code, or None when `timeout_s` passed first."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_end(self) -> None:
        """SIGTERM, and no waiting: `terminate` is still to come."""
        if self._process is not None and self.poll() is None:
            self._process.terminate()

    def terminate(self, grace_s: float = 2.0) -> int | None:
        """Ask the child to end (SIGTERM), kill it after `grace_s`, and reap it; its exit code."""
        if self._process is None:
            return None
        if self.poll() is None:
            self._process.terminate()
            if self.wait(grace_s) is None:
                self._process.kill()
                self._process.wait()
        self._close_pipes()
        return self._process.returncode

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
