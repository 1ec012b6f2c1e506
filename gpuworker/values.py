"""Converts between NumPy's arrays and OrtValues, also of element types that NumPy does not have."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime

from ..transport import dtypes
from ..transport.tensors import TensorSpec, nbytes_of

Array = np.ndarray[Any, Any]


def value_of(array: Array, spec: TensorSpec) -> Any:
    """An array as a session takes it: an OrtValue. Strings have none; see `feeds_of`."""
    entry = dtypes.BY_CODE[spec.dtype]
    if entry.kind == "f" and entry.itemsize < 4 and entry.name != "float16":  # an array of their bits
        bits = array.view(np.uint16 if entry.itemsize == 2 else np.uint8)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, spec.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def bytes_of(value: Any, spec: TensorSpec) -> tuple[list[int], Array]:
    """(shape, its bytes as an array that lives as long as `value`)."""
    shape = [int(axis) for axis in value.shape()]
    nbytes = nbytes_of(spec.dtype, shape)
    if not nbytes:
        return shape, np.empty(0, np.uint8)
    return shape, np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(value.data_ptr()))


def comparable(value: Any, spec: TensorSpec) -> Array:
    """A copy of a value that NumPy can compare: bfloat16 as float32, other types of 8 bits and less as their
    bits."""
    entry = dtypes.BY_CODE[spec.dtype]
    if entry.kind == "s":
        return np.array(value.numpy())
    shape, flat = bytes_of(value, spec)
    if entry.name == "bfloat16":
        return (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if not entry.itemsize:
        return flat.copy()
    dtype = entry.numpy if entry.numpy.kind in "fiubc" else np.dtype(f"u{entry.itemsize}")
    return flat.view(dtype).reshape(shape).copy()


def quiet() -> Any:
    """Options for a run on invented inputs, which may fail: onnxruntime logs nothing."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options
