"""Plain onnxruntime, alone: what every answer of the yard is compared with, and the comparison.

Takes and gives numpy arrays of every type that onnxruntime runs, those of ml_dtypes included; imports
nothing of batchyard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto

Array = np.ndarray[Any, Any]

# Types that onnxruntime's own binding to numpy lacks: ONNX code -> (numpy's type, bits an element).
EXTENDED: dict[int, tuple[Any, int]] = {
    TensorProto.BFLOAT16: (ml_dtypes.bfloat16, 16),
    TensorProto.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 8),
    TensorProto.FLOAT8E4M3FNUZ: (ml_dtypes.float8_e4m3fnuz, 8),
    TensorProto.FLOAT8E5M2: (ml_dtypes.float8_e5m2, 8),
    TensorProto.FLOAT8E5M2FNUZ: (ml_dtypes.float8_e5m2fnuz, 8),
    TensorProto.UINT4: (ml_dtypes.uint4, 4),
    TensorProto.INT4: (ml_dtypes.int4, 4),
    TensorProto.UINT2: (ml_dtypes.uint2, 2),
    TensorProto.INT2: (ml_dtypes.int2, 2),
    TensorProto.FLOAT8E8M0: (ml_dtypes.float8_e8m0fnu, 8),
    TensorProto.FLOAT4E2M1: (ml_dtypes.float4_e2m1fn, 4),
}
_CODES = {np.dtype(kind): code for code, (kind, _) in EXTENDED.items()}

# How far two right answers may lie apart, as a share of the largest value: the order of additions is free,
# and a batch's matrix product is blocked otherwise than a row's. Types that only stand for codes are exact.
TOLERANCE = {
    "float64": 1e-10,
    "float32": 2e-5,
    "complex64": 2e-5,
    "complex128": 1e-10,
    "float16": 4e-3,
    "bfloat16": 3e-2,
}


class Plain:
    """One model in onnxruntime, on one thread, as a worker of one thread runs it."""

    def __init__(self, model: bytes | str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.overridable = {value.name for value in self.session.get_overridable_initializers()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def types(self) -> list[str]:
        """The types of its inputs and outputs, as onnxruntime writes them."""
        return [value.type for value in (*self.session.get_inputs(), *self.session.get_outputs())]

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Its outputs for these inputs; inputs that are None are left out. Raises what onnxruntime raises."""
        known = self.overridable | self.inputs.keys()
        given = {name: value for name, value in feeds.items() if value is not None and name in known}
        if any(not kind.startswith("tensor(") or "string" in kind for kind in self.types()):
            answers: list[Any] = self.session.run(None, given)
            return answers
        values = {name: to_value(array) for name, array in given.items()}
        return [from_value(value) for value in self.session.run_with_ort_values(None, values)]


def to_value(array: Array) -> Any:
    """An OrtValue with the array's elements."""
    code = _CODES.get(array.dtype)
    if code is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), code)
    packed = pack(array, EXTENDED[code][1])
    ctypes.memmove(value.data_ptr(), packed, len(packed))
    return value


def from_value(value: Any) -> Array:
    """The elements of an OrtValue, copied."""
    extended = EXTENDED.get(value.element_type())
    if extended is None:
        array: Array = np.array(value.numpy())
        return array
    kind, bits = extended
    shape = value.shape()
    packed = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return unpack(packed, kind, bits, shape)


def pack(array: Array, bits: int) -> bytes:
    """The array's bytes as ONNX lays them: elements of less than a byte from the low end on."""
    codes = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    if bits >= 8:
        return codes.tobytes()
    each = 8 // bits
    codes = np.pad(codes & ((1 << bits) - 1), (0, -codes.size % each)).reshape(-1, each)
    return (codes << (np.arange(each, dtype=np.uint8) * bits)).sum(1, dtype=np.uint8).tobytes()


def unpack(packed: bytes, kind: Any, bits: int, shape: Sequence[int]) -> Array:
    """The reverse of `pack`."""
    count = int(np.prod(shape, dtype=np.int64))
    codes = np.frombuffer(packed, np.uint8)
    if bits < 8:
        each = 8 // bits
        codes = ((codes[:, None] >> (np.arange(each, dtype=np.uint8) * bits)) & ((1 << bits) - 1)).reshape(-1)
        codes = codes[:count]
        if np.dtype(kind).name.startswith("int"):  # sign-extended, as ml_dtypes keeps them
            codes = np.where(codes >> (bits - 1), codes | (0xFF & ~((1 << bits) - 1)), codes).astype(np.uint8)
    array: Array = codes.copy().view(kind).reshape(shape)
    return array


def difference(expected: Any, answer: Any, share: float | None = None) -> str:
    """What is wrong with an answer; "" where it is equal within its type's rounding (TOLERANCE), or, for
    numbers with a fraction, within that share of the largest value."""
    if isinstance(expected, list) or expected is None:
        return "" if repr(expected) == repr(answer) else "another sequence or optional"
    want, have = np.asarray(expected), _as_type_of(np.asarray(answer), np.asarray(expected))
    if want.shape != have.shape:
        return f"the shape {have.shape} in place of {want.shape}"
    if want.dtype != have.dtype:
        return f"the type {have.dtype} in place of {want.dtype}"
    tolerance = TOLERANCE.get(want.dtype.name, 0.0)
    if tolerance and share is not None:
        tolerance = share
    if not tolerance:
        wrong = int(np.count_nonzero(_comparable(want) != _comparable(have)))
        return f"{wrong} of {want.size} elements differ" if wrong else ""
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    left, right = want.astype(wide), have.astype(wide)
    finite = np.isfinite(left)
    if not np.array_equal(np.where(finite, 0, left), np.where(finite, 0, right), equal_nan=True):
        return "infinities or NaNs elsewhere"
    gap = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    largest = float(np.abs(left[finite]).max(initial=0.0))
    if gap <= tolerance * largest:
        return ""
    return f"{gap:.3g} off, where the largest value is {largest:.3g}"


def _as_type_of(have: Array, want: Array) -> Array:
    """An answer that came as raw bits, or as small integers in whole bytes, read as the type it stands for."""
    if have.dtype == want.dtype or want.dtype not in _CODES:
        return have.astype(object) if want.dtype == object and have.dtype.kind in "UT" else have
    bits = EXTENDED[_CODES[want.dtype]][1]
    if bits >= 8 and have.dtype.kind == "u" and have.dtype.itemsize == want.dtype.itemsize:
        return have.view(want.dtype)
    if bits < 8 and have.dtype.kind in "iu" and have.dtype.itemsize == 1:
        return have.astype(want.dtype)
    return have


def _comparable(array: Array) -> Array:
    """Elements that numpy can compare for equality, NaN with NaN."""
    if array.dtype in _CODES:
        bits = EXTENDED[_CODES[array.dtype]][1]
        return array.view(np.uint16) if bits == 16 else array.view(np.uint8) & ((1 << bits) - 1)
    if array.dtype == object:
        return array.astype(str)
    return array
