"""The CPU provider's recipe: few threads, no spinning, one graph at a time."""

from __future__ import annotations

from typing import Any

from .recipes import Recipe, base_options, has

NAME = "cpu"
EXECUTION_PROVIDER = "CPUExecutionProvider"
WHEELS = ("onnxruntime", "onnxruntime-directml", "onnxruntime-webgpu", "onnxruntime-gpu")


def found() -> bool:
    return has(EXECUTION_PROVIDER)


def devices() -> int:
    return 1


def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """`threads` of the CPU for one run; there is one device, and every model is whole on it."""

    def options() -> Any:
        made = base_options()
        made.intra_op_num_threads = threads
        return made

    return Recipe(NAME, options, [EXECUTION_PROVIDER])
