"""GPUs on Windows, of any maker: the performance counters that Task Manager shows, by pywin32.

Source: the counter sets "GPU Engine" and "GPU Adapter Memory" (Windows 10 1709 and later), whose
instances are named by adapter and engine:

    \\GPU Engine(pid_412_luid_0x00000000_0x0000D1B8_phys_0_eng_3_engtype_Compute_0)\\Utilization Percentage
    \\GPU Adapter Memory(luid_0x00000000_0x0000D1B8_phys_0)\\Dedicated Usage

An engine's utilization is the sum over processes, and an adapter's that of its busiest engine, as
Task Manager has it (DirectX blog, "GPUs in the task manager"). The counters know neither the card's
name nor its memory: those are in the registry, and told where only one card is there. Written
from these sources and not yet run on Windows; the arithmetic is tested anywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from . import Gpu

ENGINES = r"\GPU Engine(*)\Utilization Percentage"
MEMORY = r"\GPU Adapter Memory(*)\Dedicated Usage"
ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_INSTANCE = re.compile(r"(luid_0x[0-9A-F]+_0x[0-9A-F]+_phys_\d+)(?:_eng_(\d+))?", re.IGNORECASE)


class Pdh:
    """An open query: utilization is a rate, from one reading to the next, so the first has none."""

    def __init__(self) -> None:
        self._query: Any = None
        self._counters: dict[str, Any] = {}
        self._card = installed_card()

    def read(self) -> list[Gpu]:
        import win32pdh

        try:
            if self._query is None:
                self._query = win32pdh.OpenQuery()
                # By their English names: they are translated on a Windows that is.
                self._counters = {
                    path: win32pdh.AddEnglishCounter(self._query, path) for path in (ENGINES, MEMORY)
                }
            win32pdh.CollectQueryData(self._query)
        except win32pdh.error:  # no such counters here: an old Windows, or one without a GPU
            return []
        # Without NOCAP100, what several processes use together would be cut at 100 each.
        shape = win32pdh.PDH_FMT_DOUBLE | win32pdh.PDH_FMT_NOCAP100
        found: dict[str, Mapping[str, float]] = {}
        for path, counter in self._counters.items():
            try:
                found[path] = win32pdh.GetFormattedCounterArray(counter, shape)
            except win32pdh.error:  # a rate's first reading
                found[path] = {}
        return adapters(found[ENGINES], found[MEMORY], self._card)


def adapters(
    engines: Mapping[str, float], memory: Mapping[str, float], card: tuple[str, int] | None
) -> list[Gpu]:
    """The GPUs behind the counters' instances. `card`: (name, bytes) of the only one that is installed.

    An adapter that uses no memory of its own is none: Windows lists its software renderer as well.
    """
    used = {}
    for instance, nbytes in memory.items():
        match = _INSTANCE.search(instance)
        if match and nbytes > 0:
            used[match[1].lower()] = int(nbytes)
    busy: dict[str, dict[str, float]] = {}
    for instance, percent in engines.items():
        match = _INSTANCE.search(instance)
        if match and match[2] is not None:
            by_engine = busy.setdefault(match[1].lower(), {})
            by_engine[match[2]] = by_engine.get(match[2], 0.0) + percent
    name, total = card if card is not None and len(used) == 1 else ("GPU", None)
    return [
        Gpu(
            luid,
            name,
            min(1.0, max(busy[luid].values()) / 100) if luid in busy else None,
            nbytes,
            total,
        )
        for luid, nbytes in sorted(used.items())
    ]


def installed_card() -> tuple[str, int] | None:
    """(name, bytes) of the display adapter, if there is one that has memory of its own, and only one."""
    found: list[tuple[str, int]] = []
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, ADAPTERS) as adapters_key:
            for index in range(winreg.QueryInfoKey(adapters_key)[0]):
                try:
                    with winreg.OpenKey(adapters_key, winreg.EnumKey(adapters_key, index)) as key:
                        nbytes, _ = winreg.QueryValueEx(key, "HardwareInformation.qwMemorySize")
                        name, _ = winreg.QueryValueEx(key, "DriverDesc")
                except OSError:  # no such value, or a key that is not for us
                    continue
                found.append((str(name), int(nbytes)))
    return found[0] if len(found) == 1 else None
