"""Three nodes in network namespaces of their own, as three machines are: with addresses, and a cable that can
be pulled. Envoy and the clients are in the namespace of this test. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from batchyard import Client
from batchyard.cli.fleet import envoy
from batchyard.cli.fleet.nodes import Fleet

from ..required import part

part("envoy", envoy.binary())
pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
pytest.importorskip("grpc", reason="pip install 'batchyard[fleet]'")
from ..campaigns.reliability.nodes import MODEL, Front, Node, front, running, until  # noqa: E402

PORT = 8000
PATIENCE_S = 60.0
NOBODY = "02:00:00:00:00:01"  # no machine has this address: what is sent there is lost without a word


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machine:
    """A namespace with one cable to ours."""

    def __init__(self, number: int) -> None:
        self.name = f"yard{os.getpid()}-{number}"
        self.cable = f"yv{os.getpid() % 1_000_000}-{number}"
        self.here, self.host = f"10.213.{number}.1", f"10.213.{number}.2"
        ip("netns", "add", self.name)
        try:
            ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            for inside, device, address in ((False, self.cable, self.here), (True, "eth0", self.host)):
                where = ("-n", self.name) if inside else ()
                ip(*where, "address", "add", f"{address}/30", "dev", device)
                ip(*where, "link", "set", device, "up")
            ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def within(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.name

    def unplug(self) -> None:
        """Nothing arrives any more, in either direction, and nobody is told."""
        ip("neighbour", "replace", self.host, "lladdr", NOBODY, "dev", self.cable, "nud", "permanent")
        ip("-n", self.name, "neighbour", "replace", self.here, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")

    def plug(self) -> None:
        ip("neighbour", "delete", self.host, "dev", self.cable)
        ip("-n", self.name, "neighbour", "delete", self.here, "dev", "eth0")

    def close(self) -> None:
        ip("netns", "delete", self.name)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("namespaces need root, and iproute2")
    with ExitStack() as stack:
        made: list[Machine] = []
        for number in range(3):
            try:
                made.append(Machine(number))
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no namespace: {error.stderr.decode().strip()}")
            stack.callback(made[-1].close)
        yield made


@pytest.fixture(scope="module")
def three(machines: list[Machine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    folder = tmp_path_factory.mktemp("machines")
    with running([Node(folder, each.host, PORT, within=each.within) for each in machines]) as made:
        yield made


@pytest.fixture
def before(three: list[Node]) -> Iterator[Front]:
    with front(Fleet([node.address for node in three])) as made:
        yield made


class Load:
    """6 requests under way over HTTP and 6 over gRPC, each with its number as its input; a context manager."""

    def __init__(self, before: Front) -> None:
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self.sent = self.ended = 0
        self._before = before
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with Client(self._before.http) as http, Client(self._before.grpc) as grpc:
            window: deque[tuple[int, float, Any]] = deque()
            while window or not self._over.is_set():
                while len(window) < 12 and not self._over.is_set():
                    x = np.full((1, 16), self.sent, np.float32)
                    future = (http, grpc)[self.sent % 2].submit(MODEL, x, timeout=PATIENCE_S)
                    window.append((self.sent, time.monotonic(), future))
                    self.sent += 1
                number, began_s, future = window.popleft()
                error = future.exception(2 * PATIENCE_S)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                if error is not None or future.result() != number:
                    self.failed.append(f"{number}: {error!r}")
                self.ended += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_a_machine_that_vanishes_without_a_word_fails_no_request_and_is_used_again_when_it_is_back(
    machines: list[Machine], three: list[Node], before: Front
) -> None:
    """No reset tells Envoy: only that nothing is answered any more."""
    lost = three[0]
    with Load(before) as load:
        counts = [node.count() for node in three]
        until(lambda: all(node.count() > was for node, was in zip(three, counts, strict=True)), "all in use")
        machines[0].unplug()
        sent = load.sent
        noticed_s = until(lambda: before.healthy() == 2, "Envoy noticing it")
        until(lambda: load.ended > sent, "answers to what was under way there")
        machines[0].plug()
        back_s = until(lambda: before.healthy() == 3, "Envoy finding it again")
        count = lost.count()
        until(lambda: lost.count() > count, "it being used again")
    print(f"noticed after {noticed_s:.1f} s, back after {back_s:.1f}, slowest request {load.slowest_s:.1f} s")
    assert load.failed == []


def test_a_machine_that_is_killed_and_started_fails_no_request(
    machines: list[Machine], three: list[Node], before: Front
) -> None:
    with Load(before) as load:
        three[1].kill()
        until(lambda: before.healthy() == 2, "Envoy noticing it")
        three[1].start()
        until(lambda: before.healthy() == 3, "Envoy using it again", three[1])
    assert load.failed == []
