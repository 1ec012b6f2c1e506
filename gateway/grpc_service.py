"""The Open Inference Protocol over gRPC, on the gateway's own event loop.

Owns the service's methods. A cancelled or dropped call cancels its coroutine, and so its request.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from math import prod
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import json_format

from .. import ModelInfo
from ..client.remote.calls import bytes_of
from . import load
from .datatypes import Array, Datatype, check_count, check_shape, from_bytes
from .errors import invalid
from .grpc_door import Context, abort, refusal_seen
from .grpc_messages import CLASSES, SERVICE, parsed
from .grpc_questions import Questions
from .http_guard import GONE
from .inference import (
    RECEIPT,
    Answered,
    Asked,
    answers,
    declared,
    from_place,
    model_of,
    options_of,
    place_of,
    run,
    wanted_of,
)
from .rooms import Rooms

FINAL = "triton_final_response"
ENABLE_END = "triton_enable_empty_final_response"  # the last answer of several is followed by an empty one
# Where a tensor without raw bytes may lie, by its type.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip

_PARAMETER = {int: "int64_param", float: "double_param", str: "string_param"}


class Service:
    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def handler(self) -> Any:
        """For `server.add_generic_rpc_handlers`."""
        methods = Questions(self._rooms).methods()
        handlers = {name: self._unary(name, self._answered(name, method)) for name, method in methods.items()}
        handlers["ServerLive"] = self._unary("ServerLive", self._live)
        handlers["ModelInfer"] = self._unary("ModelInfer", self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, None, CLASSES["ModelStreamInferResponse"].SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, name: str, method: Callable[[Any, Context], Awaitable[Any]]) -> Any:
        """A method as gRPC wants it: its message parsed, counted at the end, an error as its status."""

        async def guarded(raw: bytes, context: Context) -> Any:
            started_s, status = time.perf_counter(), GONE
            try:
                with self._parsed(f"{name}Request", raw) as message:
                    answer = await method(message, context)
                status = 200
                return answer
            except Exception as error:
                refusal = refusal_seen(error)
                status = refusal.status
                await abort(context, refusal)
            finally:
                self._rooms.metrics.observe(f"grpc/{name}", status, time.perf_counter() - started_s)

        return grpc.unary_unary_rpc_method_handler(
            guarded, None, CLASSES[f"{name}Response"].SerializeToString
        )

    @contextmanager
    def _parsed(self, name: str, raw: bytes) -> Iterator[Any]:
        """The message, and its bytes counted among those of all bodies under way. Raises Refusal."""
        budget = self._rooms.budget
        budget.take(len(raw))
        try:
            yield parsed(name, raw, self._rooms.limits.json_bytes_max)
        finally:
            budget.give_back(len(raw))

    def _answered(
        self, name: str, method: Callable[[Any], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """A method that answers with plain values, as one that answers with a message."""
        kind = CLASSES[f"{name}Response"]

        async def answered(message: Any, context: Context) -> Any:
            return json_format.ParseDict(await method(message), kind())

        return answered

    # ---- inference ----------------------------------------------------------------------------

    async def _live(self, message: Any, context: Context) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _infer(self, message: Any, context: Context) -> Any:
        asked = await self._asked(message, context)
        response = await self._run(asked, message.id)
        if told := await load.header(self._rooms.yard, _metadata(context, load.FORMAT)):
            context.set_trailing_metadata(tuple(told.items()))
        return response

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """The answers of each request, in order; an error is an answer, too, and the stream goes on."""
        answer = CLASSES["ModelStreamInferResponse"]
        async for raw in messages:
            empty = CLASSES["ModelInferResponse"]()
            try:
                with self._parsed("ModelInferRequest", raw) as message:
                    # Its id is how the client knows what has failed.
                    empty = CLASSES["ModelInferResponse"](id=message.id, model_name=message.model_name)
                    asked = await self._asked(message, context)
                    if asked.info.streams:
                        wants_end = message.parameters[ENABLE_END].bool_param
                        async with aclosing(answers(self._rooms.yard, asked, self._rooms.regions)) as several:
                            async for one in several:
                                yield answer(infer_response=_marked(_response(one, message.id), False))
                        if not wants_end:
                            continue
                        response = empty
                    else:
                        response = await self._run(asked, message.id)
                yield answer(infer_response=_marked(response, True))
            except Exception as error:
                refusal = refusal_seen(error)
                empty.parameters["code"].string_param = refusal.code
                yield answer(error_message=refusal.text, infer_response=_marked(empty, True))

    async def _run(self, asked: Asked, request_id: str) -> Any:
        return _response(await run(self._rooms.yard, asked, self._rooms.regions), request_id)

    async def _asked(self, message: Any, context: Context) -> Asked:
        rooms = self._rooms
        info = await model_of(rooms.yard, message.model_name, message.model_version)
        parameters = _parameters(message.parameters)
        priority, timeout_s = options_of(parameters)
        wanted = [
            wanted_of(output.name, _parameters(output.parameters), True, rooms.regions)
            for output in message.outputs
        ]
        inputs = await self._inputs(info, message)
        traceparent, receipt = _metadata(context, "traceparent"), parameters.get(RECEIPT) is True
        asked = Asked(info, inputs, priority, timeout_s, wanted or None, traceparent, receipt)
        if (left_s := context.time_remaining()) is not None:  # of a stream: for all of its requests
            asked.end_by(time.monotonic() + left_s)
        return asked

    async def _inputs(self, info: ModelInfo, message: Any) -> dict[str, Array]:
        """Raises Refusal."""
        regions = self._rooms.regions
        raw = list(reversed(message.raw_input_contents))  # of those that are not in a region, in order
        is_raw = bool(raw)
        inputs: dict[str, Array] = {}
        for entry in message.inputs:
            what = f"input {entry.name[:80]!r}"
            if entry.name in inputs:
                raise invalid(f"{what} is given twice")
            place = place_of(_parameters(entry.parameters), regions, what)
            shape = list(check_shape(entry.shape, what))  # first: a million axes have a product of megabytes
            datatype = declared(info, entry.name, entry.datatype, shape)
            if (place is not None or is_raw) and entry.HasField("contents") and entry.contents.ListFields():
                ways = "contents, an entry in raw_input_contents, a shared_memory_region"
                raise invalid(f"{what} has one of: {ways}")
            if place is not None:
                assert regions is not None
                inputs[entry.name] = await from_place(self._rooms.yard, regions, place, datatype, shape)
            elif is_raw:
                if not raw:
                    raise invalid(f"{what} has no entry in raw_input_contents")
                inputs[entry.name] = from_bytes(raw.pop(), datatype.numpy, shape, what)
            else:
                inputs[entry.name] = _typed(entry.contents, datatype, shape, what)
        if raw:
            raise invalid(f"raw_input_contents has {len(raw)} entries that belong to no input")
        return inputs


def _metadata(context: Context, key: str) -> str | None:
    """An entry of a call's metadata."""
    value: str | None = dict(context.invocation_metadata()).get(key)
    return value


def _parameters(parameters: Any) -> dict[str, Any]:
    """InferParameters as plain values."""
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
            for name, value in parameters.items()}  # fmt: skip


def _typed(contents: Any, datatype: Datatype, shape: list[int], what: str) -> Array:
    """A tensor out of the message's typed fields. Raises Refusal."""
    field = _CONTENTS.get(datatype.name)
    if field is None:
        raise invalid(f"{what}: {datatype.name} travels in raw_input_contents only")
    others = [found.name for found, _ in contents.ListFields() if found.name != field]
    if others:
        raise invalid(f"{what}: {datatype.name} travels in {field}, not in {others[0]}")
    numbers = getattr(contents, field)
    if field == "bytes_contents":
        return _typed_texts(numbers, shape, what)
    if len(numbers) != prod(shape):
        raise invalid(f"{what} has {len(numbers)} numbers, and its shape {shape} says otherwise")
    wide = np.asarray(numbers)
    if not wide.size:
        wide = wide.astype(datatype.numpy)
    array = wide.astype(datatype.numpy)
    if datatype.numpy.kind in "iu" and not np.array_equal(array, wide):
        raise invalid(f"{what} has a number that {datatype.name} cannot hold")
    return from_bytes(bytes_of(array), datatype.numpy, shape, what)


def _marked(response: Any, is_last: bool) -> Any:
    """The response, marked as its request's last one or not."""
    response.parameters[FINAL].bool_param = is_last
    return response


def _typed_texts(texts: Sequence[bytes], shape: list[int], what: str) -> Array:
    """Raises Refusal."""
    if len(texts) != prod(shape):
        raise invalid(f"{what} has {len(texts)} strings, and its shape {shape} says otherwise")
    check_count(len(texts), what)
    try:
        decoded = [text.decode() for text in texts]
    except UnicodeDecodeError:
        raise invalid(f"{what}: a string is not UTF-8") from None
    return np.array(decoded, object).reshape(shape)


def _response(answered: Answered, request_id: str) -> Any:
    info = answered.info
    response = CLASSES["ModelInferResponse"](
        model_name=info.name, model_version=str(info.revision), id=request_id
    )
    for name, value in answered.parameters.items():
        kind = _PARAMETER[type(value)]
        setattr(response.parameters[name], kind, value)
    for output in answered.outputs:
        entry = response.outputs.add(name=output.name, datatype=output.datatype.name)
        entry.shape.extend(output.array.shape)
        if output.written is None:
            response.raw_output_contents.append(bytes(output.raw))
        else:
            response.raw_output_contents.append(b"")  # keeps the others in their places
    return response
