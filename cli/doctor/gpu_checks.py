"""The judgement of `batchyard doctor` on this machine's GPUs: facts in, findings out. Pure.

Nothing here fails: a yard without a GPU serves on the CPU. What is missing is a warning, with the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...gpuworker.probe import Probed
from ..text import plural
from .checks import Finding, Level, warn

AMD, INTEL, NVIDIA = 0x1002, 0x8086, 0x10DE
VENDORS = {AMD: "AMD", INTEL: "Intel", NVIDIA: "NVIDIA"}
KERNEL_DRIVERS = {AMD: ("amdgpu", "radeon"), INTEL: ("i915", "xe"), NVIDIA: ("nvidia", "nouveau")}
ICDS = {AMD: ("radeon", "amd"), INTEL: ("intel",), NVIDIA: ("nvidia", "nouveau")}
PLUGIN = "onnxruntime-ep-webgpu"
PLUGIN_NEEDS = (1, 24, 4)  # of onnxruntime


@dataclass(frozen=True)
class Card:
    """A GPU as the kernel lists it. `driver`, `node`: "" where it has none."""

    vendor: int
    device: int
    driver: str = ""
    node: str = ""
    usable: bool = False  # the node can be opened by this user

    def __str__(self) -> str:
        named = VENDORS.get(self.vendor, "GPU")
        return f"{named} {self.vendor:04x}:{self.device:04x}" + (f" ({self.driver})" if self.driver else "")


@dataclass(frozen=True)
class GpuFacts:
    """`cards`, `loader` and `icds` are known on Linux alone. `plugin`: its version, "" without it."""

    system: str
    cards: tuple[Card, ...] = ()
    loader: bool = False
    icds: tuple[str, ...] = ()
    plugin: str = ""


def gpus(facts: GpuFacts, wheels: Mapping[str, str], probed: Mapping[str, Probed]) -> list[Finding]:
    """`wheels`: versions by name; `probed`: of the GPU providers that are installed."""
    findings = [*_plugin(facts, wheels), *_providers(probed)]
    if any(found.works for found in probed.values()):
        return findings
    if facts.system == "win32":
        return findings + _windows(wheels)
    known = [card for card in facts.cards if card.vendor in VENDORS]
    if not known:
        if facts.system == "linux":
            findings.append(Finding(Level.OK, "gpu", "the kernel lists none that batchyard could use"))
        return findings
    for card in known:
        findings += _card(card)
    if "openvino" in probed and any(card.vendor == INTEL for card in known):
        return findings  # it needs neither Vulkan nor another wheel
    return findings + _vulkan(facts, known) + _wheel(known, wheels, facts.plugin)


def _plugin(facts: GpuFacts, wheels: Mapping[str, str]) -> list[Finding]:
    host = wheels.get("onnxruntime", "")
    if not facts.plugin or not host or _numbers(host) >= PLUGIN_NEEDS:
        return []
    said = f"{PLUGIN} {facts.plugin} is too new for onnxruntime {host}"
    return [warn("webgpu", said, f"pip install 'onnxruntime>={'.'.join(map(str, PLUGIN_NEEDS))}'")]


def _providers(probed: Mapping[str, Probed]) -> list[Finding]:
    findings = []
    for name, found in probed.items():
        if found.works:
            which = f"{plural(found.devices, 'device')}; a tiny model: {found.text}"
            findings.append(Finding(Level.OK, name, f"it works, and answers as the CPU does: {which}"))
        else:
            said = f"it does not work here, and the CPU serves: {found.text}"
            findings.append(warn(name, said, "the card and its drivers are looked at below"))
    return findings


def _windows(wheels: Mapping[str, str]) -> list[Finding]:
    if "onnxruntime-directml" in wheels:
        return []
    said = "no wheel for DirectX 12 GPUs is installed; models run on the CPU"
    return [warn("gpu", said, _instead(wheels, "onnxruntime-directml"))]


def _card(card: Card) -> list[Finding]:
    said = str(card)
    if card.driver not in KERNEL_DRIVERS[card.vendor] or not card.node:
        drivers = " or ".join(KERNEL_DRIVERS[card.vendor])
        remedy = {
            AMD: "sudo apt install firmware-amd-graphics && sudo modprobe amdgpu",
            INTEL: "sudo modprobe i915",
            NVIDIA: "sudo apt install nvidia-driver, then start the machine again",
        }[card.vendor]
        return [warn("gpu", f"{said}: the kernel has no driver for it ({drivers})", remedy)]
    if not card.usable:
        remedy = "sudo usermod -aG render,video $USER, then log in again"
        return [warn("gpu", f"{said}: this user may not open {card.node}", remedy)]
    return [Finding(Level.OK, "gpu", f"{said}, {card.node}")]


def _vulkan(facts: GpuFacts, known: list[Card]) -> list[Finding]:
    findings = []
    if not facts.loader:
        said = "the loader, libvulkan.so.1, is not installed"
        findings.append(warn("vulkan", said, "sudo apt install libvulkan1"))
    for vendor in sorted({card.vendor for card in known}):
        if not any(part in name for name in facts.icds for part in ICDS[vendor]):
            package = "nvidia-vulkan-icd" if vendor == NVIDIA else "mesa-vulkan-drivers"
            said = f"no Vulkan driver for {VENDORS[vendor]} is installed"
            findings.append(warn("vulkan", said, f"sudo apt install {package}"))
    return findings


def _wheel(known: list[Card], wheels: Mapping[str, str], plugin: str) -> list[Finding]:
    if plugin or {"onnxruntime-webgpu", "onnxruntime-gpu"} & set(wheels):
        return []
    said = "no wheel for this GPU is installed; models run on the CPU"
    if any(card.vendor == NVIDIA for card in known):
        return [warn("runtime", said, _instead(wheels, "onnxruntime-gpu"))]
    return [warn("runtime", said, _instead(wheels, "onnxruntime-webgpu"))]


def _instead(wheels: Mapping[str, str], wheel: str) -> str:
    """The command that exchanges the runtime: two at once overwrite each other's files."""
    out = f"pip uninstall -y {' '.join(wheels)} && " if wheels else ""
    return f"{out}pip install {wheel}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdecimal())
