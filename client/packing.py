"""Small requests of a map that leave as one: their rows are laid side by side, and each row is one of them.

A request costs the same in three processes however small it is; a row costs a fraction of that. What is
packed says so: a worker checks each row by itself now and then, as it does with requests, and refuses what
is packed where rows may share no run. Then each goes by itself. Pure.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ..transport.dtypes import BY_CODE
from ..transport.errors import InvalidRequest
from ..transport.messages import ModelInfo
from .signature import Array, Kind, Signature, rows_of

BYTES_MAX = 1 << 14  # of a request's inputs: beyond, a copy costs more than a message saves
ANSWER_BYTES_MAX = 1 << 16  # of its outputs, as far as they are known: one that is kept keeps them all
RUN_NS_MAX = 10_000_000  # of a packed run, by the warm-up: results come when all of it is done


def packer_of(info: ModelInfo, most: int) -> Packer | None:
    """For a model whose requests may go together, `most` of them; None: each goes by itself."""
    if not info.packs or not all(BY_CODE[spec.dtype].itemsize for spec in (*info.inputs, *info.outputs)):
        return None  # texts, and two elements to a byte
    most = min(most, info.max_batch)
    for worker in info.workers:
        quick = [rows for rows, run_ns in worker.warmup_ns.items() if run_ns <= RUN_NS_MAX]
        most = min(most, max(quick, default=1))
    return Packer(info.name, most) if most > 1 else None


class Packer:
    """Requests of one row, for `model`, that are being laid side by side, `rows_max` at most."""

    def __init__(self, model: str, rows_max: int) -> None:
        self.model = model
        self.count = 0  # of requests that lie here
        self._rows_max = rows_max
        self._kind: Kind | None = None
        self._signature: Signature | None = None
        self._laid: list[tuple[Array, int]] = []  # of each input, with its axis of rows

    @property
    def is_full(self) -> bool:
        return self.count >= self._rows_max

    def look(self, signature: Signature, given: Any) -> tuple[list[Array], Kind] | None:
        """The arrays of a request that may go with others; None: it goes by itself, and has its own error."""
        if type(given) is not np.ndarray and not _are_arrays(given):
            return None  # converting it runs the caller's code, and that once
        try:
            arrays, kind = signature.sorted_out(given)
        except InvalidRequest:
            return None
        if kind is not self._kind or signature is not self._signature:
            if kind.rows != 1 or any(array is None for array in arrays):
                return None
            if sum(array.nbytes for array in arrays if array is not None) > BYTES_MAX:
                return None
            if sum(signature.output_nbytes(1)) > ANSWER_BYTES_MAX:
                return None
        return cast("list[Array]", arrays), kind

    def fits(self, signature: Signature, arrays: list[Array], kind: Kind) -> bool:
        """Whether it may lie beside those that are here: same shapes, same types, same shared inputs."""
        if not self.count:
            return True
        if kind is not self._kind or signature is not self._signature:
            return False
        for array, (laid, axis) in zip(arrays, self._laid, strict=True):
            if array.dtype != laid.dtype or (axis < 0 and array.tobytes() != laid.tobytes()):
                return False
        return True

    def add(self, signature: Signature, arrays: list[Array], kind: Kind) -> None:
        """Copy it here: the caller's arrays are his own again."""
        if not self.count:
            self._kind, self._signature = kind, signature
            self._laid = [
                (_room(array, entry.axis, self._rows_max), entry.axis)
                for array, entry in zip(arrays, signature.inputs, strict=True)
            ]
        for array, (laid, axis) in zip(arrays, self._laid, strict=True):
            if not axis:
                laid[self.count : self.count + 1] = array
            elif axis > 0:
                laid[rows_of(axis, self.count, self.count + 1)] = array
        self.count += 1

    def take(self) -> Packed:
        """Everything that lies here. Afterwards nothing does."""
        assert self._signature is not None
        count, self.count = self.count, 0
        return Packed(self._signature, self._laid, count)


class Packed:
    """`count` requests of one row that went as one; `given`: its inputs."""

    __slots__ = ("_axes", "count", "given", "output_axes")

    def __init__(self, signature: Signature, laid: list[tuple[Array, int]], count: int) -> None:
        self.count = count
        self.output_axes = signature.output_axes
        self._axes = [axis for _, axis in laid]
        self.given = {
            entry.spec.name: array[rows_of(axis, 0, count)] if axis >= 0 else array
            for entry, (array, axis) in zip(signature.inputs, laid, strict=True)
        }

    def apart(self) -> list[dict[str, Array]]:
        """The inputs of each of them."""
        requests: list[dict[str, Array]] = [{} for _ in range(self.count)]
        for (name, array), axis in zip(self.given.items(), self._axes, strict=True):
            for row, given in enumerate(requests):
                given[name] = array[rows_of(axis, row, row + 1)] if axis >= 0 else array
        return requests


def _are_arrays(given: Any) -> bool:
    return type(given) is dict and all(type(array) is np.ndarray for array in given.values())


def _room(array: Array, axis: int, rows: int) -> Array:
    """Memory for so many rows like this one; of a shared input, a copy."""
    if axis < 0:
        return array.copy()
    return np.empty((*array.shape[:axis], rows, *array.shape[axis + 1 :]), array.dtype)
