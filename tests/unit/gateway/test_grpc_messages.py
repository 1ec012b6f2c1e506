"""triton.proto, as it is read here, against the descriptors inside Triton's own client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
from batchyard.gateway import grpc_messages
from batchyard.gateway.errors import Refusal
from batchyard.gateway.grpc_messages import CLASSES, parsed
from tritonclient.grpc import model_config_pb2, service_pb2

PROTO = (Path(grpc_messages.__file__).parent / "triton.proto").read_text()


FILE = CLASSES["ModelConfig"].DESCRIPTOR.file
ENUMS: dict[str, Any] = dict(FILE.enum_types_by_name) | {
    f"{name}.{enum.name}": enum for name, made in CLASSES.items() for enum in made.DESCRIPTOR.enum_types
}


def theirs(name: str) -> Any:
    outer, *inner = name.split(".")
    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        found = file.message_types_by_name.get(outer) or file.enum_types_by_name.get(outer)
        if found is not None:
            for part in inner:
                found = found.nested_types_by_name.get(part) or found.enum_types_by_name[part]
            return found
    raise KeyError(name)


def facts(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    choice = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, kind.full_name if kind else None, choice


def test_everything_in_the_file_was_read() -> None:
    assert len(CLASSES) == len(re.findall(r"^ *message ", PROTO, re.MULTILINE))
    fields = [field for made in CLASSES.values() for field in made.DESCRIPTOR.fields]
    values = sum(len(enum.values) for enum in ENUMS.values())
    assert len(fields) + values == len(re.findall(r" = \d+;$", PROTO, re.MULTILINE))
    assert len(ENUMS) == len(re.findall(r"^ *enum ", PROTO, re.MULTILINE))


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_what_tritons_client_has(name: str) -> None:
    known = theirs(name).fields_by_name
    for field in CLASSES[name].DESCRIPTOR.fields:
        assert facts(field) == facts(known[field.name]), field.name
        if field.message_type and field.message_type.GetOptions().map_entry:
            for part in ("key", "value"):
                assert facts(field.message_type.fields_by_name[part]) == facts(
                    known[field.name].message_type.fields_by_name[part]
                )


@pytest.mark.parametrize("name", ENUMS)
def test_every_value_is_what_tritons_client_has(name: str) -> None:
    ours, known = (
        {value.name: value.number for value in enum.values} for enum in (ENUMS[name], theirs(name))
    )
    assert ours == known


def test_their_bytes_are_ours() -> None:
    asked = service_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"ab"])
    asked.parameters["timeout"].int64_param = 5
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.5, 2])
    ours = CLASSES["ModelInferRequest"].FromString(asked.SerializeToString())
    assert ours.parameters["timeout"].int64_param == 5
    assert list(ours.inputs[0].contents.fp32_contents) == [1.5, 2]
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == asked


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff", b"\x0b" * 100_000, b"\xff" * 100_000, b"\x3a\xff\xff\x7f" + bytes(100_000)]
)
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    with pytest.raises(Refusal):
        parsed("ModelInferRequest", raw, 1 << 20)


def test_a_message_may_be_long_for_its_raw_tensors_alone() -> None:
    """Objects take many times their bytes: four million empty inputs of 8 MB took 300."""
    plain_bytes_max = 1 << 20
    asked = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(4 << 20)] * 3)
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    assert (
        len(parsed("ModelInferRequest", asked.SerializeToString(), plain_bytes_max).raw_input_contents) == 3
    )
    asked.inputs[0].contents.int_contents.extend(range(1 << 20))
    for raw in (asked.SerializeToString(), b"\x2a\x00" * 100_000, b"\x3a\x00" * 100_000):
        with pytest.raises(Refusal, match="raw_input_contents"):
            parsed("ModelInferRequest", raw, plain_bytes_max)
