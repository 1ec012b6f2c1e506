"""providers/: one file per onnxruntime execution provider, each with its session recipe. A new provider is
one file here and one entry in `PROVIDERS`.

A provider's file has `NAME`, by which operators choose it; `EXECUTION_PROVIDER`, onnxruntime's name for it;
`WHEELS`, the distributions that bring it; `found()`, whether this onnxruntime has it; `devices()`, how many
devices there are to choose from; and `recipe(threads, device, whole)`. Importing it loads no onnxruntime.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import cpu, cuda, directml, openvino, webgpu
from .recipes import Recipe, base_options

__all__ = ["LADDER", "PROVIDERS", "TOLERANCE", "Recipe", "available", "base_options", "devices", "recipe"]

# Best first: where one fails, the next is taken.
PROVIDERS: dict[str, Any] = {module.NAME: module for module in (directml, webgpu, cuda, openvino, cpu)}
LADDER = tuple(PROVIDERS)

# Of a device's answers, see `Agreement`: right float32 graphs are off by 1e-6 to 1e-3, float16 ones by 1e-3.
TOLERANCE = 1e-2


def installed() -> list[str]:
    """Providers whose wheels are installed, best first; nothing is loaded for it."""
    return [name for name in LADDER if any(map(_is_installed, wheels(name)))]


def available() -> list[str]:
    """Providers that this machine's onnxruntime has, best first; whether they work, a probe finds out."""
    return [name for name in LADDER if PROVIDERS[name].found()]


def wheels(name: str) -> tuple[str, ...]:
    """The distributions that bring a provider."""
    found: tuple[str, ...] = PROVIDERS[name].WHEELS
    return found


def execution_provider(name: str) -> str:
    """What onnxruntime calls a provider."""
    found: str = PROVIDERS[name].EXECUTION_PROVIDER
    return found


def devices(name: str) -> int:
    """How many devices of a provider there are to choose from, 1 where nothing tells."""
    count: int = PROVIDERS[name].devices()
    return count


def recipe(name: str, threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """The recipe of that name.

    threads: intra-op threads of a session that computes on the CPU. device: which GPU.
    whole: a model with a node that the device can't run is refused, instead of running that on the CPU.
    Raises ValueError for a name that is not in `available()`, or a device that can't be chosen.
    """
    if name not in LADDER:
        raise ValueError(f"no provider is called {name!r}; there is: {', '.join(LADDER)}")
    if not PROVIDERS[name].found():
        here = ", ".join(available()) or "none"
        raise ValueError(f"this onnxruntime has {here}; {name} comes with {' or '.join(wheels(name))}")
    made: Recipe = PROVIDERS[name].recipe(threads, device, whole)
    return made


def _is_installed(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True
