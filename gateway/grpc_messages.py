"""The messages of Triton's gRPC service, as far as they are spoken here: a table, and the classes made of it.

Numbers and names are those of grpc_service.proto and model_config.proto (github.com/triton-inference-server/
common); a test holds every row against the descriptors inside `tritonclient`. There is no generated code:
it would be bound to one version of protobuf, and would claim the package `inference` in the pool that all
modules of a process share, where `tritonclient`'s own claims it too.

A row is (number, name, type); "*" behind a type: repeated; "map T": from string to T; a type with a capital
is a message of the table. What is left out, a reader skips: that is how the format works.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from .errors import Refusal, invalid

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
SMALL_BYTES = 1 << 16  # a message up to here is parsed as it is
FIELDS_MAX = 4096  # at the top of a longer one

_PARAMETERS = "map InferParameter"
_NAME_VERSION = [(1, "name", "string"), (2, "version", "string")]
_TENSOR = [(1, "name", "string"), (2, "datatype", "string"), (3, "shape", "int64*")]
_CONTENTS = [
    (1, "bool_contents", "bool*"), (2, "int_contents", "int32*"), (3, "int64_contents", "int64*"),
    (4, "uint_contents", "uint32*"), (5, "uint64_contents", "uint64*"), (6, "fp32_contents", "float*"),
    (7, "fp64_contents", "double*"), (8, "bytes_contents", "bytes*"),
]  # fmt: skip

TABLE: dict[str, list[tuple[int, str, str]]] = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": [(1, "live", "bool")],
    "ServerReadyRequest": [],
    "ServerReadyResponse": [(1, "ready", "bool")],
    "ModelReadyRequest": _NAME_VERSION,
    "ModelReadyResponse": [(1, "ready", "bool")],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": [(1, "name", "string"), (2, "version", "string"), (3, "extensions", "string*")],
    "ModelMetadataRequest": _NAME_VERSION,
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelMetadataResponse": [
        (1, "name", "string"), (2, "versions", "string*"), (3, "platform", "string"),
        (4, "inputs", "ModelMetadataResponse.TensorMetadata*"),
        (5, "outputs", "ModelMetadataResponse.TensorMetadata*"),
    ],
    "InferParameter": [
        (1, "bool_param", "bool"), (2, "int64_param", "int64"), (3, "string_param", "string"),
        (4, "double_param", "double"), (5, "uint64_param", "uint64"),
    ],
    "InferTensorContents": _CONTENTS,
    "ModelInferRequest.InferInputTensor": [
        *_TENSOR, (4, "parameters", _PARAMETERS), (5, "contents", "InferTensorContents"),
    ],
    "ModelInferRequest.InferRequestedOutputTensor": [(1, "name", "string"), (2, "parameters", _PARAMETERS)],
    "ModelInferRequest": [
        (1, "model_name", "string"), (2, "model_version", "string"), (3, "id", "string"),
        (4, "parameters", _PARAMETERS), (5, "inputs", "ModelInferRequest.InferInputTensor*"),
        (6, "outputs", "ModelInferRequest.InferRequestedOutputTensor*"), (7, "raw_input_contents", "bytes*"),
    ],
    "ModelInferResponse.InferOutputTensor": [
        *_TENSOR, (4, "parameters", _PARAMETERS), (5, "contents", "InferTensorContents"),
    ],
    "ModelInferResponse": [
        (1, "model_name", "string"), (2, "model_version", "string"), (3, "id", "string"),
        (4, "parameters", _PARAMETERS), (5, "outputs", "ModelInferResponse.InferOutputTensor*"),
        (6, "raw_output_contents", "bytes*"),
    ],
    "ModelStreamInferResponse": [
        (1, "error_message", "string"), (2, "infer_response", "ModelInferResponse"),
    ],
    "ModelConfigRequest": _NAME_VERSION,
    "ModelInput": [
        (1, "name", "string"), (2, "data_type", "DataType"), (3, "format", "ModelInput.Format"),
        (4, "dims", "int64*"),
    ],
    "ModelOutput": [(1, "name", "string"), (2, "data_type", "DataType"), (3, "dims", "int64*")],
    "ModelInstanceGroup": [
        (1, "name", "string"), (2, "count", "int32"), (4, "kind", "ModelInstanceGroup.Kind"),
    ],
    "ModelDynamicBatching": [(4, "priority_levels", "uint64"), (5, "default_priority_level", "uint64")],
    "ModelConfig": [
        (1, "name", "string"), (2, "platform", "string"), (4, "max_batch_size", "int32"),
        (5, "input", "ModelInput*"), (6, "output", "ModelOutput*"),
        (7, "instance_group", "ModelInstanceGroup*"), (11, "dynamic_batching", "ModelDynamicBatching"),
        (17, "backend", "string"),
    ],
    "ModelConfigResponse": [(1, "config", "ModelConfig")],
    "ModelStatisticsRequest": _NAME_VERSION,
    "StatisticDuration": [(1, "count", "uint64"), (2, "ns", "uint64")],
    "InferStatistics": [
        (1, "success", "StatisticDuration"), (2, "fail", "StatisticDuration"),
        (3, "queue", "StatisticDuration"), (4, "compute_input", "StatisticDuration"),
        (5, "compute_infer", "StatisticDuration"), (6, "compute_output", "StatisticDuration"),
        (7, "cache_hit", "StatisticDuration"), (8, "cache_miss", "StatisticDuration"),
    ],
    "InferBatchStatistics": [
        (1, "batch_size", "uint64"), (2, "compute_input", "StatisticDuration"),
        (3, "compute_infer", "StatisticDuration"), (4, "compute_output", "StatisticDuration"),
    ],
    "ModelStatistics": [
        (1, "name", "string"), (2, "version", "string"), (3, "last_inference", "uint64"),
        (4, "inference_count", "uint64"), (5, "execution_count", "uint64"),
        (6, "inference_stats", "InferStatistics"), (7, "batch_stats", "InferBatchStatistics*"),
    ],
    "ModelStatisticsResponse": [(1, "model_stats", "ModelStatistics*")],
    "RepositoryIndexRequest": [(1, "repository_name", "string"), (2, "ready", "bool")],
    "RepositoryIndexResponse.ModelIndex": [
        (1, "name", "string"), (2, "version", "string"), (3, "state", "string"), (4, "reason", "string"),
    ],
    "RepositoryIndexResponse": [(1, "models", "RepositoryIndexResponse.ModelIndex*")],
    "SystemSharedMemoryStatusRequest": [(1, "name", "string")],
    "SystemSharedMemoryStatusResponse.RegionStatus": [
        (1, "name", "string"), (2, "key", "string"), (3, "offset", "uint64"), (4, "byte_size", "uint64"),
    ],
    "SystemSharedMemoryStatusResponse": [
        (1, "regions", "map SystemSharedMemoryStatusResponse.RegionStatus"),
    ],
    "SystemSharedMemoryRegisterRequest": [
        (1, "name", "string"), (2, "key", "string"), (3, "offset", "uint64"), (4, "byte_size", "uint64"),
    ],
    "SystemSharedMemoryRegisterResponse": [],
    "SystemSharedMemoryUnregisterRequest": [(1, "name", "string")],
    "SystemSharedMemoryUnregisterResponse": [],
    "CudaSharedMemoryUnregisterRequest": [(1, "name", "string")],
    "CudaSharedMemoryUnregisterResponse": [],
}  # fmt: skip

ENUMS: dict[str, dict[str, int]] = {
    "DataType": {
        "TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_UINT16": 3, "TYPE_UINT32": 4,
        "TYPE_UINT64": 5, "TYPE_INT8": 6, "TYPE_INT16": 7, "TYPE_INT32": 8, "TYPE_INT64": 9,
        "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_FP64": 12, "TYPE_STRING": 13, "TYPE_BF16": 14,
    },
    "ModelInput.Format": {"FORMAT_NONE": 0, "FORMAT_NHWC": 1, "FORMAT_NCHW": 2},
    "ModelInstanceGroup.Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}  # fmt: skip
# Message -> (a choice, the fields that are in it)
ONEOF = {
    "InferParameter": ("parameter_choice", {field for _, field, _ in TABLE["InferParameter"]}),
    "ModelConfig": ("scheduling_choice", {"dynamic_batching"}),
}

_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> Any:
    """The table as protobuf describes a file."""
    file = descriptor_pb2.FileDescriptorProto(name="batchyard.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name in sorted(TABLE, key=lambda name: name.count(".")):  # what holds others comes first
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
    for name, values in ENUMS.items():
        outer, _, inner = name.rpartition(".")
        enum = made[outer].enum_type.add(name=inner) if outer else file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, rows in TABLE.items():
        if name in ONEOF:
            made[name].oneof_decl.add(name=ONEOF[name][0])
        for number, field, kind in rows:
            _add(made[name], name, number, field, kind)
    return file


def _add(message: Any, name: str, number: int, field: str, kind: str) -> None:
    repeated = kind.endswith("*") or kind.startswith("map ")
    added = message.field.add(
        name=field, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    if kind.startswith("map "):
        entry = message.nested_type.add(name="".join(part.title() for part in field.split("_")) + "Entry")
        entry.options.map_entry = True
        _add(entry, "", 1, "key", "string")
        _add(entry, "", 2, "value", kind.removeprefix("map "))
        kind = f"{name}.{entry.name}"
    element = kind.removesuffix("*")
    if element[0].isupper():
        added.type = _Field.TYPE_ENUM if element in ENUMS else _Field.TYPE_MESSAGE
        added.type_name = f".{PACKAGE}.{element}"
    else:
        added.type = getattr(_Field, f"TYPE_{element.upper()}")
    if name in ONEOF and field in ONEOF[name][1]:
        added.oneof_index = 0


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())
CLASSES: dict[str, Any] = {
    name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in TABLE
}
_RAW_KEY = next(n for n, field, _ in TABLE["ModelInferRequest"] if field == "raw_input_contents") << 3 | 2


def parsed(name: str, raw: bytes, plain_bytes_max: int) -> Any:
    """The message that these bytes are.

    Raises Refusal for bytes that are none, and for more of them than `plain_bytes_max` outside of
    raw_input_contents: parsed, an empty input of two bytes takes eighty.
    """
    try:
        if len(raw) > SMALL_BYTES:
            _check_outline(raw, plain_bytes_max)
        return CLASSES[name].FromString(raw)
    except (message.DecodeError, IndexError):
        raise invalid(f"these bytes are no {name}") from None


def _check_outline(raw: bytes, plain_bytes_max: int) -> None:
    """Raises Refusal, and IndexError where the bytes end too early."""
    at = plain_bytes = fields = 0
    while at < len(raw):
        start = at
        key, at = _varint(raw, at)
        if key & 7 == 2:
            nbytes, at = _varint(raw, at)
            at += nbytes
        elif key & 7 == 0:
            _, at = _varint(raw, at)
        else:
            at += {1: 8, 5: 4}.get(key & 7, len(raw))
        fields += 1
        if key != _RAW_KEY:
            plain_bytes += at - start
        if fields > FIELDS_MAX or plain_bytes > plain_bytes_max:
            text = f"a message has {FIELDS_MAX} fields and {plain_bytes_max} bytes at most here beside"
            raise Refusal(413, "TOO_LARGE", f"{text} raw_input_contents; send tensors there")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(a number of seven bits in each byte, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
