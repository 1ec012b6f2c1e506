"""Element types: their names in the Open Inference Protocol, and numbers and strings that arrive as JSON.

Owns the table and the checks. A dtype never comes from a peer as a numpy descriptor: `dtype='O'` would
dereference the peer's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from .. import InvalidRequest
from ..client import encoding
from .errors import invalid

Array = np.ndarray[Any, Any]
RANK_MAX = 32
STRINGS_MAX = 1 << 16  # elements of a BYTES tensor; they take some 0.1 s, in which nobody else is answered
JSON_ELEMENTS_MAX = 1 << 20  # of one output; they take some 0.1 s, in which nobody else is answered
NBYTES_MAX = 1 << 40  # of one tensor; what may really come is bounded by the body and the arena


def _decoder_of(element: Any) -> msgspec.json.Decoder[Any]:
    """Nested lists of these, and nothing else: of one long text among numbers, numpy would make an array of
    texts that are all as long, gigabytes out of a body of one MiB."""
    nested: Any = element
    for _ in range(RANK_MAX):
        nested = element | list[nested]
    return msgspec.json.Decoder(nested)


_numbers = _decoder_of(bool | int | float)
_fractions = _decoder_of(int | float | Literal["NaN", "Infinity", "-Infinity"])
_texts = _decoder_of(str)


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
    Datatype("BYTES", 8, np.dtype(object), "TYPE_STRING"),  # an array of str: onnxruntime's strings are UTF-8
)
BY_NAME = {entry.name: entry for entry in _TABLE}
BY_CODE = {entry.code: entry for entry in _TABLE}

# What a raw tensor of POST /predict may be called, by numpy's names; complex has no name in the protocol.
NUMPY = {str(entry.numpy): entry.numpy for entry in _TABLE if entry.name != "BYTES"} | {
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
    """Raises Refusal for an invalid shape: a negative axis, too many axes, or an absurd size."""
    # Without the zeros: numpy makes no empty array either that would be too big without its empty axis.
    if len(shape) > RANK_MAX or (shape and min(shape) < 0) or prod(filter(None, shape)) > NBYTES_MAX:
        raise invalid(f"{what} has an impossible shape: {str(list(shape[: RANK_MAX + 1]))[:200]}")
    return tuple(shape)


def from_bytes(raw: Any, dtype: np.dtype[Any], shape: Sequence[int], what: str) -> Array:
    """An array over C-ordered, little-endian bytes; of strings, of str.
    Raises Refusal when they are not just as many."""
    dims = check_shape(shape, what)
    if dtype.hasobject:
        check_count(prod(dims), what)
        try:
            return encoding.decode(BY_NAME["BYTES"].code, raw, dims)
        except InvalidRequest as error:
            raise invalid(f"{what}: {error}") from None
    have, want = memoryview(raw).nbytes, prod(dims) * dtype.itemsize
    if have != want:
        raise invalid(f"{what} has {have} bytes; {dtype}{list(dims)} needs {want}")
    return np.frombuffer(raw, dtype).reshape(dims) if want else np.empty(dims, dtype)


def check_count(count: int, what: str) -> None:
    """Raises Refusal for more strings than may keep others waiting."""
    if count > STRINGS_MAX:
        text = f"{what} has {count} strings; here a tensor has at most {STRINGS_MAX}"
        raise invalid(f"{text}: send fewer rows at once, or use a client of batchyard's own")


def _whole(numbers: Any, rounded: Array) -> Array:
    """Whole numbers, where numpy makes fractions of some above 2**63 beside others. Raises OverflowError."""
    each = np.asarray(numbers, object)
    is_whole = all(type(number) is int for number in each.ravel())
    return each.astype(np.uint64) if is_whole else rounded


def from_json(raw: bytes | msgspec.Raw, dtype: np.dtype[Any], what: str, words: bool = False) -> Array:
    """An array of JSON's nested lists of numbers or strings, in their own shape. `words`: "NaN", "Infinity"
    and "-Infinity" may stand among fractions.

    Raises Refusal for lists of different lengths, for what is no number, and for numbers that the type
    cannot hold: numpy would make an infinity of 1e300, and -1 of the uint8 255.
    """
    if dtype.hasobject:
        return _texts_from_json(raw, what)
    if words and dtype.kind == "f":
        return _fractions_from_json(raw, dtype, what)
    try:
        numbers = _numbers.decode(raw)
        given = np.asarray(numbers)
        if given.dtype.kind == "f" and dtype == np.uint64:
            given = _whole(numbers, given)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise invalid(f"{what} is not a tensor: {encoding.why(error)}") from None
    if not given.size:
        return given.astype(dtype)
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}.get(dtype.kind)
    if allowed is None:
        raise invalid(f"{what}: {dtype} cannot be written as JSON; send it as bytes")
    if given.dtype.kind not in allowed:
        found = {"O": "a number of more than 64 bits", "f": "fractions", "b": "true and false"}
        raise invalid(f"{what} must be {dtype}, and has {found.get(given.dtype.kind, 'numbers')}")
    text = b"" if given.dtype.kind == "b" else bytes(raw)
    if b"true" in text or b"false" in text:
        raise invalid(f"{what} must be {dtype}, and has true and false among its numbers")
    array = _held(given, dtype, what)
    if dtype.kind in "iu" and not np.array_equal(array, given):
        raise invalid(f"{what} has a number that {dtype} cannot hold")
    return array


def _held(given: Array, dtype: np.dtype[Any], what: str) -> Array:
    try:
        with np.errstate(over="raise"):
            array: Array = given.astype(dtype)
    except FloatingPointError:
        raise invalid(f"{what} has a number that {dtype} cannot hold") from None
    return array


def _fractions_from_json(raw: bytes | msgspec.Raw, dtype: np.dtype[Any], what: str) -> Array:
    """Raises Refusal."""
    try:
        given = np.asarray(_fractions.decode(raw))
        # Beside a word numpy writes each number as a text, every digit of it, and reads it again.
        return _held(given.astype(np.float64), dtype, what)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise invalid(f"{what} is not a tensor: {encoding.why(error)}") from None


def _texts_from_json(raw: bytes | msgspec.Raw, what: str) -> Array:
    """Raises Refusal."""
    try:
        given = np.array(_texts.decode(raw), dtype=object)
    except (msgspec.MsgspecError, ValueError) as error:
        raise invalid(f"{what} is not a tensor of strings: {error}") from None
    check_count(given.size, what)
    if not all(type(text) is str for text in given.ravel()):
        raise invalid(f"{what} is not a tensor: its lists have different lengths")
    return given


def to_json(array: Array, what: str) -> Any:
    """The elements as nested lists. `msgspec` writes NaN and infinity as null: whoever may say more, asks
    `is_finite`. Raises Refusal for a type that has no JSON form, and for what would keep others waiting."""
    if array.dtype.kind not in "biufO":
        raise invalid(f"{what} is {array.dtype}, which has no JSON form; ask for bytes")
    if array.size > JSON_ELEMENTS_MAX:
        raise invalid(f"{what} has {array.size} elements, too many for JSON; ask for bytes")
    return array.tolist()


def is_finite(array: Array) -> bool:
    """Whether JSON has a word for every element."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
