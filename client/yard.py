"""`serve`: a broker and workers as child processes of this program, gone when it is.

The children hold a lifeline to this process, so even its SIGKILL leaves none of them behind (a
process that this one has forked holds the lifeline, too, as long as it lives). A thread watches
them and starts again what dies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import msgspec
import zmq

from ..transport import endpoints, secret
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, InvalidRequest, from_wire, shown
from ..transport.flag import Flag
from ..transport.keys import KeyFolder
from ..transport.processes import Backoff, ChildProcess, module
from ..transport.python_models import is_importing
from . import ending, python_models
from .aio import AsyncClient
from .client import Client
from .operator import Operator, plain

START_TIMEOUT_S = 60.0
END_S = 2.0  # for all processes of a yard, from being told to end; then they are killed
STOP_S = 5.0  # before that, for what the broker has admitted; its own default (docs/configuration.md)
POLL_S = 0.1  # how soon a dead process is seen where it has no sentinel
REST_S = 1.0  # the longest sleep of who watches
CLOSED = "the yard was closed before its models were ready"
LOOK_S = 0.5  # how soon a worker that can't start is, while a model is awaited
REFUSED_STATUS = 1  # of a worker that ended with a sentence: its provider does not work here, and the like
TCP_PORTS = (49152, 65000)

OwnClient = TypeVar("OwnClient", Client, AsyncClient)
# An ONNX file, or a Python function.
Source = str | os.PathLike[str] | Callable[..., Any] | python_models.Named


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
    run_seconds_max: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, int] | None = None,
    keys: str | os.PathLike[str] | None = None,
    open_to_this_machine: bool = False,
) -> Yard:
    """Start a broker and `workers` workers for these models, and return when every model is ready.

    models: one ONNX file (its name without the suffix is the model's name), or one Python function,
        itself or as "module:function" or "file.py:function" (see `batchyard.model`); or {"name": either}.
        With `models_root` it may be empty, for a yard whose models are all loaded later.
    max_batch: most rows in one run.
    threads: intra-op threads of each worker; default: cores divided by workers.
    url: where to listen; default: a private place that is removed at the end.
    log: a file for what the processes say; default: this program's stderr.
    models_root: the folder that `Yard.operator` may load and swap models from; default: the one that
        these models lie in, if it is the same for all.
    provider: what the workers run on: directml, webgpu, cuda, openvino, cpu; auto: the best that works here.
    load_python: whether `Yard.operator` may load Python files from there: that runs them.
    run_seconds_max: a worker that runs one batch for longer is ended, and a request that was alone in it
        fails; default: no such bound (see "Slow is not hung" in docs/configuration.md).
    options: {"name": {...}}: what a model's table in a batchyard.toml may say besides its file, by the
        same keys (docs/configuration.md), such as {"net": {"pad": {"sequence": {"to": [32, 64, 128]}}}}.
    limits: how much may be under way at once, by the keys of [limits] in a batchyard.toml, such as
        {"queue_rows_max": 200_000, "client_bytes_max": 8 << 30}.
    keys: a folder of CURVE keys (`batchyard keys create`), for a tcp `url`. Without it a yard on loopback tcp
        makes keys of its own, which `Yard.client` uses; clients in other programs need keys=Yard.keys.
    open_to_this_machine: no keys, then: every user of this machine may send requests to a loopback tcp `url`.

    A context manager; without `with`, `close()` ends it, or the end of this program. Raises
    ModelFailed when a model can't be loaded, InvalidRequest for names, files, numbers, or a provider that
    can't be, EndpointInUse, Unauthorized, DeadlineExceeded when nothing is ready within `timeout` seconds.
    """
    yard, names = begin(
        models,
        workers=workers,
        max_batch=max_batch,
        threads=threads,
        url=url,
        log=log,
        models_root=models_root,
        provider=provider,
        load_python=load_python,
        run_seconds_max=run_seconds_max,
        options=options,
        limits=limits,
        keys=keys,
        open_to_this_machine=open_to_this_machine,
    )
    try:
        yard.await_models(names, timeout)
    except BaseException:
        yard.close()
        raise
    return yard


def begin(
    models: Source | Mapping[str, Source],
    *,
    workers: int = 1,
    max_batch: int = 32,
    threads: int | None = None,
    url: str | None = None,
    log: IO[bytes] | None = None,
    models_root: str | os.PathLike[str] | None = None,
    provider: str = "auto",
    load_python: bool = False,
    run_seconds_max: float | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, int] | None = None,
    keys: str | os.PathLike[str] | None = None,
    open_to_this_machine: bool = False,
) -> tuple[Yard, list[str]]:
    """`serve` without the wait: (the yard, its models' names), for `Yard.await_models`."""
    _check_count("max_batch", max_batch)
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    if not named and models_root is None:
        raise InvalidRequest(
            'models is a file, a function, or a mapping such as {"name": "file.onnx"}; none at all only with '
            "models_root, to be loaded later"
        )
    arguments = [*_model_arguments(named), "--max-batch", str(max_batch)]
    if models_root is not None:
        arguments += ["--models-root", os.path.abspath(models_root)]
    if options is not None:
        arguments += ["--options", msgspec.json.encode(plain(options)).decode()]
    if limits is not None:
        arguments += ["--limits", msgspec.json.encode(plain(limits)).decode()]
    if load_python:
        arguments.append("--load-python")
    if run_seconds_max is not None:
        arguments += ["--run-seconds-max", str(run_seconds_max)]
    python = any(python_models.is_source(source) for source in named.values())
    surroundings = python_models.environment() if python or load_python else {}
    return Yard(
        arguments,
        workers,
        threads,
        url,
        Path(keys) if keys is not None else None,
        log=log,
        quiet=True,
        provider=provider,
        worker_environment=surroundings,
        open_to_this_machine=open_to_this_machine,
    ), list(named)


def _name_of(source: Any) -> str:
    """What a model is called whose name was not given."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return text.rpartition(":")[2] if python_models.is_source(text) else Path(text).stem
    return getattr(source, "__name__", type(source).__name__)


def _model_arguments(models: Mapping[Any, Any]) -> list[str]:
    """The broker's arguments for what the caller passed as models. Raises InvalidRequest."""
    arguments = []
    for name, source in models.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise InvalidRequest(f"{shown(name)} can't be a model's name: letters, digits, '_', '.', and '-'")
        if python_models.is_source(source):
            found = python_models.named(source)
            arguments += ["--model", f"{name}={found.reference}"]
            if found.signature is not None:
                text = msgspec.json.encode(found.signature).decode()
                arguments += ["--signature", f"{name}={text}"]
            continue
        if not isinstance(source, str | os.PathLike):
            raise InvalidRequest(f"model {name!r} needs a file's path or a function, not {shown(source)}")
        if Path(source).is_dir():
            raise InvalidRequest(f"model {name!r}: {os.fspath(source)!r} is a folder, not an ONNX file")
        if not Path(source).is_file():
            raise InvalidRequest(f"model {name!r}: there is no file {os.fspath(source)!r}")
        arguments += ["--model", f"{name}={Path(source).absolute()}"]  # `..` behind a link is not text
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
    """A running broker with its workers. `url` is where clients find it, `keys` the folder of CURVE keys that
    they need there, if any; `operator` loads, swaps, and unloads models; `processes` are its own."""

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
        stop_s: float = STOP_S,
        open_to_this_machine: bool = False,
    ) -> None:
        """`companions`: further processes of the yard, by name: what `python -m` runs beside it, each told
        where the yard is as the workers are. `keys` and `open_to_this_machine` as for `serve`."""
        if is_importing():
            raise InvalidRequest(
                "this program is being imported by a worker, for the sake of its function, and starts a yard "
                'again: do that below `if __name__ == "__main__":`'
            )
        _check_count("workers", workers)
        _check_count("threads", 1 if threads is None else threads)
        self._pid = os.getpid()
        self._workers = workers
        self._stop_s = stop_s
        self.keys = keys
        self._own_keys: Path | None = None
        self._secret = ""
        self._folder: str | None = None
        self.processes: list[Process] = []
        self._clients: weakref.WeakSet[Client | AsyncClient] = weakref.WeakSet()
        self._stop = Flag()
        self._watcher = threading.Thread(target=self._watch, name="batchyard-yard", daemon=True)
        # A program that ends without `close` ends the yard, too; one that is killed, by the lifeline.
        ending.keep(self)
        try:
            if url is None and zmq.has("ipc"):
                endpoints.private_folder(self._note_folder)
            more = (companions or {}, worker_environment or {})
            self._make(broker_arguments, threads, url, log, quiet, provider, *more, open_to_this_machine)
            for process in self.processes:
                process.backoff.next_delay_s(time.monotonic())  # this start is not a restart
                process.child.start()
            ending.start(self._watcher)
        except BaseException:  # also a Ctrl-C, at any moment
            self.close()
            raise

    def _note_folder(self, folder: str) -> None:
        """Noted before it is made: it will be removed, whatever comes between."""
        self._folder = folder

    def _make(
        self,
        broker_arguments: list[str],
        threads: int | None,
        url: str | None,
        log: IO[bytes] | None,
        quiet: bool,
        provider: str,
        companions: Mapping[str, Sequence[str]],
        worker_environment: Mapping[str, str],
        open_to_this_machine: bool,
    ) -> None:
        """Make the processes, which are not started yet."""
        keys, workers = self.keys, self._workers
        self.url = url or (f"ipc://{self._folder}" if self._folder is not None else _free_tcp_url())
        endpoint = Endpoint.parse(self.url)
        if keys is None and not endpoint.is_ipc and endpoint.is_loopback and not open_to_this_machine:
            keys = self._own_keys = Path(tempfile.mkdtemp(prefix="yard-keys-"))  # 0700
            KeyFolder.create(keys)
        self.keys = keys
        self._secret = "" if keys is not None else secret.make()
        self.operator = Operator(self.url, keys, secret=self._secret)
        common = [*self.where, "--lifeline", *(["--quiet"] if quiet else [])]
        environment = dict(os.environ, BATCHYARD_WORKERS=str(workers))
        environment.pop(secret.VARIABLE, None)  # of a yard in which this program runs
        if self._secret:
            environment[secret.VARIABLE] = self._secret
        surroundings = environment | dict(worker_environment)
        worker = [*module("batchyard.gpuworker"), *common, "--provider", provider]
        if threads is not None:
            worker += ["--threads", str(threads)]
        broker = [*module("batchyard.broker"), *common, "--report", *broker_arguments]
        if self._folder is not None:
            broker.append("--remove-folder")
        if self._own_keys is not None:
            broker.append("--remove-keys")
        if open_to_this_machine:
            broker.append("--open-to-this-machine")
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
                Process(ChildProcess([*command, *common], environment, name, stdout=log, stderr=log))
                for name, command in (
                    (name, [*module(first), *rest]) for name, (first, *rest) in companions.items()
                )
            ),
        ]

    def __repr__(self) -> str:
        running = ", ".join(process.name for process in self.processes if process.due_s is None)
        return f"<Yard at {self.url}: {'closed' if self._stop.is_set() else running}>"

    @property
    def where(self) -> list[str]:
        """The arguments that tell another program of ours where this yard is."""
        return ["--url", self.url, *(["--keys", str(self.keys)] if self.keys is not None else [])]

    def client(self, **options: Any) -> Client:
        """A client of this yard; options as for `Client`. It ends with the yard: see `close`."""
        return self._own(Client(self.url, **self._with_keys(options)))

    def async_client(self, **options: Any) -> AsyncClient:
        """An asyncio client; options as for `AsyncClient`. It ends with the yard: see `close`."""
        return self._own(AsyncClient(self.url, **self._with_keys(options)))

    def _own(self, client: OwnClient) -> OwnClient:
        """A client that ends with this yard."""
        self._clients.add(client)
        if self._stop.is_set():
            client.yard_closed()
        return client

    def _with_keys(self, options: dict[str, Any]) -> dict[str, Any]:
        return options if self.keys is None else {"keys": self.keys, **options}

    def await_models(self, names: Sequence[str], timeout: float) -> None:
        """Return when each of these models is ready. Raises as `serve`, and BrokerLost when the yard is
        closed meanwhile."""
        with self.client() as client:
            deadline_s = time.monotonic() + timeout
            try:
                self.wait_for_broker(timeout)
            except DeadlineExceeded:
                raise DeadlineExceeded(f"the yard's broker has not started within {timeout:g} s") from None
            for name in names:
                self.wait_ready(client, name, deadline_s)
        if not names:
            self._wait_for_worker(deadline_s)

    def _wait_for_worker(self, deadline_s: float) -> None:
        """Return when a worker is there to load a model."""
        while not self.snapshot()["workers"]:
            self.check_workers()
            if time.monotonic() > deadline_s:
                raise DeadlineExceeded("no worker has started in time")
            if self._stop.wait(POLL_S / 10):
                raise BrokerLost(CLOSED)

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
            if self._stop.wait(POLL_S / 10):
                raise BrokerLost(CLOSED)

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
            except BrokerLost:
                if not self._stop.is_set():
                    raise
            if self._stop.is_set():
                raise BrokerLost(CLOSED)

    def check_workers(self) -> None:
        """Raises InvalidRequest when a worker has said that it can't start, and would again."""
        if any(process.status == REFUSED_STATUS for process in self.processes[1 : 1 + self._workers]):
            raise InvalidRequest(
                "a worker failed to start; see its message on stderr or in the yard's log"
            )

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        """The broker's cumulative counters. Raises DeadlineExceeded."""
        return self.operator.snapshot(timeout)

    def _watch(self) -> None:
        """Start again what dies, with growing patience."""
        while not self._rest():
            now_s = time.monotonic()
            for process in self.processes:
                if process.due_s is None and process.child.poll() is not None:
                    if process.child.stdout is not None:
                        process.last_words = process.child.stdout.read()
                    process.status = process.child.poll() or 0
                    process.due_s = now_s + process.backoff.next_delay_s(now_s)
                elif process.due_s is not None and now_s >= process.due_s and not self._stop.is_set():
                    process.restarts += 1
                    try:
                        process.child.start()
                        process.due_s = None
                    except OSError:  # no room for a process now: later, then
                        process.due_s = now_s + process.backoff.next_delay_s(now_s)

    def _rest(self) -> bool:
        """Sleep until a process may have ended, or is due; whether to stop."""
        if any(process.due_s is not None for process in self.processes):
            return self._stop.wait(POLL_S)
        sentinels = [process.child.sentinel for process in self.processes]
        known = [sentinel for sentinel in sentinels if sentinel is not None]
        return self._stop.wait(REST_S if len(known) == len(sentinels) else POLL_S, known)

    def wait(self) -> None:
        """Sleep until `close` is called from elsewhere."""
        self._stop.wait()

    def close(self) -> None:
        """End every process and remove the private folder. The broker admits nothing more, and first answers
        what it has admitted, within `stop_seconds`; then the calls of its clients end with BrokerLost.
        Idempotent. In a forked child: nothing, the yard is its parent's."""
        self.close_by(time.monotonic() + self._stop_s + END_S)

    def stop(self) -> None:
        """Tell the thread that watches to end: nothing is started again. Waits for nothing."""
        self._stop.set()

    def close_by(self, give_up_s: float) -> None:
        """`close`; processes that have not ended by `give_up_s` (time.monotonic) are killed."""
        if os.getpid() != self._pid:
            return
        ending.forget(self)
        self._stop.set()
        on_it = self._watcher is threading.current_thread()
        if self._watcher.is_alive() and not on_it and not ending.is_finalizing():
            self._watcher.join(max(0.0, give_up_s - time.monotonic()))
        if self.processes:
            broker = self.processes[0].child
            broker.ask_to_end()
            broker.wait(max(0.0, give_up_s - time.monotonic() - END_S))
            self.operator.yard_closed()
        for client in list(self._clients):
            client.yard_closed()
        for process in self.processes:  # all at once: none is left to say that another is gone
            process.child.ask_to_end()
        for process in self.processes:
            process.child.terminate(max(0.0, give_up_s - time.monotonic()))
        if self._secret:
            secret.remove(Endpoint.parse(self.url), self._secret)  # of a broker that was killed
        for folder in (self._folder, self._own_keys):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        self._folder = self._own_keys = None

    def hurry(self) -> None:
        """Of a yard that is being closed: nothing more is waited for."""
        self.processes[0].child.ask_to_end()

    def begin_anew(self) -> None:
        """In a forked child: the yard is the parent's, and stays so."""

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
        raise InvalidRequest(f"{what} is a number of 1 or more, not {shown(number)}")
