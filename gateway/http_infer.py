"""The Open Inference Protocol over HTTP, with Triton's binary tensors.

Owns the bodies' layout: JSON, and behind it (with an Inference-Header-Content-Length) the tensors' bytes
in the order in which the JSON names them. Raw requests in, raw responses out: no framework reads a tensor.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from math import prod
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .. import ModelInfo
from ..client.remote.calls import LEFT_HEADER, bytes_of
from . import load
from .datatypes import RANK_MAX, Array, check_count, from_bytes, from_json, is_finite, to_json
from .errors import Refusal, invalid, refusal_of
from .http_answer import BINARY, JSON
from .http_body import Body
from .http_guard import while_connected
from .inference import (
    RECEIPT,
    Answered,
    Asked,
    Output,
    answers,
    declared,
    from_place,
    model_of,
    options_of,
    place_of,
    run,
    until_s_of,
    wanted_of,
)
from .rooms import Rooms

EVENTS = "text/event-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
IN_PLACE_BYTES = 1 << 16  # from here on a body is received straight into the arena
Axis = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class InputTensor(msgspec.Struct):
    """An input as the JSON names it; `data` is elsewhere when it is not here."""

    name: str
    shape: Annotated[list[Axis], msgspec.Meta(max_length=RANK_MAX)]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class OutputTensor(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """What is optional may be null, too: so MLServer's codecs write what their caller left out."""

    inputs: Annotated[list[InputTensor], msgspec.Meta(min_length=1, max_length=1024)]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[OutputTensor], msgspec.Meta(max_length=1024)] | None = None


_decoder = msgspec.json.Decoder(InferRequest)
_WORDS = (b"NaN", b"Infinity")
_WORD = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?\b(?:NaN|Infinity)\b')  # or a text, which is passed over


def decoded(decoder: msgspec.json.Decoder[Any], raw: bytes, bytes_max: int) -> Any:
    """Raises Refusal for JSON that is too long, too deep, malformed, or of another structure."""
    if len(raw) > bytes_max:
        raise _too_long(bytes_max)
    if not raw:
        raise invalid("there is no JSON: the body is empty")
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise invalid("the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        text = str(error)
        fields = getattr(decoder.type, "__struct_encode_fields__", ())
        if fields and " field `" in text and " - at " not in text:  # it lacks one, or has one more
            text += f"; it has the fields {', '.join(fields)}"
        raise invalid(f"the JSON cannot be used: {text}") from None


def _request_of(raw: bytes, bytes_max: int) -> tuple[InferRequest, bool]:
    """(the request, whether it has NaN or Infinity among its numbers). They are no JSON, but Triton's clients
    write them and Triton reads them; here they become texts. Raises Refusal."""
    try:
        return decoded(_decoder, raw, bytes_max), False
    except Refusal as error:
        if error.status != 400 or not any(word in raw for word in _WORDS):
            raise
    quoted = _WORD.sub(lambda found: found[0] if found[0][:1] == b'"' else b'"%b"' % found[0], raw)
    return decoded(_decoder, quoted, len(quoted)), True


async def infer(request: Request, rooms: Rooms) -> Response:
    """POST v2/models/M/infer, or with a version. Raises Refusal, ClientGone, and the client's errors."""
    limits = rooms.limits
    until_s = until_s_of(request.headers.get(LEFT_HEADER))
    model, version = request.path_params["model"], request.path_params.get("version", "")
    with Body(request, limits.body_bytes_max, rooms.budget) as body:
        told = request.headers.get(HEADER_LENGTH)
        if told is None:
            raw = await body.rest()
            asked, words = _request_of(raw, limits.json_bytes_max)
            binary: Tensors = _Gathered(memoryview(b""))
        else:
            length = _header_length(told, body, limits.json_bytes_max)
            if body.length is not None and body.length >= IN_PLACE_BYTES and body.encoding == "identity":
                asked, words = _request_of(await body.take(length), limits.json_bytes_max)
                binary = _Streamed(body, body.length - length)
            else:
                raw = await body.rest()
                asked, words = _request_of(raw[:length], limits.json_bytes_max)
                binary = _Gathered(memoryview(raw)[length:])
        info = await model_of(rooms.yard, model, version)
        ready = await _asked(asked, words, info, binary, rooms)
        ready.end_by(until_s)
        ready.traceparent = request.headers.get("traceparent")
        if info.streams and EVENTS in request.headers.get("accept", "").lower():
            several = answers(rooms.yard, ready, rooms.regions)
            first = await while_connected(request, anext(several, None))  # an error has its status until then
        else:
            answered = await while_connected(request, run(rooms.yard, ready, rooms.regions))
            headers = await load.header(rooms.yard, request.headers.get(load.FORMAT))
            return _response(answered, asked.id, headers)
    return StreamingResponse(_events(first, several, asked.id), media_type=EVENTS)


async def _events(
    first: Answered | None, several: AsyncGenerator[Answered, None], request_id: str | None
) -> AsyncIterator[bytes]:
    """A model's answers as server-sent events, each with the JSON that a single answer has; an error is the
    last one."""
    async with aclosing(several):
        try:
            if first is not None:
                yield _event(first, request_id)
            async for answered in several:
                yield _event(answered, request_id)
        except Exception as error:
            yield b"event: error\ndata: " + msgspec.json.encode(refusal_of(error).body) + b"\n\n"


def _event(answered: Answered, request_id: str | None) -> bytes:
    for output in answered.outputs:
        output.binary = False
    return b"data: " + bytes(_response(answered, request_id, {}).body) + b"\n\n"


def _header_length(told: str, body: Body, bytes_max: int) -> int:
    length = int(told) if told.isdecimal() and len(told) < 12 else -1
    if length < 0 or (body.length is not None and length > body.length and body.encoding == "identity"):
        raise invalid(f"{HEADER_LENGTH} is how many bytes of the body are JSON")
    if length > bytes_max:
        raise _too_long(bytes_max)
    return length


def _too_long(bytes_max: int) -> Refusal:
    return Refusal(413, "TOO_LARGE", f"JSON may have at most {bytes_max} bytes; send tensors as bytes")


class Tensors(ABC):
    """The bytes behind the JSON, taken in order."""

    left: int  # bytes that no input has claimed yet

    @abstractmethod
    async def next(self, rooms: Rooms, info: ModelInfo, entry: InputTensor, nbytes: int) -> Array:
        """The next input's tensor, of so many bytes. Raises Refusal."""

    def claim(self, entry: InputTensor, nbytes: int) -> None:
        if nbytes > self.left:
            raise invalid(f"input {entry.name!r}: it claims {nbytes} bytes, and {self.left} are left")
        self.left -= nbytes

    async def end(self) -> None:
        if self.left:
            raise invalid(f"{self.left} bytes after the last tensor belong to no input")


class _Gathered(Tensors):
    """The whole body has been received."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.left = len(view)

    async def next(self, rooms: Rooms, info: ModelInfo, entry: InputTensor, nbytes: int) -> Array:
        self.claim(entry, nbytes)
        raw, self._view = self._view[:nbytes], self._view[nbytes:]
        what = f"input {entry.name!r}"
        datatype = declared(info, entry.name, entry.datatype, entry.shape)
        return from_bytes(raw, datatype.numpy, entry.shape, what)


class _Streamed(Tensors):
    """The body is still arriving, and goes straight into the arena."""

    def __init__(self, body: Body, left: int) -> None:
        self._body = body
        self.left = left

    async def next(self, rooms: Rooms, info: ModelInfo, entry: InputTensor, nbytes: int) -> Array:
        self.claim(entry, nbytes)
        datatype = declared(info, entry.name, entry.datatype, entry.shape)
        if datatype.numpy.hasobject:
            what = f"input {entry.name!r}"
            check_count(prod(entry.shape), what)
            return from_bytes(await self._body.take(nbytes), datatype.numpy, entry.shape, what)
        if nbytes != prod(entry.shape) * datatype.numpy.itemsize:
            raise invalid(f"input {entry.name!r}: {nbytes} bytes are not {datatype.name}{entry.shape}")
        array = await rooms.yard.client.empty(entry.shape, datatype.numpy)
        await self._body.fill(bytes_of(array))
        return array

    async def end(self) -> None:
        await super().end()
        await self._body.end()


async def _asked(
    asked: InferRequest, words: bool, info: ModelInfo, binary: Tensors, rooms: Rooms
) -> Asked:
    parameters = asked.parameters or {}
    priority, timeout_s = options_of(parameters)
    all_binary = parameters.get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise invalid(f"binary_data_output is true or false, not {str(all_binary)[:40]!r}")
    wanted = [wanted_of(o.name, o.parameters or {}, all_binary, rooms.regions) for o in asked.outputs or ()]
    if not wanted and all_binary:
        wanted = [wanted_of(spec.name, {}, True, None) for spec in info.outputs]
    inputs: dict[str, Array] = {}
    for entry in asked.inputs:
        if entry.name in inputs:
            raise invalid(f"input {entry.name!r} is given twice")
        inputs[entry.name] = await _input(entry, words, info, binary, rooms)
    await binary.end()
    receipt = parameters.get(RECEIPT) is True
    return Asked(info, inputs, priority, timeout_s, wanted or None, receipt=receipt)


def _is_left_out(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes in (0, 4) and bytes(view) in (b"", b"null")


async def _input(entry: InputTensor, words: bool, info: ModelInfo, binary: Tensors, rooms: Rooms) -> Array:
    """One input, from wherever it is. Raises Refusal."""
    what = f"input {entry.name!r}"
    parameters = entry.parameters or {}
    place = place_of(parameters, rooms.regions, what)
    nbytes = parameters.get("binary_data_size")
    has_data = not _is_left_out(entry.data)
    if (place is not None) + (nbytes is not None) + has_data != 1:
        raise invalid(f"{what} has one of: data, binary_data_size, a shared_memory_region")
    if nbytes is not None:
        if type(nbytes) is not int or nbytes < 0:
            raise invalid(f"{what}: binary_data_size is a number of bytes")
        return await binary.next(rooms, info, entry, nbytes)
    datatype = declared(info, entry.name, entry.datatype, entry.shape)
    if place is not None:
        assert rooms.regions is not None
        return await from_place(rooms.yard, rooms.regions, place, datatype, entry.shape)
    if datatype.name == "BF16":
        raise invalid(f"{what}: BF16 has no JSON form; send it as bytes")
    array = from_json(entry.data, datatype.numpy, what, words)
    if array.size != prod(entry.shape):
        raise invalid(f"{what} has {array.size} elements, and its shape {entry.shape} says otherwise")
    return array.reshape(entry.shape)


def _response(answered: Answered, request_id: str | None, headers: dict[str, str]) -> Response:
    outputs: list[dict[str, Any]] = []
    parts: list[memoryview] = []
    for output in answered.outputs:
        described: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype.name,
            "shape": list(output.array.shape),
        }
        if output.written is not None:
            pass  # clients know where; with parameters, some of them would look for its bytes here
        elif output.binary:
            raw = output.raw
            described["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            described["data"] = _as_json(output)
        outputs.append(described)
    info = answered.info
    header: dict[str, Any] = {"model_name": info.name, "model_version": str(info.revision)}
    if request_id:
        header["id"] = request_id
    if answered.parameters:
        header["parameters"] = answered.parameters
    header["outputs"] = outputs
    head = msgspec.json.encode(header)
    if not any(output.binary and output.written is None for output in answered.outputs):
        return Response(head, media_type=JSON, headers=headers)
    headers = {HEADER_LENGTH: str(len(head)), **headers}
    total = len(head) + sum(len(part) for part in parts)
    if total < IN_PLACE_BYTES:
        return Response(b"".join((head, *parts)), media_type=BINARY, headers=headers)
    headers["Content-Length"] = str(total)
    return StreamingResponse(_sent(head, parts), media_type=BINARY, headers=headers)


def _as_json(output: Output) -> Any:
    if output.datatype.name == "BF16":
        raise invalid(f"output {output.name!r}: BF16 has no JSON form; ask for binary_data")
    elements = to_json(output.array.reshape(-1), f"output {output.name!r}")
    # As Triton writes it, and its clients read it: NaN and Infinity, which are no JSON.
    return elements if is_finite(output.array) else msgspec.Raw(json.dumps(elements).encode())


async def _sent(head: bytes, parts: list[memoryview]) -> AsyncIterator[Any]:
    """The answer without joining it: tensors are sent from where they lie."""
    yield head
    for part in parts:
        yield part
