"""The broker by docs/protocol.md alone: its script, with a plain zmq.DEALER; and clients whose process the
broker can't look into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import batchyard
import pytest
from batchyard.transport.messages import PROTOCOL_VERSION

ROOT = Path(__file__).parents[2]


def script() -> str:
    """The Python of the page's section "By hand"."""
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    section = page.partition("\n## By hand\n")[2].partition("\n## ")[0]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_the_script_of_the_protocols_page_gets_its_answer(wire: str, neg_model: Path, tools: Any) -> None:
    url = f"tcp://127.0.0.1:{tools.free_port()}" if wire == "tcp" else None
    code = script()
    assert f"VERSION = {PROTOCOL_VERSION}\n" in code
    with batchyard.serve(neg_model, workers=1, threads=1, url=url, open_to_this_machine=True) as yard:
        with yard.client() as client:
            client.wait_ready("neg", 30)
        address = f"{yard.url}/clients" if wire == "ipc" else yard.url
        done = subprocess.run(
            [sys.executable, "-c", code, address, "neg"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "[[-1.0, -2.0, -3.0, -4.0]]\n", done.stderr


IN_ITS_OWN_NAMESPACE = """
import sys, batchyard, numpy as np
with batchyard.Client(sys.argv[1]) as client:
    assert (client.infer("neg", np.ones((2, 4), np.float32)) == -1).all()
    print("shared" if client._sessions.current.memory is not None else "frames")
"""


def test_a_client_in_another_pid_namespace_shares_its_memory(neg_model: Path) -> None:
    unshare = shutil.which("unshare")
    command = [str(unshare), "--pid", "--fork", "--mount-proc", "true"]
    if unshare is None or os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user can make no PID namespace")
    with batchyard.serve(neg_model, workers=1, threads=1) as yard:
        with yard.client() as client:
            client.wait_ready("neg", 30)
        done = subprocess.run(
            [*command[:-1], sys.executable, "-c", IN_ITS_OWN_NAMESPACE, yard.url],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "shared\n", done.stderr
