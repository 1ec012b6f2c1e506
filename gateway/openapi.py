"""What the HTTP endpoints promise, as OpenAPI: the bodies that no framework reads, and every status.

Held against the running gateway by schemathesis (tests/integration/test_gateway_openapi.py).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

JSON = "application/json"
BINARY = "application/octet-stream"
NPY = "application/x-npy"

ERROR: Schema = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "What went wrong and what is allowed, as a sentence."},
        "code": {"type": "string", "description": "The same for programs, such as INVALID_REQUEST."},
    },
}
MEANING = {
    400: "The request can never succeed as written.",
    401: "The token is missing or wrong.",
    403: "A page of another origin asked, or another host name.",
    404: "There is no such model, job, region, or page.",
    405: "Not with this method.",
    406: "The result cannot be had in any accepted form.",
    408: "The body came too slowly.",
    409: "The name is taken.",
    410: "The job has no result any more.",
    413: "The body, or the result of a job, is too large.",
    415: "The body's type or encoding is none that is read here.",
    429: "Too much at once; Retry-After says when to try again.",
    500: "The model failed, or the gateway did.",
    502: "The yard refuses the gateway.",
    503: "The yard is full or away; Retry-After says when to try again.",
    504: "The deadline passed.",
}
ALWAYS = (401, 403, 405, 429, 500, 502, 503, 504)
ANY_BODY = (400, 408, 413, 415)

FREE: Schema = {"type": "object"}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64}


def promises(
    answers: dict[str, Schema] | None = None, *statuses: int, other: dict[int, Schema] | None = None
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: 200 with these contents, other successes, and the errors' statuses."""
    told: dict[int | str, dict[str, Any]] = {}
    if answers is not None:
        told[200] = {
            "description": "Done.",
            "content": {kind: {"schema": schema} for kind, schema in answers.items()},
        }
    for status, schema in (other or {}).items():
        told[status] = {"description": "Accepted.", "content": {JSON: {"schema": schema}}}
    for status in sorted({*statuses, *ALWAYS}):
        told[status] = {"description": MEANING[status], "content": {JSON: {"schema": ERROR}}}
    return told


def takes(contents: dict[str, Schema], *parameters: Schema) -> dict[str, Any]:
    """`openapi_extra` of a route with a body."""
    content = {kind: {"schema": schema} for kind, schema in contents.items()}
    return {"requestBody": {"required": True, "content": content}, "parameters": list(parameters)}


def query(name: str, text: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def header(name: str, text: str, **schema: Any) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


_NAMES = ["urgent", "high", "normal", "low"]
_PRIORITY: Schema = {"oneOf": [{"enum": _NAMES}, {"type": "integer", "minimum": 0, "maximum": 4}]}
_DEADLINE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000}
_BYTES: Schema = {"type": "string", "format": "binary"}
_AXES: Schema = {"type": "array", "maxItems": 32, "items": {"type": "integer", "minimum": 0}}
_DTYPES = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32",
    "float64", "bfloat16", "complex64", "complex128",
]  # fmt: skip

PREDICT_BODY: dict[str, Schema] = {
    JSON: {
        "type": "object",
        "required": ["data"],
        "properties": {
            "model": {**NAME, "description": "May be left out where the yard serves one model."},
            "data": {
                "description": "Nested lists of numbers, or an object of them by the inputs' names.",
                "anyOf": [{"type": "array"}, {"type": "object"}, {"type": "number"}, {"type": "boolean"}],
            },
            "priority": _PRIORITY,
            "deadline_ms": _DEADLINE,
        },
    },
    BINARY: _BYTES,
    NPY: _BYTES,
}
PREDICT_QUERY = (
    query("model", "For a body that is no JSON: the model.", **NAME),
    query("dtype", "For application/octet-stream: the element type.", enum=_DTYPES),
    query("shape", "For application/octet-stream: sizes with commas.", type="string"),
    query("priority", "For a body that is no JSON.", enum=_NAMES),
    query("deadline_ms", "For a body that is no JSON.", **_DEADLINE),
    header("X-Tensor-Dtype", "The same as dtype.", enum=_DTYPES),
    header("X-Tensor-Shape", "The same as shape.", type="string"),
)
OUTPUT_QUERY = query("output", "Which output, where there are several.", type="string")
TIMEOUT_QUERY = query("timeout", "Seconds to wait.", type="number", minimum=0, maximum=300)
RESULT: dict[str, Schema] = {
    JSON: {
        "type": "object",
        "required": ["model", "revision", "outputs", "receipt"],
        "properties": {
            "model": NAME,
            "revision": {"type": "integer"},
            "outputs": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["dtype", "shape", "data"],
                    "properties": {"dtype": {"type": "string"}, "shape": _AXES, "data": {}},
                },
            },
            "receipt": FREE,
        },
    },
    BINARY: _BYTES,
    NPY: _BYTES,
}
JOB: Schema = {
    "type": "object",
    "required": ["job_id"],
    "properties": {
        "job_id": {"type": "string"},
        "status": {"enum": ["pending", "done", "failed", "cancelled", "expired"]},
    },
}

_PARAMETERS: Schema = {
    "type": "object",
    "properties": {
        "priority": _PRIORITY,
        "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds."},
        "binary_data_output": {"type": "boolean"},
    },
}
INFER_BODY: dict[str, Schema] = {
    JSON: {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype"],
                    "properties": {
                        "name": {"type": "string"},
                        "shape": _AXES,
                        "datatype": {"type": "string"},
                        "parameters": FREE,
                        "data": {},
                    },
                },
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": FREE},
                },
            },
        },
    },
    BINARY: _BYTES,
}
INFER_HEADER = header(
    "Inference-Header-Content-Length",
    "How many bytes of the body are JSON; the tensors' bytes follow.",
    type="integer",
    minimum=0,
)
INFER_ANSWER: dict[str, Schema] = {
    JSON: {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": NAME,
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": FREE},
        },
    },
    BINARY: _BYTES,
}
REGION_BODY: dict[str, Schema] = {
    JSON: {
        "type": "object",
        "required": ["key", "byte_size"],
        "properties": {
            "key": {"type": "string"},
            "offset": {"type": "integer", "minimum": 0},
            "byte_size": {"type": "integer", "minimum": 1},
        },
    }
}
