"""`python -m batchyard.gpuworker.child`: the process that owns the sessions and runs the batches.

It has one connection, on one thread, and loads models on another. It registers and then handles the broker's
messages in order (worker.py). When the broker goes away, it registers with the next one and keeps its models.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from ..transport import codec, lifeline, secret
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError
from ..transport.flag import Flag
from ..transport.keys import KeyFolder
from ..transport.lent import parted
from ..transport.wire import Bounds, Connection, Ended, Full, carrier
from . import providers
from .backends import make
from .backends.onnx import ServedModel
from .device import EXIT_CODE, DeviceLost
from .loader import Loader
from .memory import Memory
from .providers import TOLERANCE
from .watchdog import Watchdog
from .worker import Worker

LOOK_AROUND_MS = 500  # while no message comes, a broker's death is seen this late
GOODBYE_NS = 1_000_000_000  # for the broker to read why the process exits; there may be no broker
RECONNECT_S = 0.05
GREET_AGAIN_S = 0.5  # after a broker did not know our secret: a new one's may not have been written yet
FULL_WAIT_S = 10.0  # for a broker that does not read
BOUNDS = Bounds(frame_bytes=m.INLINE_BYTES_MAX, parts=4096)

log = logging.getLogger("batchyard.gpuworker")


class _Line:
    """The connection to the current broker, or to the next one."""

    def __init__(self, endpoint: Endpoint, keys: KeyFolder | None) -> None:
        self._endpoint = endpoint
        self._carrier = carrier(endpoint, keys)
        self._connection: Connection | None = None
        self.connect()

    def connect(self) -> None:
        """Connect anew. Unsent messages are dropped: their broker is gone."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._carrier.connect(self._endpoint.workers, BOUNDS)

    def send(self, messages: list[Any], frames: Sequence[Any] = ()) -> None:
        """Send, waiting for room for a while: a busy broker may still be reading the last large answer, and
        a worker that is cut off meanwhile would be killed."""
        assert self._connection is not None
        sent, _, along, along_bytes = parted(frames) if frames else ((), [], [], 0)
        message = [codec.encode(messages), *sent]
        give_up_s = time.monotonic() + FULL_WAIT_S
        while True:
            try:
                if along:
                    self._connection.send(message, along, along_bytes)
                else:
                    self._connection.send(message)
                return
            except Full as full:
                if time.monotonic() >= give_up_s:
                    log.error("the broker does not read: %s", full)
                    self.connect()  # its Register is refused as unknown, and then comes again
                    return
            writes = [fd for fd in (self._connection.blocked_on,) if fd is not None]
            select.select([], writes, [], RECONNECT_S)
            self._connection.flush()

    @property
    def lends(self) -> bool:
        """Whether a large frame can be lent."""
        return self._connection is not None and self._connection.lends

    def receive(self, timeout_ms: int) -> list[Any] | None:
        assert self._connection is not None
        return self._connection.receive(timeout_ms)

    def wait(self, other: int, timeout_ms: int) -> None:
        """Wait until there may be something to receive, or `other` is readable."""
        assert self._connection is not None
        fds = [other, *self._connection.watched]
        writes = [fd for fd in (self._connection.blocked_on,) if fd is not None]
        if len(fds) == 1:
            timeout_ms = int(RECONNECT_S * 1e3)
        select.select(fds, writes, [], timeout_ms / 1e3)


def serve(
    endpoint: Endpoint,
    keys: KeyFolder | None,
    make: Callable[[m.Load], ServedModel],
    provider: str,
    fallback_reason: str,
    leave: Flag,
    shared: str = "",
) -> None:
    """Connect and handle messages until `leave`, then finish the batches that were lent by then; `make` loads
    a model. `shared`: the yard's secret, where the starter handed it over. Raises DeviceLost. In both cases
    the broker has been told that this process exits."""
    line = _Line(endpoint, keys)
    loader = Loader(make)

    def secret_now() -> str:
        return shared or secret.read(endpoint)

    memory = Memory(line.lends)
    worker = Worker(provider, os.getpid(), line.send, loader.start, memory, fallback_reason, secret_now)
    watchdog = Watchdog()
    worker.register()
    decode = codec.broker_to_worker.decode
    lost: list[Ended] = []  # how the last broker went, until it is logged

    def step() -> bool:
        """Wait for a message, for half a second at most, and handle it. False: none came."""
        try:
            if (
                loader.under_way
            ):  # otherwise there is only the connection to wait for, and a receive is quicker
                parts = line.receive(0)
                if parts is None:
                    line.wait(loader.fileno(), LOOK_AROUND_MS)
                for key, outcome in loader.finished():
                    worker.loaded(key, outcome)
                if parts is None:
                    parts = line.receive(0)
            else:
                parts = line.receive(LOOK_AROUND_MS)
        except Ended as ended:
            lost[:] = [ended]
            time.sleep(RECONNECT_S)
            line.connect()
            worker.register()
            return False
        if parts is None:
            if lost:  # a yard that stops would have ended this process by now
                log.warning("the broker is gone (%s); waiting for the next one", lost.pop())
            return False
        lost.clear()
        try:
            messages = decode(parts[0])
        except BatchyardError as error:
            log.error("the broker's message was refused: %s", error)
            return True
        while messages:
            for message in messages:
                if type(message) is m.LentBatch:
                    watchdog.start(message.lease_ns)
                elif type(message) is m.WorkerWelcome and endpoint.is_ipc:
                    watchdog.follow(message.pid)
                worker.handle(message)
                watchdog.stop()
            messages, worker.later = worker.later, []
        if worker.unauthorized:
            worker.unauthorized = False
            time.sleep(GREET_AGAIN_S)
            worker.register()
        return True

    def glance() -> list[Any]:
        """What has come while a stream runs. That the broker is gone, `step` sees after it."""
        try:
            parts = line.receive(0)
            return decode(parts[0]) if parts is not None else []
        except Ended:
            return []
        except BatchyardError as error:
            log.error("the broker's message was refused: %s", error)
            return []

    worker.glance = glance

    def say_goodbye(why: str) -> None:
        worker.leave(why)
        until_ns = time.monotonic_ns() + GOODBYE_NS
        while not worker.dismissed and time.monotonic_ns() < until_ns:
            step()

    try:
        while not leave.is_set():
            step()
    except DeviceLost as error:
        say_goodbye(f"its device is lost: {error}")
        raise
    worker.leave("it moves to a better provider", runs_on=True)
    while not worker.dismissed and step():
        pass


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m batchyard.gpuworker.child")
    parser.add_argument("--url", required=True)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--fallback-reason", default="", help="why it is on no better provider")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.WARNING if arguments.quiet else logging.INFO
    logging.basicConfig(level=level, format="worker: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # show the output of a Python model at once, even if
        sys.stdout.reconfigure(line_buffering=True)  # it is killed
    lifeline.hold()
    leave = Flag()
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: leave.set())
    try:
        keys = KeyFolder(arguments.keys) if arguments.keys is not None else None
        recipe = providers.recipe(arguments.provider, arguments.threads, arguments.device, arguments.whole)

        def load(wanted: m.Load) -> ServedModel:
            return make(wanted, recipe, arguments.tolerance)

        endpoint = Endpoint.parse(arguments.url)
        serve(endpoint, keys, load, arguments.provider, arguments.fallback_reason, leave, secret.take())
    except DeviceLost as error:
        log.error("the device is lost: %s", error)
        return EXIT_CODE
    except (BatchyardError, ValueError, OSError, zmq.ZMQError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # sockets and sessions need no clean-up, and a lost device may never return from its own
