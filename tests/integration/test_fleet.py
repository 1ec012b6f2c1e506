"""Three nodes behind a real Envoy, in small: the campaign `python3 run reliability fleet` with quick demands."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BrokerLost, Client
from batchyard.cli.fleet import envoy
from batchyard.cli.main import TERMINATED

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


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        codes = {json.loads(error.read())["code"], error.headers["batchyard-code"]}
        return (error.code, codes) == (503, {"NO_NODE"})
    except OSError:
        return False
