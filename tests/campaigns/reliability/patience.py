"""`patience`: every verb against what never answers, and how long after its timeout each call ends.

No broker; a broker that stands still (SIGSTOP), for a client that it knows and for a new one; a worker that
stands still; and one that does while the client's arena is full. Over ipc and tcp, from threads and on an event
loop. A call may end early, with what is wrong; what is measured is how late it ends.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchyard.tests.ports import free_port

from . import proc
from .campaign import Campaign, Say, demand
from .verdict import Figure, outcomes

LATE_NS = 50_000_000  # promised
MODEL = "step"  # with a state, so that a sequence can be made of it
SITUATIONS = ("no broker", "stopped broker", "stopped broker, new client", "stopped worker", "full arena")
WIRES = ("ipc", "tcp")
ROWS = 256
ARENA_BYTES = 1 << 20  # a request of ROWS takes a quarter of a MiB
FILLING = 16  # such requests: more than there is room for
LONG_S = 600.0
TIMEOUTS_S = (0.05, 0.4)  # drawn between these
HEART_S = 0.002
WHERE_S = 30.0
FILLING_S = 10.0

X = np.ones((ROWS, 64), np.float32)
BOTH = {"x": X, "state": X}
Verb = Callable[[Any, float], Any]


@dataclass(frozen=True, slots=True)
class Demand:
    rounds: int = demand(10, "calls of each verb in each situation over each wire")
    seed: int = demand(1, "of the timeouts, 50 to 400 ms")


def _sequence(client: Any) -> Any:
    return client.sequence(MODEL)


def _submit_alone(client: Any, timeout: float) -> None:
    client.submit(MODEL, X, timeout=timeout)


THREADS: dict[str, Verb] = {
    "infer": lambda client, t: client.infer(MODEL, BOTH, timeout=t),
    "infer, deadline": lambda client, t: client.infer(MODEL, BOTH, deadline=t, timeout=LONG_S),
    "submit().result()": lambda client, t: client.submit(MODEL, BOTH, timeout=t).result(),
    "map": lambda client, t: list(client.map(MODEL, [BOTH] * 3, timeout=t)),
    "stream": lambda client, t: list(client.stream(MODEL, BOTH, timeout=t)),
    "sequence.infer": lambda client, t: client.sequence(MODEL).infer(X, timeout=t),
    "models": lambda client, t: client.models(timeout=t),
    "wait_ready": lambda client, t: client.wait_ready(MODEL, t),
}
OPERATORS: dict[str, Verb] = {
    "Operator.snapshot": lambda operator, t: operator.snapshot(t),
    "Operator.load": lambda operator, t: operator.load("nothing", "nothing.onnx", timeout=t),
    "Operator.swap": lambda operator, t: operator.swap("nothing", timeout=t),
    "Operator.unload": lambda operator, t: operator.unload("nothing", timeout=t),
}


async def _streamed(client: Any, timeout: float) -> list[Any]:
    return [answer async for answer in client.stream(MODEL, BOTH, timeout=timeout)]


async def _all(client: Any, timeout: float) -> list[Any]:
    return [answer async for answer in client.map(MODEL, [BOTH] * 3, timeout=timeout)]


LOOPS: dict[str, Callable[[Any, float], Awaitable[Any]]] = {
    "AsyncClient.infer": lambda client, t: client.infer(MODEL, BOTH, timeout=t),
    "AsyncClient.submit": lambda client, t: client.submit(MODEL, BOTH, timeout=t),
    "AsyncClient.map": _all,
    "AsyncClient.stream": _streamed,
    "AsyncClient.sequence": lambda client, t: client.sequence(MODEL).infer(X, timeout=t),
    "AsyncClient.models": lambda client, t: client.models(timeout=t),
    "AsyncClient.wait_ready": lambda client, t: client.wait_ready(MODEL, t),
}


class Tally:
    """How late calls ended, at worst, by verb and by situation; and how long an event loop stood still."""

    def __init__(self, rounds: int, seed: int) -> None:
        self.rounds = rounds
        self.draws = random.Random(seed)
        self.calls = 0
        self.by_verb: defaultdict[str, int] = defaultdict(lambda: -(1 << 62))
        self.by_place: defaultdict[str, int] = defaultdict(lambda: -(1 << 62))
        self.endings: Counter[str] = Counter()
        self.stood_still_ns = 0

    def timeout_s(self) -> float:
        return self.draws.uniform(*TIMEOUTS_S)

    def ended(self, verb: str, place: str, late_ns: int, outcome: str) -> None:
        self.calls += 1
        self.endings[outcome] += 1
        self.by_verb[verb] = max(self.by_verb[verb], late_ns)
        self.by_place[place] = max(self.by_place[place], late_ns)

    def of_threads(self, place: str, verbs: dict[str, Verb], client: Any) -> None:
        for verb, call in verbs.items():
            for _ in range(self.rounds):
                timeout_s = self.timeout_s()
                due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
                outcome = "an answer"
                try:
                    call(client, timeout_s)
                except Exception as error:
                    outcome = type(error).__name__
                self.ended(verb, place, time.monotonic_ns() - due_ns, outcome)

    async def of_loops(self, place: str, client: Any) -> None:
        heart = asyncio.ensure_future(self._beat())
        for verb, call in LOOPS.items():
            for _ in range(self.rounds):
                timeout_s = self.timeout_s()
                due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
                outcome = "an answer"
                try:
                    await call(client, timeout_s)
                except Exception as error:
                    outcome = type(error).__name__
                self.ended(verb, place, time.monotonic_ns() - due_ns, outcome)
        heart.cancel()

    async def _beat(self) -> None:
        before_ns = time.monotonic_ns()
        while True:
            await asyncio.sleep(HEART_S)
            now_ns = time.monotonic_ns()
            self.stood_still_ns = max(self.stood_still_ns, now_ns - before_ns)
            before_ns = now_ns


def run(demand: Demand, say: Say) -> list[Figure]:
    tally = Tally(demand.rounds, demand.seed)
    with _noise() as noise:
        for wire in WIRES:
            with _yard(wire) as yard:
                _with_yard(tally, wire, yard, say)
            _without(tally, wire)
            say(f"{wire}: no broker")
    return [
        Figure("calls", tally.calls),
        *outcomes("ended with", tally.endings),
        *(
            Figure(f"{verb}: latest beyond its timeout", max(0, late_ns), "ns", at_most=LATE_NS)
            for verb, late_ns in tally.by_verb.items()
        ),
        *(Figure(f"{place}: the same", max(0, ns), "ns", at_most=LATE_NS) for place, ns in tally.by_place.items()),
        Figure("an event loop stood still for", tally.stood_still_ns, "ns", at_most=LATE_NS),
        Figure("this machine woke a sleeping thread late by", max(noise), "ns"),
    ]


def _with_yard(tally: Tally, wire: str, yard: Any, say: Say) -> None:
    broker = yard.processes[0].pid
    with yard.client() as client, yard.client(arena_bytes=ARENA_BYTES) as small:
        small.infer(MODEL, BOTH, timeout=WHERE_S)
        (info,) = client.models()
        (worker,) = [each.pid for each in info.workers]

        def play(situation: str, pid: int, *, new: bool = False, full: bool = False) -> None:
            place = f"{situation}, {wire}"
            proc.send(pid, signal.SIGSTOP)
            try:
                if full:
                    with _filled(small):
                        tally.of_threads(place, THREADS, small)
                elif new:
                    with yard.client() as stranger:
                        tally.of_threads(place, THREADS, stranger)
                else:
                    tally.of_threads(place, THREADS, client)
                    tally.of_threads(place, OPERATORS, yard.operator)
            finally:
                with suppress(ProcessLookupError):
                    proc.send(pid, signal.SIGCONT)
            say(place)

        client.infer(MODEL, BOTH, timeout=WHERE_S)
        client.submit(MODEL, BOTH, timeout=WHERE_S).result()
        play("stopped broker", broker)
        play("stopped broker, new client", broker, new=True)
        play("stopped worker", worker)
        if wire == "ipc":  # over tcp a client has no arena
            play("full arena", _worker(client), full=True)
    asyncio.run(_loops(tally, wire, yard, broker))
    say(f"event loops, {wire}")


def _worker(client: Any) -> int:
    client.infer(MODEL, BOTH, timeout=WHERE_S)
    (info,) = client.models()
    return int(info.workers[0].pid)


async def _loops(tally: Tally, wire: str, yard: Any, broker: int) -> None:
    async with yard.async_client() as client, yard.async_client(arena_bytes=ARENA_BYTES) as small:
        for one in (client, small):
            await one.infer(MODEL, BOTH, timeout=WHERE_S)
        for situation in SITUATIONS[1:]:
            if situation == "full arena" and wire != "ipc":
                continue
            await client.infer(MODEL, BOTH, timeout=WHERE_S)
            (info,) = await client.models()
            pid = broker if "broker" in situation else info.workers[0].pid
            proc.send(pid, signal.SIGSTOP)
            place = f"{situation}, {wire}"
            try:
                if situation == "full arena":
                    filling = [small.submit(MODEL, BOTH, timeout=LONG_S) for _ in range(FILLING)]
                    await asyncio.sleep(0)
                    await tally.of_loops(place, small)
                    for task in filling:
                        task.cancel()
                elif "new" in situation:
                    async with yard.async_client() as stranger:
                        await tally.of_loops(place, stranger)
                else:
                    await tally.of_loops(place, client)
            finally:
                with suppress(ProcessLookupError):
                    proc.send(pid, signal.SIGCONT)


def _without(tally: Tally, wire: str) -> None:
    """Where there is no broker, and none comes."""
    from batchyard.client import AsyncClient, Client, Operator

    place = f"no broker, {wire}"
    with tempfile.TemporaryDirectory(prefix="by-", dir="/tmp") as folder, socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        url = f"ipc://{folder}" if wire == "ipc" else f"tcp://127.0.0.1:{min(held.getsockname()[1], 65_000)}"
        with Client(url) as client:
            tally.of_threads(place, THREADS, client)
        tally.of_threads(place, OPERATORS, Operator(url))

        async def loop() -> None:
            async with AsyncClient(url) as client:
                await tally.of_loops(place, client)

        asyncio.run(loop())


@contextmanager
def _filled(client: Any) -> Iterator[None]:
    """While the client's arena is full of requests that no worker answers."""
    futures: list[Any] = []

    def fill() -> None:
        with suppress(Exception):
            futures.extend(client.submit(MODEL, BOTH, timeout=FILLING_S) for _ in range(FILLING))

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    time.sleep(0.2)  # the last of them wait for room, and are in the way of all others
    try:
        yield
    finally:
        for future in futures:
            future.cancel()
        filler.join(LONG_S)


@contextmanager
def _noise() -> Iterator[list[int]]:
    """How late this machine wakes a thread that sleeps, meanwhile."""
    late_ns = [0]
    is_over = threading.Event()

    def sleep() -> None:
        while not is_over.is_set():
            due_ns = time.monotonic_ns() + 5_000_000
            time.sleep(0.005)
            late_ns[0] = max(late_ns[0], time.monotonic_ns() - due_ns)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    try:
        yield late_ns
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _yard(wire: str) -> Iterator[Any]:
    """A yard with one worker that serves MODEL."""
    from batchyard.client import serve

    with tempfile.TemporaryDirectory(prefix="by-", dir="/tmp") as folder:
        url = None if wire == "ipc" else f"tcp://127.0.0.1:{free_port()}"
        with open("/dev/null", "wb") as log, serve(
            {MODEL: written(Path(folder))}, threads=1, max_batch=ROWS, url=url, log=log, open_to_this_machine=True
        ) as yard:
            yield yard


def written(folder: Path) -> Path:
    """The file of a model with a state: y = x + state, stateN = -x."""
    import onnx
    from onnx import TensorProto, helper

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64])

    nodes = [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Neg", ["x"], ["stateN"])]
    graph = helper.make_graph(nodes, MODEL, [info("x"), info("state")], [info("y"), info("stateN")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    path = folder / f"{MODEL}.onnx"
    onnx.save(model, str(path))
    return path


CAMPAIGN = Campaign(
    "patience",
    "every verb, against what never answers: each call ends within its timeout + 50 ms",
    Demand(),
    Demand(rounds=1),
    run,
)
