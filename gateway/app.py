"""The ASGI application: which room answers which path. Owns the order of layers and the errors' last form."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import BatchyardError
from . import metrics, models_rest, openapi, page, predict
from .errors import ClientGone, Refusal, invalid, refusal_of
from .guard import GONE, ROUTE, Guard
from .jobs import State
from .oip_rest import infer
from .openapi import ANY_BODY, JOB, JSON, promises, takes
from .rooms import Rooms

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


def application(rooms: Rooms, token: str | None) -> ASGIApp:
    """Everything that is served over HTTP."""
    app = FastAPI(
        title="batchyard gateway",
        version=rooms.version,
        description="Jobs, and the Open Inference Protocol, for a yard.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        default_response_class=Response,
        redirect_slashes=False,
    )
    for kind in (BatchyardError, Refusal, ClientGone, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answered)
    _own_routes(app, rooms)
    _predict_routes(app, rooms)
    app.include_router(models_rest.router(rooms))
    app.include_router(models_rest.memory_router(rooms))
    rooms.metrics.add_gauges(lambda: gauges(rooms))
    return Guard(_Straight(app, rooms), rooms.metrics, token, rooms.limits.requests_max)


class _Straight:
    """Inference goes past the framework: its layers and its router took 45 of 90 parts of the gateway's
    CPU at 16 small requests in flight. The same function answers, and the document names the same paths."""

    _INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

    def __init__(self, app: ASGIApp, rooms: Rooms) -> None:
        self._app = app
        self._rooms = rooms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._INFER.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        model, version = found[1], found[2] or ""
        scope[ROUTE] = models_rest.PATHS[bool(version)] + "/infer"
        response = await infer(Request(scope, receive), self._rooms, model, version)
        await response(scope, receive, send)


async def _answered(request: Request, error: Exception) -> Response:
    """An error in its one form."""
    headers: dict[str, str] = {}
    if isinstance(error, ClientGone):
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        text = "there is nothing at this path" if error.status_code == 404 else str(error.detail)
        refusal = Refusal(error.status_code, _HTTP_CODES.get(error.status_code, "INVALID_REQUEST"), text)
    elif isinstance(error, RequestValidationError):
        refusal = invalid("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    else:
        refusal = refusal_of(error)
    response = models_rest.answer(refusal.body)
    response.status_code = refusal.status
    response.headers.update(headers | refusal.headers)
    return response


def _own_routes(app: FastAPI, rooms: Rooms) -> None:
    @app.get("/", responses=promises({"text/html": {"type": "string"}}))
    async def status_page() -> Response:
        return Response(page.HTML, media_type="text/html", headers=page.HEADERS)

    @app.get("/status", responses=promises({JSON: openapi.FREE}))
    async def status() -> Response:
        """What the status page shows: models, and the broker's cumulative counters of them."""
        return models_rest.answer(page.figures(await rooms.yard.models(), await rooms.yard.snapshot()))

    @app.get("/metrics", responses=promises({"text/plain": {"type": "string"}}))
    async def metrics_page() -> Response:
        """The gateway's own figures; the broker's are the sidecar's."""
        return Response(rooms.metrics.page(), headers={"Content-Type": metrics.CONTENT_TYPE})


def _predict_routes(app: FastAPI, rooms: Rooms) -> None:
    reading = takes(openapi.PREDICT_BODY, *openapi.PREDICT_QUERY)
    waiting = takes(openapi.PREDICT_BODY, *openapi.PREDICT_QUERY, openapi.OUTPUT_QUERY)

    @app.post("/predict", responses=promises(openapi.RESULT, *ANY_BODY, 404, 406), openapi_extra=waiting)
    async def predict_now(request: Request) -> Response:
        return await predict.predict(request, rooms)

    @app.post(
        "/predict/async",
        status_code=202,
        responses=promises(None, *ANY_BODY, 404, other={202: JOB}),
        openapi_extra=reading,
    )
    async def predict_later(request: Request) -> Response:
        return await predict.start(request, rooms)

    @app.get("/predict/status/{job_id}", responses=promises({JSON: JOB}, 404))
    async def job_status(job_id: str) -> Response:
        return predict.status(rooms.jobs.get(job_id))

    @app.get(
        "/predict/result/{job_id}",
        responses=promises(openapi.RESULT, 400, 404, 406, 410, 413, other={202: JOB}),
        openapi_extra={"parameters": [openapi.TIMEOUT_QUERY, openapi.OUTPUT_QUERY]},
    )
    async def job_result(request: Request, job_id: str) -> Response:
        return await predict.result(request, rooms, job_id)

    @app.delete("/predict/cancel/{job_id}", responses=promises({JSON: JOB}, 404))
    async def job_cancel(job_id: str) -> Response:
        return await predict.cancel(rooms, job_id)


def gauges(rooms: Rooms) -> dict[str, tuple[str, float]]:
    """What is there now, for /metrics."""
    jobs = rooms.jobs
    return {
        "requests_in_flight": ("HTTP requests without an answer.", rooms.metrics.in_flight),
        "jobs_pending": ("Jobs that have not ended.", jobs.count(State.PENDING)),
        "jobs_done": ("Jobs whose result is kept.", jobs.count(State.DONE)),
        "job_result_bytes": ("Bytes of kept results.", jobs.result_bytes),
        "body_bytes": ("Bytes of bodies under way.", rooms.budget.used_bytes),
        "arena_used_bytes": ("Shared memory in use.", rooms.yard.client.arena_used_bytes),
        "requests_in_yard": ("Requests that the yard has not answered.", rooms.yard.client.under_way),
        "tasks": ("Asyncio tasks.", metrics.tasks()),
    }


@asynccontextmanager
async def running(rooms: Rooms) -> AsyncIterator[None]:
    """What lives beside the requests; everything of the rooms is closed at the end."""

    sweeping = asyncio.ensure_future(rooms.jobs.sweep_for_ever())
    try:
        yield
    finally:
        sweeping.cancel()
        await rooms.jobs.close()
        await rooms.yard.close()
        if rooms.regions is not None:
            rooms.regions.close()
