"""The Open Inference Protocol over gRPC, on the gateway's own event loop.

Owns the service's methods. A cancelled or dropped call cancels its coroutine, and so its request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import json_format

from .. import ModelInfo
from . import described
from .datatypes import Array, Datatype, check_shape, from_bytes, no_strings, strings, to_bytes
from .errors import INTERNAL, Refusal, invalid, refusal_of
from .grpc_messages import CLASSES, SERVICE, parsed
from .guard import GONE, bearer_is
from .inference import (
    TIMEOUT_MAX_S,
    Answered,
    Asked,
    declared,
    from_place,
    model_of,
    options_of,
    place_of,
    run,
    wanted_of,
)
from .metrics import Metrics
from .rooms import Rooms

log = logging.getLogger("gateway")
OPEN = {"ServerLive", "ServerReady"}  # asked without a token
Context = Any  # grpc.aio.ServicerContext; grpc has no types of its own

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Where a tensor without raw bytes may lie, by its type.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


class Service:
    """The methods. `token`: as the Guard's."""

    def __init__(self, rooms: Rooms, token: str | None) -> None:
        self._rooms = rooms
        self._token = token

    def handler(self) -> Any:
        """For `server.add_generic_rpc_handlers`."""
        methods: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "SystemSharedMemoryStatus": self._memory_status,
            "SystemSharedMemoryRegister": self._memory_register,
            "SystemSharedMemoryUnregister": self._memory_unregister,
            "CudaSharedMemoryUnregister": self._no_cuda,
        }
        handlers = {name: self._unary(name, self._answered(name, method)) for name, method in methods.items()}
        handlers["ServerLive"] = self._unary("ServerLive", self._live)
        handlers["ModelInfer"] = self._unary("ModelInfer", self._infer)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, None, CLASSES["ModelStreamInferResponse"].SerializeToString
        )
        return _Door(
            grpc.method_handlers_generic_handler(SERVICE, handlers), self._token, self._rooms.metrics
        )

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
                refusal = _refusal(error)
                status = refusal.status
                await _abort(context, refusal)
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
        left_s = context.time_remaining()
        return await self._run(message, context, TIMEOUT_MAX_S if left_s is None else left_s)

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """One answer for each request, in order; an error is an answer, too, and the stream goes on."""
        answer = CLASSES["ModelStreamInferResponse"]
        async for raw in messages:
            empty = CLASSES["ModelInferResponse"]()
            try:
                with self._parsed("ModelInferRequest", raw) as message:
                    # Its id is how the client knows what has failed.
                    empty = CLASSES["ModelInferResponse"](id=message.id, model_name=message.model_name)
                    response = await self._run(message, context, TIMEOUT_MAX_S)
                yield answer(infer_response=response)
            except Exception as error:
                yield answer(error_message=_refusal(error).text, infer_response=empty)

    async def _run(self, message: Any, context: Context, left_s: float) -> Any:
        rooms = self._rooms
        info = await model_of(rooms.yard, message.model_name, message.model_version)
        priority, timeout_s = options_of(_parameters(message.parameters))
        wanted = [
            wanted_of(output.name, _parameters(output.parameters), True, rooms.regions)
            for output in message.outputs
        ]
        inputs = await self._inputs(info, message)
        timeout_s = max(0.001, min(timeout_s, left_s))
        asked = Asked(info, inputs, priority, timeout_s, wanted or None, _metadata(context, "traceparent"))
        return _response(await run(rooms.yard, asked, rooms.regions), message.id)

    async def _inputs(self, info: ModelInfo, message: Any) -> dict[str, Array]:
        """Raises Refusal."""
        regions = self._rooms.regions
        raw = list(reversed(message.raw_input_contents))  # of those that are not in a region, in order
        is_raw = bool(raw)
        inputs: dict[str, Array] = {}
        for entry in message.inputs:
            what = f"input {entry.name[:80]!r}"
            if entry.name in inputs:
                raise invalid(f"{what} is there twice")
            place = place_of(_parameters(entry.parameters), regions, what)
            shape = list(check_shape(entry.shape, what))  # first: a million axes have a product of megabytes
            if entry.datatype == "BYTES":
                if raw:
                    strings(raw[-1], prod(shape), what)
                raise no_strings(what)
            datatype = declared(info, entry.name, entry.datatype, shape)
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

    # ---- questions ----------------------------------------------------------------------------

    async def _server_ready(self, message: Any) -> Any:
        await self._rooms.yard.models()
        return {"ready": True}

    async def _model_ready(self, message: Any) -> Any:
        info = await self._rooms.yard.one(message.name, message.version)
        return {"ready": info.state.name == "READY"}

    async def _server_metadata(self, message: Any) -> Any:
        return described.server(self._rooms.version, self._rooms.regions is not None)

    async def _model_metadata(self, message: Any) -> Any:
        return described.metadata(await self._rooms.yard.one(message.name, message.version))

    async def _model_config(self, message: Any) -> Any:
        return {"config": described.config(await self._rooms.yard.one(message.name, message.version))}

    async def _model_statistics(self, message: Any) -> Any:
        return await self._rooms.yard.statistics(message.name, message.version)

    async def _repository_index(self, message: Any) -> Any:
        models = described.index(await self._rooms.yard.models())
        return {"models": [one for one in models if not message.ready or one["state"] == "READY"]}

    # ---- clients' shared memory -----------------------------------------------------------------

    async def _memory_status(self, message: Any) -> Any:
        status = self._rooms.shared().status(message.name or None)
        return {"regions": {region["name"]: region for region in status}}

    async def _memory_register(self, message: Any) -> Any:
        self._rooms.shared().register(message.name, message.key, message.offset, message.byte_size)
        return {}

    async def _memory_unregister(self, message: Any) -> Any:
        if self._rooms.regions is not None:  # else nothing is registered, which is what is asked for
            self._rooms.regions.unregister(message.name or None)
        return {}

    async def _no_cuda(self, message: Any) -> Any:
        """There are no such regions, so all of them are gone."""
        return {}


class _Door(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Who comes without the token is refused before the message is received, which HTTP's Guard does too:
    it may be long, and what it becomes when it is parsed is longer."""

    def __init__(self, methods: Any, token: str | None, metrics: Metrics) -> None:
        self._methods = methods
        self._token = token
        self._metrics = metrics
        self._refused = grpc.stream_stream_rpc_method_handler(self._refuse)  # it need not read anything

    def service(self, details: Any) -> Any:
        method = self._methods.service(details)
        name = details.method.rpartition("/")[2]
        if method is None or self._token is None or name in OPEN:
            return method
        given = dict(details.invocation_metadata).get("authorization")
        if bearer_is(given, self._token):
            return method
        self._metrics.observe(f"grpc/{name}", 401, 0.0)
        return self._refused

    async def _refuse(self, messages: AsyncIterator[bytes], context: Context) -> None:
        text = "send the gateway's token: authorization: Bearer TOKEN"
        await _abort(context, Refusal(401, "UNAUTHENTICATED", text))


def _metadata(context: Context, key: str) -> str | None:
    """A call's metadata, which others call headers."""
    value: str | None = dict(context.invocation_metadata()).get(key)
    return value


def _refusal(error: BaseException) -> Refusal:
    refusal = refusal_of(error)
    if refusal.code == INTERNAL:
        log.exception("a gRPC call failed")
    return refusal


async def _abort(context: Context, refusal: Refusal) -> None:
    """End the call with the error's status."""
    metadata: tuple[tuple[str, str], ...] = (("code", refusal.code),)
    if refusal.retry_after_s is not None:
        metadata += (("retry-after", refusal.headers["Retry-After"]),)
    await context.abort(_STATUS.get(refusal.status, grpc.StatusCode.INTERNAL), refusal.text, metadata)


def _parameters(parameters: Any) -> dict[str, Any]:
    """InferParameters as plain values."""
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
            for name, value in parameters.items()}  # fmt: skip


def _typed(contents: Any, datatype: Datatype, shape: list[int], what: str) -> Array:
    """A tensor out of the message's typed fields. Raises Refusal."""
    field = _CONTENTS.get(datatype.name)
    if field is None:
        raise invalid(f"{what}: {datatype.name} travels in raw_input_contents only")
    numbers = getattr(contents, field)
    if len(numbers) != prod(shape):
        raise invalid(f"{what} has {len(numbers)} numbers, and its shape {shape} says otherwise")
    wide = np.asarray(numbers)
    if not wide.size:
        wide = wide.astype(datatype.numpy)
    array = wide.astype(datatype.numpy)
    if datatype.numpy.kind in "iu" and not np.array_equal(array, wide):
        raise invalid(f"{what} has a number that {datatype.name} cannot hold")
    return from_bytes(to_bytes(array), datatype.numpy, shape, what)


def _response(answered: Answered, request_id: str) -> Any:
    info = answered.info
    response = CLASSES["ModelInferResponse"](
        model_name=info.name, model_version=str(info.revision), id=request_id
    )
    for output in answered.outputs:
        entry = response.outputs.add(name=output.name, datatype=output.datatype.name)
        entry.shape.extend(output.array.shape)
        if output.written is None:
            response.raw_output_contents.append(bytes(to_bytes(output.array)))
        else:
            response.raw_output_contents.append(b"")  # keeps the others in their places
    return response
