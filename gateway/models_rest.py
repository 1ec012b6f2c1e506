"""The protocol's questions over HTTP: health, metadata, configuration, statistics, shared memory.

Owns these routes and their paths; what is answered is described.py's, what is inferred oip_rest.py's.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from . import described, openapi
from .body import Body
from .errors import Refusal
from .oip_rest import decoded, infer
from .openapi import FREE, JSON, promises, takes
from .rooms import Rooms

READY_WITHIN_S = 2.0
ANY = {JSON: FREE}
ARRAY = {JSON: {"type": "array", "items": FREE}}
MODEL = "/v2/models/{model}"
PATHS = (MODEL, MODEL + "/versions/{version}")


class RegionRequest(msgspec.Struct):
    key: str
    byte_size: Annotated[int, msgspec.Meta(ge=1)]
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


class IndexRequest(msgspec.Struct):
    ready: bool = False


_region = msgspec.json.Decoder(RegionRequest)
_index = msgspec.json.Decoder(IndexRequest)


def answer(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)


def router(rooms: Rooms) -> APIRouter:
    """Health, the server, and models."""
    routes = APIRouter(default_response_class=Response)
    yard = rooms.yard

    @routes.get("/v2", responses=promises(ANY))
    async def server_metadata() -> Response:
        return answer(described.server(rooms.version, rooms.regions is not None))

    @routes.get("/v2/health/live", responses=promises(ANY))
    async def live() -> Response:
        return answer({"live": True})

    @routes.get("/v2/health/ready", responses=promises(ANY))
    async def ready() -> Response:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await yard.models()
        except TimeoutError:
            raise Refusal(503, "BROKER_LOST", "the yard does not answer", READY_WITHIN_S) from None
        return answer({"ready": True})

    @routes.get("/v2/models/stats", responses=promises(ANY))
    async def all_statistics() -> Response:
        return answer(await yard.statistics())

    @routes.post("/v2/repository/index", responses=promises(ARRAY, *openapi.ANY_BODY))
    async def repository_index(request: Request) -> Response:
        with Body(request, rooms.limits.json_bytes_max, rooms.budget) as body:
            raw = await body.rest()
        asked = decoded(_index, raw, rooms.limits.json_bytes_max) if raw else IndexRequest()
        models = described.index(await yard.models())
        return answer([one for one in models if not asked.ready or one["state"] == "READY"])

    for path in PATHS:
        _model_routes(routes, rooms, path)
    return routes


def _model_routes(routes: APIRouter, rooms: Rooms, path: str) -> None:
    """A model's routes under a path with a version or without one."""
    yard = rooms.yard

    @routes.get(path, responses=promises(ANY, 400, 404))
    async def metadata(model: str, version: str = "") -> Response:
        return answer(described.metadata(await yard.one(model, version)))

    @routes.get(path + "/ready", responses=promises(ANY, 404))
    async def ready(model: str, version: str = "") -> Response:
        info = await yard.one(model, version)
        if info.state.name != "READY":
            reason = info.reason or "it is still loading"
            raise Refusal(503, "NOT_READY", f"{model!r} cannot be served: {reason}", 1.0)
        return answer({"name": model, "ready": True})

    @routes.get(path + "/config", responses=promises(ANY, 400, 404))
    async def config(model: str, version: str = "") -> Response:
        return answer(described.config(await yard.one(model, version)))

    @routes.get(path + "/stats", responses=promises(ANY, 404))
    async def statistics(model: str, version: str = "") -> Response:
        return answer(await yard.statistics(model, version))

    @routes.post(
        path + "/infer",
        responses=promises(openapi.INFER_ANSWER, *openapi.ANY_BODY, 404),
        openapi_extra=takes(openapi.INFER_BODY, openapi.INFER_HEADER),
    )
    async def infer_route(request: Request, model: str, version: str = "") -> Response:
        return await infer(request, rooms, model, version)


def memory_router(rooms: Rooms) -> APIRouter:
    """Clients' shared memory. CUDA's is never registered, so unregistering it is always done."""
    routes = APIRouter(default_response_class=Response)
    system = "/v2/systemsharedmemory"

    @routes.get(system + "/status", responses=promises(ARRAY, 400))
    async def status() -> Response:
        return answer(rooms.shared().status())

    @routes.get(system + "/region/{region}/status", responses=promises(ARRAY, 400, 404))
    async def region_status(region: str) -> Response:
        return answer(rooms.shared().status(region))

    @routes.post(
        system + "/region/{region}/register",
        responses=promises(ANY, *openapi.ANY_BODY, 409),
        openapi_extra=takes(openapi.REGION_BODY),
    )
    async def register(request: Request, region: str) -> Response:
        regions = rooms.shared()
        with Body(request, rooms.limits.json_bytes_max, rooms.budget) as body:
            asked = decoded(_region, await body.rest(), rooms.limits.json_bytes_max)
        regions.register(region, asked.key, asked.offset, asked.byte_size)
        return answer({})

    # Without --shared-memory nothing is registered, which is what is asked for: clients begin with it.
    @routes.post(system + "/region/{region}/unregister", responses=promises(ANY))
    async def unregister(region: str) -> Response:
        if rooms.regions is not None:
            rooms.regions.unregister(region)
        return answer({})

    @routes.post(system + "/unregister", responses=promises(ANY))
    async def unregister_all() -> Response:
        if rooms.regions is not None:
            rooms.regions.unregister()
        return answer({})

    @routes.post("/v2/cudasharedmemory/unregister", responses=promises(ANY))
    async def unregister_cuda() -> Response:
        return answer({})

    return routes
