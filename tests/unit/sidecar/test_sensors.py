"""Sensors: AMD's on a tree laid out as the kernel lays it, the arithmetic of Windows' counters, NVIDIA's
by a package that says what its documentation says. None of them has been run on such a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batchyard.sidecar.sensors import Gpu, amdgpu, nvml, pdh, readers

from ...sysfs import RX_580, SLOT, lay


def without(*names: str) -> dict[str, str]:
    return {name: text for name, text in RX_580.items() if name not in names}


def test_a_card_shows_its_load_memory_temperature_and_power(tmp_path: Path) -> None:
    lay(tmp_path, "card0", RX_580)
    (tmp_path / "class/drm/card0-HDMI-A-1").mkdir()
    assert amdgpu.read(tmp_path) == [Gpu(SLOT, "AMD 67df", 0.37, 512 << 20, 8 << 30, 61.0, 112.105)]


def test_a_newer_card_names_itself_and_has_power_at_another_file(tmp_path: Path) -> None:
    files = without("hwmon/hwmon3/power1_average")
    lay(
        tmp_path,
        "card1",
        {**files, "hwmon/hwmon3/power1_input": "9000000", "product_name": "Radeon Pro W7900"},
    )
    (gpu,) = amdgpu.read(tmp_path)
    assert (gpu.name, gpu.power_watts) == ("Radeon Pro W7900", 9.0)


def test_what_a_card_does_not_show_is_none_and_not_zero(tmp_path: Path) -> None:
    lay(tmp_path, "card0", without("gpu_busy_percent", "hwmon/hwmon3/temp1_input"))
    (gpu,) = amdgpu.read(tmp_path)
    assert (gpu.utilization_ratio, gpu.temperature_celsius) == (None, None)
    assert gpu.memory_used_bytes == 512 << 20


def test_a_card_of_which_nothing_can_be_read_is_no_gpu(tmp_path: Path) -> None:
    lay(tmp_path, "card0", {"vendor": "0x1002", "gpu_busy_percent": "", "mem_info_vram_used": "none"})
    assert amdgpu.read(tmp_path) == []


def test_other_makers_cards_and_machines_without_any_have_no_reader(tmp_path: Path) -> None:
    assert readers(tmp_path / "nothing") == []
    lay(tmp_path, "card0", RX_580 | {"vendor": "0x8086"})
    assert amdgpu.cards(tmp_path) == []
    lay(tmp_path, "card1", RX_580)
    assert [read() for read in readers(tmp_path)] == [amdgpu.read(tmp_path)]


def test_cards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for card in ("card10", "card2"):
        lay(tmp_path, card, RX_580 | {"product_name": card})
    assert [gpu.name for gpu in amdgpu.read(tmp_path)] == ["card2", "card10"]


# ---- Windows ----------------------------------------------------------------------------------------

LUID = "luid_0x00000000_0x0000D1B8_phys_0"
SOFTWARE = "luid_0x00000000_0x0000A001_phys_0"


def test_an_adapters_load_is_its_busiest_engines_summed_over_processes() -> None:
    engines = {
        f"pid_10_{LUID}_eng_0_engtype_3D": 20.0,
        f"pid_20_{LUID}_eng_0_engtype_3D": 25.0,
        f"pid_20_{LUID}_eng_1_engtype_Compute_0": 40.0,
    }
    memory = {LUID: 3.0 * 2**30, SOFTWARE: 0.0}
    card = ("Radeon RX 580 Series", 8 << 30)
    assert pdh.adapters(engines, memory, card) == [
        Gpu(LUID.lower(), "Radeon RX 580 Series", 0.45, 3 << 30, 8 << 30)
    ]


def test_load_stops_at_one_and_the_first_reading_has_none() -> None:
    engines = {f"pid_{pid}_{LUID}_eng_0_engtype_3D": 80.0 for pid in (1, 2)}
    assert pdh.adapters(engines, {LUID: 1.0}, None)[0].utilization_ratio == 1.0
    assert pdh.adapters({}, {LUID: 1.0}, None)[0].utilization_ratio is None


def test_of_two_adapters_nobody_knows_which_one_the_registry_means() -> None:
    other = LUID.replace("D1B8", "BEEF")
    found = pdh.adapters({}, {LUID: 1.0, other: 2.0}, ("Radeon", 8 << 30))
    assert [(gpu.name, gpu.memory_total_bytes) for gpu in found] == [("GPU", None)] * 2
    assert pdh.adapters({}, {"nonsense": 1.0}, None) == []


# ---- NVIDIA -----------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


def driver(**changed: Any) -> SimpleNamespace:
    """`pynvml` with one card; an answer that is an exception is raised."""
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetName": "NVIDIA T4",
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:17:00.0"),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=62, memory=10),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1 << 30, total=16 << 30, free=15 << 30),
        "nvmlDeviceGetTemperature": 54,
        "nvmlDeviceGetPowerUsage": 31_250,
    } | changed

    def answering(answer: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    functions = {name: answering(answer) for name, answer in answers.items()}
    return SimpleNamespace(NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, **functions)


def test_nvidias_figures_come_in_our_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    read = nvml.reader()
    assert read is not None
    assert read() == [Gpu("00000000:17:00.0", "NVIDIA T4", 0.62, 1 << 30, 16 << 30, 54, 31.25)]


def test_what_nvidias_driver_cannot_say_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(nvmlDeviceGetPowerUsage=NVMLError("not supported")))
    read = nvml.reader()
    assert read is not None
    assert read()[0].power_watts is None


@pytest.mark.parametrize("changed", [{"nvmlInit": NVMLError("no driver")}, {"nvmlDeviceGetCount": 0}])
def test_without_a_driver_or_a_card_there_is_no_reader(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(**changed))
    assert nvml.reader() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert nvml.reader() is None
