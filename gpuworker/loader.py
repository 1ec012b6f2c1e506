"""Loads models on its own thread, so that the worker goes on serving.

onnxruntime releases the interpreter while it makes or runs a session, so batches are slowed by little more
than the cores that both use.
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

from ..evidence.words import error_text
from ..transport import messages as m
from .backends.onnx import ServedModel
from .comparison import compare
from .device import DeviceLost
from .faults import CannotServe

log = logging.getLogger("batchyard.gpuworker")

# The model and its canary's difference; or the reason of a failure; or a lost device: the process must exit.
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
        """Readable when a load has ended."""
        return self._wake_read.fileno()

    def start(self, key: Any, load: m.Load, baseline: ServedModel | None) -> None:
        """Load a model and compare its answers with the baseline's; `finished` returns it under `key`."""
        self.under_way += 1
        self._jobs.put((key, load, baseline))

    def finished(self) -> list[tuple[Any, Outcome]]:
        """The loads that have ended since the last call."""
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass
        outcomes = []
        while self._finished:
            outcomes.append(self._finished.popleft())
        self.under_way -= len(outcomes)
        return outcomes

    def _run(self) -> None:
        first = True
        while True:
            self._do(*self._jobs.get())
            if first:  # these objects live long; a later collection would pause a request
                gc.collect()
                first = False
            gc.freeze()
            self._wake_write.send(b"\0")

    def _do(self, key: Any, load: m.Load, baseline: ServedModel | None) -> None:
        """A method of its own, so that the waiting thread holds no model of its last job."""
        self._finished.append((key, load_and_compare(self._make, load, baseline)))


def load_and_compare(
    make: Callable[[m.Load], ServedModel], load: m.Load, baseline: ServedModel | None
) -> Outcome:
    """Make a model and compare it with the served one. Every failure becomes an outcome."""
    try:
        model = make(load)
        return model, compare(baseline, model, load.tolerance) if baseline is not None else None
    except DeviceLost as lost:  # this is a thread: the caller of `finished` ends the process
        return lost
    except BaseException as error:  # a bad model must end neither the thread nor the other loads
        if not isinstance(error, OSError | CannotServe):
            log.exception("loading %s failed", load.model)
        return error_text(error)[:4000]
