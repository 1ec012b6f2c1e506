"""The WebGPU provider for real, on whatever adapter answers here: a GPU, or Vulkan made of software."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from batchyard.gpuworker import providers

PROBE = [sys.executable, "-m", "batchyard.gpuworker.probe", "--provider", "webgpu"]
PROBE_TIMEOUT_S = 90


def why_not() -> str:
    """Why WebGPU can't be tested here; empty where it can."""
    if "webgpu" not in providers.installed():
        return "no WebGPU runtime is installed here: python3 run test --webgpu makes an environment with one"
    done = subprocess.run(PROBE, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    if done.returncode:
        return f"the probe of WebGPU ended with status {done.returncode}: {done.stderr[-500:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    if found["works"]:
        return ""
    return f"WebGPU does not work here ({found['text']}); without a GPU, python3 run vulkan helps on Debian"


@pytest.fixture(scope="session", autouse=True)
def adapter() -> None:
    """Skips what needs an adapter where none answers; with BATCHYARD_REQUIRE=webgpu that is a failure."""
    why = why_not()
    if why and "webgpu" in os.environ.get("BATCHYARD_REQUIRE", "").split(","):
        pytest.fail(why)
    if why:
        pytest.skip(why)
