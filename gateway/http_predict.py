"""POST /predict and the jobs. Tensors come as JSON, bytes, or .npy; outputs go out in the accepted form.

Owns the forms of these bodies. The Open Inference Protocol is http_infer.py's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from .. import ModelInfo, Priority, Reply
from ..client.remote.calls import bytes_of
from .datatypes import BY_NAME, NBYTES_MAX, NUMPY, Array, check_shape, from_json, to_json
from .errors import Refusal, invalid
from .http_answer import BINARY, JSON, NPY, answer
from .http_body import Body
from .http_guard import while_connected
from .http_infer import decoded
from .inference import deadline_s_of, priority_of
from .jobs import Job, Result, State
from .rooms import Rooms

NPY_TYPES = {NPY, "application/npy", "application/x-numpy"}
NPY_HEADER_MAX = 10_000
WAIT_S = 30.0
WAIT_MAX_S = 300.0
DTYPE_HEADER, SHAPE_HEADER = "X-Tensor-Dtype", "X-Tensor-Shape"


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`data`: nested lists for a model's only input, else an object of them by name."""

    data: msgspec.Raw
    model: str | None = None
    priority: Any = None
    deadline_ms: float | None = None


@dataclass(slots=True)
class Prepared:
    info: ModelInfo
    inputs: dict[str, Array] | Array
    priority: int
    timeout_s: float
    traceparent: str | None = None


_decoder = msgspec.json.Decoder(PredictRequest)
_by_name = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def predict(request: Request, rooms: Rooms) -> Response:
    """POST /predict: wait for the result."""
    form = _accepted(request)
    with Body(request, rooms.limits.body_bytes_max, rooms.budget) as body:
        prepared = await _read(request, body, rooms)
        result = await while_connected(request, _run(rooms, prepared))
    return _sent(result, form, request.query_params.get("output"))


async def start(request: Request, rooms: Rooms) -> Response:
    """POST /predict/async: a job."""
    with Body(request, rooms.limits.body_bytes_max, rooms.budget) as body:
        prepared = await _read(request, body, rooms)
        await _into_arena(prepared, rooms)
        name = Priority(prepared.priority).name.lower()
        job = await rooms.jobs.start(prepared.info.name, name, _run(rooms, prepared))
    location = {"Location": f"/predict/status/{job.id}"}
    return answer({"job_id": job.id}, 202, location)


async def _into_arena(prepared: Prepared, rooms: Rooms) -> None:
    """Copy a job's inputs into the arena, whose size bounds how much can wait without a connection."""
    if isinstance(prepared.inputs, dict):
        for name, array in prepared.inputs.items():
            copy = await rooms.yard.client.empty(array.shape, array.dtype)
            copy[...] = array
            prepared.inputs[name] = copy


async def status(request: Request, rooms: Rooms) -> Response:
    """GET /predict/status/{id}"""
    job = _job(request, rooms)
    told: dict[str, Any] = {
        "job_id": job.id,
        "status": job.state,
        "model": job.model,
        "priority": job.priority,
    }
    if job.refusal is not None:
        told |= job.refusal.body
    return answer(told)


async def result(request: Request, rooms: Rooms) -> Response:
    """GET /predict/result/{id}: wait for it, up to ?timeout= seconds."""
    form = _accepted(request)
    job = _job(request, rooms)
    timeout_s = _seconds(request.query_params.get("timeout"))
    await while_connected(request, rooms.jobs.wait(job, timeout_s))
    if job.refusal is not None:
        raise job.refusal
    if job.state is State.PENDING:
        return answer({"job_id": job.id, "status": job.state}, 202, {"Retry-After": "1"})
    if job.result is None:
        code = "CANCELLED" if job.state is State.CANCELLED else "RESULT_EXPIRED"
        raise Refusal(410, code, f"the job was {job.state}: there is no result")
    return _sent(job.result, form, request.query_params.get("output"))


async def cancel(request: Request, rooms: Rooms) -> Response:
    """DELETE /predict/cancel/{id}"""
    job = _job(request, rooms)
    cancelled = await rooms.jobs.cancel(job)
    return answer({"job_id": job.id, "status": job.state, "cancelled": cancelled})


def _job(request: Request, rooms: Rooms) -> Job:
    return rooms.jobs.get(request.path_params["job_id"])


async def _run(rooms: Rooms, p: Prepared) -> Result:
    """Run the request. It does not depend on the connection, because a job outlives it."""
    info, reply = await rooms.yard.infer(p.info, p.inputs, p.priority, p.timeout_s, p.traceparent)
    return Result(info.name, info.revision, reply.outputs, _receipt(reply))


def _receipt(reply: Reply) -> dict[str, Any]:
    r = reply.receipt
    return {
        "queue_ns": r.queue_ns,
        "compute_ns": r.compute_ns,
        "batch_rows": r.rows,
        "worker": r.worker,
        "provider": r.provider,
    }


# ---- reading ------------------------------------------------------------------------------------


async def _read(request: Request, body: Body, rooms: Rooms) -> Prepared:
    """Raises Refusal, UnknownModel, ModelFailed, ArenaExhausted."""
    prepared = await _read_form(request, body, rooms)
    prepared.traceparent = request.headers.get("traceparent")
    return prepared


async def _read_form(request: Request, body: Body, rooms: Rooms) -> Prepared:
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == JSON:
        return await _read_json(body, rooms)
    if kind == BINARY or kind in NPY_TYPES:
        query = request.query_params
        info = await rooms.yard.model(query.get("model") or await rooms.yard.only())
        priority = priority_of(_number_or_name(query.get("priority")))
        timeout_s = deadline_s_of(_number(query.get("deadline_ms"), "deadline_ms"))
        array = await (_read_raw(request, body, rooms) if kind == BINARY else _read_npy(body, rooms))
        return Prepared(info, array, priority, timeout_s)
    raise Refusal(415, "UNSUPPORTED_TYPE", f"Content-Type may be {JSON}, {BINARY}, or {NPY}")


async def _read_json(body: Body, rooms: Rooms) -> Prepared:
    asked = decoded(_decoder, await body.rest(), rooms.limits.json_bytes_max)
    info = await rooms.yard.model(asked.model if asked.model is not None else await rooms.yard.only())
    priority = priority_of(asked.priority if asked.priority is not None else 0)
    timeout_s = deadline_s_of(asked.deadline_ms)
    data = bytes(asked.data)
    several = data.startswith(b"{")
    named = decoded(_by_name, data, len(data)) if several else {info.inputs[0].name: data}
    if not several and len(info.inputs) > 1:
        listed = ", ".join(spec.name for spec in info.inputs)
        raise invalid(f"{info.name!r} has several inputs: data is an object with {listed}")
    inputs = {}
    for spec in info.inputs:
        if spec.name not in named:
            raise invalid(f"data has no input {spec.name!r}; it has {', '.join(named)[:80] or 'none'}")
        dtype = np.dtype("O" if spec.dtype == BY_NAME["BYTES"].code else NUMPY.get(_name(spec), "V1"))
        inputs[spec.name] = from_json(named[spec.name], dtype, f"input {spec}")
    for name in named:
        if name not in inputs:
            raise invalid(f"{info.name!r} has no input {name[:80]!r}")
    return Prepared(info, inputs, priority, timeout_s)


def _name(spec: Any) -> str:
    """The element type's name, as the spec's own text has it: `x: float32[n, 3]`."""
    return str(spec).rpartition(": ")[2].partition("[")[0]


async def _read_raw(request: Request, body: Body, rooms: Rooms) -> Array:
    """C-ordered, little-endian bytes; what they are is said by the query or by headers."""
    query, headers = request.query_params, request.headers
    named = query.get("dtype") or headers.get(DTYPE_HEADER) or ""
    if named not in NUMPY:
        raise invalid(f"dtype is one of {', '.join(NUMPY)}; ?dtype= or the header {DTYPE_HEADER} says which")
    text = query.get("shape", headers.get(SHAPE_HEADER))
    try:
        shape = [int(axis) for axis in text.split(",")] if text else []
    except ValueError:
        text = None
    if text is None:
        raise invalid(f"shape is sizes with commas, as ?shape=1,3,32,32 or in the header {SHAPE_HEADER}")
    return await _tensor(body, rooms, NUMPY[named], shape)


async def _read_npy(body: Body, rooms: Rooms) -> Array:
    """The .npy format, by its header; numpy's own reader of headers makes no objects."""
    start = await body.take(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX or start[6] not in (1, 2):
        raise invalid("the body is not a .npy file of version 1 or 2")
    wide = start[6] == 2
    size = await body.take(4 if wide else 2)
    nbytes = int.from_bytes(size, "little")
    if nbytes > NPY_HEADER_MAX:
        raise invalid(f"a .npy header may have at most {NPY_HEADER_MAX} bytes")
    header = io.BytesIO(size + await body.take(nbytes))
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, fortran, dtype = read(header, max_header_size=NPY_HEADER_MAX)
    except Exception as error:  # numpy asks Python's parser and tokenizer, and each has errors of its own
        raise invalid(f"the .npy header cannot be used: {str(error)[:200]}") from None
    little = dtype.newbyteorder("<")
    if dtype.kind not in "biufc" or str(little) not in NUMPY:
        raise invalid(f"a .npy of {str(dtype)[:40]} cannot be sent; the types are {', '.join(NUMPY)}")
    if not all(type(axis) is int for axis in shape):
        raise invalid("the .npy header has an invalid shape")
    array = await _tensor(body, rooms, little, list(shape[::-1] if fortran else shape))
    if dtype.byteorder == ">":
        array.byteswap(inplace=True)
    return array.transpose() if fortran else array


async def _tensor(body: Body, rooms: Rooms, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """What is left of the body, straight into the arena."""
    dims = check_shape(shape, "the tensor")
    nbytes = prod(dims) * dtype.itemsize
    if nbytes > min(rooms.limits.body_bytes_max, NBYTES_MAX):
        raise Refusal(413, "TOO_LARGE", f"a tensor may have at most {rooms.limits.body_bytes_max} bytes")
    if body.encoding != "identity":
        raise Refusal(415, "UNSUPPORTED_ENCODING", "tensors are sent without a Content-Encoding")
    array = await rooms.yard.client.empty(dims, dtype)
    await body.fill(bytes_of(array))
    await body.end()
    return array


def _number(text: str | None, what: str) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise invalid(f"{what} is a number, not {text[:40]!r}") from None


def _number_or_name(text: str | None) -> int | str:
    return 0 if text is None else int(text) if text.isdecimal() and len(text) < 9 else text


def _seconds(text: str | None) -> float:
    seconds = _number(text, "timeout")
    if seconds is None:
        return WAIT_S
    if not 0 <= seconds <= WAIT_MAX_S:
        raise invalid(f"timeout is seconds from 0 to {WAIT_MAX_S:g}")
    return seconds


# ---- answering ----------------------------------------------------------------------------------


def _accepted(request: Request) -> str:
    """The form of the answer: the first that is accepted. Raises Refusal."""
    header = request.headers.get("accept", "*/*")
    for part in header.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in ("*/*", "application/*", JSON, ""):
            return JSON
        if kind == BINARY or kind in NPY_TYPES:
            return BINARY if kind == BINARY else NPY
    raise Refusal(406, "NOT_ACCEPTABLE", f"results can be had as {JSON}, {BINARY}, or {NPY}")


def _sent(result: Result, form: str, output: str | None) -> Response:
    outputs: Mapping[str, Array] = result.outputs
    if output is not None:
        if output not in outputs:
            raise invalid(f"{result.model!r} has no output {output[:80]!r}; it has {', '.join(outputs)}")
        outputs = {output: outputs[output]}
    if form == JSON:
        return answer(
            {
                "model": result.model,
                "revision": result.revision,
                "outputs": {name: _described(name, array) for name, array in outputs.items()},
                "receipt": result.receipt,
            }
        )
    if len(outputs) != 1:
        raise invalid(f"several outputs: choose one with ?output=, of {', '.join(outputs)}")
    ((name, array),) = outputs.items()
    if array.dtype.hasobject:
        raise Refusal(406, "NOT_ACCEPTABLE", f"output {name!r} has strings, which are had as {JSON} alone")
    headers = {
        "X-Model-Revision": str(result.revision),
        DTYPE_HEADER: array.dtype.name,
        SHAPE_HEADER: ",".join(map(str, array.shape)),
    }
    if form == BINARY:
        return Response(bytes(bytes_of(array)), media_type=BINARY, headers=headers)
    npy = io.BytesIO()
    np.lib.format.write_array(npy, array, allow_pickle=False)
    return Response(npy.getvalue(), media_type=NPY, headers=headers)


def _described(name: str, array: Array) -> dict[str, Any]:
    return {
        "dtype": "string" if array.dtype.hasobject else array.dtype.name,
        "shape": list(array.shape),
        "data": to_json(array, f"output {name!r}"),
    }
