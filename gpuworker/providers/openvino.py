"""OpenVINO's recipe: Intel's GPUs, and an Intel processor where there is no GPU. A plugin beside a stock
onnxruntime, from the package `onnxruntime-ep-openvino`; it lists nothing on another maker's processor.

By default it computes in bfloat16 or float16 where the device has that; here it keeps the model's own types.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from typing import Any

from . import cpu
from .recipes import Recipe, device_options, plugin_devices

NAME = "openvino"
EXECUTION_PROVIDER = "OpenVINOExecutionProvider"
WHEELS = ("onnxruntime-ep-openvino",)


def found() -> bool:
    return find_spec("onnxruntime_ep_openvino") is not None


def devices() -> int:
    return max(1, len(_listed()))


def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """`threads`: on a processor; a GPU counts its own."""
    return Recipe(
        NAME,
        partial(_options, threads, device, whole),
        None,
        reference=cpu.recipe(threads),
        static_shapes=True,
    )


def _options(threads: int, device: int, whole: bool) -> Any:
    """Raises RuntimeError where the plugin lists no such device."""
    listed = _listed()
    if not listed:
        raise RuntimeError("the OpenVINO plugin lists none of Intel's GPUs or processors here")
    if not listed[device:]:
        raise RuntimeError(f"the OpenVINO plugin lists {len(listed)} devices here; --device {device} is none")
    accurate = {"EXECUTION_MODE_HINT": "ACCURACY"}
    config = {"GPU": accurate, "CPU": {**accurate, "INFERENCE_NUM_THREADS": str(threads)}}
    options = device_options(whole)
    options.add_provider_for_devices([listed[device]], {"load_config": json.dumps(config)})
    return options


def _listed() -> list[Any]:
    """Its GPUs, or, where there is none, the processor. Not an NPU, which wants every shape fixed."""
    import onnxruntime_ep_openvino

    offered = plugin_devices(onnxruntime_ep_openvino)
    kinds = {kind: [found for found in offered if _kind(found) == kind] for kind in ("GPU", "CPU")}
    return kinds["GPU"] or kinds["CPU"]


def _kind(device: Any) -> str:
    """OpenVINO's own name of it, less its number: "GPU" of "GPU.1"."""
    name: str = device.ep_metadata.get("ov_device", "")
    return name.partition(".")[0]
