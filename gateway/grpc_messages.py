"""The messages of the gRPC services: classes made of the .proto files here when the gateway starts.

There is no generated code and no protoc: code would be bound to one version of protobuf, and would claim the
package `inference` in the pool that all modules of a process share, where `tritonclient`'s own claims it too.
A test holds every field against the descriptors inside `tritonclient`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from ..client.remote.protobuf import read_varint
from .errors import Refusal, invalid

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
SMALL_BYTES = 1 << 16  # a message up to here is parsed as it is
FIELDS_MAX = 4096  # at the top of a longer one

_BLOCK = re.compile(r"(message|enum|oneof|service) (\w+) {(})?$")
_VALUE = re.compile(r"(\w+) = (\d+);$")
_FIELD = re.compile(r"(repeated )?(map<string, ([\w.]+)>|[\w.]+) (\w+) = (\d+);$")
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\) {}$")
_Field = descriptor_pb2.FieldDescriptorProto


def _file(text: str) -> Any:
    """A .proto file, one declaration a line, as protobuf describes it."""
    package = re.search(r"^package ([\w.]+);$", text, re.MULTILINE)
    assert package is not None
    name = package[1].replace(".", "/") + "/batchyard.proto"
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package[1], syntax="proto3")
    enums = set(re.findall(r"enum (\w+)", text))
    blocks: list[tuple[str, Any]] = [("", file)]  # (kind, what it describes), the innermost last
    for line in filter(None, (line.partition("//")[0].strip() for line in text.splitlines())):
        kind, block = blocks[-1]
        if line == "}":
            blocks.pop()
        elif begun := _BLOCK.match(line):
            inner = _begun(block, begun[1], begun[2])
            if not begun[3]:
                blocks.append((begun[1], inner))
        elif rpc := _RPC.match(line):
            block.method.add(
                name=rpc[1],
                input_type=f".{file.package}.{rpc[3]}",
                output_type=f".{file.package}.{rpc[5]}",
                client_streaming=bool(rpc[2]),
                server_streaming=bool(rpc[4]),
            )
        elif value := _VALUE.match(line):
            block.value.add(name=value[1], number=int(value[2]))
        elif field := _FIELD.match(line):
            path = ".".join(outer.name for is_a, outer in blocks if is_a == "message")
            added = _added(block, path, field, file.package, enums)
            if kind == "oneof":
                added.oneof_index = len(block.oneof_decl) - 1
    return file


def _begun(outer: Any, kind: str, name: str) -> Any:
    """A message or an enum inside of this; a oneof is its message once more."""
    if kind == "oneof":
        outer.oneof_decl.add(name=name)
        return outer
    if kind == "service":
        return outer.service.add(name=name)
    nested = isinstance(outer, descriptor_pb2.DescriptorProto)
    if kind == "enum":
        return outer.enum_type.add(name=name)
    return outer.nested_type.add(name=name) if nested else outer.message_type.add(name=name)


def _added(outer: Any, path: str, field: re.Match[str], package: str, enums: set[str]) -> Any:
    repeated, kind, of_map, name, number = field.groups()
    many = repeated or of_map
    label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
    added = outer.field.add(name=name, number=int(number), label=label)
    if of_map:
        entry = outer.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for part, (key, inner) in enumerate((("key", "string"), ("value", of_map)), 1):
            _typed(entry.field.add(name=key, number=part, label=_Field.LABEL_OPTIONAL), inner, package, enums)
        kind = f"{path}.{entry.name}"
    _typed(added, kind, package, enums)
    return added


def _typed(field: Any, kind: str, package: str, enums: set[str]) -> None:
    if kind[0].isupper():
        field.type = _Field.TYPE_ENUM if kind.rpartition(".")[2] in enums else _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


def _classes(outer: Any, package: str, within: str = "") -> dict[str, Any]:
    """Name -> class, of a file's messages or of those inside a message."""
    found = {}
    for inner in outer.nested_type if within else outer.message_type:
        if inner.options.map_entry:
            continue
        name = f"{within}{inner.name}"
        found[name] = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))
        found |= _classes(inner, package, f"{name}.")
    return found


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_reflection = _read("reflection.proto")
FILES = {
    file.package: file
    for file in map(_file, (
        _read("triton.proto"), _read("health.proto"), _reflection,
        _reflection.replace("package grpc.reflection.v1;", "package grpc.reflection.v1alpha;"),
    ))
}  # fmt: skip
_POOL = descriptor_pool.DescriptorPool()
for _one in FILES.values():
    _POOL.Add(_one)
CLASSES_OF = {package: _classes(file, package) for package, file in FILES.items()}
CLASSES = CLASSES_OF[PACKAGE]
_RAW_KEY = CLASSES["ModelInferRequest"].DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | 2


def parsed(name: str, raw: bytes, plain_bytes_max: int) -> Any:
    """Parse a message.

    Raises Refusal for malformed bytes, and for more than `plain_bytes_max` bytes outside
    raw_input_contents: parsed, an empty input of two bytes takes eighty.
    """
    try:
        if len(raw) > SMALL_BYTES:
            _check_outline(raw, plain_bytes_max)
        return CLASSES[name].FromString(raw)
    except (message.DecodeError, IndexError):
        raise invalid(f"these bytes are not a {name}") from None


def _check_outline(raw: bytes, plain_bytes_max: int) -> None:
    """Raises Refusal, and IndexError where the bytes end too early."""
    at = plain_bytes = fields = 0
    while at < len(raw):
        start = at
        key, at = read_varint(raw, at)
        if key & 7 == 2:
            nbytes, at = read_varint(raw, at)
            at += nbytes
        elif key & 7 == 0:
            _, at = read_varint(raw, at)
        else:
            at += {1: 8, 5: 4}.get(key & 7, len(raw))
        fields += 1
        if key != _RAW_KEY:
            plain_bytes += at - start
        if fields > FIELDS_MAX or plain_bytes > plain_bytes_max:
            text = f"a message may have at most {FIELDS_MAX} fields and {plain_bytes_max} bytes besides"
            raise Refusal(413, "TOO_LARGE", f"{text} raw_input_contents; send tensors there")
