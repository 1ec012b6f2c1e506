"""providers/: one file per onnxruntime execution provider, each with its session recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a session is made for one provider.

    `options` is an onnxruntime.SessionOptions; `providers` what InferenceSession takes;
    `in_place` whether a run may read and write the arenas' own memory (host providers only);
    `static_shapes` whether every batch size that is new costs it much, so that only some are run.
    """

    name: str
    options: Any
    providers: list[Any] = field(default_factory=list)
    in_place: bool = True
    static_shapes: bool = False


def available() -> list[str]:
    """Names of the recipes that this machine's onnxruntime can carry out, best first."""
    import onnxruntime

    found = onnxruntime.get_available_providers()
    return [name for name, provider in (("cpu", "CPUExecutionProvider"),) if provider in found]


def recipe(name: str, intra_op_threads: int) -> Recipe:
    """The recipe of that name. Raises ValueError for a name that is not in `available()`."""
    if name == "cpu":
        from . import cpu

        return cpu.recipe(intra_op_threads)
    raise ValueError(f"no provider is called {name!r}; there is: {', '.join(available()) or 'none'}")
