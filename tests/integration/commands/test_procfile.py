"""The repository's own Procfile, started by honcho as a user would: it works, scales, and ends clean."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batchyard
import pytest
from batchyard.transport.errors import BatchyardError

pytest.importorskip("honcho")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="ipc, and /proc to see what is left"),
]

ROOT = Path(__file__).resolve().parents[3]
WORKERS = 2
PATIENCE_S = 30.0


def eventually(is_so: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what()}"
        time.sleep(0.05)


def processes_with(variable: str) -> list[int]:
    """Pids of the living processes whose environment has `variable`, honcho's shells among them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_honcho_starts_the_yard_with_two_workers_and_a_signal_ends_all_of_it(
    number: signal.Signals, tmp_path: Path, tools: Any
) -> None:
    folder = tempfile.mkdtemp(prefix="yt-", dir="/tmp")
    url = f"ipc://{folder}/y"
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    port = tools.free_port()
    environment = dict(
        os.environ,
        BATCHYARD_URL=url,
        PATH=path,
        BATCHYARD_WORKERS=str(WORKERS),
        BATCHYARD_METRICS_PORT=str(port),
        BATCHYARD_GATEWAY_PORT=str(port + 1),
    )
    log = tmp_path / "log"
    with log.open("wb") as file:
        honcho = subprocess.Popen(
            [sys.executable, "-m", "honcho", "start", "-c", f"worker={WORKERS}"],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        with batchyard.Client(url, connect_timeout=0.5) as client:

            def all_are_there() -> bool:
                assert honcho.poll() is None, log.read_text()
                try:
                    (model,) = client.models()
                except BatchyardError:
                    return False
                return model.name == "digits" and len(model.workers) == WORKERS

            eventually(all_are_there, log.read_text)
            assert {worker.provider for worker in client.models()[0].workers} == {"cpu"}

        def sidecar_knows_both() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    return f"batchyard_workers_up {WORKERS}.0" in page.read().decode()
            except OSError:
                return False

        def gateway_is_ready() -> bool:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port + 1}/v2/health/ready", timeout=5
                ) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        eventually(sidecar_knows_both, log.read_text)
        eventually(gateway_is_ready, log.read_text)
        honcho.send_signal(number)
        honcho.wait(PATIENCE_S)
        eventually(lambda: not processes_with(f"BATCHYARD_URL={url}"), log.read_text)
    finally:
        honcho.kill()  # only where the test has failed already; what it started sees its end
        honcho.wait()
        for pid in processes_with(f"BATCHYARD_URL={url}"):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    assert "Traceback" not in log.read_text()
