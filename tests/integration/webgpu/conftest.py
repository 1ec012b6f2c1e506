"""The WebGPU provider for real, on whatever adapter answers here: a GPU, or Vulkan made of software."""

from __future__ import annotations

import os
import time

import pytest
from batchyard.gpuworker import providers
from batchyard.gpuworker.probe import Probe, Probed


def why_not() -> str:
    """Why WebGPU can't be tested here; empty where it can."""
    if "webgpu" not in providers.installed():
        return "no WebGPU runtime is installed here: python3 run test --webgpu makes an environment with one"
    found = probed()
    if found.works:
        return ""
    return f"WebGPU does not work here ({found.text}); without a GPU, python3 run vulkan helps on Debian"


def probed() -> Probed:
    """What a worker would find."""
    probe = Probe("webgpu", None, 1, time.monotonic())
    while (found := probe.poll(time.monotonic())) is None:
        time.sleep(0.02)
    return found


@pytest.fixture(scope="session", autouse=True)
def adapter() -> None:
    """Skips what needs an adapter where none answers; with BATCHYARD_REQUIRE=webgpu that is a failure."""
    why = why_not()
    if why and "webgpu" in os.environ.get("BATCHYARD_REQUIRE", "").split(","):
        pytest.fail(why)
    if why:
        pytest.skip(why)
