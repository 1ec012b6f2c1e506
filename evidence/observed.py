"""Rows of real requests in place of invented ones, for a model that runs on no invented input. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..transport.tensors import TensorSpec
from .axes import SHARED
from .drawing import Array, Drawing

REQUESTS = 6  # that are kept, of one model
ROWS_MIN = 3  # of them together: fewer show too little
BYTES_MAX = 16 << 20  # of their inputs


class Observed(Drawing):
    """Draws rows of these requests, in turn. Raises ValueError for requests whose rows can't be put together:
    where the axes are another size, or shared inputs have other values."""

    def __init__(
        self, inputs: Sequence[TensorSpec], axes: Sequence[int], requests: Sequence[Mapping[str, Array]]
    ) -> None:
        super().__init__(inputs, axes)
        self._rows: dict[str, Array] = {}
        counts: set[int] = set()
        for spec, axis in zip(self.specs, self.axes, strict=True):
            arrays = [request[spec.name] for request in requests]
            if axis == SHARED:
                if any(not np.array_equal(array, arrays[0]) for array in arrays):
                    raise ValueError(f"requests differ in {spec.name}")
                self._rows[spec.name] = arrays[0]
            else:
                self._rows[spec.name] = np.concatenate(arrays, axis)
                counts.add(self._rows[spec.name].shape[axis])
        if len(counts) != 1:
            raise ValueError("their inputs disagree on the number of rows")
        self.rows = counts.pop()

    def feeds(
        self, rows: int, rng: np.random.Generator, sizes: Mapping[str, int] = {}
    ) -> dict[str, Array]:
        return {
            name: array if axis == SHARED else np.take(array, np.arange(rows) % self.rows, axis)
            for (name, array), axis in zip(self._rows.items(), self.axes, strict=True)
        }

    def row_values(self) -> int:
        return sum(array.size for array in self._rows.values()) // max(1, self.rows)

    def other_values(self) -> Drawing:
        return self


class Requests:
    """The first requests of a model, as far as there is room."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Array]] = []
        self._nbytes = 0
        self.is_full = False  # no more are wanted

    def keep(self, request: dict[str, Array]) -> None:
        """Copies, which nobody changes."""
        self._nbytes += sum(array.nbytes for array in request.values())
        if self._nbytes <= BYTES_MAX:
            self._kept.append(request)
        self.is_full = len(self._kept) >= REQUESTS or self._nbytes > BYTES_MAX

    def ways(self, inputs: Sequence[TensorSpec], axes: Sequence[int], until_ns: int) -> Iterator[Drawing]:
        """As drawing.ways: the largest group of them whose rows can be put together, by the first of each."""
        groups = []
        for first in self._kept:
            group = [first]
            for other in self._kept:
                if other is not first and _fits(inputs, axes, [*group, other]):
                    group.append(other)
            if _fits(inputs, axes, group):
                groups.append(group)
        for group in sorted(groups, key=len, reverse=True)[:1]:
            observed = Observed(inputs, axes, group)
            if observed.rows >= ROWS_MIN:
                yield observed


def _fits(inputs: Sequence[TensorSpec], axes: Sequence[int], group: Sequence[Mapping[str, Array]]) -> bool:
    try:
        Observed(inputs, axes, group)
    except (ValueError, KeyError, IndexError):  # also numpy's, of other shapes or too few axes
        return False
    return True
