"""How a tensor's rows lie in memory, and the buffers that hold the rows of several requests.

A C-ordered tensor consists of `outer` blocks. Each block has all rows one after the other, `inner` bytes of
each. With batch axis 0 there is one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..transport.tensors import Tensor, nbytes_of

Array = np.ndarray[Any, Any]


class Layout:
    """One input or output of one shape. `axis` -1: it has no rows; a run has one of it."""

    __slots__ = ("axis", "dtype", "inner", "outer", "row_nbytes", "tail")

    def __init__(self, dtype: int, tail: Sequence[int], axis: int) -> None:
        self.dtype = dtype
        self.tail = list(tail)  # the shape without its batch axis
        self.axis = axis
        self.outer = prod(tail[:axis]) if axis > 0 else 1
        self.row_nbytes = nbytes_of(dtype, tail)  # or of the whole tensor, if it has no rows
        self.inner = self.row_nbytes // max(1, self.outer)

    def shape(self, rows: int) -> list[int]:
        axis = self.axis
        if axis < 0:
            return self.tail
        return [*self.tail[:axis], rows, *self.tail[axis:]]

    def nbytes(self, rows: int) -> int:
        return self.row_nbytes if self.axis < 0 else self.row_nbytes * rows

    def blocks(self, data: Any, rows: int) -> Array:
        """The tensor's bytes as [outer, rows, inner]."""
        flat = np.frombuffer(data, np.uint8)
        return flat.reshape(self.outer, rows, self.inner)


class Buffer:
    """The worker's own memory for one tensor of a run. It grows with the batches."""

    __slots__ = ("address", "array", "view")

    def __init__(self) -> None:
        self.array = np.zeros(1, np.uint8)
        self.address = 0
        self.view = memoryview(b"")

    def hold(self, nbytes: int, nbytes_max: int) -> None:
        """Make room for at least `nbytes`; for twice the old size if that is at most `nbytes_max`."""
        if self.address and len(self.array) >= nbytes:
            return
        room = max(1, nbytes, min(2 * len(self.array), nbytes_max))
        self.array = np.zeros(room, np.uint8)
        self.address = int(self.array.ctypes.data)
        self.view = memoryview(self.array.data)


def tail_of(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """A shape without its batch axis."""
    if axis == 0:
        return tuple(shape[1:])
    return tuple(shape) if axis < 0 else (*shape[:axis], *shape[axis + 1 :])


def is_neighbour(left: Tensor, right: Tensor) -> bool:
    """Whether one whole tensor begins where the other ends."""
    return left.offset + left.nbytes == right.offset
