"""Loads models on a thread of its own, so that a worker goes on serving meanwhile.

Making a session and running it releases the interpreter, so what is served beside it is slowed by little
more than the cores that both want.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..transport import messages as m
from .canary import CannotServe, compare, said
from .device import DeviceLost
from .model import ServedModel

log = logging.getLogger("batchyard.gpuworker")

# The model and its canary's difference; or why not; or the device is lost, and the process must end.
Outcome = tuple[ServedModel, float | None] | str | DeviceLost


class Loader:
    """`make(load)` makes the model that a Load names, or raises."""

    def __init__(self, make: Callable[[m.Load], ServedModel]) -> None:
        self._make = make
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._jobs: SimpleQueue[tuple[Any, m.Load, ServedModel | None]] = SimpleQueue()
        self._finished: deque[tuple[Any, Outcome]] = deque()
        self.under_way = 0
        threading.Thread(target=self._run, name="batchyard-loader", daemon=True).start()

    def fileno(self) -> int:
        """Readable when something is finished."""
        return self._wake_read.fileno()

    def start(self, key: Any, load: m.Load, beside: ServedModel | None) -> None:
        """Load it, and compare its answers with those of `beside`; `finished` has it under `key`."""
        self.under_way += 1
        self._jobs.put((key, load, beside))

    def finished(self) -> list[tuple[Any, Outcome]]:
        """What has come to its end since the last call."""
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass
        found = []
        while self._finished:
            found.append(self._finished.popleft())
        self.under_way -= len(found)
        return found

    def _run(self) -> None:
        first = True
        while True:
            self._do(*self._jobs.get())
            if first:  # what lives now lives long; later a collection would be a pause in some request
                gc.collect()
                first = False
            gc.freeze()
            self._wake_write.send(b"\0")

    def _do(self, key: Any, load: m.Load, beside: ServedModel | None) -> None:
        """Apart, so that while the thread waits for its next job it holds no model of the last one."""
        self._finished.append((key, load_beside(self._make, load, beside)))


def load_beside(make: Callable[[m.Load], ServedModel], load: m.Load, beside: ServedModel | None) -> Outcome:
    """Make a model and compare it with the one that serves; whatever is wrong with it is told."""
    try:
        model = make(load)
        return model, compare(beside, model, load.tolerance) if beside is not None else None
    except DeviceLost as lost:  # this is a thread: whoever asks for the outcome ends the process
        return lost
    except BaseException as error:  # one model that can't be loaded must not end the others, nor the thread
        if not isinstance(error, OSError | CannotServe):
            log.exception("loading %s failed", load.model)
        return said(error)[:4000]
