"""Orders over HTTP, by Triton's paths: models loaded and unloaded, trace and log settings."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import control, settings
from .http_answer import answer
from .http_body import Body
from .http_infer import decoded
from .rooms import Rooms


class OrderRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


_order = msgspec.json.Decoder(OrderRequest)
_settings = msgspec.json.Decoder(dict[str, Any])


async def _body(request: Request, rooms: Rooms, decoder: Any, empty: Any) -> Any:
    with Body(request, rooms.limits.body_bytes_max, rooms.budget) as body:
        raw = await body.rest()
    return decoded(decoder, raw, rooms.limits.json_bytes_max) if raw else empty


async def load(request: Request, rooms: Rooms) -> Response:
    control.check(rooms.model_control)
    asked = await _body(request, rooms, _order, OrderRequest())
    await control.load(rooms.yard, request.path_params["model"], asked.parameters)
    return answer({})


async def unload(request: Request, rooms: Rooms) -> Response:
    """Parameters (unload_dependents) say nothing here: no model of a yard has dependents."""
    control.check(rooms.model_control)
    await _body(request, rooms, _order, None)
    await control.unload(rooms.yard, request.path_params["model"])
    return answer({})


async def trace(request: Request, rooms: Rooms) -> Response:
    """Trace settings, of a model or of all: read, or ordered to be what they are."""
    if "model" in request.path_params:
        await rooms.yard.one(request.path_params["model"])
    if request.method == "POST":
        settings.check_trace(await _body(request, rooms, _settings, {}))
    current = settings.TRACE.items()
    return answer({name: value if name in settings.LISTS else value[0] for name, value in current})


async def log(request: Request, rooms: Rooms) -> Response:
    """Log settings, as `trace`."""
    if request.method == "POST":
        settings.check_log(await _body(request, rooms, _settings, {}))
    return answer(settings.log_settings())
