"""`fleet`: three nodes behind Envoy, under load at 60 % of their sum, while they are killed, stopped and started.

Requests arrive at a fixed rate, half over HTTP and half over gRPC, each with its own number as its input, which
is the right answer. "Used again" is measured from the start of a node's processes to its first answer.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchyard import Client
from batchyard.bench.statistics import percentile
from batchyard.cli.fleet.nodes import Fleet
from batchyard.cli.fleet.nodes import Node as Address

from .campaign import Campaign, Say, demand
from .nodes import MODEL, NAP_S, TOKEN, Front, Node, front, nodes, until
from .verdict import Figure, times

ROW_FLOATS = {"12 kB": 3_000, "602 kB": 150_528}


@dataclass(frozen=True, slots=True)
class Demand:
    seconds: float = demand(4.0, "of load before, between and after the events")
    share: float = demand(0.6, "of the three nodes' sum arrives")
    rounds: int = demand(3, "a kill and a stop, and both again; all but the first also restart each node")
    counted: int = demand(1000, "requests that a canary's share is counted on")
    timed: int = demand(300, "requests of each size, with Envoy and without")


def run(demand: Demand, say: Say) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="yf-", dir="/tmp") as folder, nodes(Path(folder)) as three:
        with front(Fleet([node.address for node in three])) as before:
            figures += _events(demand, three, before, say)
        figures += _added(demand, three, say)
        if demand.rounds > 1:
            figures += _scale(demand, three, say)
        figures += _shares(demand, three, say)
    return figures


# ---- nodes that come and go -----------------------------------------------------------------------


def _events(demand: Demand, three: list[Node], before: Front, say: Say) -> list[Figure]:
    first, second, _ = three
    figures = []
    used: list[float] = []
    capacity = _rate(before, len(three), demand.seconds / 2)
    load = Load(before, demand.share * capacity)
    say(f"{capacity:.1f} requests/s at most")
    with load:
        time.sleep(demand.seconds)
        figures += load.phase("steady")
        for _ in range(demand.rounds):
            first.kill()
            time.sleep(demand.seconds / 4)
            second.stop()
            second.wait()
            time.sleep(demand.seconds / 4)
            for node in (first, second):
                node.start()
            used += [until(lambda node=node: node.count(), f"{node.address} being used") for node in (first, second)]
            until(lambda: before.healthy() == len(three), "every node being healthy")
            time.sleep(demand.seconds)
        say(f"killed and stopped {demand.rounds} times: {load.ended:,} requests, {load.failed} failed")
        figures += load.phase("a node killed, one stopped, both started")
        for node in three * (demand.rounds - 1):
            node.restart()
            used.append(until(node.count, f"{node.address} being used"))
            until(lambda: before.healthy() == len(three), "every node being healthy")
        if demand.rounds > 1:
            time.sleep(demand.seconds / 4)
            say(f"restarted one after the other: {load.ended:,} requests, {load.failed} failed")
            figures += load.phase("rolling restart")
    figures += times("a started node is used again after", [int(s * 1e9) for s in used], (50, 100))
    return [*figures, *load.verdict()]


class Load:
    """Requests at a fixed rate, from a thread; a context manager. It ends when all are answered."""

    def __init__(self, before: Front, rate_per_s: float) -> None:
        self.ended = self.failed = 0
        self._clients = [Client(url, token=TOKEN) for url in (before.http, before.grpc)]
        self._gap_s = 1 / rate_per_s
        self._latencies_ns: tuple[list[int], ...] = ([], [])  # by the way: HTTP, gRPC
        self._errors: Counter[str] = Counter()
        self._phase_failed = self._sent = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="load")

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            number = self._sent
            self._sent += 1
            x = np.full((1, 16), number, np.float32)
            began_ns = time.monotonic_ns()
            future = self._clients[number % 2].submit(MODEL, x, timeout=60)
            future.add_done_callback(self._noted(number, began_ns))
            due_s = max(due_s + self._gap_s, time.monotonic() - 1)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))

    def _noted(self, number: int, began_ns: int) -> Callable[[Future[Any]], None]:
        def done(future: Future[Any]) -> None:
            error = future.exception()
            wrong = error is None and float(future.result()[0]) != number
            with self._lock:
                self._latencies_ns[number % 2].append(time.monotonic_ns() - began_ns)
                self.ended += 1
                if error is not None or wrong:
                    self.failed += 1
                    self._errors[f"{type(error).__name__}: {error}" if error else "a wrong answer"] += 1

        return done

    def phase(self, name: str) -> list[Figure]:
        """What has ended since the last one."""
        with self._lock:
            latencies_ns, self._latencies_ns = self._latencies_ns, ([], [])
            failed, self._phase_failed = self.failed - self._phase_failed, self.failed
        return [
            Figure(f"{name}: requests", sum(map(len, latencies_ns))),
            Figure(f"{name}: failed", failed, at_most=0),
            *times(f"{name}, HTTP", latencies_ns[0], (50, 99)),
            *times(f"{name}, gRPC", latencies_ns[1], (50, 99)),
        ]

    def verdict(self) -> list[Figure]:
        """After the end: nothing is missing."""
        errors = [Figure(f"failed as {text}", count) for text, count in self._errors.items()]
        return [*errors, Figure("requests without an outcome", self._sent - self.ended, at_most=0)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.wait_ready(MODEL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        until(lambda: self.ended >= self._sent, "the last answers")
        for client in self._clients:
            client.close()


# ---- shares, costs, scale ---------------------------------------------------------------------------


def _shares(demand: Demand, three: list[Node], say: Say) -> list[Figure]:
    """A tenth to a canary, and a copy of everything to a mirror, counted where they arrive."""
    main, canary, shadow = (node.address for node in three)
    counts = [node.count("quick") for node in three]
    sent = 0
    with front(Fleet([main], {canary: 10}, shadow)) as before:
        for url in (before.http, before.grpc):
            with Client(url, token=TOKEN) as client:
                x = np.ones((1, 16), np.float32)
                sent += sum(1 for _ in client.map("quick", [x] * (demand.counted // 2), window=8))
        until(lambda: three[2].count("quick") - counts[2] >= sent, "copies of every request")
    main_count, canary_count, copies = (
        node.count("quick") - before for node, before in zip(three, counts, strict=True)
    )
    say(f"of {sent}: {main_count} to the nodes, {canary_count} to the canary, {copies} copied")
    spread = 5 * (0.1 * 0.9 / sent) ** 0.5
    return [
        Figure("canary at 10 %: its share", canary_count / sent, "share", 0.1 + spread, 0.1 - spread),
        Figure("canary and the rest, of all sent", (main_count + canary_count) / sent, "x", 1.0, 1.0),
        Figure("mirror: copies of all sent", copies / sent, "x", 1.0, 1.0),
    ]


def _added(demand: Demand, three: list[Node], say: Say) -> list[Figure]:
    """One at a time, in turn through Envoy and straight to a node, so that both meet the same machine."""
    with front(Fleet([three[0].address])) as before:
        return _compared(demand, three[0].address, before, say)


def _compared(demand: Demand, node: Address, before: Front, say: Say) -> list[Figure]:
    figures = []
    ways = {"HTTP": (before.http, f"http://{node}"), "gRPC": (before.grpc, f"grpc://{node.host}:{node.port + 1}")}
    for way, urls in ways.items():
        clients = [Client(url, token=TOKEN) for url in urls]
        for size, floats in ROW_FLOATS.items():
            x = np.ones((1, floats), np.float32)
            taken: tuple[list[int], list[int]] = ([], [])
            for number in range(2 * demand.timed):
                began_ns = time.monotonic_ns()
                clients[number % 2].infer("quick", x)
                taken[number % 2].append(time.monotonic_ns() - began_ns)
            through, straight = (percentile(sorted(each), 50) for each in taken)
            say(f"{way}, {size}: {straight / 1e6:.2f} ms straight, {through / 1e6:.2f} through Envoy")
            figures += [
                Figure(f"{way}, {size}: straight to a node, p50", straight, "ns"),
                Figure(f"{way}, {size}: added by Envoy, p50", through - straight, "ns"),
            ]
        for client in clients:
            client.close()
    return figures


def _scale(demand: Demand, three: list[Node], say: Say) -> list[Figure]:
    """The rate of one, two and three nodes, with more under way than they can take."""
    figures = []
    one = 0.0
    for count in range(1, len(three) + 1):
        with front(Fleet([node.address for node in three[:count]])) as before:
            rate = _rate(before, count, demand.seconds)
        one = one or rate
        say(f"{count} nodes: {rate:.1f} requests/s")
        figures.append(Figure(f"rate of {count} nodes, by one's", rate / one, "x"))
    return [Figure("rate of one node, requests/s", one), *figures]


def _rate(before: Front, count: int, seconds: float) -> float:
    """Requests a second that so many nodes answer, with more under way than they can take."""
    x = np.ones((1, 16), np.float32)
    with Client(before.grpc, token=TOKEN) as client:
        client.infer(MODEL, x)
        sent = int(seconds * count / NAP_S)
        began_s = time.monotonic()
        done = sum(1 for _ in client.map(MODEL, [x] * sent, window=8 * count))
        return done / (time.monotonic() - began_s)


CAMPAIGN = Campaign(
    "fleet",
    "nodes behind Envoy are killed, stopped and restarted; no request fails",
    Demand(),
    Demand(seconds=1.0, rounds=1, counted=200, timed=5),
    run,
)
