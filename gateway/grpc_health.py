"""gRPC's own health checks (grpc.health.v1), as load balancers, Kubernetes and grpcurl ask them.

The status of the server ("") and of its service is that of v2/health/ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from .errors import Refusal
from .grpc_door import Context, abort
from .grpc_messages import CLASSES_OF, SERVICE
from .rooms import Rooms

PACKAGE = "grpc.health.v1"
HEALTH = f"{PACKAGE}.Health"
SERVICES = ("", SERVICE, HEALTH)
LOOK_S = 1.0  # how often a watcher's answer is looked at again
WATCHERS_MAX = 64
_Request, _Response = (CLASSES_OF[PACKAGE][f"HealthCheck{kind}"] for kind in ("Request", "Response"))
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Health:
    """`Check` and `Watch`."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._watchers = 0

    def handler(self) -> Any:
        written = _Response.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, _Request.FromString, written),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, _Request.FromString, written),
            },
        )

    async def _status(self, service: str) -> int:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return NOT_SERVING if await self._rooms.yard.why_not_ready() else SERVING

    async def _check(self, message: Any, context: Context) -> Any:
        status = await self._status(message.service)
        if status == SERVICE_UNKNOWN:
            text = f"there is no service {message.service[:80]!r} here; ask for {SERVICE}, or for none"
            await abort(context, Refusal(404, "NOT_FOUND", text))
        return _Response(status=status)

    async def _watch(self, message: Any, context: Context) -> AsyncIterator[Any]:
        """The status now, and whenever it changes."""
        if self._watchers >= WATCHERS_MAX:
            await abort(context, Refusal(429, "TOO_MANY_REQUESTS", f"{WATCHERS_MAX} watch already", 1.0))
        self._watchers += 1
        told = 0
        try:
            while True:
                status = await self._status(message.service)
                if status != told:
                    told = status
                    yield _Response(status=status)
                await asyncio.sleep(LOOK_S)
        finally:
            self._watchers -= 1
