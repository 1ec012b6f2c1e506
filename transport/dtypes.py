"""The fixed table of element types that may travel, by their ONNX code.

The codes are those of onnx.TensorProto.DataType, so a descriptor means the same to every runtime.
4-bit types travel two to a byte, low half first, as ONNX stores them. Strings have no size that a shape
could tell: a descriptor says their bytes, and strings.py how they lie there. A dtype never comes from a
peer as text or as a numpy descriptor: `dtype='O'` would dereference the peer's bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class DType(NamedTuple):
    """One element type: ONNX code, its field name, bits per element, and how numpy carries one element.
    `kind`: f float, i and u integer, b bool, c complex, s string."""

    code: int
    name: str
    bits: int
    numpy: np.dtype[Any]
    kind: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element on the wire; 0: less than a byte, or not known before."""
        return self.bits // 8

    @property
    def top(self) -> int:
        """One more than the greatest whole number that it holds, of an integer type."""
        return 1 << (self.bits - (self.kind == "i"))


def _carrier(name: str, fallback: str) -> np.dtype[Any]:
    """ml_dtypes' type where that package is installed (onnx brings it), else the raw bits.

    The client must install without it, so a bfloat16 result is uint16 bits there.
    """
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(fallback)
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


STRING = 8  # its code
_TABLE = (
    DType(1, "float32", 32, np.dtype("<f4"), "f"),
    DType(2, "uint8", 8, np.dtype("u1"), "u"),
    DType(3, "int8", 8, np.dtype("i1"), "i"),
    DType(4, "uint16", 16, np.dtype("<u2"), "u"),
    DType(5, "int16", 16, np.dtype("<i2"), "i"),
    DType(6, "int32", 32, np.dtype("<i4"), "i"),
    DType(7, "int64", 64, np.dtype("<i8"), "i"),
    DType(STRING, "string", 0, np.dtype(object), "s"),
    DType(9, "bool", 8, np.dtype("?"), "b"),
    DType(10, "float16", 16, np.dtype("<f2"), "f"),
    DType(11, "float64", 64, np.dtype("<f8"), "f"),
    DType(12, "uint32", 32, np.dtype("<u4"), "u"),
    DType(13, "uint64", 64, np.dtype("<u8"), "u"),
    DType(14, "complex64", 64, np.dtype("<c8"), "c"),
    DType(15, "complex128", 128, np.dtype("<c16"), "c"),
    DType(16, "bfloat16", 16, _carrier("bfloat16", "<u2"), "f"),
    DType(17, "float8e4m3fn", 8, _carrier("float8_e4m3fn", "u1"), "f"),
    DType(18, "float8e4m3fnuz", 8, _carrier("float8_e4m3fnuz", "u1"), "f"),
    DType(19, "float8e5m2", 8, _carrier("float8_e5m2", "u1"), "f"),
    DType(20, "float8e5m2fnuz", 8, _carrier("float8_e5m2fnuz", "u1"), "f"),
    DType(21, "uint4", 4, _carrier("uint4", "u1"), "u"),
    DType(22, "int4", 4, _carrier("int4", "i1"), "i"),
)

BY_CODE: dict[int, DType] = {entry.code: entry for entry in _TABLE}
BY_NAME: dict[str, DType] = {entry.name: entry for entry in _TABLE}
# Of arrays whose bytes are the tensor's. First entry wins: where a type travels as raw bits, uint8 and
# uint16 mean themselves.
CODE_BY_NUMPY: dict[np.dtype[Any], int] = {
    entry.numpy: entry.code for entry in reversed(_TABLE) if entry.itemsize
}
ITEMSIZE: dict[int, int] = {entry.code: entry.itemsize for entry in _TABLE if entry.itemsize}
BITS: dict[int, int] = {entry.code: entry.bits for entry in _TABLE if entry.bits}


def name_of(code: int) -> str:
    """The type's name for a message to a person."""
    entry = BY_CODE.get(code)
    return entry.name if entry else f"dtype code {code}"
