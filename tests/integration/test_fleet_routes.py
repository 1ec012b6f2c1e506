"""Two nodes that serve different models, behind a real Envoy: which node is asked, what runs again, and TLS."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BrokerLost, Client, Unauthorized, UnknownModel
from batchyard.cli.fleet import envoy
from batchyard.cli.fleet.nodes import Fleet
from batchyard.cli.fleet.nodes import Node as Address
from batchyard.cli.fleet.status import status
from batchyard.gateway.yard import SNAPSHOT_AGE_S
from batchyard.tests.ports import free_port

from ..required import part

part("envoy", envoy.binary())
pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
pytest.importorskip("grpc", reason="pip install 'batchyard[fleet]'")
from ..campaigns.reliability.nodes import TOKEN, Front, Node, front, running, until  # noqa: E402

PATIENCE_S = 60.0
CODE = """
import pathlib, time, batchyard
FOLDER = pathlib.Path(__file__).parent
described = batchyard.model(inputs={"x": "float32[n, width]"}, outputs={"y": "float32[n]"})

@described
def quick(batch):
    return {"y": batch["x"][:, 0]}

@described
def held(batch):
    with open(FOLDER.parent / "runs", "a") as runs:
        runs.write(f"{batch['x'][0, 0]:g} {FOLDER.name}\\n")
    while (FOLDER.parent / "hold").exists():
        time.sleep(0.01)
    return {"y": batch["x"][:, 0]}
"""
MODEL = '[models.{name}]\npython = "models.py:{function}"\nmax_batch = 1\nwarmup = false\nidempotent = {again}\n'
X = np.ones((1, 4), np.float32)


def config(quick: list[str]) -> str:
    models = [(name, "quick", "true") for name in quick] + [("once", "held", "false"), ("twice", "held", "true")]
    return "".join(MODEL.format(name=name, function=function, again=again) for name, function, again in models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes")


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[list[Node]]:
    """The first serves a and both, the second b and both. Each has a token of its own."""
    port = free_port(3, "0.0.0.0")
    names = {"127.0.0.2": ["a", "both"], "127.0.0.3": ["b", "both"]}
    made = [
        Node(folder, host, port, config(quick), CODE, token=f"a-token-of-{host}") for host, quick in names.items()
    ]
    with running(made):
        yield made


def fleet_of(two: list[Node], **more: Any) -> Fleet:
    tokens = {node.address: node.token for node in two}
    return Fleet([node.address for node in two], tokens=tokens, **more)


@contextmanager
def clients(before: Front, token: str | None = None) -> Iterator[dict[str, Client]]:
    with Client(before.http, token=token) as http, Client(before.grpc, token=token) as grpc:
        yield {"http": http, "grpc": grpc}


def start(node: Node, before: Front) -> None:
    """Return when it is used again. Envoy alone can't say so: it may not have noticed yet that it was gone."""
    node.start()
    until(node.ready, "a node that was started", node)
    until(lambda: before.healthy() == 2, "both nodes", node)


class Counted:
    """How many requests for a model each node answers from now on."""

    def __init__(self, two: list[Node], model: str) -> None:
        time.sleep(2 * SNAPSHOT_AGE_S)  # a gateway's figures may be so old
        self._two, self._model = two, model
        self._before = [node.count(model) for node in two]

    def when(self, total: int) -> list[int]:
        def found() -> list[int]:
            return [node.count(self._model) - was for node, was in zip(self._two, self._before, strict=True)]

        until(lambda: sum(found()) >= total, f"{total} requests for {self._model}: {found()}")
        return found()


def test_a_model_is_asked_only_of_nodes_that_serve_it(two: list[Node]) -> None:
    fleet = fleet_of(two, models={two[0].address: ["a", "both"]})  # the second has no list: it serves the rest
    with front(fleet) as before, clients(before) as asked:
        for way, client in asked.items():
            b, both = Counted(two, "b"), Counted(two, "both")
            for _ in range(24):
                assert client.infer("b", X) == 1
                assert client.infer("both", X) == 1
            assert b.when(24) == [0, 24], way
            assert min(both.when(24)) > 0, "both nodes serve it, and one got nothing"


def test_lists_of_all_nodes_leave_nobody_for_other_models(two: list[Node]) -> None:
    first, second = (node.address for node in two)
    fleet = fleet_of(two, models={first: ["a", "both"], second: ["b", "both"]})
    with front(fleet) as before, clients(before) as asked:
        for way, client in asked.items():
            a, b = Counted(two, "a"), Counted(two, "b")
            for _ in range(8):
                assert client.infer("a", X) == 1
                assert client.infer("b", X) == 1
            assert a.when(8) == [8, 0], way
            assert b.when(8) == [0, 8], way
            with pytest.raises(UnknownModel, match="no node of this fleet"):
                client.infer("c", X)
        for model in ("a", "b"):  # a path that does not name its model: it finds the node that knows it
            for _ in range(6):
                body = json.dumps({"model": model, "data": [[2, 0]]}).encode()
                request = urllib.request.Request(
                    f"{before.http}/predict", body, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    assert answer.status == 200
    found = status(fleet)
    assert found["missing"] == []
    fleet.models[first] = ["a", "b"]
    assert status(fleet)["missing"] == ["b"]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_what_was_under_way_at_a_killed_node_runs_again_unless_its_model_forbids_it(
    two: list[Node], folder: Path, way: str
) -> None:
    hold, runs = folder / "hold", folder / "runs"
    hold.touch()
    runs.write_text("")

    def ran(number: int) -> list[str]:
        """Hosts on which the request with this number has begun to run."""
        lines = [line.split() for line in runs.read_text().splitlines()]
        return [host for found, host in lines if found == str(number)]

    fleet = fleet_of(two, once=["once"])
    try:
        with front(fleet) as before, clients(before) as asked:
            client = asked[way]
            again = client.submit("twice", np.full((1, 4), 7, np.float32), timeout=PATIENCE_S)
            until(lambda: ran(7), "a request that runs")
            for number in range(8, 40):  # Envoy may draw the busy node, where it would wait
                once = client.submit("once", np.full((1, 4), number, np.float32), timeout=PATIENCE_S)
                give_up_s = time.monotonic() + 2
                while not ran(number) and time.monotonic() < give_up_s:
                    time.sleep(0.02)
                if ran(number):
                    break
                once.cancel()
            (victim,) = (node for node in two if node.address.host == ran(number)[0])
            victim.kill()
            with pytest.raises(BrokerLost):
                once.result(PATIENCE_S)
            start(victim, before)
            (other,) = (node for node in two if node.address.host == ran(7)[0])
            assert other is not victim
            other.kill()
            until(lambda: len(ran(7)) == 2, "a second run, elsewhere")
            assert ran(7) == [other.address.host, victim.address.host]
            hold.unlink()
            assert again.result(PATIENCE_S) == 7
            assert ran(number) == [victim.address.host], "it ran twice"
            start(other, before)
    finally:
        hold.unlink(missing_ok=True)


def test_a_node_that_is_stopped_is_missed_by_nobody_though_nothing_is_repeated(two: list[Node]) -> None:
    """Its readiness ends before it refuses, and Envoy hears of it in between."""

    def without_retries(text: str) -> str:
        assert "num_retries: 4" in text
        return text.replace("num_retries: 4", "num_retries: 0")

    first, _ = two
    with (
        front(fleet_of(two), without_retries) as before,
        clients(before) as asked,
    ):
        futures = []
        for client in asked.values():
            client.infer("both", X)
        first.stop()

        def goes_on() -> bool:
            for client in asked.values():
                futures.append(client.submit("both", X, timeout=PATIENCE_S))
                futures[-1].exception(PATIENCE_S)
            return first.ended

        until(goes_on, "the end of a node")
        first.wait()
        assert [str(each.exception()) for each in futures if each.exception()] == []
        start(first, before)


# ---- TLS ----------------------------------------------------------------------------------------


def test_tls_from_the_client_to_the_node(
    two: list[Node], pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the same Envoy: beside a node it ends TLS for it, in front of all it ends that of clients."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pair[0]))
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(pair[0]))
    with ExitStack() as stack:
        own = fleet_of(two[:1])
        beside = stack.enter_context(front(own, client_token=TOKEN, certificate=pair))
        fleet = Fleet([Address("127.0.0.1", beside.port)], ca=pair[0])
        before = stack.enter_context(front(fleet, client_token="the-fleets-own-token", certificate=pair))
        for url in (before.http.replace("http", "https"), before.grpc.replace("grpc", "grpcs")):
            with Client(url, token="the-fleets-own-token") as client:
                client.wait_ready("a")
                assert client.infer("a", X) == 1
            with Client(url, token="another-token-than-that") as client, pytest.raises(Unauthorized):
                client.infer("a", X)
        for url in (before.http, before.grpc):  # without TLS nobody is spoken to
            with Client(url, connect_timeout=0.2) as client, pytest.raises(BrokerLost):
                client.infer("a", X, timeout=5)
        (entry,) = status(fleet)["nodes"]
        assert entry["health"] == "ready"
        assert {model["name"] for model in entry["models"]} >= {"a", "both"}
