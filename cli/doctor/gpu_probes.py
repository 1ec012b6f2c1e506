"""Reads facts about this machine's GPUs for `batchyard doctor`. Judges nothing and changes nothing."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...gpuworker import providers
from ...gpuworker.probe import Probe, Probed
from .gpu_checks import PLUGIN, Card, GpuFacts

DRM = Path("/sys/class/drm")
DRI = Path("/dev/dri")
# Where the Vulkan loader looks for drivers (its LoaderDriverInterface.md), beside what the environment names.
ICD_FOLDERS = (
    Path("/etc/vulkan/icd.d"),
    Path("/usr/local/etc/vulkan/icd.d"),
    Path("/usr/local/share/vulkan/icd.d"),
    Path("/usr/share/vulkan/icd.d"),
    Path.home() / ".local/share/vulkan/icd.d",
)
ICD_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES")
POLL_S = 0.05


def facts() -> GpuFacts:
    """Everything that can be read without touching a device."""
    try:
        plugin = version(PLUGIN)
    except PackageNotFoundError:
        plugin = ""
    if sys.platform != "linux":
        return GpuFacts(sys.platform, plugin=plugin)
    return GpuFacts(sys.platform, tuple(cards(DRM, DRI)), has_vulkan_loader(), tuple(icds()), plugin)


def cards(drm: Path, dri: Path) -> Iterable[Card]:
    """The GPUs that the kernel lists, by their render nodes and by what has none (no driver)."""
    for device in sorted({path.resolve() for path in drm.glob("card[0-9]*/device")}):
        with suppress(OSError, ValueError):
            node = next((path.name for path in sorted((device / "drm").glob("renderD*"))), "")
            driver = device / "driver"
            yield Card(
                int((device / "vendor").read_text(), 16),
                int((device / "device").read_text(), 16),
                driver.resolve().name if driver.exists() else "",
                str(dri / node) if node else "",
                bool(node) and os.access(dri / node, os.R_OK | os.W_OK),
            )


def has_vulkan_loader() -> bool:
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return False
    return True


def icds() -> Iterable[str]:
    """Names of the Vulkan drivers' files."""
    named = os.pathsep.join(os.environ.get(variable, "") for variable in ICD_VARIABLES)
    for path in map(Path, filter(None, named.split(os.pathsep))):
        yield from (file.name for file in ([path] if path.is_file() else path.glob("*.json")))
    for folder in ICD_FOLDERS:
        with suppress(OSError):
            yield from sorted(file.name for file in folder.glob("*.json"))


def probed() -> dict[str, Probed]:
    """The probe's result for each installed GPU provider, from a throw-away process; takes seconds."""
    found = {}
    for name in providers.installed():
        if name == "cpu":
            continue
        probe = Probe(name, 0, 1, time.monotonic())
        try:
            while (said := probe.poll(time.monotonic())) is None:
                time.sleep(POLL_S)
        except BaseException:
            probe.close()
            raise
        found[name] = said
    return found
