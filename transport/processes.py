"""Child processes: started with a lifeline, ended by handle, restarted with growing patience.

Owns `ChildProcess` (one child of ours, never anybody else's process) and `Backoff` (pure numbers;
the caller's loop reads the clock and waits). Knows nothing of brokers or workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import IO

DELAY_FIRST_S = 0.1
DELAY_MAX_S = 5.0
LIVED_LONG_ENOUGH_S = 10.0
KILLED_S = 1.0  # within which a killed child is gone
# Without it onnxruntime 1.32 looks up a host of its maker's and writes a device id below HOME.
NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def module(name: str) -> list[str]:
    """The command that runs a module of ours. -P: a file called queue.py in the current folder is not
    imported in the place of Python's."""
    return [sys.executable, "-P", "-m", name]


def open_standard_streams() -> None:
    """Open those of this process's standard streams that it was started without (`2>&-`). Otherwise the next
    file or socket gets the number, and what some library writes to stderr goes there."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < fd:
                pass  # a lower one was closed, too
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115  # for as long as the process


def _own(fd: int) -> int | None:
    """For a child: our own stream, or, where that is closed, none."""
    try:
        os.fstat(fd)
    except OSError:
        return subprocess.DEVNULL
    return None


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


_started: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def reap_orphans() -> None:
    """Process 1 of a container inherits every process whose parent was killed, and has to wait for those that
    have ended, or they stay in the table for ever. Elsewhere this does nothing."""
    if os.getpid() != 1 or not os.path.isdir("/proc/1"):
        return
    own = {process.pid for process in _started if process.returncode is None}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) in own:
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state == b"Z" and parent == b"1":
                os.waitpid(int(entry), os.WNOHANG)
        except OSError:  # it has gone meanwhile
            continue


class ChildProcess:
    """One child process whose stdin is its lifeline (`lifeline.hold()` in the child).

    argv: the command line, as a list; no shell.
    env: the child's whole environment; None: ours. NO_TELEMETRY is set in either, unless it is there.
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
        self._sentinel: int | None = None

    def start(self) -> None:
        """Start the child. OSError when the system cannot; starting a living child is our own bug."""
        assert self.poll() is not None or self._process is None, f"{self.name} is running already"
        self._close_pipes()
        # A session of its own: Ctrl-C in a terminal reaches the starter alone, which then ends its
        # children in order. If it cannot, the lifeline does.
        on_windows = sys.platform == "win32"
        self._process = subprocess.Popen(
            self.argv,
            env={NO_TELEMETRY: "1", **(os.environ if self._env is None else self._env)},
            stdin=subprocess.PIPE,
            stdout=self._stdout if self._stdout is not None else _own(1),
            stderr=self._stderr if self._stderr is not None else _own(2),
            start_new_session=not on_windows,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if on_windows else 0,
        )
        _started.add(self._process)
        if hasattr(os, "pidfd_open"):
            try:
                self._sentinel = os.pidfd_open(self._process.pid)
            except OSError:  # an older kernel, or no descriptor is left
                self._sentinel = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None before the first start."""
        return self._process.pid if self._process is not None else None

    @property
    def sentinel(self) -> int | None:
        """A descriptor that can be read once the child has ended; None where the system has no such thing."""
        return self._sentinel

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
        """Ask the child to end (SIGTERM), kill it after `grace_s`, and reap it; its exit code, None when even
        a kill has not ended it within a second."""
        if self._process is None:
            return None
        if self.poll() is None:
            self._process.terminate()
            if self.wait(grace_s) is None:
                self._process.kill()
                self.wait(KILLED_S)  # a driver may keep it for longer: our caller does not wait for that
        self._close_pipes()
        return self._process.returncode

    def _close_pipes(self) -> None:
        if self._sentinel is not None:
            os.close(self._sentinel)
            self._sentinel = None
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
