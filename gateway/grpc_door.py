"""The way into the gRPC services and out of them: the token, and an error's last form."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from .errors import CODE, INTERNAL, Refusal, refusal_of
from .grpc_messages import SERVICE
from .http_guard import bearer_is
from .metrics import Metrics

log = logging.getLogger("gateway")
# Asked without a token. Not Watch: it holds a place for as long as it likes.
OPEN = {f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady", "/grpc.health.v1.Health/Check"}
Context = Any  # grpc.aio.ServicerContext; grpc has no types of its own

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Door(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Refuses a call without the token before its message is received, as HTTP's Guard does: the message
    may be long, and is longer once parsed. `token`: as the Guard's."""

    def __init__(self, services: Sequence[Any], token: str | None, metrics: Metrics) -> None:
        self._services = services
        self._token = token
        self._metrics = metrics
        self._refused = grpc.stream_stream_rpc_method_handler(self._refuse)  # it need not read anything

    def service(self, details: Any) -> Any:
        method = next(filter(None, (service.service(details) for service in self._services)), None)
        if method is None or self._token is None or details.method in OPEN:
            return method
        given = dict(details.invocation_metadata).get("authorization")
        if bearer_is(given, self._token):
            return method
        name = details.method.rpartition("/")[2]
        self._metrics.observe(f"grpc/{name}", 401, 0.0)
        return self._refused

    async def _refuse(self, messages: AsyncIterator[bytes], context: Context) -> None:
        text = "send the gateway's token: authorization: Bearer TOKEN"
        await abort(context, Refusal(401, "UNAUTHENTICATED", text))


def refusal_seen(error: BaseException) -> Refusal:
    """The refusal of an error; one that nobody foresaw is logged."""
    refusal = refusal_of(error)
    if refusal.code == INTERNAL:
        log.exception("a gRPC call failed")
    return refusal


async def abort(context: Context, refusal: Refusal) -> None:
    """End the call with the error's status."""
    metadata: tuple[tuple[str, str], ...] = (("code", refusal.code), (CODE.lower(), refusal.code))
    if refusal.retry_after_s is not None:
        metadata += (("retry-after", refusal.headers["Retry-After"]),)
    await context.abort(_STATUS.get(refusal.status, grpc.StatusCode.INTERNAL), refusal.text, metadata)
