"""A graphics card in a folder laid out as the kernel lays out sysfs (sidecar/sensors/amdgpu.py has the source)."""

from __future__ import annotations

from pathlib import Path

SLOT = "0000:01:00.0"
RX_580: dict[str, str] = {  # the files and values of such a card, by Documentation/gpu/amdgpu
    "vendor": "0x1002",
    "device": "0x67df",
    "uevent": f"DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:67DF\nPCI_SLOT_NAME={SLOT}\n",
    "gpu_busy_percent": "37",
    "mem_info_vram_used": "536870912",
    "mem_info_vram_total": "8589934592",
    "hwmon/hwmon3/name": "amdgpu",
    "hwmon/hwmon3/temp1_input": "61000",
    "hwmon/hwmon3/power1_average": "112105000",
}


def lay(sysfs: Path, card: str, files: dict[str, str]) -> Path:
    """A card as sysfs has it: class/drm/card0/device is a link to the PCI device."""
    device = sysfs / "devices/pci0000:00" / card
    for name, text in files.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text(text + "\n")
    entry = sysfs / "class/drm" / card
    entry.mkdir(parents=True)
    (entry / "device").symlink_to(device)
    return device
