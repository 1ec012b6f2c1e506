"""The WebGPU provider for real, on whatever adapter answers here: a GPU, or Vulkan made of software."""

from __future__ import annotations

import time

import pytest
from batchyard.gpuworker import providers
from batchyard.gpuworker.probe import Probe, Probed

from ...required import part


def probed() -> Probed:
    """What a worker would find."""
    probe = Probe("webgpu", None, 1, time.monotonic())
    while (found := probe.poll(time.monotonic())) is None:
        time.sleep(0.02)
    return found


@pytest.fixture(scope="session", autouse=True)
def adapter() -> None:
    """Skips what needs an adapter where none answers."""
    if "webgpu" not in providers.installed():
        part("webgpu", None, "this environment has no runtime for it")
    found = probed()
    part("webgpu", found if found.works else None, found.text)
