"""The fixed table of element types that may travel, by their ONNX code.

The codes are those of onnx.TensorProto.DataType, so a descriptor means the same to every runtime.
Only fixed-width types of whole bytes are here: strings and the packed 4-bit types have no
(offset, shape) that a peer could check. A dtype never comes from a peer as text or as a numpy
descriptor: `dtype='O'` would dereference the peer's bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class DType(NamedTuple):
    """One element type: ONNX code, its field name, bytes per element, and how numpy carries it."""

    code: int
    name: str
    itemsize: int
    numpy: np.dtype[Any]


def _carrier(name: str, fallback: str) -> np.dtype[Any]:
    """ml_dtypes' type where that package is installed (onnx brings it), else the raw bits.

    The client must install without it, so a bfloat16 result is uint16 bits there.
    """
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(fallback)
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


_TABLE = (
    DType(1, "float32", 4, np.dtype("<f4")),
    DType(2, "uint8", 1, np.dtype("u1")),
    DType(3, "int8", 1, np.dtype("i1")),
    DType(4, "uint16", 2, np.dtype("<u2")),
    DType(5, "int16", 2, np.dtype("<i2")),
    DType(6, "int32", 4, np.dtype("<i4")),
    DType(7, "int64", 8, np.dtype("<i8")),
    DType(9, "bool", 1, np.dtype("?")),
    DType(10, "float16", 2, np.dtype("<f2")),
    DType(11, "float64", 8, np.dtype("<f8")),
    DType(12, "uint32", 4, np.dtype("<u4")),
    DType(13, "uint64", 8, np.dtype("<u8")),
    DType(14, "complex64", 8, np.dtype("<c8")),
    DType(15, "complex128", 16, np.dtype("<c16")),
    DType(16, "bfloat16", 2, _carrier("bfloat16", "<u2")),
    DType(17, "float8e4m3fn", 1, _carrier("float8_e4m3fn", "u1")),
    DType(18, "float8e4m3fnuz", 1, _carrier("float8_e4m3fnuz", "u1")),
    DType(19, "float8e5m2", 1, _carrier("float8_e5m2", "u1")),
    DType(20, "float8e5m2fnuz", 1, _carrier("float8_e5m2fnuz", "u1")),
)

BY_CODE: dict[int, DType] = {entry.code: entry for entry in _TABLE}
BY_NAME: dict[str, DType] = {entry.name: entry for entry in _TABLE}
# First entry wins: where a type travels as raw bits, uint8 and uint16 mean themselves.
CODE_BY_NUMPY: dict[np.dtype[Any], int] = {entry.numpy: entry.code for entry in reversed(_TABLE)}
ITEMSIZE: dict[int, int] = {entry.code: entry.itemsize for entry in _TABLE}


def name_of(code: int) -> str:
    """The type's name for a message to a person."""
    entry = BY_CODE.get(code)
    return entry.name if entry else f"dtype code {code}"
