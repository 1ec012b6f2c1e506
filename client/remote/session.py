"""What a remote client knows and does, whichever thread or loop drives it: its address, models, and a request
from its call to its reply.

Every coroutine here belongs to one event loop, the first that asks. What is asked again after a lost
connection, and until when, is decided in `_carried`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from ...transport import extras
from ...transport.errors import BatchyardError, BrokerLost, DeadlineExceeded, InvalidRequest, UnknownModel
from ...transport.messages import ModelInfo, ModelState
from ..reply import Reply
from ..request import Request, Stream
from ..session import check_connect_timeout, check_name
from ..signature import Array, Signature
from . import HTTP
from .calls import Answer, Call, Packed, call_of
from .failures import Interrupted, Unreachable

TOKEN_VARIABLE = "BATCHYARD_GATEWAY_TOKEN"
AGAIN_S = 0.05  # between two tries to connect, and between two looks at a model that is loading
T = TypeVar("T")


class Carrier(Protocol):
    """The interface of http.py and grpc.py."""

    def pack(self, call: Call) -> Packed: ...
    async def infer(self, packed: Packed) -> Answer: ...
    def stream(self, packed: Packed) -> AsyncGenerator[Answer, None]: ...
    async def describe(self, model: str) -> ModelInfo: ...
    async def names(self) -> list[str]: ...
    async def close(self) -> None: ...


class RemoteSession:
    """url: `http://host:port`, `grpc://host:port`, or with TLS `https`, `grpcs`. token: the gateway's;
    default $BATCHYARD_GATEWAY_TOKEN. Raises InvalidRequest for a url that is none, BatchyardError where a
    package is missing."""

    def __init__(
        self, url: str, keys: object, connect_timeout_s: float, token: str | None, *of_a_yard: object
    ) -> None:
        if keys is not None:
            raise InvalidRequest("keys are for a yard's broker; a gateway takes a token, over https or grpcs")
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if not parts.hostname or port is None or parts.path not in ("", "/") or parts.query:
            raise InvalidRequest(f"{url!r} is no gateway's address: write {parts.scheme}://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}:{port}"
        self._target = f"{host}:{port}"
        self._scheme = parts.scheme
        package = "httpx" if parts.scheme in HTTP else "grpc"
        if find_spec(package) is None:
            raise BatchyardError(f"{parts.scheme}:// needs {package}: {extras.install('fleet')}")
        check_connect_timeout(connect_timeout_s)
        self._token = _token(token)
        self.connect_timeout_s = connect_timeout_s
        self.signatures: dict[str, Signature] = {}
        self._asking: dict[str, asyncio.Task[ModelInfo]] = {}
        self.bytes_copied = 0
        self.carrier: Carrier = self._new()

    def _new(self) -> Carrier:
        made: Carrier
        if self._scheme in HTTP:
            made = import_module("batchyard.client.remote.http").HttpCarrier(self.url, self._token)
        else:
            tls = self._scheme.endswith("s")
            made = import_module("batchyard.client.remote.grpc").GrpcCarrier(self._target, self._token, tls)
        return made

    def renew(self) -> None:
        """Another loop drives it from now on, or a forked child: no connection comes along."""
        self._asking = {}
        self.carrier = self._new()

    async def close(self) -> None:
        """Close the connections; nobody asks any more."""
        for task in list(self._asking.values()):
            task.cancel()
        await self.carrier.close()

    # ---- requests -----------------------------------------------------------------------------

    def pack(self, signature: Signature, request: Request) -> Packed:
        """Check a request and copy its tensors into its message. Raises InvalidRequest."""
        request.check_answers(signature)
        try:
            call = call_of(signature, request)
        except InvalidRequest:
            signature.doubt()
            raise
        self.bytes_copied += call.nbytes
        return self.carrier.pack(call)

    async def reply(self, request: Request, packed: Packed | None = None) -> Reply:
        """The reply to a request. Raises a local client's errors."""

        async def made() -> Reply:
            signature = await self.signature(request.model)
            message = packed or self.pack(signature, request)
            try:
                again = signature.idempotent
                answer = await self._carried(lambda: self.carrier.infer(message), request, again)
            except (InvalidRequest, UnknownModel):
                signature.doubt()
                raise
            return answer.reply()

        return await self.within(request, made())

    async def answers(self, request: Request) -> AsyncGenerator[Array | dict[str, Array], None]:
        """Its answers, as they come; what has been answered is never asked for again."""
        request.stream = Stream(lambda: None)  # it takes several; none is kept here
        signature = await self.within(request, self.signature(request.model))
        packed = self.pack(signature, request)
        stream = self.carrier.stream(packed)

        async def begun() -> Answer | None:
            nonlocal stream
            stream = self.carrier.stream(packed)
            return await anext(stream, None)

        try:
            answer = await self.within(request, self._carried(begun, request, signature.idempotent))
            while answer is not None:
                yield answer.value
                following = self._carried(lambda: anext(stream, None), request, False)
                answer = await self.within(request, following)
        finally:
            await stream.aclose()

    async def within(self, request: Request, work: Awaitable[T]) -> T:
        """Raises DeadlineExceeded when the request's caller waits no longer."""
        return await _within((request.due_ns - time.monotonic_ns()) / 1e9, work)

    async def signature(self, model: str) -> Signature:
        """A loaded model's, asked for once. Raises UnknownModel, ModelFailed."""
        known = self.signatures.get(model)
        if known is not None:
            return known
        asking = self._asking.get(model)
        if asking is None:
            asking = self._asking[model] = asyncio.ensure_future(self._loaded(model))
            asking.add_done_callback(lambda task: self._told(model, task))
        info = await asyncio.shield(asking)  # others wait for it, too
        return self.signatures.setdefault(model, Signature(info, self.signatures))

    def _told(self, model: str, task: asyncio.Task[ModelInfo]) -> None:
        self._asking.pop(model, None)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone

    async def models(self, timeout_s: float) -> list[ModelInfo]:
        """Every model, in any state."""

        async def asked() -> list[ModelInfo]:
            names = await self._carried(self.carrier.names)
            return [await self._described(name) for name in names]

        return await _within(timeout_s, asked())

    async def wait_ready(self, model: str, timeout_s: float) -> ModelInfo:
        """As `Client.wait_ready`."""
        check_name(model)
        info = await _within(timeout_s, self._loaded(model))
        Signature(info)
        return info

    async def _loaded(self, model: str) -> ModelInfo:
        while (info := await self._described(model)).state is ModelState.LOADING:
            await asyncio.sleep(AGAIN_S)
        return info

    async def _described(self, model: str) -> ModelInfo:
        return await self._carried(lambda: self.carrier.describe(model))

    async def _carried(
        self, ask: Callable[[], Awaitable[T]], request: Request | None = None, again: bool = True
    ) -> T:
        """An answer. What nobody has received is sent again until the connect timeout; what somebody may have
        run only with `again`, and for as long as its caller waits. Raises BrokerLost."""
        give_up_s = time.monotonic() + self.connect_timeout_s
        while True:
            try:
                return await ask()
            except Unreachable as error:
                if time.monotonic() > give_up_s:
                    raise BrokerLost(f"nobody answers at {self.url}: {error}") from None
            except Interrupted as error:
                if not again:
                    raise BrokerLost(f"{self.url} went away during the request: {error}") from None
                if request is not None:
                    give_up_s = request.due_ns / 1e9
                elif time.monotonic() > give_up_s:
                    raise BrokerLost(f"{self.url} went away: {error}") from None
            await asyncio.sleep(AGAIN_S)


def _token(given: str | None) -> str | None:
    """The token, or that of the environment. Raises InvalidRequest for what no header can carry."""
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE)
    if token is None or (isinstance(token, str) and token.isascii() and token.isprintable()):
        return token
    of = "token" if given is not None else f"${TOKEN_VARIABLE}"
    why = f", not an object of type {type(token).__name__}"
    if isinstance(token, str):
        why = "; this one ends with a line break" if token.endswith(("\n", "\r")) else "; this one has others"
    raise InvalidRequest(f"{of} is one line of plain characters (ASCII){why}")


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Raises DeadlineExceeded when the caller's patience ends."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except DeadlineExceeded:  # a TimeoutError, too, and the yard's own words
        raise
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within {seconds:.3g} s") from None
