"""Checks before a request (token, origin, how many at once) and counts after it.

Owns the order of these checks, as one ASGI middleware around everything. A dropped connection is seen
here too (`while_connected`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import INTERNAL, ClientGone, Refusal, body_at, refusal_of
from .metrics import Metrics

log = logging.getLogger("gateway")
T = TypeVar("T")
# Asked without a token, and while all places are taken: whether it lives, and pages that hold no data.
OPEN_PATHS = {"/", "/docs", "/v2/health/live", "/v2/health/ready"}
OWN_NAMES = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}  # of this machine
ROUTE = "batchyard.route"  # in a scope: the route's path, where it was found without the framework
GONE = 499  # what is counted for a connection that was closed before its answer


def bearer_is(header: str | None, token: str) -> bool:
    """Whether an Authorization header holds the token; the time that it takes tells nothing of it."""
    scheme, _, given = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


class Guard:
    """Without a token anybody who reaches the address may ask, but no page of another origin."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, requests_max: int) -> None:
        self._app = app
        self._metrics = metrics
        self._token = token
        self._requests_max = requests_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # whatever GET has: uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        started_s = time.perf_counter()
        status = GONE

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics = self._metrics
        metrics.in_flight += 1
        try:
            self._admit(scope)
            await self._app(scope, receive, counted_send)
        except ClientGone:
            pass
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == INTERNAL:
                log.exception("%s %r", scope["method"], scope["path"])  # it may hold a line's end
            if status == GONE:  # else the answer has begun: uvicorn breaks the connection off
                await answer(refusal, scope["path"], counted_send)
        finally:
            metrics.in_flight -= 1
            route = scope.get(ROUTE) or getattr(scope.get("route"), "path", None)
            metrics.observe(route or "other", status, time.perf_counter() - started_s)

    def _admit(self, scope: Scope) -> None:
        """Raises Refusal."""
        headers = Headers(scope=scope)
        hosts = len(headers.getlist("host"))
        if hosts > 1 or (not hosts and scope.get("http_version") != "1.0"):
            # A proxy in front may have read another one than we do.
            text = f"a request has exactly one Host header, this one has {hosts}"
            raise Refusal(400, "INVALID_REQUEST", text)
        if self._token is None:
            _check_origin(headers)
        if scope["path"] in OPEN_PATHS and scope["method"] == "GET":
            return
        if self._token is not None and not bearer_is(headers.get("authorization"), self._token):
            raise Refusal(401, "UNAUTHENTICATED", "send the gateway's token: Authorization: Bearer TOKEN")
        if self._metrics.in_flight > self._requests_max:
            text = f"{self._requests_max} requests are under way here; try again"
            raise Refusal(429, "TOO_MANY_REQUESTS", text, 1.0)


def _check_origin(headers: Headers) -> None:
    """A page of another site must not use the yard through its visitor's browser: not by a plain request
    (Origin), and not by a name of its own that it lets point to this machine (Host)."""
    host = headers.get("host", "")
    if host and hostname(f"//{host}") not in OWN_NAMES:
        names = ", ".join(sorted(OWN_NAMES))
        raise Refusal(403, "FORBIDDEN", f"without a token, the Host must be this machine's: {names}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        raise Refusal(403, "FORBIDDEN", "pages of other origins may not use this gateway")


def hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def answer(refusal: Refusal, path: str, send: Send) -> None:
    """Send an error response without the framework."""
    body = json.dumps(body_at(path, refusal)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **{name.lower(): value for name, value in refusal.headers.items()},
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The work's outcome. Raises ClientGone, with the work cancelled, when the connection is closed
    before it is there. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    dropped = False

    async def watch(receive: Callable[[], Awaitable[Any]]) -> None:
        nonlocal dropped
        while (await receive())["type"] != "http.disconnect":
            pass
        dropped = True
        task.cancel()

    watcher = asyncio.ensure_future(watch(request.receive))
    try:
        return await work
    except asyncio.CancelledError:
        if dropped and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
