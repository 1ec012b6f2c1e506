"""A gateway's own TLS: its clients over HTTP and gRPC, and an Envoy in front of it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BrokerLost, Client, Unauthorized, serve
from batchyard.cli.fleet import envoy
from batchyard.cli.fleet.nodes import Fleet, Node
from batchyard.cli.fleet.status import status
from batchyard.client import Yard

from ..certificates import certificate
from ..required import part
from .gateways import Gateway, gateway

pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
pytest.importorskip("grpc", reason="pip install 'batchyard[fleet]'")
TOKEN = "a-token-of-this-test"
X = np.arange(40_000, dtype=np.float32).reshape(-1, 4)  # more than TLS puts into one record


@pytest.fixture(scope="module")
def yard(neg_model: Path) -> Iterator[Yard]:
    with serve({"neg": neg_model}, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def served(yard: Yard, pair: tuple[Path, Path], tools: Any) -> Iterator[Gateway]:
    with gateway(yard.url, tools.free_port(), token=TOKEN, tls=pair) as started:
        yield started


@pytest.fixture
def trusted(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_CERT_FILE", str(pair[0]))
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(pair[0]))
    return pair[0]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_our_client_speaks_tls_and_nobody_is_spoken_to_without_or_from_elsewhere(
    way: str, served: Gateway, trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = getattr(served, way)
    with Client(f"{way}s://{where}", token=TOKEN) as client:
        np.testing.assert_array_equal(client.infer("neg", X), -X)
        futures = [client.submit("neg", np.full((1, 4), n, np.float32)) for n in range(50)]
        assert [float(future.result(60)[0, 0]) for future in futures] == [-float(n) for n in range(50)]
    with Client(f"{way}s://{where}", token="another-token-than-that") as client, pytest.raises(Unauthorized):
        client.infer("neg", X)
    with Client(f"{way}://{where}", token=TOKEN, connect_timeout=0.2) as client, pytest.raises(BrokerLost):
        client.infer("neg", X, timeout=5)
    if way == "http":  # grpc reads its roots once in a process
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path)[0]))  # another authority is trusted
        stranger = Client(f"https://{where}", token=TOKEN, connect_timeout=0.2)
        with stranger, pytest.raises(BrokerLost, match="certificate"):
            stranger.infer("neg", X, timeout=5)


def test_tritons_clients_speak_tls(served: Gateway, trusted: Path) -> None:
    triton_http = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http,grpc]'")
    triton_grpc = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[http,grpc]'")
    context = {"ssl_context_factory": lambda: ssl.create_default_context(cafile=trusted)}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for module, client in (
        (triton_http, triton_http.InferenceServerClient(served.http, ssl=True, **context)),
        (triton_grpc, triton_grpc.InferenceServerClient(served.grpc, ssl=True, root_certificates=str(trusted))),
    ):
        with client:
            given = module.InferInput("x", [2, 4], "FP32")
            given.set_data_from_numpy(X[:2])
            lower = headers if module is triton_http else {"authorization": headers["Authorization"]}
            answer = client.infer("neg", [given], headers=lower)
            np.testing.assert_array_equal(answer.as_numpy("y"), -X[:2])


@pytest.mark.parametrize("port", [0, 1])
def test_an_old_version_of_tls_is_refused(served: Gateway, trusted: Path, port: int) -> None:
    context = ssl.create_default_context(cafile=trusted)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", served.port + port), 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_envoy_and_fleet_status_ask_a_node_by_its_own_tls(served: Gateway, trusted: Path) -> None:
    part("envoy", envoy.binary())
    from ..campaigns.reliability.nodes import front

    fleet = Fleet([Node("127.0.0.1", served.port)], ca=trusted)
    fleet.tokens = dict.fromkeys(fleet.nodes, TOKEN)
    with front(fleet) as before:
        for url in (before.http, before.grpc):
            with Client(url) as client:
                np.testing.assert_array_equal(client.infer("neg", X[:100]), -X[:100])
    (entry,) = status(fleet)["nodes"]
    assert (entry["health"], entry["reason"]) == ("ready", "")
