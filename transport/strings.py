"""Strings as bytes: of each element its length (4 bytes, little endian), then its text in UTF-8.

What Triton's clients call BYTES. Strings are the slow kind of tensor: every one is copied twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from .errors import InvalidRequest

_LENGTH_BYTES = 4


def encode(values: Iterable[Any]) -> bytes:
    """Raises InvalidRequest for an element that is neither str nor UTF-8 bytes."""
    parts = []
    for value in values:
        if isinstance(value, str):
            try:
                text = value.encode()
            except UnicodeEncodeError:
                found = repr(value[:80])
                raise InvalidRequest(f"a string tensor holds text that UTF-8 can hold, not {found}") from None
        elif isinstance(value, bytes):
            text = value
        else:
            raise InvalidRequest(f"a string tensor holds str, not {type(value).__name__}")
        parts.append(len(text).to_bytes(_LENGTH_BYTES, "little"))
        parts.append(text)
    return b"".join(parts)


def decode(data: bytes | memoryview, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """The array of str that these bytes are. Raises InvalidRequest unless they are exactly that."""
    count = prod(shape)
    data = bytes(data)
    if count * _LENGTH_BYTES > len(data):
        raise InvalidRequest(f"{len(data)} bytes are too few for {count} strings")
    strings: list[str] = []
    at = 0
    for _ in range(count):
        size = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if size > len(data) - at:
            raise InvalidRequest("a string reaches beyond its tensor's bytes")
        try:
            strings.append(data[at : at + size].decode("utf-8"))
        except UnicodeDecodeError:
            raise InvalidRequest("a string is not UTF-8") from None
        at += size
    if at != len(data):
        raise InvalidRequest(f"{len(data) - at} bytes are left over behind {count} strings")
    array = np.empty(count, object)
    array[:] = strings
    return array.reshape(shape)
