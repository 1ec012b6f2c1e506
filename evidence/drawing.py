"""Invents inputs for a model, from a seed, by the names and types of its tensors.

Integers are indices more often than quantities, so they are small, and smaller still if the model refuses
them. If a model runs on none of these inputs, it is served, but its rows never share a run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.tensors import TensorSpec
from .axes import SHARED, UNNAMED

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], Sequence[Array]]  # raises the runtime's errors

SEED = 20_261_130
TRY_NS_MAX = 300_000_000  # for all tries together
VALUES_MAX = 32 << 20  # elements of one row of a tensor: a guess is not worth more memory
BLOCK = 1_048_573  # elements that are drawn; a larger tensor repeats them. A prime: rows are shifted copies

# The first size of a free axis, by its name. Then all free axes take each of SIZES in turn.
_SIZE_OF_NAME = (
    (re.compile(r"height|width|^[hw]$", re.I), 64),
    (re.compile(r"sample|frame|^time|audio", re.I), 512),
    (re.compile(r"past|cache", re.I), 2),
)
SIZES = (7, 1, 64, 512, 32, 256, 48, 16, 4)  # except for 1, none is a row count of judge.py
# Ranges of whole numbers: (least, greatest plus one). The second avoids 0 for divisors. Larger numbers would
# find no more, and a tensor whose sizes they are would have gigabytes.
VOCABULARIES = ((0, 10), (1, 10), (0, 3), (0, 1))
SCALARS = (0.7, 0.3)  # the first shared number of each drawing; later ones are greater, as rising bounds are
OTHER_SCALE = 100.0  # a value above a threshold may take another path through the model
FEW = (0, 3)  # numbers with a meaning: an axis, a diagonal, a flag

_MASK = re.compile(r"mask", re.I)
_TYPE = re.compile(r"token_type|segment", re.I)
_RATE = re.compile(r"^sr$|sampl\w*_?rate", re.I)  # 16,000 samples a second is what speech models take
_LENGTH = re.compile(r"len(gth)?s?$|_len|lengths?", re.I)


class TooLarge(ValueError):
    """A row has more elements than are worth a guess."""


class Drawing:
    """Draws inputs of one model: it fixes the sizes of free axes and the range of integers."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        axes: Sequence[int],
        size: int = 0,
        vocabulary: tuple[int, int] = VOCABULARIES[0],
        zeros: bool = False,
        varied: bool = False,
    ) -> None:
        self.specs = [spec for spec in inputs if not spec.optional]
        self.axes = [axis for axis, spec in zip(axes, inputs, strict=True) if not spec.optional]
        self._size = size  # 0: by the name
        self._vocabulary = vocabulary
        self._zeros = zeros
        self._varied = varied  # rows differ in length, and in how much of them a mask lets count
        self._scale = 1.0  # of numbers that are drawn from a normal distribution

    def feeds(self, rows: int, rng: np.random.Generator, sizes: Mapping[str, int] = {}) -> dict[str, Array]:
        """Inputs of so many rows; a shared input has one value. `sizes`: of free axes by name."""
        return {
            spec.name: self._value(spec, axis, rows, rng, sizes)
            for spec, axis in zip(self.specs, self.axes, strict=True)
        }

    def shape(self, spec: TensorSpec, axis: int, rows: int, sizes: Mapping[str, int] = {}) -> list[int]:
        return [
            rows if index == axis else size if isinstance(size, int) else sizes.get(size) or self._free(size)
            for index, size in enumerate(spec.shape or [])
        ]

    def row_values(self) -> int:
        """How many elements the inputs of one row have together."""
        rows = zip(self.specs, self.axes, strict=True)
        return sum(_count(self.shape(spec, axis, 1)) for spec, axis in rows)

    def _free(self, name: str) -> int:
        if self._size:
            return self._size
        for pattern, size in _SIZE_OF_NAME:
            if name != UNNAMED and pattern.search(name):
                return size
        return SIZES[0]

    def _value(
        self, spec: TensorSpec, axis: int, rows: int, rng: np.random.Generator, sizes: Mapping[str, int]
    ) -> Array:
        shape = self.shape(spec, axis, rows, sizes)
        count = _count(shape)
        if count > VALUES_MAX * max(1, rows):
            raise TooLarge(f"a row of {spec} is too large to be tried with invented values")
        entry = dtypes.BY_CODE[spec.dtype]
        if self._zeros and entry.kind != "s":
            return np.zeros(shape, entry.numpy)
        if entry.name == "string":
            return np.array([f"text {n}" for n in rng.integers(0, 100, count)], object).reshape(shape)
        if entry.kind == "f" and axis == SHARED and not shape:
            shared = [one.name for one, of in zip(self.specs, self.axes, strict=True) if of == SHARED]
            first = SCALARS[self._scale != 1.0]
            return _floats(np.array(first * (1 + shared.index(spec.name))), entry)
        if entry.kind == "f":
            drawn = _floats(rng.standard_normal(min(count, BLOCK)) * self._scale, entry)
            return np.resize(drawn, shape)
        if entry.kind == "c":
            pairs: Array = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
            return _floats(pairs * self._scale, entry)
        if entry.kind == "b" and axis == SHARED and not _MASK.search(spec.name):
            return np.full(shape, self._scale == 1.0)  # a switch: on here, off in the other drawing
        if entry.kind == "b":
            return self._mask(shape, axis, entry) if is_mask(spec.name) else rng.random(shape) < 0.5
        if is_mask(spec.name):
            return self._mask(shape, axis, entry)
        if _RATE.search(spec.name) and self._vocabulary == VOCABULARIES[0]:
            return np.full(shape, 16_000, entry.numpy)
        if is_length(spec.name) and axis != SHARED:
            few = self._vocabulary[1] <= FEW[1]
            longest = min(self._size or SIZES[0], self._vocabulary[1] if few else entry.top - 1)
            lengths = np.full(shape, longest, entry.numpy)
            rows_first = np.moveaxis(lengths, axis, 0)
            for row in range(rows):
                rows_first[row] = self._length(row, longest)
            return lengths
        least, top = self._vocabulary
        top = min(top, entry.top, 2 if _TYPE.search(spec.name) else entry.top)
        if not shape and top > 1:
            least = max(least, 1)  # a step or a divisor: some of onnxruntime's kernels end the process over 0
        if entry.name == "uint8" and self._vocabulary == VOCABULARIES[0] and len(shape) > 2:
            top = 256  # an image
        return rng.integers(least, top, shape).astype(entry.numpy)

    def _mask(self, shape: Sequence[int], axis: int, entry: dtypes.DType) -> Array:
        ones = np.ones(shape, entry.numpy)
        if axis != SHARED and len(shape) > 1:
            for row, values in enumerate(np.moveaxis(ones, axis, 0)):
                values[..., self._length(row, values.shape[-1]) :] = 0
        return ones

    def _length(self, row: int, longest: int) -> int:
        """The first row is the longest, and none is shorter than half of it: a filter may be as wide."""
        return longest - row % max(1, (longest + 1) // 2) if self._varied else longest

    def other_values(self) -> Drawing:
        """A drawing of the same shapes with other values: whole numbers from FEW, and larger fractions."""
        few = (max(FEW[0], self._vocabulary[0]), FEW[1])
        other = Drawing(self.specs, self.axes, self._size, few, self._zeros, self._varied)
        other._scale = OTHER_SCALE
        return other


def is_mask(name: str) -> bool:
    """Whether an input of this name marks the elements that count."""
    return bool(_MASK.search(name))


def is_length(name: str) -> bool:
    """Whether an input of this name says how many elements of a row count."""
    return bool(_LENGTH.search(name))


def ways(inputs: Sequence[TensorSpec], axes: Sequence[int], until_ns: int) -> Iterator[Drawing]:
    """Drawings to try, likeliest first, until `until_ns`; there is always at least one."""
    free = any(
        not isinstance(size, int) and index != axis
        for spec, axis in zip(inputs, axes, strict=True)
        for index, size in enumerate(spec.shape or [])
    )
    lengths = any(
        axis != SHARED and (is_mask(spec.name) or is_length(spec.name))
        for spec, axis in zip(inputs, axes, strict=True)
    )
    integers = any(dtypes.BY_CODE[spec.dtype].kind in "iu" for spec in inputs)
    sizes = (0, *SIZES) if free else (0,)
    for vocabulary in VOCABULARIES if integers else VOCABULARIES[:1]:
        for size in sizes:
            for varied in (True, False) if lengths else (False,):  # some models take one length alone
                yield Drawing(inputs, axes, size, vocabulary, varied=varied)
                if time.perf_counter_ns() > until_ns:
                    return
    yield Drawing(inputs, axes, zeros=True)


def find(inputs: Sequence[TensorSpec], axes: Sequence[int], run: Run) -> Drawing | None:
    """The first drawing on which the model runs with one row; None: it runs on none of them."""
    for drawing in ways(inputs, axes, time.perf_counter_ns() + TRY_NS_MAX):
        try:
            run(drawing.feeds(1, np.random.default_rng(SEED)))
        except Exception:  # the runtime may refuse any guess
            continue
        return drawing
    return None


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.float64))


def _floats(values: Array, entry: dtypes.DType) -> Array:
    """Numbers as an array of this type, or as raw bits if NumPy does not have the type."""
    if entry.numpy.kind in "fc" or entry.numpy.name == entry.name:
        return values.astype(entry.numpy)
    if entry.name == "bfloat16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    small: Array = np.abs(values * 8).astype("u1").clip(0, 63)  # positive numbers in every 8-bit layout
    return small
