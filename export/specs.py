"""What a model takes: names, dtypes, shapes and free axes of its inputs, and random arrays that fit them.

Pure, but that NumPy knows some types only through ml_dtypes, which onnx brings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..evidence.drawing import is_mask
from ..transport.errors import InvalidRequest

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Shapes = Sequence[int] | Mapping[str, Sequence[int]] | Sequence["InputSpec"]

BATCH = "batch"
FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
DTYPES = (*FLOATS, "int8", "uint8", "int16", "int32", "int64", "bool", *COMPLEX)
NAME = re.compile(r"[A-Za-z_]\w*")
_TERM = re.compile(r"(?P<sign>[+-]?)\s*(?:(?P<factor>\d+)\s*\*\s*)?(?P<atom>[A-Za-z_]\w*|\d+)\s*")
SYNTAX = "[NAME=][DTYPE:]1,3,32,32[:BELOW], such as image=1,3,32,32 or tokens=int64:1,128:30000"


@dataclass(frozen=True)
class InputSpec:
    """One input. Integers are drawn from 0 to `below` - 1.

    axes: the name of each axis that is free, "" where it is fixed; export_to_onnx fills in what it finds.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int = 2
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise InvalidRequest(
                f"{self.name}'s shape {self.shape} needs at least one axis, all of 1 or more"
            )
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"{self.name}'s dtype {self.dtype!r} is none of {', '.join(DTYPES)}")

    @property
    def batch_axis(self) -> int | None:
        """Where the rows are; None where every row has the same value of this input."""
        return self.axes.index(BATCH) if BATCH in self.axes else None

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with these sizes of free axes, by name; the others are as they were given."""
        names = self.axes or ("",) * len(self.shape)
        found = (size_of(name, sizes) if name else None for name in names)
        return tuple(own if size is None else size for own, size in zip(self.shape, found, strict=True))

    def sample(self, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
        """Random values: standard normal, or integers in 0..below-1. A mask has its ones in front, as padded
        texts have: where it has none, PyTorch and onnxruntime may differ, and both are right."""
        shape, dtype = self.shape_at(sizes), numpy_dtype(self.dtype)
        if self.dtype in FLOATS:
            return rng.standard_normal(shape).astype(dtype)
        if self.dtype in COMPLEX:
            return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
        below = 2 if self.dtype == "bool" else self.below
        if below == 2 and len(shape) > 1 and is_mask(self.name):
            ones = rng.integers(1, max(2, shape[-1]), shape[:-1])[..., None]
            return (np.arange(shape[-1]) < ones).astype(dtype)
        return rng.integers(0, below, shape).astype(dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of this name."""
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


def size_of(text: str, sizes: Mapping[str, int] | None) -> int | None:
    """A size from its text, such as `sequence`, `cache + sequence`, `2*height - 1`; None where that can't be
    told. Without `sizes` it is 1 for each name: whether it is such a text at all."""
    total, position = 0, 0
    text = text.strip()
    while position < len(text):
        found = _TERM.match(text, position)
        if found is None or (position and not found["sign"]):
            return None
        atom = found["atom"]
        value = int(atom) if atom.isdigit() else 1 if sizes is None else sizes.get(atom)
        if value is None:
            return None
        total += (-1 if found["sign"] == "-" else 1) * int(found["factor"] or 1) * value
        position = found.end()
    return total if position else None


def parse(text: str, name: str = "input") -> InputSpec:
    """The input that a command line or a TOML list means. Raises InvalidRequest with the syntax."""
    head, separator, rest = text.rpartition("=")
    parts = rest.split(":")
    if parts[0][:1].isalpha() and parts[0] not in DTYPES:
        raise InvalidRequest(f"{text!r}: there is no type {parts[0]}; there is: {', '.join(DTYPES)}")
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


def sample(specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int) -> Feeds:
    """Random arrays for all inputs at these sizes of free axes, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {spec.name: spec.sample(sizes, rng) for spec in specs}
