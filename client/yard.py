"""`Yard`: a broker and workers as child processes of this program, gone when it is.

The children hold a lifeline to this process, so even its SIGKILL leaves none of them behind (a
process that this one has forked holds the lifeline, too, as long as it lives).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import zmq

from ..transport import endpoints, secret
from ..transport.endpoints import Endpoint
from ..transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, InvalidRequest, from_wire, shown
from ..transport.flag import Flag
from ..transport.keys import KeyFolder
from ..transport.processes import module
from ..transport.python_models import is_importing
from . import ending
from .aio import AsyncClient
from .client import Client
from .kept import Keeper, Process, processes_of
from .operator import Operator

END_S = 2.0  # for all processes of a yard, from being told to end; then they are killed
STOP_S = 5.0  # before that, for what the broker has admitted; its own default (docs/configuration.md)
POLL_S = 0.01  # how soon it is seen that the broker answers
CLOSED = "the yard was closed before its models were ready"
LOOK_S = 0.5  # how soon a worker that can't start is, while a model is awaited
REFUSED_STATUS = 1  # of a worker that ended with a sentence: its provider does not work here, and the like
TCP_PORTS = (49152, 65000)

OwnClient = TypeVar("OwnClient", Client, AsyncClient)


class Yard(ending.OfThisProcess):
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
        check_count("workers", workers)
        check_count("threads", 1 if threads is None else threads)
        self._pid = os.getpid()
        self._workers = workers
        self._stop_s = stop_s
        self.keys = keys
        self._own_keys: Path | None = None
        self._secret = ""
        self._folder: str | None = None
        self._clients: weakref.WeakSet[Client | AsyncClient] = weakref.WeakSet()
        self._stop = Flag()
        self._keeper = Keeper(self._stop)
        # A program that ends without `close` ends the yard, too; one that is killed, by the lifeline.
        ending.keep(self)
        try:
            if url is None and zmq.has("ipc"):
                endpoints.private_folder(self._note_folder)
            worker = ["--provider", provider, *(["--threads", str(threads)] if threads is not None else [])]
            more = (companions or {}, worker_environment or {})
            self._make(broker_arguments, worker, url, log, quiet, *more, open_to_this_machine)
            self._keeper.start()
        except BaseException:  # also a Ctrl-C, at any moment
            self.close()
            raise

    def _note_folder(self, folder: str) -> None:
        """Note the folder before it is made, so that it is always removed."""
        self._folder = folder

    def _make(
        self,
        broker: list[str],
        worker: list[str],
        url: str | None,
        log: IO[bytes] | None,
        quiet: bool,
        companions: Mapping[str, Sequence[str]],
        worker_environment: Mapping[str, str],
        open_to_this_machine: bool,
    ) -> None:
        keys = self.keys
        self.url = url or (f"ipc://{self._folder}" if self._folder is not None else _free_tcp_url())
        endpoint = Endpoint.parse(self.url)
        if keys is None and not endpoint.is_ipc and endpoint.is_loopback and not open_to_this_machine:
            keys = self._own_keys = Path(tempfile.mkdtemp(prefix="yard-keys-"))  # 0700
            KeyFolder.create(keys)
        self.keys = keys
        self._secret = "" if keys is not None else secret.make()
        self.operator = Operator(self.url, keys, secret=self._secret)
        environment = dict(os.environ, BATCHYARD_WORKERS=str(self._workers))
        environment.pop(secret.VARIABLE, None)  # of a yard in which this program runs
        if self._secret:
            environment[secret.VARIABLE] = self._secret
        common = [*self.where, "--lifeline", *(["--quiet"] if quiet else [])]
        broker = [*module("batchyard.broker"), *common, "--report", *broker]
        if self._folder is not None:
            broker.append("--remove-folder")
        if self._own_keys is not None:
            broker.append("--remove-keys")
        if open_to_this_machine:
            broker.append("--open-to-this-machine")
        worker = [*module("batchyard.gpuworker"), *common, *worker]
        beside = {name: [*module(first), *rest, *common] for name, (first, *rest) in companions.items()}
        surroundings = environment | dict(worker_environment)
        self._keeper.processes = processes_of(
            broker, worker, self._workers, beside, environment, surroundings, log
        )

    @property
    def processes(self) -> list[Process]:
        return self._keeper.processes

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
            if self._stop.wait(POLL_S):
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
            if self._stop.wait(POLL_S):
                raise BrokerLost(CLOSED)

    def wait_ready(self, client: Client, model: str, deadline_s: float) -> None:
        """Return when the model is ready. Raises as `Client.wait_ready`, and as `check_workers`."""
        while True:
            self.check_workers()
            left_s = max(0.1, deadline_s - time.monotonic())
            try:
                client.wait_ready(model, min(left_s, LOOK_S))
                return
            except (BrokerLost, DeadlineExceeded):  # a busy machine's broker may not answer within LOOK_S
                if self._stop.is_set():
                    raise BrokerLost(CLOSED) from None
                if left_s <= LOOK_S:
                    raise

    def check_workers(self) -> None:
        """Raises InvalidRequest when a worker has said that it can't start, and would again."""
        if any(process.status == REFUSED_STATUS for process in self.processes[1 : 1 + self._workers]):
            raise InvalidRequest(
                "a worker failed to start; see its message on stderr or in the yard's log"
            )

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        """The broker's cumulative counters. Raises DeadlineExceeded."""
        return self.operator.snapshot(timeout)

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
        self._keeper.join(give_up_s)
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
        """End a yard that is being closed at once."""
        self.processes[0].child.ask_to_end()

    def begin_anew(self) -> None:
        """In a forked child: the yard is the parent's, and stays so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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


def check_count(what: str, number: object) -> None:
    if not isinstance(number, int) or number < 1:
        raise InvalidRequest(f"{what} is a number of 1 or more, not {shown(number)}")
