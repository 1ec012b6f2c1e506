"""The Open Inference Protocol over gRPC (`inference.GRPCInferenceService`); grpcio carries it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from ...transport.errors import BatchyardError
from ...transport.messages import ModelInfo
from . import protobuf as pb
from .calls import DESCRIBED, Answer, Call, Packed, array_of, info_of
from .failures import Interrupted, Unreachable, error_of

STREAM = "ModelStreamInfer"
MODEL = "batchyard-model"
SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# HTTP's status for gRPC's, by which an error without a code is named.
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_NOT_SENT = ("failed to connect", "connection refused", "dns resolution failed", "no route to host")


class GrpcCarrier:
    """Of one event loop. Raises as HttpCarrier."""

    def __init__(self, target: str, token: str | None, tls: bool) -> None:
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._target = target
        self._tls = tls
        self._channel: Any = None  # it belongs to the loop that makes it
        self._methods: dict[str, Any] = {}

    def _method(self, name: str) -> Any:
        if self._channel is None:
            if self._tls:
                credentials = grpc.ssl_channel_credentials()
                self._channel = grpc.aio.secure_channel(self._target, credentials, options=_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        found = self._methods.get(name)
        if found is None:
            kind = self._channel.stream_stream if name == STREAM else self._channel.unary_unary
            found = self._methods[name] = kind(SERVICE + name)
        return found

    def pack(self, call: Call) -> Packed:
        parts: list[Any] = [pb.field(1, call.model)]
        parts += [pb.parameter(4, name, value) for name, value in call.parameters().items()]
        for name, datatype, shape, _ in call.inputs:
            axes = b"".join(map(pb.varint, shape))
            entry = pb.field(1, name) + pb.field(2, datatype) + (pb.field(3, axes) if axes else b"")
            parts.append(pb.field(5, entry))
        for *_, raw in call.inputs:
            parts += [pb.head(7, len(raw)), raw]
        return call.packed(b"".join(parts))

    async def infer(self, packed: Packed) -> Answer:
        metadata = _named(packed.model, packed.traceparent)
        return _answer(memoryview(await self._ask("ModelInfer", packed.body, metadata, packed.left_s)))

    async def stream(self, packed: Packed) -> AsyncGenerator[Answer, None]:
        """The answers of a model that gives several."""
        message = packed.body + pb.parameter(4, "triton_enable_empty_final_response", True)
        metadata = (*self._metadata, *_named(packed.model, packed.traceparent))
        call = self._method(STREAM)(iter([message]), metadata=metadata, timeout=packed.left_s)
        try:
            async for raw in call:
                found = dict(pb.fields(memoryview(raw)))
                answer = _answer(found.get(2, memoryview(b"")))
                if 1 in found:
                    raise error_of(str(answer.parameters.get("code")), 500, pb.text(found[1]), None)
                if answer.outputs:
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        finally:
            call.cancel()

    async def describe(self, model: str) -> ModelInfo:
        raw = await self._ask("ModelConfig", pb.field(1, model), _named(model))
        for at, config in pb.fields(memoryview(raw)):
            for inner, entry in pb.fields(config) if at == 1 else ():
                if inner == 14:
                    found = dict(pb.fields(entry))
                    if pb.text(found.get(1, b"")) == DESCRIBED:
                        return info_of(bytes(dict(pb.fields(found[2])).get(1, b"")))
        return info_of(None)

    async def names(self) -> list[str]:
        raw = await self._ask("RepositoryIndex", b"")
        models = [value for at, value in pb.fields(memoryview(raw)) if at == 1]
        return [pb.text(dict(pb.fields(model)).get(1, b"")) for model in models]

    async def _ask(
        self, method: str, message: bytes, metadata: tuple[Any, ...] = (), timeout_s: float | None = None
    ) -> bytes:
        try:
            call = self._method(method)(message, metadata=(*self._metadata, *metadata), timeout=timeout_s)
            answer: bytes = await call
            return answer
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def _named(model: str, traceparent: str | None = None) -> tuple[tuple[str, str], ...]:
    """The model as a header: gRPC's path does not say it, and a fleet's proxy sees no message."""
    traced = () if traceparent is None else (("traceparent", traceparent),)
    return (MODEL, quote(model, safe="")), *traced


def _error(error: Any) -> Exception:
    told = dict(error.trailing_metadata() or ()) | dict(error.initial_metadata() or ())
    code = told.get("code") or told.get("batchyard-code")
    status, text = error.code(), error.details() or error.code().name
    if code is None and status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        not_sent = any(words in text.lower() for words in _NOT_SENT)
        return Unreachable(text) if not_sent else Interrupted(text)
    return error_of(code, _STATUS.get(status, 500), text, told.get("retry-after"))


def _answer(raw: memoryview) -> Answer:
    heads: list[tuple[str, str, list[int]]] = []
    tensors: list[memoryview] = []
    parameters: dict[str, Any] = {}
    for at, value in pb.fields(raw):
        if at == 4:
            entry = dict(pb.fields(value))
            parameters[pb.text(entry.get(1, b""))] = pb.plain(entry.get(2, memoryview(b"")))
        elif at == 5:
            heads.append(_head(value))
        elif at == 6:
            tensors.append(value)
    if len(heads) != len(tensors):
        raise BatchyardError(f"the answer names {len(heads)} outputs and has {len(tensors)}")
    pairs = zip(heads, tensors, strict=True)
    return Answer([(name, array_of(kind, shape, data)) for (name, kind, shape), data in pairs], parameters)


def _head(raw: memoryview) -> tuple[str, str, list[int]]:
    name = kind = ""
    shape: list[int] = []
    for at, value in pb.fields(raw):
        if at == 1:
            name = pb.text(value)
        elif at == 2:
            kind = pb.text(value)
        elif at == 3:
            shape += pb.whole_numbers(value)
    return name, kind, shape
