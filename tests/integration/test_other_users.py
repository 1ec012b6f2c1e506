"""Another user of the machine: his yard is not ours to use, and a yard that he pretends to have is sent nothing.

Needs root, to be two other users. What they run was imported before: they may not read where Python lies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from batchyard import serve

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be other users"),
    pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED"),
]
PROGRAM = r"""
import asyncio, json, os, socket, sys
import numpy as np
from batchyard import AsyncClient, Client
from batchyard.client import Operator
from batchyard.gpuworker.__main__ import main as worker
from batchyard.transport import endpoints

patience_s = 0.05

def infer(url):
    with Client(url, connect_timeout=patience_s) as client:
        return client.infer("neg", np.ones((1, 4), np.float32), timeout=patience_s)

async def infer_async(url):
    async with AsyncClient(url, connect_timeout=patience_s) as client:
        return await client.infer("neg", np.ones((1, 4), np.float32), timeout=patience_s)

CALLS = {
    "client": infer,
    "async": lambda url: asyncio.run(infer_async(url)),
    "operator": lambda url: Operator(url).snapshot(timeout=patience_s),
    "worker": lambda url: worker(["--url", url]),
}

def outcomes(url):
    found = {}
    for name, call in CALLS.items():
        try:
            found[name] = str(call(url))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found

url, as_whom = sys.argv[1], int(sys.argv[2])
for name in ("client", "async", "operator"):  # everything is imported
    try:
        CALLS[name]("ipc:///nowhere/at/all" if name != "operator" else "ipc:///proc")
    except Exception:
        pass
patience_s = 2
if sys.argv[3] == "pretends":
    folder = url.removeprefix("ipc://")
    os.mkdir(folder, 0o777)
    os.chmod(folder, 0o777)
    os.chown(folder, 65534, 65534)
    os.setegid(65534)
    os.seteuid(65534)
    listeners = []
    for name in ("clients", "workers", "admin"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/{name}")
        os.chmod(f"{folder}/{name}", 0o777)
        listener.listen()
        listeners.append(listener)
    open(f"{folder}/lock", "w").close()
    os.seteuid(0)
os.setgroups([])
os.setgid(as_whom)
os.setuid(as_whom)
print(json.dumps(outcomes(url)))
"""


def outcomes(url: str, how: str) -> tuple[dict[str, str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, "65533", how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_yard_of_another_user_is_told_as_such_by_every_way_in(neg_model: Path) -> None:
    with serve({"neg": neg_model}, threads=1) as yard:
        found, said = outcomes(yard.url, "")
    assert {found[name].split(":")[0] for name in ("client", "async", "operator")} == {"Unauthorized"}, found
    assert "is another user's: this process runs as user 65533" in found["operator"]
    assert found["worker"] == "1"
    assert "is another user's: this process runs as user 65533" in said


def test_a_yard_that_another_user_pretends_to_have_is_sent_nothing(run_folder: Path) -> None:
    run_folder.chmod(0o711)
    found, said = outcomes(f"ipc://{run_folder}/pretended", "pretends")
    run_folder.chmod(0o700)
    shutil.rmtree(run_folder / "pretended")
    assert {found[name].split(":")[0] for name in ("client", "async", "operator")} == {"Unauthorized"}, found
    assert "is another user's: this process runs as user 65533" in said
