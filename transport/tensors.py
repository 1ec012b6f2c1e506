"""Tensor descriptors: where a tensor lies and what it is, and the checks that nothing skips.

A descriptor never names memory. It is (dtype code, shape, offset) inside the one arena of the
connection that it came by, or the index of a frame of the same message. C order, little endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

import msgspec

from . import dtypes
from .errors import InvalidRequest

RANK_MAX = 32  # ONNX Runtime and numpy both stop at or above this
NBYTES_MAX = 1 << 46  # no machine that we serve maps more; keeps every sum far below 2**63

Count = Annotated[int, msgspec.Meta(ge=0, le=NBYTES_MAX)]


class Tensor(msgspec.Struct, array_like=True, gc=False):
    """One tensor. `frame` 0: its bytes start at `offset` in the sender's arena.
    `frame` k > 0: they are the k-th frame behind the message's payload, and `offset` is 0."""

    dtype: int
    shape: Annotated[list[Count], msgspec.Meta(max_length=RANK_MAX)]
    offset: Count
    frame: Count = 0


class Slot(msgspec.Struct, array_like=True, gc=False):
    """Room that a client reserved in its arena for one output."""

    offset: Count
    nbytes: Count


class TensorSpec(msgspec.Struct, array_like=True, frozen=True):
    """An input or output as the model declares it: an axis is a size, or a name when it is free."""

    name: str
    dtype: int
    shape: list[int | str]

    def __str__(self) -> str:
        axes = ", ".join(str(axis) for axis in self.shape)
        return f"{self.name}: {dtypes.name_of(self.dtype)}[{axes}]"


def nbytes_of(dtype: int, shape: Sequence[int]) -> int:
    """Bytes of a C-ordered tensor; `math.prod` over Python ints, because numpy's product wraps.

    Raises InvalidRequest for a dtype outside the table, a negative axis, or an absurd size.
    """
    itemsize = dtypes.ITEMSIZE.get(dtype)
    if itemsize is None:
        raise InvalidRequest(f"{dtypes.name_of(dtype)} cannot travel as a tensor handle")
    nbytes = prod(shape) * itemsize
    if nbytes < 0 or nbytes > NBYTES_MAX or (shape and min(shape) < 0):
        raise InvalidRequest(f"shape {list(shape)} is not a size: every axis must be 0 or more")
    return nbytes


def check_range(offset: int, nbytes: int, arena_nbytes: int) -> None:
    """Raise InvalidRequest unless [offset, offset + nbytes) lies inside the arena.

    Written as a subtraction, so that it would hold in fixed-width integers too.
    """
    if offset < 0 or nbytes < 0 or offset > arena_nbytes or nbytes > arena_nbytes - offset:
        raise InvalidRequest(
            f"a handle points outside its arena: {nbytes} bytes at offset {offset}, "
            f"and the arena has {arena_nbytes}"
        )
