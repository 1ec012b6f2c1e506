"""NVIDIA GPUs: NVML, by nvidia-ml-py where that is installed and a driver is there.

Source: NVIDIA's NVML API reference. Power is in milliwatts; utilization is the share of the last sample
period (1 s or less) in which a kernel ran.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import Gpu


def reader() -> Callable[[], list[Gpu]] | None:
    """None: no package, no driver, or no GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()  # for good: this process reads until it ends
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return None
    return (lambda: _read(pynvml)) if count else None


def _read(nvml: Any) -> list[Gpu]:
    def asked(question: str, *arguments: Any) -> Any:
        """None for what this card can't say, or can't say now."""
        try:
            return getattr(nvml, question)(*arguments)
        except nvml.NVMLError:
            return None

    found = []
    for index in range(asked("nvmlDeviceGetCount") or 0):
        handle = asked("nvmlDeviceGetHandleByIndex", index)
        if handle is None:  # it fell off the bus
            continue
        pci = asked("nvmlDeviceGetPciInfo", handle)
        busy = asked("nvmlDeviceGetUtilizationRates", handle)
        memory = asked("nvmlDeviceGetMemoryInfo", handle)
        power_mw = asked("nvmlDeviceGetPowerUsage", handle)
        found.append(
            Gpu(
                _text(pci.busId) if pci is not None else str(index),
                _text(asked("nvmlDeviceGetName", handle) or "NVIDIA"),
                None if busy is None else busy.gpu / 100,
                None if memory is None else int(memory.used),
                None if memory is None else int(memory.total),
                asked("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
                None if power_mw is None else power_mw / 1_000,
            )
        )
    return found


def _text(value: str | bytes) -> str:
    """Older packages answer with bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
