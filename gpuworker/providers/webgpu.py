"""WebGPU's recipe: Vulkan on Linux, Direct3D 12 on Windows; the RX 580's way on Linux, which ROCm left.

It comes built into the `onnxruntime-webgpu` wheel, or as a plugin beside a stock onnxruntime, from the
package `onnxruntime-ep-webgpu`; where both are there, the built-in one is used. One session takes any
batch size, but compiles for every new one (seconds), so only buckets are run. Two sessions at work in
one process failed, two processes did not: one at a time.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from . import cpu
from .recipes import Recipe, and_cpu, device_options, has, plugin_devices

NAME = "webgpu"
EXECUTION_PROVIDER = "WebGpuExecutionProvider"
WHEELS = ("onnxruntime-webgpu", "onnxruntime-ep-webgpu")
PLUGIN = "onnxruntime_ep_webgpu"
ADAPTER_INDEX_SINCE = (0, 5)  # of the plugin; before, and in the built-in one, Dawn chooses the GPU
OPTIONS = {
    "powerPreference": "high-performance",  # the card, where the processor has a GPU of its own too
    "enableGraphCapture": "0",
    "validationMode": "basic",  # a wrong command is an error to be told, and not the process's end
}


def found() -> bool:
    return has(EXECUTION_PROVIDER) or find_spec(PLUGIN) is not None


def devices() -> int:
    """Always 1: Dawn does not tell how many adapters there are."""
    return 1


def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """Raises ValueError for another `device` than 0 where none can be chosen."""
    built_in = has(EXECUTION_PROVIDER)
    chosen = dict(OPTIONS)
    if not built_in and _plugin_version() >= ADAPTER_INDEX_SINCE:
        chosen["adapterIndex"] = str(device)
    elif device:
        raise ValueError(
            f"this WebGPU provider takes the first adapter, and --device {device} asks for another: it needs "
            "onnxruntime-ep-webgpu 0.5 or later on a stock onnxruntime, or Vulkan's own choice "
            "(MESA_VK_DEVICE_SELECT, DRI_PRIME)"
        )
    return Recipe(
        NAME,
        partial(_built_in_options if built_in else _plugin_options, chosen, whole),
        and_cpu((EXECUTION_PROVIDER, {}), whole) if built_in else None,
        reference=cpu.recipe(threads),
        static_shapes=True,
        one_at_a_time=True,
    )


def _built_in_options(chosen: dict[str, str], whole: bool) -> Any:
    """The built-in provider silently ignores a dictionary of options; it reads these."""
    options = device_options(whole)
    for name, value in chosen.items():
        options.add_session_config_entry(f"ep.webgpuexecutionprovider.{name}", value)
    return options


def _plugin_options(chosen: dict[str, str], whole: bool) -> Any:
    """Raises RuntimeError where it lists nothing. It takes one device, which stands for every adapter."""
    import onnxruntime_ep_webgpu

    options = device_options(whole)
    offered = plugin_devices(onnxruntime_ep_webgpu)
    if not offered:
        raise RuntimeError("the WebGPU plugin lists no device: no GPU, or no Vulkan driver for it")
    options.add_provider_for_devices(offered[:1], chosen)
    return options


def _plugin_version() -> tuple[int, ...]:
    try:
        major, minor, *_ = version(PLUGIN.replace("_", "-")).split(".")
        return int(major), int(minor)
    except (PackageNotFoundError, ValueError):
        return (0,)
