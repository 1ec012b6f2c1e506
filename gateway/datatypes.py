"""Element types: their names in the Open Inference Protocol, and numbers that arrive as JSON.

Owns the table and the checks. A dtype never comes from a peer as a numpy descriptor: `dtype='O'` would
dereference the peer's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .errors import Refusal, invalid

Array = np.ndarray[Any, Any]
RANK_MAX = 32
STRINGS_MAX = 1 << 16  # elements of a BYTES tensor: it is refused in the end, and must not take long for it
JSON_ELEMENTS_MAX = 1 << 20  # of one output; they take some 0.1 s, in which nobody else is answered
NBYTES_MAX = 1 << 40  # of one tensor; what may really come is bounded by the body and the arena

# Nested lists of numbers, and nothing else: of one long text among short ones, numpy would make an array of
# texts that are all as long, gigabytes out of a body of one MiB.
_nested: Any = bool | int | float
for _ in range(RANK_MAX):
    _nested = bool | int | float | list[_nested]
_numbers = msgspec.json.Decoder(_nested)


class Datatype(NamedTuple):
    """A type of the protocol: its name, ONNX's code for it, what carries it here, its name in a config."""

    name: str
    code: int
    numpy: np.dtype[Any]
    config: str


_TABLE = (
    Datatype("BOOL", 9, np.dtype("?"), "TYPE_BOOL"),
    Datatype("UINT8", 2, np.dtype("u1"), "TYPE_UINT8"),
    Datatype("UINT16", 4, np.dtype("<u2"), "TYPE_UINT16"),
    Datatype("UINT32", 12, np.dtype("<u4"), "TYPE_UINT32"),
    Datatype("UINT64", 13, np.dtype("<u8"), "TYPE_UINT64"),
    Datatype("INT8", 3, np.dtype("i1"), "TYPE_INT8"),
    Datatype("INT16", 5, np.dtype("<i2"), "TYPE_INT16"),
    Datatype("INT32", 6, np.dtype("<i4"), "TYPE_INT32"),
    Datatype("INT64", 7, np.dtype("<i8"), "TYPE_INT64"),
    Datatype("FP16", 10, np.dtype("<f2"), "TYPE_FP16"),
    Datatype("FP32", 1, np.dtype("<f4"), "TYPE_FP32"),
    Datatype("FP64", 11, np.dtype("<f8"), "TYPE_FP64"),
    Datatype("BF16", 16, np.dtype("<u2"), "TYPE_BF16"),  # numpy has none: the raw bits
)
BY_NAME = {entry.name: entry for entry in _TABLE}
BY_CODE = {entry.code: entry for entry in _TABLE}

# What a raw tensor of POST /predict may be called, by numpy's names; complex has no name in the protocol.
NUMPY = {str(entry.numpy): entry.numpy for entry in _TABLE} | {
    "bfloat16": np.dtype("<u2"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}


def datatype_of(code: int, what: str) -> Datatype:
    """The protocol's type of an ONNX code. Raises Refusal for one that it has no name for."""
    entry = BY_CODE.get(code)
    if entry is None:
        raise invalid(f"{what} has a type that the Open Inference Protocol cannot name; use POST /predict")
    return entry


def check_shape(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """Raises Refusal for what is no shape: a negative axis, too many, or an absurd size."""
    # Without the zeros: numpy makes no empty array either that would be too big without its empty axis.
    if len(shape) > RANK_MAX or (shape and min(shape) < 0) or prod(filter(None, shape)) > NBYTES_MAX:
        raise invalid(f"{what} has no shape that a tensor can have: {str(list(shape[: RANK_MAX + 1]))[:200]}")
    return tuple(shape)


def from_bytes(raw: Any, dtype: np.dtype[Any], shape: Sequence[int], what: str) -> Array:
    """An array over C-ordered, little-endian bytes. Raises Refusal when they are not just as many."""
    dims = check_shape(shape, what)
    have, want = memoryview(raw).nbytes, prod(dims) * dtype.itemsize
    if have != want:
        raise invalid(f"{what} has {have} bytes, and {dtype}{list(dims)} takes {want}")
    return np.frombuffer(raw, dtype).reshape(dims) if want else np.empty(dims, dtype)


def from_json(raw: bytes | msgspec.Raw, dtype: np.dtype[Any], what: str) -> Array:
    """An array of JSON's nested lists of numbers, in their own shape.

    Raises Refusal for lists of different lengths, for what is no number, and for numbers that the type
    cannot hold: numpy would make an infinity of 1e300, and -1 of the uint8 255.
    """
    try:
        given = np.asarray(_numbers.decode(raw))
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise invalid(f"{what} is no tensor: {error}") from None
    if not given.size:
        return given.astype(dtype)
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}.get(dtype.kind)
    if allowed is None:
        raise invalid(f"{what}: {dtype} cannot be written as JSON; send it as bytes")
    if given.dtype.kind not in allowed:
        found = {"O": "a number of more than 64 bits", "f": "fractions", "b": "true and false"}
        raise invalid(f"{what} takes {dtype}, and has {found.get(given.dtype.kind, 'numbers')}")
    try:
        with np.errstate(over="raise"):
            array: Array = given.astype(dtype)
    except FloatingPointError:
        raise invalid(f"{what} has a number that {dtype} cannot hold") from None
    if dtype.kind in "iu" and not np.array_equal(array, given):
        raise invalid(f"{what} has a number that {dtype} cannot hold")
    return array


def to_json(array: Array, what: str) -> Any:
    """The elements as nested lists. JSON has no NaN and no infinity: both become null.
    Raises Refusal for a type whose numbers have no JSON form, and for what would keep others waiting."""
    if array.dtype.kind not in "biuf":
        raise invalid(f"{what} is {array.dtype}, which has no JSON form; ask for bytes")
    if array.size > JSON_ELEMENTS_MAX:
        raise invalid(f"{what} has {array.size} elements, more than JSON is made of here; ask for bytes")
    return array.tolist()


def to_bytes(array: Array) -> memoryview:
    """The bytes in C order; of the array itself where it has that order already."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def strings(raw: bytes | memoryview, count: int, what: str) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length (uint32, little endian).
    Raises Refusal when the lengths do not fit the bytes."""
    if count > STRINGS_MAX:
        raise no_strings(what)
    view = memoryview(raw)
    elements: list[bytes] = []
    at = 0
    while at < len(view) and len(elements) <= count:
        (length,) = struct.unpack_from("<I", view, at) if len(view) - at >= 4 else (len(view),)
        if length > len(view) - at - 4:
            raise invalid(f"{what}: the length of BYTES element {len(elements)} points outside the tensor")
        elements.append(bytes(view[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(elements) != count:
        raise invalid(f"{what} has {len(elements)} BYTES elements, and its shape says {count}")
    return elements


def no_strings(what: str) -> Refusal:
    """Why a BYTES tensor goes nowhere."""
    return invalid(f"{what} is BYTES, and no model of a yard takes strings: only types of fixed width")
