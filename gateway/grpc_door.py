"""The way into the gRPC services and out of them: the token, how many at once, and an error's last form."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
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
    """Refuses a call without the token, or one too many, before its message is received, as HTTP's Guard
    does: the message may be long, and is longer once parsed. `token`, `calls_max`: as the Guard's. gRPC's
    own limit refuses without a reason, and refuses health checks as well."""

    def __init__(
        self, services: Sequence[Any], token: str | None, metrics: Metrics, calls_max: int
    ) -> None:
        self._services = services
        self._token = token
        self._metrics = metrics
        self._calls_max = calls_max
        self._calls = 0  # under way
        self._counted: dict[str, Any] = {}  # methods by their paths, which take one of these places
        text = "send the gateway's token: authorization: Bearer TOKEN"
        self._without_token = _refusing(Refusal(401, "UNAUTHENTICATED", text))
        text = f"{calls_max} requests are under way here; try again"
        self._one_too_many = Refusal(429, "TOO_MANY_REQUESTS", text, 1.0)
        self._without_place = _refusing(self._one_too_many)

    def service(self, details: Any) -> Any:
        path = details.method
        if self._token is not None and path not in OPEN:
            given = dict(details.invocation_metadata).get("authorization")
            if not bearer_is(given, self._token):
                if self._method(details) is None:
                    return None
                self._metrics.observe(f"grpc/{path.rpartition('/')[2]}", 401, 0.0)
                return self._without_token
        found = self._counted.get(path)
        if found is None:
            found = self._method(details)
            if found is not None and path not in OPEN:
                found = self._counted[path] = self._counting(found, path.rpartition("/")[2])
        if path in self._counted and self._is_full(path.rpartition("/")[2]):
            return self._without_place
        return found

    def _method(self, details: Any) -> Any:
        return next(filter(None, (service.service(details) for service in self._services)), None)

    def _counting(self, method: Any, name: str) -> Any:
        """The same method, for calls that find a place."""
        coders = method.request_deserializer, method.response_serializer
        run = method.unary_unary or method.stream_stream or method.unary_stream

        async def once(message: Any, context: Context) -> Any:
            with self._place(name) as refusal:
                if refusal is not None:
                    await abort(context, refusal)
                return await run(message, context)

        async def several(messages: Any, context: Context) -> AsyncIterator[Any]:
            with self._place(name) as refusal:
                if refusal is not None:
                    await abort(context, refusal)
                async with aclosing(run(messages, context)) as answers:
                    async for answer in answers:
                        yield answer

        if method.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(once, *coders)
        if method.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(several, *coders)
        return grpc.unary_stream_rpc_method_handler(several, *coders)

    @contextmanager
    def _place(self, name: str) -> Iterator[Refusal | None]:
        """A call's place; or the refusal, where others took the last one while its message was received."""
        if self._is_full(name):
            yield self._one_too_many
            return
        self._calls += 1
        try:
            yield None
        finally:
            self._calls -= 1

    def _is_full(self, name: str) -> bool:
        """Whether a call must be refused, which is then among the figures."""
        if self._calls < self._calls_max:
            return False
        self._metrics.observe(f"grpc/{name}", 429, 0.0)
        return True


def _refusing(refusal: Refusal) -> Any:
    """A method that reads nothing: only one whose messages are a stream need not."""

    async def refuse(messages: AsyncIterator[bytes], context: Context) -> None:
        await abort(context, refusal)

    return grpc.stream_stream_rpc_method_handler(refuse)


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
