"""The ASGI application: a table of routes, the order of layers, and the errors' last form.

What each route takes and answers is promised by openapi.json, which is served as it is; a test holds its
paths against the table, and schemathesis the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import BatchyardError
from . import http_control, http_models, http_page, http_predict, http_texts, metrics
from .errors import ClientGone, Refusal, body_at, invalid, refusal_of
from .http_answer import answer
from .http_guard import GONE, ROUTE, Guard
from .http_infer import infer
from .rooms import Rooms

Endpoint = Callable[[Request, Rooms], Awaitable[Response]]

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
MEMORY = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/", http_page.page),
    ("GET", "/docs", http_page.docs),
    ("GET", "/status", http_page.status),
    ("GET", "/metrics", http_page.metrics_page),
    ("POST", "/predict", http_predict.predict),
    ("POST", "/predict/async", http_predict.start),
    ("GET", "/predict/status/{job_id}", http_predict.status),
    ("GET", "/predict/result/{job_id}", http_predict.result),
    ("DELETE", "/predict/cancel/{job_id}", http_predict.cancel),
    ("POST", "/v1/embeddings", http_texts.embeddings),
    ("GET", "/v1/models", http_texts.models),
    ("GET", "/v1/models/{model}", http_texts.model),
    ("POST", "/embed", http_texts.embed),
    ("POST", "/", http_texts.embed),
    ("POST", "/rerank", http_texts.rerank),
    ("GET", "/v2", http_models.server),
    ("GET", "/v2/health/live", http_models.live),
    ("GET", "/v2/health/ready", http_models.ready),
    ("GET", "/v2/models/stats", http_models.all_statistics),
    ("POST", "/v2/repository/index", http_models.index),
    ("POST", "/v2/repository/models/{model}/load", http_control.load),
    ("POST", "/v2/repository/models/{model}/unload", http_control.unload),
    *(
        (method, path, http_control.trace)
        for path in ("/v2/trace/setting", MODEL + "/trace/setting")
        for method in ("GET", "POST")
    ),
    ("GET", "/v2/logging", http_control.log),
    ("POST", "/v2/logging", http_control.log),
    *(
        (method, path + behind, endpoint)
        for path in (MODEL, VERSION)
        for method, behind, endpoint in (
            ("GET", "", http_models.metadata),
            ("GET", "/ready", http_models.model_ready),
            ("GET", "/config", http_models.config),
            ("GET", "/stats", http_models.statistics),
            ("POST", "/infer", infer),
        )
    ),
    ("GET", MEMORY + "/status", http_models.region_status),
    ("GET", MEMORY + "/region/{region}/status", http_models.region_status),
    ("POST", MEMORY + "/region/{region}/register", http_models.register),
    ("POST", MEMORY + "/region/{region}/unregister", http_models.unregister),
    ("POST", MEMORY + "/unregister", http_models.unregister),
    ("GET", CUDA + "/status", http_models.cuda_status),
    ("GET", CUDA + "/region/{region}/status", http_models.cuda_status),
    ("POST", CUDA + "/region/{region}/register", http_models.register_cuda),
    ("POST", CUDA + "/region/{region}/unregister", http_models.unregister_cuda),
    ("POST", CUDA + "/unregister", http_models.unregister_cuda),
)

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


def application(rooms: Rooms, token: str | None) -> ASGIApp:
    """Everything that is served over HTTP."""
    app = FastAPI(
        docs_url=None,  # its pages load scripts from elsewhere; ours is http_page.docs
        redoc_url=None,
        default_response_class=Response,
        redirect_slashes=False,
    )
    for kind in (BatchyardError, Refusal, ClientGone, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answered)
    for method, path, endpoint in ROUTES:
        app.add_api_route(path, _with(rooms, endpoint), methods=[method], response_model=None)
    promised = document(rooms.version)
    app.openapi = lambda: promised  # type: ignore[method-assign]
    rooms.metrics.add_gauges(lambda: gauges(rooms))
    return Guard(_Straight(app, rooms), rooms.metrics, token, rooms.limits.requests_max)


def document(version: str) -> dict[str, Any]:
    """openapi.json, of this version."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("openapi.json").read_text(encoding="utf-8"))
    found["info"]["version"] = version
    return found


def _with(rooms: Rooms, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def run(request: Request) -> Response:
        return await endpoint(request, rooms)

    return run


class _Straight:
    """Inference goes past the framework: its layers and its router took half of the gateway's CPU at 16
    small requests in flight. The same function answers, and the document names the same paths."""

    _INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")

    def __init__(self, app: ASGIApp, rooms: Rooms) -> None:
        self._app = app
        self._rooms = rooms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._INFER.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {name: text for name, text in found.groupdict().items() if text is not None}
        scope[ROUTE] = (VERSION if found["version"] else MODEL) + "/infer"
        response = await infer(Request(scope, receive), self._rooms)
        await response(scope, receive, send)


async def _answered(request: Request, error: Exception) -> Response:
    """An error in its one form."""
    headers: dict[str, str] = {}
    if isinstance(error, ClientGone):
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        text = str(error.detail)
        if error.status_code == 404:
            text = "there is nothing at this path; /docs lists every call"
        elif error.status_code == 405:
            allowed = headers["Allow"] = ", ".join(sorted(_methods(request)))
            text = f"this path takes {allowed}, not {request.method}"
        refusal = Refusal(error.status_code, _HTTP_CODES.get(error.status_code, "INVALID_REQUEST"), text)
    elif isinstance(error, RequestValidationError):
        refusal = invalid("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    else:
        refusal = refusal_of(error)
    return answer(body_at(request.url.path, refusal), refusal.status, headers | refusal.headers)


def _methods(request: Request) -> set[str]:
    """What the request's path takes, on all of its routes."""
    fitting = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in fitting for method in getattr(route, "methods", ())}
    return methods | {"HEAD"} if "GET" in methods else methods


def gauges(rooms: Rooms) -> dict[str, tuple[str, float]]:
    jobs = rooms.jobs
    return {
        "requests_in_flight": ("HTTP requests without an answer.", rooms.metrics.in_flight),
        "jobs_pending": ("Jobs that have not ended.", jobs.pending),
        "jobs_done": ("Jobs whose result is kept.", jobs.done),
        "job_result_bytes": ("Bytes of kept results.", jobs.result_bytes),
        "body_bytes": ("Bytes of bodies under way.", rooms.budget.used_bytes),
        "arena_used_bytes": ("Shared memory in use.", rooms.yard.client.arena_used_bytes),
        "requests_in_yard": ("Requests that the yard has not answered.", rooms.yard.client.under_way),
        "tasks": ("Asyncio tasks.", metrics.tasks()),
    }


@asynccontextmanager
async def running(rooms: Rooms) -> AsyncIterator[None]:
    """Runs around the server; closes everything in `rooms` at the end."""
    try:
        yield
    finally:
        await rooms.jobs.close()
        await rooms.yard.close()
        if rooms.regions is not None:
            rooms.regions.close()
