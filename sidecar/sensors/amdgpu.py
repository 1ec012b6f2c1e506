"""AMD GPUs on Linux: the files that the amdgpu driver keeps in sysfs.

Source: the kernel's Documentation/gpu/amdgpu (driver-misc.rst: gpu_busy_percent, mem_info_vram_*;
thermal.rst: the hwmon interfaces) and Documentation/hwmon/sysfs-interface.rst for hwmon's units.

    class/drm/card<N>/device/              a link to the PCI device
        vendor, device                     0x1002, 0x67df
        uevent                             ... PCI_SLOT_NAME=0000:01:00.0
        product_name                       on some cards only
        gpu_busy_percent                   0 to 100
        mem_info_vram_used, _total         bytes
        hwmon/hwmon<N>/name                amdgpu
        hwmon/hwmon<N>/temp1_input         millidegrees Celsius, at the die's edge
        hwmon/hwmon<N>/power1_average      microwatts; newer cards have power1_input instead
"""

from __future__ import annotations

import re
from pathlib import Path

from . import Gpu

AMD = "0x1002"


def cards(sysfs: Path) -> list[Path]:
    """The PCI devices of AMD's cards; connectors (card0-HDMI-A-1) are left out."""
    found = [path for path in (sysfs / "class/drm").glob("card*") if re.fullmatch(r"card\d+", path.name)]
    devices = [path / "device" for path in sorted(found, key=lambda path: int(path.name[4:]))]
    return [device for device in devices if _text(device / "vendor") == AMD]


def read(sysfs: Path) -> list[Gpu]:
    """Every card that shows anything. A card that sleeps refuses some of its files."""
    return [gpu for gpu in map(_read, cards(sysfs)) if gpu is not None]


def _read(device: Path) -> Gpu | None:
    busy = _number(device / "gpu_busy_percent")
    used = _number(device / "mem_info_vram_used")
    total = _number(device / "mem_info_vram_total")
    temperature = power = None
    for hwmon in sorted((device / "hwmon").glob("hwmon*")):
        if _text(hwmon / "name") == "amdgpu":
            temperature = _number(hwmon / "temp1_input")
            power = _number(hwmon / "power1_average")
            if power is None:
                power = _number(hwmon / "power1_input")
    shown = (busy, used, total, temperature, power)
    if all(value is None for value in shown):
        return None
    slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", _text(device / "uevent"), re.MULTILINE)
    return Gpu(
        slot.group(1) if slot else device.parent.name,
        _text(device / "product_name") or f"AMD {_text(device / 'device').removeprefix('0x')}",
        None if busy is None else busy / 100,
        used,
        total,
        None if temperature is None else temperature / 1_000,
        None if power is None else power / 1_000_000,
    )


def _text(path: Path) -> str:
    """ "" where there is no such file, or it can't be read now."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
