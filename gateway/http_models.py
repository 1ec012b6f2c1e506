"""The protocol's questions over HTTP: health, metadata, configuration, statistics, shared memory.

Owns these endpoints; what is answered is described.py's, what is inferred http_infer.py's.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import ModelInfo
from . import described, load
from .errors import Refusal, invalid
from .http_answer import answer
from .http_body import Body
from .http_infer import decoded
from .regions import NO_CUDA
from .rooms import Rooms


class RegionRequest(msgspec.Struct):
    key: str
    byte_size: Annotated[int, msgspec.Meta(ge=1)]
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


class IndexRequest(msgspec.Struct):
    ready: bool | None = None


_region = msgspec.json.Decoder(RegionRequest)
_index = msgspec.json.Decoder(IndexRequest)


# ---- the server ---------------------------------------------------------------------------------


async def server(request: Request, rooms: Rooms) -> Response:
    """The protocol's fields, and beside them the models with their digests; null: the yard does not say."""
    found = described.server(rooms.version, rooms.regions is not None, rooms.model_control)
    found["models"] = await rooms.yard.served()
    headers = await load.header(rooms.yard, request.headers.get(load.FORMAT))
    return answer(found, headers=headers)


async def live(request: Request, rooms: Rooms) -> Response:
    return answer({"live": True})


async def ready(request: Request, rooms: Rooms) -> Response:
    reason = await rooms.yard.why_not_ready()
    if reason:
        raise Refusal(503, "NOT_READY", reason, 1.0)
    return answer({"ready": True})


async def index(request: Request, rooms: Rooms) -> Response:
    with Body(request, rooms.limits.json_bytes_max, rooms.budget) as body:
        raw = await body.rest()
    asked = decoded(_index, raw, rooms.limits.json_bytes_max) if raw else IndexRequest()
    models = described.index(await rooms.yard.models())
    return answer([one for one in models if not asked.ready or one["state"] == "READY"])


async def all_statistics(request: Request, rooms: Rooms) -> Response:
    return answer(await rooms.yard.statistics())


# ---- a model, with a version in the path or without one -----------------------------------------


async def _model(request: Request, rooms: Rooms) -> ModelInfo:
    return await rooms.yard.one(*request.path_params.values())


async def metadata(request: Request, rooms: Rooms) -> Response:
    return answer(described.metadata(await _model(request, rooms)))


async def model_ready(request: Request, rooms: Rooms) -> Response:
    info = await _model(request, rooms)
    name = request.path_params["model"]
    reason = rooms.yard.why_not_served(info)
    if reason:
        raise Refusal(503, "NOT_READY", reason, 1.0)
    return answer({"name": name, "ready": True})


async def config(request: Request, rooms: Rooms) -> Response:
    return answer(described.config(await rooms.yard.described(*request.path_params.values())))


async def statistics(request: Request, rooms: Rooms) -> Response:
    return answer(await rooms.yard.statistics(*request.path_params.values()))


# ---- clients' shared memory ---------------------------------------------------------------------


async def region_status(request: Request, rooms: Rooms) -> Response:
    """Of one region, or of all."""
    return answer(rooms.shared().status(*request.path_params.values()))


async def register(request: Request, rooms: Rooms) -> Response:
    regions = rooms.shared()
    with Body(request, rooms.limits.json_bytes_max, rooms.budget) as body:
        asked = decoded(_region, await body.rest(), rooms.limits.json_bytes_max)
    regions.register(request.path_params["region"], asked.key, asked.offset, asked.byte_size)
    return answer({})


async def unregister(request: Request, rooms: Rooms) -> Response:
    """One region, or all. Without --shared-memory nothing is registered: clients begin by asking for that."""
    if rooms.regions is not None:
        rooms.regions.unregister(*request.path_params.values())
    return answer({})


async def cuda_status(request: Request, rooms: Rooms) -> Response:
    """CUDA's memory is never registered."""
    region = request.path_params.get("region")
    if region is not None:
        raise Refusal(404, "UNKNOWN_REGION", f"there is no region {region[:80]!r}: {NO_CUDA}")
    return answer([])


async def register_cuda(request: Request, rooms: Rooms) -> Response:
    raise invalid(NO_CUDA)


async def unregister_cuda(request: Request, rooms: Rooms) -> Response:
    """CUDA's memory is never registered, so this is always done."""
    return answer({})
