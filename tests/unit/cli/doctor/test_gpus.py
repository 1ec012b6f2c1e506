"""What the doctor reads and says of GPUs that are not in this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.cli.doctor import gpu_probes
from batchyard.cli.doctor.checks import Finding, Level
from batchyard.cli.doctor.gpu_checks import AMD, INTEL, NVIDIA, Card, GpuFacts, gpus
from batchyard.gpuworker.probe import Probed

RX580 = Card(AMD, 0x67DF, "amdgpu", "/dev/dri/renderD128", True)
COMPLETE = GpuFacts("linux", (RX580,), True, ("radeon_icd.x86_64.json",))
WEBGPU = {"onnxruntime-webgpu": "1.27.0"}
STOCK = {"onnxruntime": "1.27.0"}


def remedies(findings: list[Finding]) -> list[str]:
    return [finding.remedy for finding in findings if finding.level is not Level.OK]


def changed(**fields: object) -> GpuFacts:
    return GpuFacts(
        **{name: getattr(COMPLETE, name) for name in ("system", "cards", "loader", "icds")} | fields
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "wheels", "commands"),
    [
        (COMPLETE, WEBGPU, []),
        (COMPLETE, STOCK, ["pip uninstall -y onnxruntime && pip install onnxruntime-webgpu"]),
        (changed(plugin="0.4.0"), STOCK, []),
        (changed(plugin="0.4.0"), {"onnxruntime": "1.24.3"}, ["pip install 'onnxruntime>=1.24.4'"]),
        (changed(loader=False), WEBGPU, ["sudo apt install libvulkan1"]),
        (changed(icds=("lvp_icd.x86_64.json",)), WEBGPU, ["sudo apt install mesa-vulkan-drivers"]),
        (
            changed(cards=(Card(AMD, 0x67DF),)),
            WEBGPU,
            ["sudo apt install firmware-amd-graphics && sudo modprobe amdgpu"],
        ),
        (
            changed(cards=(Card(AMD, 0x67DF, "amdgpu", "/dev/dri/renderD128"),)),
            WEBGPU,
            ["sudo usermod -aG render,video $USER, then log in again"],
        ),
        (
            changed(
                cards=(Card(NVIDIA, 0x1B80, "nvidia", "/dev/dri/renderD128", True),),
                icds=("nvidia_icd.json",),
            ),
            STOCK,
            ["pip uninstall -y onnxruntime && pip install onnxruntime-gpu"],
        ),
        (GpuFacts("linux", (Card(0x1A03, 0x2000, "ast"),)), STOCK, []),  # a server's console is no GPU
        (GpuFacts("win32"), STOCK, ["pip uninstall -y onnxruntime && pip install onnxruntime-directml"]),
        (GpuFacts("win32"), {"onnxruntime-directml": "1.24.4"}, []),
    ],
)
def test_what_is_missing_for_the_card_comes_with_its_command(
    facts: GpuFacts, wheels: dict[str, str], commands: list[str]
) -> None:
    found = gpus(facts, wheels, {})
    assert remedies(found) == commands
    assert all(finding.level is not Level.FAIL for finding in found), "without a GPU the CPU serves"


def test_everything_that_is_missing_is_told_at_once() -> None:
    bare = changed(loader=False, icds=())
    assert len(remedies(gpus(bare, STOCK, {}))) == 3


def test_a_provider_that_works_needs_nothing_else() -> None:
    found = gpus(
        changed(loader=False), WEBGPU, {"webgpu": Probed(True, 0, 1, "WebGpuExecutionProvider 6 nodes")}
    )
    (finding,) = found
    assert finding.level is Level.OK
    assert "WebGpuExecutionProvider 6 nodes" in finding.found


def test_a_provider_that_does_not_work_says_what_its_probe_said() -> None:
    first, *_ = gpus(COMPLETE, WEBGPU, {"webgpu": Probed(False, text="its probe hung")})
    assert (first.level, first.subject) == (Level.WARN, "webgpu")
    assert "its probe hung" in first.found


def test_cards_are_read_from_what_the_kernel_lists(tmp_path: Path) -> None:
    dri = tmp_path / "dri"
    dri.mkdir()
    (dri / "renderD129").touch()
    driver = tmp_path / "bus" / "drivers" / "amdgpu"
    driver.mkdir(parents=True)
    for number, (vendor, device, node) in enumerate(
        [("0x1002", "0x67df", "renderD129"), ("0x1a03", "0x2000", "")]
    ):
        pci = tmp_path / "pci" / str(number)
        (pci / "drm" / (node or "card9")).mkdir(parents=True)
        (pci / "vendor").write_text(f"{vendor}\n")
        (pci / "device").write_text(f"{device}\n")
        card = tmp_path / "drm" / f"card{number}"
        card.mkdir(parents=True)
        (card / "device").symlink_to(pci)
        (tmp_path / "drm" / f"card{number}-HDMI-A-1").mkdir()  # a connector has no device of its own
    (tmp_path / "pci" / "0" / "driver").symlink_to(driver)
    assert list(gpu_probes.cards(tmp_path / "drm", dri)) == [
        Card(AMD, 0x67DF, "amdgpu", str(dri / "renderD129"), True),
        Card(0x1A03, 0x2000),
    ]


def test_vulkan_drivers_that_the_environment_names_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "vk_swiftshader_icd.json"
    named.touch()
    monkeypatch.setenv("VK_ICD_FILENAMES", str(named))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.setattr(gpu_probes, "ICD_FOLDERS", ())
    assert list(gpu_probes.icds()) == ["vk_swiftshader_icd.json"]


def test_an_intel_gpu_with_openvinos_plugin_needs_no_vulkan_and_no_other_wheel() -> None:
    card = Card(INTEL, 0x56A0, "i915", "/dev/dri/renderD128", True)
    broken = {"openvino": Probed(False, text="no OpenCL driver")}
    assert len(remedies(gpus(changed(cards=(card,), loader=False, icds=()), STOCK, broken))) == 1
    assert len(remedies(gpus(changed(loader=False, icds=()), STOCK, broken))) == 4, "not AMD's"
