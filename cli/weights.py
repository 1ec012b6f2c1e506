"""The files beside a model in which its weights lie, and their sizes. ONNX's external data, read without the
package `onnx`, which serving does not need.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Fields of onnx.proto, by message: number -> the message in it. What holds no tensor is skipped.
FIELDS = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
KEY, VALUE = 1, 2  # of an Entry
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
VARINT_BITS_MAX = 63


def files_of(model: Path) -> dict[str, int]:
    """Bytes by file, the model's own first; the others by the names that the model gives them. Links are
    followed, as onnxruntime does."""
    found = {model.name: model.stat().st_size}
    for name in dict.fromkeys(_locations(model)):
        try:
            found[name] = (model.parent / name).stat().st_size
        except (OSError, ValueError):  # no such file: what loads the model says so
            continue
    return found


def _locations(model: Path) -> Iterator[str]:
    with open(model, "rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return
        with content:
            try:
                yield from _within(content, 0, len(content), "Model")
            except (IndexError, UnicodeDecodeError, RecursionError):  # no ONNX file, or not all of it
                return


def _within(content: mmap.mmap, start: int, end: int, kind: str) -> Iterator[str]:
    """The locations that a message of this kind names."""
    entry: dict[int, bytes] = {}
    for number, first, last in _fields(content, start, end):
        if kind == "Entry":
            entry[number] = content[first:last]
        elif number in FIELDS[kind]:
            yield from _within(content, first, min(last, end), FIELDS[kind][number])
    if entry.get(KEY) == b"location":
        yield entry.get(VALUE, b"").decode()


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of every field that has a length. Raises IndexError where it is no message."""
    while at < end:
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == BYTES:
            length, at = _varint(content, at)
            yield tag >> 3, at, at + length
            at += length
        elif wire == VARINT:
            _, at = _varint(content, at)
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        else:
            raise IndexError(at)


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 0x80:
        if shift > VARINT_BITS_MAX:
            raise IndexError(at)
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | content[at] << shift, at + 1
