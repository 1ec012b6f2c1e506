"""providers/: one file per onnxruntime execution provider, each with its session recipe. A new provider is
one file here and one entry in `PROVIDERS`.

Importing a provider's file loads no onnxruntime.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from . import cpu, cuda, directml, openvino, webgpu
from .recipes import Recipe, base_options

__all__ = ["LADDER", "PROVIDERS", "TOLERANCE", "Recipe", "available", "base_options", "recipe"]


class Provider(Protocol):
    """What a provider's file has."""

    NAME: str  # by which operators choose it
    EXECUTION_PROVIDER: str  # onnxruntime's name for it

    @property
    def WHEELS(self) -> tuple[str, ...]:
        """The distributions that bring it."""

    def found(self) -> bool:
        """Whether this onnxruntime has it."""

    def devices(self) -> int:
        """How many devices there are to choose from, 1 where nothing tells."""

    def recipe(self, threads: int, device: int, whole: bool) -> Recipe: ...


# Best first: where one fails, the next is taken.
_FILES: tuple[Provider, ...] = (directml, webgpu, cuda, openvino, cpu)
PROVIDERS = {file.NAME: file for file in _FILES}
LADDER = tuple(PROVIDERS)

# Of a device's answers, see `Agreement`: right float32 graphs are off by 1e-6 to 1e-3, float16 ones by 1e-3.
TOLERANCE = 1e-2


def installed() -> list[str]:
    """Providers whose wheels are installed, best first; nothing is loaded for it."""
    return [name for name in LADDER if any(map(_is_installed, PROVIDERS[name].WHEELS))]


def available() -> list[str]:
    """Providers that this machine's onnxruntime has, best first; whether they work, a probe finds out."""
    return [name for name in LADDER if PROVIDERS[name].found()]


def recipe(name: str, threads: int, device: int = 0, whole: bool = False) -> Recipe:
    """The recipe of that name.

    threads: intra-op threads of a session that computes on the CPU. device: which GPU.
    whole: a model with a node that the device can't run is refused, instead of running that on the CPU.
    Raises ValueError for a name that is not in `available()`, or a device that can't be chosen.
    """
    if name not in LADDER:
        raise ValueError(f"no provider is called {name!r}; there is: {', '.join(LADDER)}")
    provider = PROVIDERS[name]
    if not provider.found():
        here = ", ".join(available()) or "none"
        raise ValueError(f"this onnxruntime has {here}; {name} comes with {' or '.join(provider.WHEELS)}")
    return provider.recipe(threads, device, whole)


def _is_installed(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True
