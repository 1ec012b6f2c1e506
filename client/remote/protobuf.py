"""Protocol buffers, as far as five messages of the Open Inference Protocol need them: fields by their number.

By hand, because a client must not need protobuf: its generated classes are bound to one version of it, and
they would copy every tensor twice. A test holds this against protobuf's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ...transport.errors import BatchyardError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
_MASK = (1 << 64) - 1
# InferParameter's fields
BOOL, INT64, STRING, DOUBLE, UINT64 = 1, 2, 3, 4, 5


def varint(value: int) -> bytes:
    """Seven bits in each byte; a negative number takes ten."""
    value &= _MASK
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, nbytes: int) -> bytes:
    """The head of a field: its number and length."""
    return varint(number << 3 | BYTES) + varint(nbytes)


def field(number: int, payload: bytes | str) -> bytes:
    """A field of bytes, of text, or a message."""
    raw = payload.encode() if isinstance(payload, str) else payload
    return head(number, len(raw)) + raw


def number(at: int, value: int) -> bytes:
    return varint(at << 3 | VARINT) + varint(value)


def parameter(at: int, name: str, value: bool | int | str) -> bytes:
    """An entry of a map of InferParameter."""
    if isinstance(value, bool):
        inner = number(BOOL, value)
    else:
        inner = number(INT64, value) if isinstance(value, int) else field(STRING, value)
    return field(at, field(1, name) + field(2, inner))


def fields(raw: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, an int or a view of the bytes), in their order. Raises BatchyardError for what is none."""
    at = 0
    try:
        while at < len(raw):
            key, at = read_varint(raw, at)
            kind = key & 7
            if kind == VARINT:
                value, at = read_varint(raw, at)
                yield key >> 3, value
                continue
            if kind == BYTES:
                nbytes, at = read_varint(raw, at)
            else:
                nbytes = {FIXED64: 8, FIXED32: 4}[kind]
            if nbytes > len(raw) - at:
                raise IndexError
            yield key >> 3, raw[at : at + nbytes]
            at += nbytes
    except (IndexError, KeyError):
        raise BatchyardError("the answer is no message of the Open Inference Protocol") from None


def read_varint(raw: memoryview | bytes, at: int) -> tuple[int, int]:
    """(a number, where it ends). Raises IndexError where the bytes end too early."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, at
    raise IndexError


def whole_numbers(value: Any) -> Iterable[int]:
    """The values of a repeated int64, packed or single."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = read_varint(value, at)
        found.append(_signed(one))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def text(value: Any) -> str:
    return bytes(value).decode(errors="replace")


def plain(raw: memoryview) -> Any:
    import struct

    value: Any = 0
    for at, given in fields(raw):
        if at == BOOL:
            value = bool(given)
        elif at in (INT64, UINT64):
            value = _signed(given) if at == INT64 else given
        elif at == STRING:
            value = text(given)
        elif at == DOUBLE:
            (value,) = struct.unpack("<d", given)
    return value
