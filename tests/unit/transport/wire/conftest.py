"""Both ways to carry messages, and what a test of them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batchyard.tests.ports import free_port
from batchyard.transport.endpoints import Endpoint
from batchyard.transport.wire import Bounds, Carrier, carrier

from .driven import BOUNDS, Server, connections


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w")  # short: a socket's path has 107 bytes


@pytest.fixture(params=["stream", "libzmq"])
def endpoint(request: pytest.FixtureRequest, folder: Path) -> Endpoint:
    if request.param == "stream":
        return Endpoint.parse(f"ipc://{folder}")
    return Endpoint.parse(f"tcp://127.0.0.1:{free_port(3)}")


@pytest.fixture
def serving(endpoint: Endpoint) -> Iterator[Carrier]:
    made = carrier(endpoint, serves=True)
    yield made
    made.close()


@pytest.fixture
def server(endpoint: Endpoint, serving: Carrier) -> Iterator[Server]:
    made = Server(serving, endpoint.clients)
    yield made
    made.close()


@pytest.fixture
def connect(endpoint: Endpoint) -> Iterator[Callable[..., Any]]:
    """Connections to the endpoint, which are closed in the end."""
    made = carrier(endpoint)

    def one(bounds: Bounds = BOUNDS, descriptor: int | None = None) -> Any:
        connections.append(made.connect(endpoint.clients, bounds, descriptor))
        return connections[-1]

    yield one
    while connections:
        connections.pop().close()
    made.close()
