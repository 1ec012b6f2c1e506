"""Three nodes behind a real Envoy, in small: the campaign `python3 run reliability fleet` with quick demands."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BrokerLost, Client
from batchyard.cli.fleet import envoy
from batchyard.cli.fleet.nodes import Fleet, Node
from batchyard.cli.fleet.render import render
from batchyard.cli.main import TERMINATED
from batchyard.client.remote.calls import LEFT_HEADER

from ..required import part

part("envoy", envoy.binary())
pytest.importorskip("httpx", reason="pip install 'batchyard[fleet]'")
pytest.importorskip("grpc", reason="pip install 'batchyard[fleet]'")
from ..campaigns.reliability.__main__ import main  # noqa: E402 - it needs both


def test_nodes_that_are_killed_stopped_and_started_fail_no_request_and_shares_are_counted(run_folder: Path) -> None:
    file = run_folder / "fleet.json"
    main(["fleet", "--quick", "--json", str(file)])
    campaign = json.loads(file.read_text())["campaigns"]["fleet"]
    assert campaign["error"] == ""
    assert [figure for figure in campaign["figures"] if figure["met"] is False] == []
    file.unlink()


def test_fleet_up_runs_an_envoy_whose_refusals_a_client_understands(tools: Any) -> None:
    port, before = tools.free_port(), set(Path("/dev/shm").glob("envoy*"))
    command = [sys.executable, "-m", "batchyard.cli.main", "fleet", "up", "--node", "127.0.0.1:9"]
    command += ["--port", str(port), "--admin-port", str(port + 2)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            tools.until(lambda: answers(port), 60, "Envoy listening")
            assert process.stdout is not None
            assert f"gRPC at port {port + 1}" in process.stdout.readline()
            for url in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{port + 1}"):
                with Client(url, connect_timeout=0.2) as client, pytest.raises(BrokerLost, match="nobody answers"):
                    client.infer("m", np.ones((1, 4), np.float32))
        finally:
            process.terminate()
        assert process.wait(60) == TERMINATED
    assert set(Path("/dev/shm").glob("envoy*")) <= before, "Envoy left shared memory behind"


def test_each_try_tells_its_node_what_is_left_of_the_deadline_and_all_together_end_with_it(tools: Any) -> None:
    """The nodes here hang up on a first try, and answer the second one late."""
    told: list[str | None] = []
    is_patient = threading.Event()

    class Stub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            told.append(self.headers.get(LEFT_HEADER))
            if len(told) % 2:
                time.sleep(0.5)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                is_patient.wait(60)
                self.answer()

        def answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def ask(headers: dict[str, str]) -> tuple[int, str | None]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/m/infer", b"{}", headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, None
        except urllib.error.HTTPError as error:
            return error.code, error.headers["batchyard-code"]

    port = tools.free_port()
    with ExitStack() as stack:
        nodes = []
        for host in ("127.0.0.2", "127.0.0.3"):
            server = stack.enter_context(http.server.ThreadingHTTPServer((host, 0), Stub))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            nodes.append(Node(host, server.server_port))
        stack.callback(is_patient.set)
        file = stack.enter_context(envoy.written(render(Fleet(nodes), "127.0.0.1", port, port + 1, port + 2)))
        process = stack.enter_context(subprocess.Popen(envoy.command(file), stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        tools.until(lambda: healthy(port + 2) == 2, 60, "both nodes")

        assert ask({LEFT_HEADER: "3000"}) == (504, "DEADLINE_EXCEEDED")
        first, second = (int(each or 0) for each in told)
        assert 2900 < first <= 3000
        assert 0 < second <= first - 500
        is_patient.set()
        told.clear()
        assert ask({}) == (200, None)
        assert told == [None, None], "who names no deadline is given none"


def healthy(admin_port: int) -> int:
    """Nodes that Envoy may ask over HTTP."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/clusters?format=json", timeout=5) as answer:
            clusters = json.loads(answer.read())["cluster_statuses"]
    except OSError:
        return 0
    hosts = [host for each in clusters if each["name"] == "http" for host in each.get("host_statuses", [])]
    return sum(len(host["health_status"]) == 1 for host in hosts)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        codes = {json.loads(error.read())["code"], error.headers["batchyard-code"]}
        return (error.code, codes) == (503, {"NO_NODE"})
    except OSError:
        return False
