"""One inference as a message names it, and its answer: the tensors' types, the parameters, the receipt. Pure.

HTTP and gRPC turn a `Call` into their bytes, and their bytes into an `Answer`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np

from ...transport import dtypes
from ...transport.errors import BatchyardError, InvalidRequest
from ...transport.messages import BatchReceipt, ModelInfo
from ..encoding import decode, encode
from ..reply import Reply
from ..request import Request
from ..signature import Array, Signature

LEFT_S_MAX = 3600.0  # a gateway knows no longer one
# Over HTTP: milliseconds left of the deadline when the request is sent. The parameter `timeout` is in
# the body, which stays the same when it is sent again.
LEFT_HEADER = "Batchyard-Timeout-Ms"
DESCRIBED = "batchyard"  # the parameter of a model's configuration that holds its ModelInfo
# The protocol's names of what it can carry, by ONNX code.
NAMES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
DTYPES = {name: dtypes.BY_CODE[code].numpy for code, name in NAMES.items()}
_FIELDS = BatchReceipt.__struct_fields__
_OTHER = "this is no batchyard gateway of this version"
_infos = msgspec.json.Decoder(ModelInfo)


@dataclass(slots=True)
class Packed:
    """A call as the bytes of its message, which hold a copy of its tensors. `head_nbytes`: of HTTP's JSON."""

    model: str
    priority: int
    until_ns: int
    traceparent: str | None
    body: bytes
    head_nbytes: int = 0

    @property
    def left_s(self) -> float:
        """What is left of the deadline now, and never nothing."""
        return min(max(0.001, (self.until_ns - time.monotonic_ns()) / 1e9), LEFT_S_MAX)


@dataclass(slots=True)
class Call:
    """`until_ns`: the deadline that the yard is told, by time.monotonic_ns."""

    model: str
    inputs: list[tuple[str, str, tuple[int, ...], memoryview]]  # name, the protocol's type, shape, bytes
    priority: int
    until_ns: int
    traceparent: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(len(raw) for *_, raw in self.inputs)

    def parameters(self) -> dict[str, Any]:
        """Triton's: priority 1 is the highest, and the timeout counts microseconds."""
        left_us = (self.until_ns - time.monotonic_ns()) // 1000
        return {
            "priority": self.priority + 1,
            "timeout": min(max(left_us, 1), int(LEFT_S_MAX * 1e6)),
            "receipt": True,
        }

    def packed(self, body: bytes, head_nbytes: int = 0) -> Packed:
        return Packed(self.model, self.priority, self.until_ns, self.traceparent, body, head_nbytes)


@dataclass(slots=True)
class Answer:
    """`parameters` holds the receipt."""

    outputs: list[tuple[str, Array]]
    parameters: Mapping[str, Any]

    @property
    def value(self) -> Array | dict[str, Array]:
        return self.outputs[0][1] if len(self.outputs) == 1 else dict(self.outputs)

    def reply(self) -> Reply:
        """As a local client would have it. Raises BatchyardError for a gateway that gives no receipt."""
        try:
            batch = msgspec.convert([self.parameters[name] for name in _FIELDS], BatchReceipt)
            queue_ns = int(self.parameters["queue_ns"])
        except (msgspec.ValidationError, KeyError, TypeError, ValueError):
            raise BatchyardError(f"the answer has no receipt: {_OTHER}") from None
        names, arrays = [name for name, _ in self.outputs], [array for _, array in self.outputs]
        return Reply(names, arrays, queue_ns, batch)


def call_of(signature: Signature, request: Request) -> Call:
    """Check what was given. Raises InvalidRequest, also for types that the protocol cannot name."""
    arrays, _ = signature.arrays(request.given)
    inputs = []
    for want, array in zip(signature.inputs, arrays, strict=True):
        if array is None:
            continue
        name = NAMES.get(want.code)
        if name is None:
            raise InvalidRequest(
                f"input {want.spec} of {signature.name!r}: the Open Inference Protocol has no name for its "
                "type; ask a yard's broker (ipc:// or tcp://)"
            )
        inputs.append((want.spec.name, name, array.shape, bytes_of(array)))
    return Call(signature.name, inputs, request.priority, request.until_ns, request.traceparent)


def bytes_of(array: Array) -> memoryview:
    """Its bytes in C order, of the array itself where it has that order. Raises InvalidRequest for objects
    that are no text."""
    if array.dtype.hasobject:
        return encode(dtypes.STRING, array).data
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def array_of(datatype: str, shape: Sequence[int], raw: memoryview) -> Array:
    """An array of its own. Raises BatchyardError where the bytes are not just as many."""
    if datatype == "BYTES":
        try:
            return decode(dtypes.STRING, raw, shape)
        except InvalidRequest as error:
            raise BatchyardError(f"the answer's strings are none: {error}") from None
    dtype = DTYPES.get(datatype)
    if dtype is None or len(raw) != prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
        raise BatchyardError(f"the answer has {len(raw)} bytes for {datatype[:20]}{list(shape)[:32]}")
    return np.frombuffer(raw, dtype).reshape(shape).copy() if len(raw) else np.empty(shape, dtype)


def array_of_json(datatype: str, shape: Sequence[int], data: Any) -> Array:
    """An array of a JSON answer's flat list. Raises BatchyardError for a list that is none."""
    dtype = np.dtype(object) if datatype == "BYTES" else DTYPES.get(datatype)
    try:
        return np.array(data, dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise BatchyardError(f"the answer's {datatype[:20]}{list(shape)[:32]} can't be read") from error


def info_of(text: str | bytes | None) -> ModelInfo:
    """The model that a configuration describes. Raises BatchyardError for another server's."""
    if text is None:
        raise BatchyardError(f"the model's configuration lacks `{DESCRIBED}`: {_OTHER}")
    try:
        return _infos.decode(text)
    except msgspec.MsgspecError as error:
        raise BatchyardError(f"another version of batchyard answers: {error}") from None
