"""CUDA's recipe, for NVIDIA's GPUs. Untested so far; what it asks of onnxruntime is tested.

cuDNN looks for the best algorithm whenever a convolution sees a new shape, so only buckets are run.
"""

from __future__ import annotations

from functools import partial

from . import cpu
from .recipes import Recipe, and_cpu, device_options, has, listed

NAME = "cuda"
EXECUTION_PROVIDER = "CUDAExecutionProvider"
WHEELS = ("onnxruntime-gpu",)


def found() -> bool:
    """Built in; or the wheel's plugin, which registers itself under the same name and lists its devices."""
    return has(EXECUTION_PROVIDER) or listed(EXECUTION_PROVIDER) > 0


def devices() -> int:
    return max(1, listed(EXECUTION_PROVIDER))


def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
    return Recipe(
        NAME,
        partial(device_options, whole),
        and_cpu((EXECUTION_PROVIDER, {"device_id": str(device)}), whole),
        reference=cpu.recipe(threads),
        static_shapes=True,
    )
