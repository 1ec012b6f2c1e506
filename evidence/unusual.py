"""Rows that a drawing does not reach: what a stranger may send beside an ordinary request.

Some models look at the other rows only for some values: past a threshold, where all lie between 0 and 1,
where two are equal, where one is not a number. Pure: arrays made of arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..transport import dtypes
from ..transport.tensors import TensorSpec
from .axes import SHARED
from .drawing import Array, is_length, is_mask

ORDINARY = 2  # rows of every batch that are as they were drawn
ROWS = 7
TELLING = (0, 2, 3, 4)  # an ordinary row, the same again, and two more: of models too slow for all
FAR = {"float32": 1e4, "float64": 1e4}  # of other types, values would overflow on the way
IDS = 1200  # reaches the marks of most vocabularies, and asks for no memory where it is a size
LARGE = 10_000  # of numbers that are no ids: where it is a size after all, its memory is still there


def batches(
    feeds: Mapping[str, Array], specs: Sequence[TensorSpec], axes: Sequence[int], rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Batches made of drawn rows, which may be fewer than ROWS. `specs` and `axes`: of the inputs in `feeds`,
    in order."""
    inputs = list(zip(feeds.items(), specs, axes, strict=True))
    kinds = {dtypes.BY_CODE[spec.dtype].kind for spec in specs}

    def batch(change: str) -> dict[str, Array]:
        return {
            name: array if axis == SHARED else _changed(array, spec, axis, change, rng)
            for (name, array), spec, axis in inputs
        }

    yield batch("mixed")
    if "i" in kinds or "u" in kinds:
        yield batch("ids")
        yield batch("large")
    if "f" in kinds:
        yield batch("not numbers")
    yield batch("shares")


def _changed(array: Array, spec: TensorSpec, axis: int, change: str, rng: np.random.Generator) -> Array:
    """This input of ROWS rows; the first ORDINARY ones are drawn rows, unless `change` is "shares"."""
    drawn = np.moveaxis(array, axis, 0)
    rows = np.ascontiguousarray(np.resize(drawn, (ROWS, *drawn.shape[1:])))
    rows[2] = rows[0]  # a request that is sent twice
    entry = dtypes.BY_CODE[spec.dtype]
    is_float = rows.dtype.kind == "f" and entry.kind == "f"
    if is_mask(spec.name) and rows.dtype.kind in "fiub" and change != "shares":
        _mask(rows)
    elif is_float:
        _floats(rows, change, FAR.get(entry.name, 30.0))
    elif entry.kind in "iu" and not is_length(spec.name):
        _wholes(rows, change, entry, rng)
    elif entry.kind == "b":
        _switches(rows, change)
    return np.ascontiguousarray(np.moveaxis(rows, 0, axis))


def _floats(rows: Array, change: str, far: float) -> None:
    if change == "shares":
        rows[:] = np.abs(rows) / (1 + np.abs(rows)) * rows.dtype.type(0.98) + rows.dtype.type(0.01)
    elif change == "not numbers":
        rows[3] = np.nan
        rows[4] = np.inf
    elif change == "mixed":
        rows[3] = 0
        rows[4] = np.abs(rows[4]) * far
        rows[5] = -np.abs(rows[5]) * far
        rows[6] = rows[6] / far


def _wholes(rows: Array, change: str, entry: dtypes.DType, rng: np.random.Generator) -> None:
    if change == "ids":
        rows[3:] = rng.integers(0, min(IDS, entry.top), rows[3:].shape)
        rows[4] = 0
        if entry.kind == "i":
            rows[5] = -1
    elif change == "large":
        rows[4] = min(LARGE, entry.top - 1)


def _mask(rows: Array) -> None:
    """The last half of some rows does not count, and nothing of one."""
    if rows.ndim > 1:
        half = -(-rows.shape[-1] // 2)
        rows[3, ..., half:] = 0
        rows[6, ..., half:] = 0
    rows[4] = 0


def _switches(rows: Array, change: str) -> None:
    if change == "shares":
        rows[:] = True
    elif change == "mixed":
        rows[3] = False
        rows[4] = True
