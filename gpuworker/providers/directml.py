"""DirectML's recipe: Windows, and every GPU with DirectX 12, the RX 580 among them. Untested on Windows
so far; what it asks of onnxruntime is tested.

Free axes are slow on it (250 ms where fixed ones take 50, onnxruntime#14550), and a session that has
seen another batch size stays slower (onnxruntime#14387): so each bucket has a session of its own, whose
batch axis is fixed. Graph capture stays off: frozen outputs were reported.
"""

from __future__ import annotations

from functools import partial

from . import cpu
from .recipes import Recipe, and_cpu, device_options, has, listed

NAME = "directml"
EXECUTION_PROVIDER = "DmlExecutionProvider"
WHEELS = ("onnxruntime-directml",)
ROWS_MAX = 16  # buckets 1, 2, 4, 8, 16: each is a session with its own memory on the device
RUN_NS_MAX = 500_000_000  # Windows resets a GPU that computes for 2 s


def found() -> bool:
    return has(EXECUTION_PROVIDER)


def devices() -> int:
    return max(1, listed(EXECUTION_PROVIDER))


def recipe(threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """`device_id` is the one option that is given: it overrides the others that choose a device."""
    return Recipe(
        NAME,
        partial(device_options, whole),
        and_cpu((EXECUTION_PROVIDER, {"device_id": str(device)}), whole),
        reference=cpu.recipe(threads),
        static_shapes=True,
        session_per_bucket=True,
        rows_max=ROWS_MAX,
        run_ns_max=RUN_NS_MAX,
        one_at_a_time=True,
    )
