"""What a caller passes as an array of NumPy's own, and tensors whose bytes are not their array's: strings,
and 4-bit types, which travel two to a byte."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..transport import dtypes, strings
from ..transport.errors import InvalidRequest

Array = np.ndarray[Any, Any]


def plain(given: Any, dtype: Any = None) -> Array:
    """An array of NumPy's own kind, on the same memory where that is possible: of subclasses, and of what
    exports `__array__` or `__dlpack__` (torch, JAX, CuPy). `dtype`: of Python's numbers and lists, which have
    none of their own. Raises InvalidRequest for masked arrays, and for what can't be read here."""
    if type(given) is np.ndarray:
        return given
    if isinstance(given, np.ma.MaskedArray):
        raise InvalidRequest(
            "a masked array was passed, and a model knows no mask: pass x.filled(value), or x.data to ignore "
            "the mask"
        )
    untyped = isinstance(given, list | tuple | int | float | complex) and not isinstance(given, np.generic)
    try:
        if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
            return np.from_dlpack(given)
        return np.asarray(given, dtype=dtype if untyped else None)
    except Exception as error:  # exporters raise anything: a tensor on a GPU, one that needs a gradient
        raise InvalidRequest(f"{type(given).__name__} can't be read as an array: {why(error)}") from None


def why(error: Exception) -> str:
    """Why numpy makes no array of something."""
    return "its lists have different lengths" if "inhomogeneous" in str(error) else str(error)


def encode(dtype: int, array: Array) -> Array:
    """The array's bytes, as they travel. Raises InvalidRequest for elements that are no text."""
    if dtype == dtypes.STRING:
        return np.frombuffer(strings.encode(array.ravel()), np.uint8)
    flat = array.ravel().view(np.uint8) & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | flat[1::2] << 4


def decode(dtype: int, data: Any, shape: Sequence[int]) -> Array:
    """The array that these bytes are. Raises InvalidRequest for strings that are none."""
    if dtype == dtypes.STRING:
        return strings.decode(data, shape)
    entry = dtypes.BY_CODE[dtype]
    packed = np.frombuffer(data, np.uint8)
    count = prod(shape)
    if len(packed) != (count + 1) // 2:
        raise InvalidRequest(f"{len(packed)} bytes are not {count} elements of {entry.name}")
    flat = np.empty(2 * len(packed), np.uint8)
    flat[0::2], flat[1::2] = packed & 0xF, packed >> 4
    flat = flat[:count]
    if entry.kind == "i":
        flat = np.where(flat > 7, flat | 0xF0, flat)  # the sign bit is the fourth
    return flat.view(entry.numpy).reshape(shape)
