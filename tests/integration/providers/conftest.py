"""The device provider that this environment has, for real: WebGPU on a GPU, or on Vulkan made of software; OpenVINO
on an Intel GPU or processor, or on a processor made of software."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest
from batchyard.gpuworker import probe, providers

from ...required import part, required

EMULATOR = Path(__file__).resolve().parents[3] / ".tools" / "intel" / "qemu-x86_64-static"
# The first of Intel's that it has all of (AVX2), less what nothing but a kernel sees.
PROCESSOR = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"
HARDWARE = sys.executable  # Python on this machine's own processor
PARTS = ("openvino", "webgpu")


def probed(provider: str) -> probe.Probed:
    """What a worker would find."""
    asked = probe.Probe(provider, None, 1, time.monotonic())
    while (found := asked.poll(time.monotonic())) is None:
        time.sleep(0.02)
    return found


def emulated(folder: Path) -> str:
    """A Python like this one that runs on a processor of Intel's, made of software, as do its children."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{EMULATOR}" -cpu {PROCESSOR} -0 "$0" "{HARDWARE}" "$@"\n')
    python.chmod(0o755)
    (folder / "lib").symlink_to(Path(sys.prefix, "lib"))
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), folder)
    return str(python)


@pytest.fixture(scope="session", autouse=True)
def provider(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its name. Skips what needs a device where none answers."""
    name = next((name for name in providers.installed() if name in PARTS), "")
    if not name:
        wanted = required().intersection(PARTS)
        part(wanted.pop() if wanted else "webgpu", None, "this environment has no runtime for it")
    found = probed(name)
    if name == "openvino" and not found.works and EMULATOR.exists():
        sys.executable = probe.COMMAND[0] = emulated(tmp_path_factory.mktemp("intel"))
        found = probed(name)
    part(name, found if found.works else None, found.text)
    return name
