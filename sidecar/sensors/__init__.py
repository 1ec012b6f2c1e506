"""GPU sensors, through whatever interface the driver offers. A missing sensor is None, never 0; a GPU without
any readable sensor is not listed.

One reader per file: amdgpu.py (Linux), pdh.py (Windows), nvml.py (NVIDIA on both); host.py works on every
machine. Readers are called once per scrape, by one thread at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU now. `gpu` names it for as long as the machine runs."""

    gpu: str
    name: str
    utilization_ratio: float | None = None  # 0 to 1, of its busiest engine
    memory_used_bytes: int | None = None  # on the card
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


Reader = Callable[[], list[Gpu]]


def readers(sysfs: Path) -> list[Reader]:
    """The readers that have something to read on this machine. `sysfs`: where the kernel's is mounted."""
    from . import amdgpu, nvml, pdh

    found: list[Reader] = []
    nvidia = nvml.reader()
    if nvidia is not None:
        found.append(nvidia)
    if amdgpu.cards(sysfs):
        found.append(partial(amdgpu.read, sysfs))
    # The performance counters know NVIDIA's cards as well, under other names: each GPU is shown once.
    if sys.platform == "win32" and nvidia is None:
        found.append(pdh.Pdh().read)
    return found
