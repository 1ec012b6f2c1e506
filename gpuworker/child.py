"""`python -m batchyard.gpuworker.child`: the process that owns the sessions and runs the batches.

One DEALER, on one thread; models are loaded on another. It registers, loads what it is told to, and
runs batches in the order in which they come. When the broker goes away it registers with the next one
and keeps its sessions; arenas belong to a broker, and are unmapped when the next one welcomes it.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from ..transport import codec, lifeline
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, Code
from ..transport.keys import KeyFolder
from ..transport.sockets import configure, readable
from . import providers
from .canary import said
from .device import EXIT_CODE, DeviceLost
from .functions import FunctionModel
from .loader import Loader, Outcome
from .memory import Memory
from .model import ServedModel
from .providers import TOLERANCE
from .runner import ItemRefused
from .watchdog import Watchdog

LOOK_AROUND_MS = 500  # how soon a broker's death is seen while nothing comes
GOODBYE_NS = 1_000_000_000  # for the broker to hear why the process ends; there may be none
LEAVING_CHARS_MAX = 1000

log = logging.getLogger("batchyard.gpuworker")


class _Loading:
    """A model on its way, and who asked for it: Loads of this broker, not yet answered."""

    __slots__ = ("asked",)

    def __init__(self, asked: m.Load) -> None:
        self.asked = [asked]


class Session:
    """What a worker does with a message; `send(messages, frames)` carries its answers away.

    `start_load(key, load, beside)` begins to load a model; `loaded(key, outcome)` is called when that
    has come to its end. A simulator passes models and a memory of its own; nothing else here knows
    onnxruntime or a segment.
    """

    def __init__(
        self,
        provider: str,
        pid: int,
        send: Callable[..., None],
        start_load: Callable[[Any, m.Load, ServedModel | None], None],
        memory: Memory,
        fallen: str = "",
    ) -> None:
        self._provider = provider
        self._fallen = fallen
        self._pid = pid
        self._send = send
        self._start_load = start_load
        self._memory = memory
        self._models: dict[tuple[str, int], ServedModel] = {}  # by name and revision
        self._kept: list[tuple[Any, ServedModel]] = []  # and from what; newest last; of a former broker, too
        self._loading: dict[Any, _Loading] = {}
        self._epoch = 0
        self._broker_pid = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.LentBatch: self._batch,
            m.Attach: self._attach,
            m.Detach: self._detach,
            m.WorkerWelcome: self._welcome,
            m.Load: self._load,
            m.Unload: self._unload,
            m.Refused: self._refused,
            m.Dismissed: self._dismissed,
        }
        self.dismissed = False  # the broker knows that this process ends

    def register(self) -> None:
        """Greet a broker, the first or the next one. One that knows this connection already pays no heed:
        so what it has told us of stays, until a Welcome says that all begins anew."""
        self._send([m.Register(self._pid, [self._provider], self._fallen)])

    def handle(self, message: m.BrokerToWorker) -> None:
        self._handlers[type(message)](message)

    def _welcome(self, message: m.WorkerWelcome) -> None:
        for _, model in self._kept:
            model.forget_bindings()
        self._memory.detach_all()
        self._models.clear()  # a new broker counts revisions anew
        for loading in self._loading.values():
            loading.asked.clear()
        self._epoch = message.epoch
        self._broker_pid = message.pid

    def _refused(self, message: m.Refused) -> None:
        log.error("the broker refused a message: %s", message.text)
        if message.code == Code.UNKNOWN_CONNECTION:
            self.register()

    def leave(self, text: str, runs_on: bool = False) -> None:
        """Say that this process is about to end, and not for what it was lent. It runs nothing any more;
        or, with `runs_on`, what comes before the answer: after that nothing is lent."""
        if not runs_on:
            self._handlers[m.LentBatch] = lambda message: None
        self._send([m.Leaving(text[:LEAVING_CHARS_MAX])])

    def _dismissed(self, message: m.Dismissed) -> None:
        self.dismissed = True

    # ---- models -------------------------------------------------------------------------------

    def _load(self, message: m.Load) -> None:
        """Load a model, unless it is here already: a new broker gets what the last one had at once. A
        trial beside another revision always reads the file, and is compared."""
        try:
            source = _source(message)
        except OSError as error:
            self._send(
                [
                    m.LoadFailed(
                        message.model, message.revision, f"{Path(message.path).name}: {error.strerror}"
                    )
                ]
            )
            return
        # What a trial comes to is of no use to who asks for the same file without one.
        key = source, (self._epoch, message.beside, message.tolerance) if message.beside else None
        kept = [model for known, model in self._kept if known == source] if not message.beside else []
        if kept:
            self._serve(message, kept[-1], None)
        elif key in self._loading:
            self._loading[key].asked.append(message)
        else:
            self._loading[key] = _Loading(message)
            self._start_load(key, message, self._models.get((message.model, message.beside)))

    def loaded(self, key: Any, outcome: Outcome) -> None:
        """What was started under `key` is loaded, or can't be: then `outcome` says why. Raises DeviceLost."""
        asked = self._loading.pop(key).asked
        if isinstance(outcome, DeviceLost):
            raise outcome
        if not asked:
            return  # it was unloaded meanwhile, or its broker is gone
        source = key[0]
        if not isinstance(outcome, str) and not _is_still(source, asked[0]):
            outcome = "the file changed while it was loaded"
        if isinstance(outcome, str):
            self._send([m.LoadFailed(message.model, message.revision, outcome) for message in asked])
            return
        model, difference = outcome
        self._kept.append((source, model))
        for message in asked:
            self._serve(message, model, difference)

    def _serve(self, message: m.Load, model: ServedModel, difference: float | None) -> None:
        self._models[message.model, message.revision] = model
        loaded = m.Loaded(
            message.model,
            message.revision,
            model.inputs,
            model.outputs,
            model.batchable,
            model.alone_reason,
            model.max_batch,
            model.recipe.name,
            model.placement,
            model.warmup_ns,
            model.buckets,
            difference,
            model.origin,
            model.claimed_ns,
        )
        self._send([loaded])

    def _unload(self, message: m.Unload) -> None:
        self._models.pop((message.model, message.revision), None)
        for loading in self._loading.values():
            loading.asked = [
                load
                for load in loading.asked
                if (load.model, load.revision) != (message.model, message.revision)
            ]
        used = set(map(id, self._models.values()))
        self._kept = [(source, model) for source, model in self._kept if id(model) in used]

    def _attach(self, message: m.Attach) -> None:
        self._memory.attach(message.arena, message.segment, self._broker_pid)

    def _detach(self, message: m.Detach) -> None:
        for _, model in self._kept:
            model.forget_bindings()
        self._memory.detach(message.arena)

    def _batch(self, message: m.LentBatch) -> None:
        model = self._models.get((message.model, message.revision))
        if model is None:
            text = f"this worker has not loaded revision {message.revision} of {message.model!r}"
            self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
            return
        try:
            result = model.run(message, self._memory)
        except ItemRefused as error:
            failed = m.BatchFailed(
                self._epoch, message.batch, Code.INVALID_REQUEST, str(error)[:4000], error.item
            )
            self._send([failed])
        except Exception as error:  # whatever the runtime raises is the model's failure, not ours
            text = f"{message.model!r} failed: {said(error)}"[:4000]
            self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
        else:
            if any(len(frame) > m.INLINE_BYTES_MAX for frame in result.frames):
                text = f"an output of {message.model!r} has more than {m.INLINE_BYTES_MAX} bytes and no slot"
                self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
                return
            done = m.Done(
                self._epoch,
                message.batch,
                result.gather_ns,
                result.compute_ns,
                result.scatter_ns,
                result.copied_bytes,
                result.elsewhere,
                result.changed,
            )
            self._send([done], result.frames)


def _source(load: m.Load) -> Any:
    """What a model is loaded from. Raises OSError."""
    file: tuple[Any, ...] = ()
    if load.path:  # else a function of an importable module, which this process reads once
        found = Path(load.path).stat()
        file = (load.path, found.st_mtime_ns, found.st_size, found.st_ino)
    function = msgspec.json.encode(load.function)  # lists of axes have no hash
    return load.model, file, function, load.max_batch, load.batchable, load.warmup, tuple(load.buckets)


def _is_still(source: Any, load: m.Load) -> bool:
    """Whether the file is the one that it was when the load was asked for."""
    try:
        return bool(_source(load) == source)
    except OSError:
        return False


def serve(
    endpoint: Endpoint,
    keys: KeyFolder | None,
    make: Callable[[m.Load], ServedModel],
    provider: str,
    fallen: str,
    leave: threading.Event,
) -> None:
    """Connect, and handle messages until `leave`, and what has been lent by then; `make` loads a model.
    Raises DeviceLost. Either way the broker knows by then that this process ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    configure(socket, endpoint)
    socket.setsockopt(zmq.RCVTIMEO, LOOK_AROUND_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    if keys is not None:
        keys.apply_client(socket)
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def send(messages: list[Any], frames: list[Any] | tuple[Any, ...] = ()) -> None:
        if frames:
            socket.send_multipart([codec.encode(messages), *frames])
        else:
            socket.send(codec.encode(messages))

    loader = Loader(make)
    session = Session(provider, os.getpid(), send, loader.start, Memory(), fallen)
    watchdog = Watchdog()
    socket.connect(endpoint.workers)
    session.register()
    decode = codec.broker_to_worker.decode
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(loader, zmq.POLLIN)

    def step() -> bool:
        """Wait for what comes next, for half a second at most, and handle it. False: nothing came."""
        flags = 0
        if loader.under_way:  # otherwise a receive is all there is to wait for, and quicker
            poller.poll(LOOK_AROUND_MS)
            for key, outcome in loader.finished():
                session.loaded(key, outcome)
            flags = zmq.NOBLOCK
        try:
            payload = socket.recv(flags)
        except zmq.Again:
            lost = False
            while readable(monitor):
                recv_monitor_message(monitor)
                lost = True
            if lost:
                log.warning("the broker is gone; waiting for the next one")
                session.register()
            return False
        try:
            messages = decode(payload)
        except BatchyardError as error:
            log.error("the broker's message was refused: %s", error)
            return True
        for message in messages:
            if type(message) is m.LentBatch:
                watchdog.start(message.lease_ns)
            session.handle(message)
            watchdog.stop()
        return True

    def say_goodbye(why: str) -> None:
        session.leave(why)
        until_ns = time.monotonic_ns() + GOODBYE_NS
        while not session.dismissed and time.monotonic_ns() < until_ns:
            step()

    try:
        while not leave.is_set():
            step()
    except DeviceLost as error:
        say_goodbye(f"its device is lost: {error}")
        raise
    session.leave("it goes to a better provider", runs_on=True)
    while not session.dismissed and step():
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
    parser.add_argument("--fallen", default="", help="why it is on no better provider")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.WARNING if arguments.quiet else logging.INFO
    logging.basicConfig(level=level, format="worker: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a Python model prints should be seen, also of one
        sys.stdout.reconfigure(line_buffering=True)  # that is killed
    lifeline.hold()
    leave = threading.Event()
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: leave.set())
    try:
        keys = KeyFolder(arguments.keys) if arguments.keys is not None else None
        recipe = providers.recipe(arguments.provider, arguments.threads, arguments.device, arguments.whole)

        def make(load: m.Load) -> ServedModel:
            if load.function is not None:
                return FunctionModel(load, load.function)
            return ServedModel(load, recipe, arguments.tolerance)

        endpoint = Endpoint.parse(arguments.url)
        serve(endpoint, keys, make, arguments.provider, arguments.fallen, leave)
    except DeviceLost as error:
        log.error("the device is lost: %s", error)
        return EXIT_CODE
    except (BatchyardError, ValueError, zmq.ZMQError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # sockets and sessions need no goodbye, and a lost device's may never return from theirs
