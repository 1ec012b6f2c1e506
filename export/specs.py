"""What a model takes: names, dtypes and shapes of its inputs, and random arrays that fit them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..transport.errors import InvalidRequest

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Shapes = Sequence[int] | Mapping[str, Sequence[int]] | Sequence["InputSpec"]

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")
SYNTAX = "[NAME=][DTYPE:]1,3,32,32[:BELOW], such as image=1,3,32,32 or tokens=int64:1,128:30000"


@dataclass(frozen=True)
class InputSpec:
    """One input: `shape[0]` is the batch axis; integers are drawn from 0 to `below` - 1."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int = 2

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise InvalidRequest(
                f"{self.name}'s shape {self.shape} needs at least one axis, all of 1 or more"
            )
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"{self.name}'s dtype {self.dtype!r} is none of {', '.join(DTYPES)}")

    def sample(self, rows: int, rng: np.random.Generator) -> Array:
        """Random `dtype[rows, *shape[1:]]`: standard normal, or integers in 0..below-1."""
        shape = (rows, *self.shape[1:])
        if self.dtype.startswith("float"):
            return rng.standard_normal(shape).astype(self.dtype)
        return rng.integers(0, 2 if self.dtype == "bool" else self.below, shape).astype(self.dtype)


def parse(text: str, name: str = "input") -> InputSpec:
    """The input that a command line or a TOML list means. Raises InvalidRequest with the syntax."""
    head, separator, rest = text.rpartition("=")
    parts = rest.split(":")
    dtype = parts.pop(0) if parts[0] in DTYPES else "float32"
    try:
        if len(parts) not in (1, 2) or (separator and not head):
            raise ValueError
        shape = tuple(int(size) for size in parts[0].split(","))
        below = int(parts[1]) if len(parts) == 2 else 2
    except ValueError:
        raise InvalidRequest(f"an input is {SYNTAX}, and not {text!r}") from None
    return InputSpec(head or name, shape, dtype, below)


def parse_all(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Several inputs; without names they are `input`, or `input_0`, `input_1`."""
    lone = len(texts) == 1
    specs = tuple(parse(text, "input" if lone else f"input_{index}") for index, text in enumerate(texts))
    return unique(specs)


def specs_of(given: Shapes) -> tuple[InputSpec, ...]:
    """What callers may write: one shape, shapes by name, or InputSpecs."""
    if isinstance(given, Mapping):
        return unique(tuple(InputSpec(name, tuple(shape)) for name, shape in given.items()))
    specs = tuple(part for part in given if isinstance(part, InputSpec))
    if len(specs) == len(given):
        return unique(specs)
    try:
        sizes = tuple(int(size) for size in given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"input_shape is one shape, shapes by name, or InputSpecs, and not {given!r}"
        ) from None
    return (InputSpec("input", sizes),)


def unique(specs: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
    """`specs`, if there are any and no two share a name."""
    if not specs:
        raise InvalidRequest("a model needs at least one input: give input_shape (--input)")
    if len({spec.name for spec in specs}) < len(specs):
        raise InvalidRequest(f"two inputs share a name: {', '.join(spec.name for spec in specs)}")
    return specs


def sample(specs: Sequence[InputSpec], rows: int, seed: int) -> Feeds:
    """Random arrays for all inputs, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {spec.name: spec.sample(rows, rng) for spec in specs}
