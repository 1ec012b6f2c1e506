"""Frigate's detector messages: parts of a request to values, and answers to parts. Pure.

| parts of the request | parts of the answer |
|---|---|
| `{"model_request": true, "model_name"}` | `{"model_available", "model_loaded"}` |
| `{"model_data": true, "model_name"}`, the file | `{"model_saved", "model_loaded"}` |
| `{"shape", "dtype", "model_type"}`, C-order bytes | `{"shape": [20, 6], "dtype": "float32"}`, 480 bytes |

Source: Frigate's `frigate/detectors/plugins/zmq_ipc.py`. The plugin waits 200 ms for an answer, then takes
it for "nothing seen". It reads no error: the key `error` beside an answer without detections is for people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...transport.errors import InvalidRequest

ROWS = 20  # detections of an answer, the most certain first; unused ones are zeros
COLUMNS = 6  # class, score, y1, x1, y2, x2; the box as a share of the image's height and width
HEAD_BYTES_MAX = 4096
DTYPES = ("uint8", "float32", "float16", "int8")

_ROWS = {"shape": [ROWS, COLUMNS], "dtype": "float32"}
_DETECTED = msgspec.json.encode(_ROWS)

Array = NDArray[Any]


class _Head(msgspec.Struct):
    """The first part of any request. Keys that are not here are ignored."""

    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1)]], msgspec.Meta(max_length=8)] = []
    dtype: str = "uint8"
    model_type: str = ""
    model_request: bool = False
    model_data: bool = False
    model_name: str = ""


class ModelQuery(msgspec.Struct, frozen=True):
    """Is the model of this name there?"""

    name: str


class ModelUpload(msgspec.Struct, frozen=True):
    """A model's file."""

    name: str
    content: memoryview


class Frame(msgspec.Struct, frozen=True):
    """An image to look at. `model_type`: what its sender takes the model for, "" if it does not say."""

    pixels: Array
    model_type: str


Request = ModelQuery | ModelUpload | Frame


def parse(parts: Sequence[memoryview]) -> Request:
    """The request in these parts; arrays and contents are views on them. Raises InvalidRequest."""
    if not parts or parts[0].nbytes > HEAD_BYTES_MAX:
        raise InvalidRequest(f"a request begins with a JSON head of at most {HEAD_BYTES_MAX} bytes")
    try:
        head = msgspec.json.decode(parts[0], type=_Head)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the head is not the JSON of a detector request: {error}") from None
    if head.model_request:
        return ModelQuery(head.model_name)
    if len(parts) != 2:
        raise InvalidRequest(f"a head and one part of bytes were expected, not {len(parts)} parts")
    if head.model_data:
        return ModelUpload(head.model_name, parts[1])
    return Frame(_pixels(head, parts[1]), normalized_type(head.model_type))


def normalized_type(name: str) -> str:
    """Frigate's enumeration writes "yologeneric" where its configuration says "yolo-generic"."""
    return name.lower().replace("-", "").replace("_", "")


def _pixels(head: _Head, content: memoryview) -> Array:
    if head.dtype not in DTYPES:
        raise InvalidRequest(f"a frame's dtype is one of {', '.join(DTYPES)}, not {head.dtype[:40]!r}")
    dtype = np.dtype(head.dtype)
    nbytes = math.prod(head.shape) * dtype.itemsize
    if not head.shape or nbytes != content.nbytes:
        raise InvalidRequest(
            f"a frame of shape {head.shape} and dtype {head.dtype} has {nbytes:,} bytes, "
            f"and {content.nbytes:,} came"
        )
    return np.frombuffer(content, dtype).reshape(head.shape)


def detections(rows: Array, error: str = "") -> list[bytes]:
    """float32[20, 6] as an answer. `error`: why there are none, for whoever reads along."""
    head = _DETECTED if not error else msgspec.json.encode({**_ROWS, "error": error})
    return [head, rows.tobytes()]


def availability(available: bool, loaded: bool) -> list[bytes]:
    """The answer to a ModelQuery."""
    return [msgspec.json.encode({"model_available": available, "model_loaded": loaded})]


def upload(saved: bool, loaded: bool, error: str = "") -> list[bytes]:
    """The answer to a ModelUpload."""
    head: dict[str, Any] = {"model_saved": saved, "model_loaded": loaded}
    if error:
        head["error"] = error
    return [msgspec.json.encode(head)]
