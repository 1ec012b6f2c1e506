"""What is shown of nodes: health, load, models, and where nodes differ."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from batchyard.cli.fleet.nodes import Fleet, Node
from batchyard.cli.fleet.status import as_text, status


def model(name: str, sha256: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1", "state": "READY", "sha256": sha256, "idempotent": True, **more}


class Handler(http.server.BaseHTTPRequestHandler):
    models: list[dict[str, Any]]
    ready = True
    token = "t"

    def do_GET(self) -> None:
        code, body = 200, {"version": "1", "models": self.models}
        if self.path == "/v2/health/ready":
            code, body = (200, {"ready": True}) if self.ready else (503, {"error": "it is loading"})  # type: ignore[dict-item]
        elif self.headers["Authorization"] != f"Bearer {self.token}":
            code, body = 401, {"error": "send the token"}  # type: ignore[dict-item]
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        load = {"application_utilization": 0.5, "named_metrics": {"rows_waiting": 3.0, "rows_under_way": 4.0}}
        self.send_header("endpoint-load-metrics", "JSON " + json.dumps(load))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Any]:
    servers = []

    def serve(*models: dict[str, Any], ready: bool = True) -> Node:
        kind = type("Node", (Handler,), {"models": list(models), "ready": ready})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return Node("127.0.0.1", server.server_port)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_nodes_that_are_alike_are_listed_with_their_load(served: Any) -> None:
    nodes = [served(model("m", "ab" * 32)) for _ in range(2)]
    found = status(Fleet(nodes, tokens=dict.fromkeys(nodes, "t")))
    assert (found["differ"], found["missing"]) == ([], [])
    head, first, second = as_text(found)
    assert head.split() == ["NODE", "HEALTH", "LOAD", "WAITING", "MODEL", "VERSION", "STATE", "DIGEST"]
    assert first.split() == [str(nodes[0]), "ready", "50%", "3", "m", "1", "ready", "abababababab"]
    assert second.split()[0] == str(nodes[1])


def test_what_differs_is_said(served: Any) -> None:
    nodes = [
        served(model("m", "aa"), model("n", "cc", idempotent=False)),
        served(model("m", "bb"), ready=False),
        Node("127.0.0.1", 9),
    ]
    found = status(Fleet(nodes, tokens=dict.fromkeys(nodes, "t")))
    assert [entry["health"] for entry in found["nodes"]] == ["ready", "not ready", "unreachable"]
    assert (found["differ"], found["missing"]) == (["m"], ["n"])
    text = "\n".join(as_text(found))
    for words in ("it is loading", "n (once)", "m: nodes serve different files", "n: not every node serves it that should"):
        assert words in text


def test_a_wrong_token_is_a_reason(served: Any) -> None:
    node = served(model("m", "aa"))
    (entry,) = status(Fleet([node], tokens={node: "wrong"}))["nodes"]
    assert (entry["reason"], entry["models"]) == ("send the token", [])
