"""`serve`: a broker and workers as child processes of this program, gone when it is.

The children hold a lifeline to this process, so even its SIGKILL leaves none of them behind (a
process that this one has forked holds the lifeline, too, as long as it lives). A thread watches
them and starts again what dies.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import zmq

from ..transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, InvalidRequest, from_wire
from ..transport.functions import is_importing
from ..transport.processes import Backoff, ChildProcess
from . import functions
from .admin import Operator
from .aio import AsyncClient
from .client import Client

START_TIMEOUT_S = 60.0
POLL_S = 0.1  # how soon a dead process is seen
LOOK_S = 1.0  # how soon a worker that can't start is, while a model is awaited
REFUSED_STATUS = 1  # of a worker that ended with a sentence: its provider does not work here, and the like
TCP_PORTS = (49152, 65000)

Source = str | os.PathLike[str] | Callable[..., Any] | functions.Named  # an ONNX file, or a Python function


def serve(
    models: Source | Mapping[str, Source],
    *,
    workers: int = 1,
    max_batch: int = 32,
    threads: int | None = None,
    url: str | None = None,
    timeout: float = START_TIMEOUT_S,
    log: IO[bytes] | None = None,
    models_root: str | os.PathLike[str] | None = None,
    provider: str = "auto",
    load_python: bool = False,
) -> Yard:
    """Start a broker and `workers` workers for these models, and return when every model is ready.

    models: one ONNX file (its name without the suffix is the model's name), or one Python function,
        itself or as "module:function" or "file.py:function" (see `batchyard.model`); or {"name": either}.
    max_batch: most rows in one run.
    threads: intra-op threads of each worker; default: cores divided by workers.
    url: where to listen; default: a private place that is removed at the end.
    log: a file for what the processes say; default: this program's stderr.
    models_root: the folder that `Yard.operator` may load and swap models from; default: the one that
        these models lie in, if it is the same for all.
    provider: what the workers run on: directml, webgpu, cuda, cpu; auto: the best that works here.
    load_python: whether `Yard.operator` may load Python files from there: that runs them.

    A context manager; without `with`, `close()` ends it, or the end of this program. Raises
    ModelFailed when a model can't be loaded, InvalidRequest for names, files, numbers, or a provider that
    can't be, EndpointInUse, Unauthorized, DeadlineExceeded when nothing is ready within `timeout` seconds.
    """
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    arguments = [*_model_arguments(named), "--max-batch", str(max_batch)]
    if models_root is not None:
        arguments += ["--models-root", os.path.abspath(models_root)]
    if load_python:
        arguments.append("--load-python")
    python = any(functions.is_source(source) for source in named.values())
    surroundings = functions.environment() if python or load_python else {}
    yard = Yard(
        arguments,
        workers,
        threads,
        url,
        log=log,
        quiet=True,
        provider=provider,
        worker_environment=surroundings,
    )
    try:
        with yard.client() as client:
            deadline_s = time.monotonic() + timeout
            yard.wait_for_broker(timeout)
            for name in named:
                yard.wait_ready(client, name, deadline_s)
    except BaseException:
        yard.close()
        raise
    return yard


def _name_of(source: Any) -> str:
    """What a model is called whose name was not given."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return text.rpartition(":")[2] if functions.is_source(text) else Path(text).stem
    return getattr(source, "__name__", type(source).__name__)


def _model_arguments(models: Mapping[Any, Any]) -> list[str]:
    """The broker's arguments for what the caller passed as models. Raises InvalidRequest."""
    if not models:
        raise InvalidRequest('models is a file, a function, or a mapping such as {"name": "file.onnx"}')
    arguments = []
    for name, source in models.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise InvalidRequest(f"{name!r} can't be a model's name: letters, digits, '_', '.', and '-'")
        if functions.is_source(source):
            found = functions.named(source)
            arguments += ["--model", f"{name}={found.reference}"]
            if found.signature is not None:
                text = msgspec.json.encode(found.signature).decode()
                arguments += ["--signature", f"{name}={text}"]
            continue
        if not isinstance(source, str | os.PathLike):
            raise InvalidRequest(f"model {name!r} needs a file's path or a function, not {source!r}")
        if Path(source).is_dir():
            raise InvalidRequest(f"model {name!r}: {os.fspath(source)!r} is a folder, not an ONNX file")
        if not Path(source).is_file():
            raise InvalidRequest(f"model {name!r}: there is no file {os.fspath(source)!r}")
        arguments += ["--model", f"{name}={os.path.abspath(source)}"]
    return arguments


class Process:
    """A process of the yard, and when it may be started again."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.name = child.name
        self.restarts = 0
        self.backoff = Backoff()
        self.due_s: float | None = None  # None: it runs
        self.status = 0  # with which it ended last
        self.last_words = b""  # what it wrote to stdout before it died last

    @property
    def pid(self) -> int:
        return self.child.pid or 0


class Yard:
    """A running broker with its workers. `url` is where clients find it, `operator` loads, swaps, and
    unloads models; `processes` are its own."""

    def __init__(
        self,
        broker_arguments: list[str],
        workers: int,
        threads: int | None = None,
        url: str | None = None,
        keys: Path | None = None,
        log: IO[bytes] | None = None,
        quiet: bool = False,
        provider: str = "auto",
        companions: Mapping[str, Sequence[str]] | None = None,
        worker_environment: Mapping[str, str] | None = None,
    ) -> None:
        """`companions`: further processes of the yard, by name: what `python -m` runs beside it, each told
        where the yard is as the workers are."""
        if is_importing():
            raise InvalidRequest(
                "this program is being imported by a worker, for the sake of its function, and starts a yard "
                'again: do that below `if __name__ == "__main__":`'
            )
        _check_count("workers", workers)
        _check_count("threads", 1 if threads is None else threads)
        self._pid = os.getpid()
        self._workers = workers
        self._folder = tempfile.mkdtemp(prefix="yard-") if url is None and zmq.has("ipc") else None  # 0700
        self.url = url or (f"ipc://{self._folder}" if self._folder is not None else _free_tcp_url())
        self.operator = Operator(self.url, keys)
        common = ["--url", self.url, "--lifeline", *(["--quiet"] if quiet else [])]
        if keys is not None:
            common += ["--keys", str(keys)]
        self._keys = keys
        python = [sys.executable, "-m"]
        environment = dict(os.environ, BATCHYARD_WORKERS=str(workers))
        surroundings = environment | dict(worker_environment or {})
        worker = [*python, "batchyard.gpuworker", *common, "--provider", provider]
        if threads is not None:
            worker += ["--threads", str(threads)]
        broker = [*python, "batchyard.broker", *common, "--report", *broker_arguments]
        if self._folder is not None:
            broker.append("--remove-folder")
        # The broker's stdout is where it says why it can't start; it says nothing else there.
        self.processes = [
            Process(ChildProcess(broker, environment, "broker", stdout=subprocess.PIPE, stderr=log)),
            *(
                Process(
                    ChildProcess(
                        worker,
                        {**surroundings, "BATCHYARD_WORKER": str(number)},  # which GPU is its share
                        f"worker.{number}",
                        stdout=log,
                        stderr=log,
                    )
                )
                for number in range(1, workers + 1)
            ),
            *(
                Process(ChildProcess([*python, *module, *common], environment, name, stdout=log, stderr=log))
                for name, module in (companions or {}).items()
            ),
        ]
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="batchyard-yard", daemon=True)
        # A program that ends without `close` ends the yard, too; one that is killed, by the lifeline.
        atexit.register(self.close)
        try:
            for process in self.processes:
                process.backoff.next_delay_s(time.monotonic())  # this start is not a restart
                process.child.start()
            self._watcher.start()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        running = ", ".join(process.name for process in self.processes if process.due_s is None)
        return f"<Yard at {self.url}: {'closed' if self._stop.is_set() else running}>"

    def client(self, **options: Any) -> Client:
        """A client of this yard; options as for `Client`."""
        return Client(self.url, **self._with_keys(options))

    def async_client(self, **options: Any) -> AsyncClient:
        """An asyncio client of this yard; options as for `AsyncClient`."""
        return AsyncClient(self.url, **self._with_keys(options))

    def _with_keys(self, options: dict[str, Any]) -> dict[str, Any]:
        return options if self._keys is None else {"keys": self._keys, **options}

    def wait_for_broker(self, timeout: float) -> None:
        """Return when this yard's own broker answers. Raises what keeps it from starting: a mistake in
        its arguments (InvalidRequest), an endpoint that another broker holds (EndpointInUse)."""
        broker = self.processes[0]
        restarts = broker.restarts
        deadline_s = time.monotonic() + timeout
        while True:
            try:
                if self.snapshot(0.2)["pid"] == broker.pid:
                    return
            except DeadlineExceeded:
                if time.monotonic() > deadline_s:
                    raise
            if broker.due_s is not None or broker.restarts != restarts:
                raise _why_ended(broker.last_words)
            self._stop.wait(POLL_S / 10)

    def wait_ready(self, client: Client, model: str, deadline_s: float) -> None:
        """Return when the model is ready. Raises as `Client.wait_ready`, and as `check_workers`."""
        while True:
            self.check_workers()
            left_s = max(0.1, deadline_s - time.monotonic())
            try:
                client.wait_ready(model, min(left_s, LOOK_S))
                return
            except DeadlineExceeded:
                if left_s <= LOOK_S:
                    raise

    def check_workers(self) -> None:
        """Raises InvalidRequest when a worker has said that it can't start, and would again."""
        if any(process.status == REFUSED_STATUS for process in self.processes[1 : 1 + self._workers]):
            raise InvalidRequest("a worker can't start; why, it said on stderr, or in the yard's log")

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        """The broker's cumulative counters. Raises DeadlineExceeded."""
        return self.operator.snapshot(timeout)

    def _watch(self) -> None:
        """Start again what dies, with growing patience."""
        while not self._stop.wait(POLL_S):
            now_s = time.monotonic()
            for process in self.processes:
                if process.due_s is None and process.child.poll() is not None:
                    if process.child.stdout is not None:
                        process.last_words = process.child.stdout.read()
                    process.status = process.child.poll() or 0
                    process.due_s = now_s + process.backoff.next_delay_s(now_s)
                elif process.due_s is not None and now_s >= process.due_s:
                    process.restarts += 1
                    try:
                        process.child.start()
                        process.due_s = None
                    except OSError:  # no room for a process now: later, then
                        process.due_s = now_s + process.backoff.next_delay_s(now_s)

    def wait(self) -> None:
        """Sleep until `close` is called from elsewhere."""
        self._stop.wait()

    def close(self) -> None:
        """End every process and remove the private folder. Idempotent. In a forked child: nothing,
        the yard is its parent's."""
        if os.getpid() != self._pid:
            return
        atexit.unregister(self.close)
        self._stop.set()
        if self._watcher.is_alive() and self._watcher is not threading.current_thread():
            self._watcher.join()
        for process in self.processes:  # all at once: none is left to say that another is gone
            process.child.ask_to_end()
        for process in self.processes:
            process.child.terminate()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free_tcp_url() -> str:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as probe:
        return f"tcp://127.0.0.1:{probe.bind_to_random_port('tcp://127.0.0.1', *TCP_PORTS)}"


def _why_ended(last_words: bytes) -> BatchyardError:
    """The error that kept the broker from starting, as it reported it."""
    try:
        code, text = json.loads(last_words)
    except ValueError:
        return BrokerLost("the broker ended at once, and said nothing but what is on stderr")
    return from_wire(code, text)


def _check_count(what: str, number: object) -> None:
    if not isinstance(number, int) or number < 1:
        raise InvalidRequest(f"{what} is a number of 1 or more, not {number!r}")
