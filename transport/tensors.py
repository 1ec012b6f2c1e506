"""Tensor descriptors: the place and type of a tensor, and the checks that nothing skips.

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

RANK_MAX = 64  # numpy stops there (numpy 1 at 32)
NBYTES_MAX = 1 << 46  # no machine that we serve maps more; keeps every sum far below 2**63

Count = Annotated[int, msgspec.Meta(ge=0, le=NBYTES_MAX)]


ABSENT = 0  # the dtype of an optional input that a request leaves out


class Tensor(msgspec.Struct, array_like=True, gc=False):
    """One tensor. `frame` 0: its bytes start at `offset` in the sender's arena.
    `frame` k > 0: they start at `offset` in the k-th frame behind the message's payload.
    `strings_nbytes`: of strings, whose shape does not say it. An input that is left out is ABSENT."""

    dtype: int
    shape: Annotated[list[Count], msgspec.Meta(max_length=RANK_MAX)]
    offset: Count
    frame: Count = 0
    strings_nbytes: Count = 0

    @property
    def nbytes(self) -> int:
        """Raises InvalidRequest for an impossible tensor."""
        if self.dtype in (dtypes.STRING, ABSENT):
            return self.strings_nbytes
        return nbytes_of(self.dtype, self.shape)


class Slot(msgspec.Struct, array_like=True, gc=False):
    """Room that a client reserved in its arena for one output. `shape`: it is for an output of this shape
    alone; None: for one of the declared shape."""

    offset: Count
    nbytes: Count
    shape: Annotated[list[Count], msgspec.Meta(max_length=RANK_MAX)] | None = None


def moved(
    inputs: Sequence[Tensor], slots: Sequence[Slot], offsets: Sequence[int]
) -> tuple[list[Tensor], list[Slot]]:
    """Tensors and slots like these, at other offsets: first the inputs', then the slots'."""
    count = len(inputs)
    tensors = [
        Tensor(tensor.dtype, tensor.shape, offset, tensor.frame, tensor.strings_nbytes)
        for tensor, offset in zip(inputs, offsets[:count], strict=True)
    ]
    return tensors, [
        Slot(offset, slot.nbytes, slot.shape) for slot, offset in zip(slots, offsets[count:], strict=True)
    ]


class TensorSpec(msgspec.Struct, array_like=True, frozen=True):
    """An input or output as the model declares it: an axis is a size, or a name when it is free.
    `shape` None: any. onnxruntime says the same of a scalar and of a tensor of unknown rank.
    `optional`: an input with a default value."""

    name: str
    dtype: int
    shape: list[int | str] | None
    optional: bool = False

    @property
    def is_static(self) -> bool:
        """Whether every axis is a size."""
        return self.shape is not None and all(isinstance(axis, int) for axis in self.shape)

    def __str__(self) -> str:
        axes = "..." if self.shape is None else ", ".join(str(axis) for axis in self.shape)
        return f"{self.name}: {dtypes.name_of(self.dtype)}[{axes}]"


def nbytes_of(dtype: int, shape: Sequence[int]) -> int:
    """Bytes of a C-ordered tensor; `math.prod` over Python ints, because numpy's product wraps.

    Raises InvalidRequest for a dtype outside the table, a negative axis, or an absurd size.
    """
    bits = dtypes.BITS.get(dtype)
    if bits is None:
        raise InvalidRequest(f"{dtypes.name_of(dtype)} has no size that its shape could tell")
    nbytes = (prod(shape) * bits + 7) >> 3
    if nbytes > NBYTES_MAX and min(shape) >= 0:
        raise InvalidRequest(f"shape {list(shape)} is too large: a tensor has at most {NBYTES_MAX:,} bytes")
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
