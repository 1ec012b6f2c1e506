"""gRPC's server reflection: the services and what their messages look like, for grpcurl and Postman.

It answers in both versions of its protocol, which differ in their name alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from .grpc_door import Context
from .grpc_messages import CLASSES_OF, FILES

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
METHOD = "ServerReflectionInfo"
SYMBOLS_CHARACTERS_MAX = 1024
_NOT_FOUND, _UNIMPLEMENTED = 5, 12  # grpc.StatusCode, as numbers
_BY_NAME = {file.name: file for file in FILES.values()}


def handlers() -> list[Any]:
    return [
        grpc.method_handlers_generic_handler(f"{version}.ServerReflection", {METHOD: _method(version)})
        for version in VERSIONS
    ]


def _method(version: str) -> Any:
    request, response = (CLASSES_OF[version][f"ServerReflection{kind}"] for kind in ("Request", "Response"))

    async def answered(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for message in messages:
            answer = response(valid_host=message.host, original_request=message)
            _fill(answer, message)
            yield answer

    return grpc.stream_stream_rpc_method_handler(answered, request.FromString, response.SerializeToString)


def _fill(answer: Any, message: Any) -> None:
    kind = message.WhichOneof("message_request")
    if kind == "list_services":
        for name in _services():
            answer.list_services_response.service.add(name=name)
    elif kind in ("file_by_filename", "file_containing_symbol"):
        asked = getattr(message, kind)
        file = _BY_NAME.get(asked) if kind == "file_by_filename" else _file_of(asked)
        if file is not None:
            answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
        else:
            answer.error_response.error_code = _NOT_FOUND
            answer.error_response.error_message = f"there is no {asked[:80]!r} here"
    else:
        answer.error_response.error_code = _UNIMPLEMENTED
        answer.error_response.error_message = "there are no extensions here: its files are proto3"


def _services() -> list[str]:
    return [f"{file.package}.{service.name}" for file in FILES.values() for service in file.service]


def _file_of(symbol: str) -> Any:
    """The file of a service, a method, a message, an enum, or what lies in one; None: it is in none."""
    package = max((one for one in FILES if symbol.startswith(f"{one}.")), key=len, default=None)
    if package is None or len(symbol) > SYMBOLS_CHARACTERS_MAX:
        return None
    file = FILES[package]
    name, _, inner = symbol[len(package) + 1 :].partition(".")
    for one in (*file.message_type, *file.enum_type, *file.service):
        if one.name == name:
            return file if _has(one, inner) else None
    return None


def _has(outer: Any, path: str) -> bool:
    """Whether something of this path of names lies inside ("": the thing itself)."""
    if not path:
        return True
    name, _, inner = path.partition(".")
    kinds = ("nested_type", "enum_type", "field", "value", "method")
    members = [one for kind in kinds for one in getattr(outer, kind, ())]
    return any(one.name == name and _has(one, inner) for one in members)
