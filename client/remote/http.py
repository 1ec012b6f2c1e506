"""The Open Inference Protocol over HTTP, with binary tensors both ways; httpx carries it."""

from __future__ import annotations

import math
import ssl
import warnings
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, suppress
from importlib import import_module
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from ...transport.errors import BatchyardError
from ...transport.messages import ModelInfo
from .calls import DESCRIBED, LEFT_HEADER, Answer, Call, Packed, array_of, array_of_json, info_of
from .failures import Interrupted, Unreachable, error_of
from .turns import Turns

# anyio's, of a connection that is given up before its attempt has begun: nothing is lost by it.
warnings.filterwarnings(
    "ignore", r"coroutine 'connect_tcp\.<locals>\.try_connect' was never awaited", RuntimeWarning
)
HEADER_LENGTH = "Inference-Header-Content-Length"
EVENTS = "text/event-stream"
CONNECTIONS_MAX = 32  # each carries one request; httpx is slower with more (200 requests: 0.45 s; 100: 1.3 s)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Output(msgspec.Struct):
    """An output as the JSON names it; its bytes are behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None  # of an event


class Head(msgspec.Struct):
    outputs: list[Output] = []
    parameters: dict[str, Any] = {}


_head = msgspec.json.Decoder(Head)
with suppress(ImportError):
    import_module("anyio._backends._asyncio")  # else httpx does, amid the first request, on the event loop


class HttpCarrier:
    """Of one event loop. Raises a typed error, Unreachable, or Interrupted."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30)
        is_tls = url.startswith("https:")
        self._turns = Turns(CONNECTIONS_MAX)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=None,
            limits=limits,
            # Without TLS, a context that trusts nobody: reading the certificates takes 45 ms of a core.
            verify=is_tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=is_tls,  # of certificates; proxies of the environment only with TLS
        )

    def pack(self, call: Call) -> Packed:
        inputs, parts = [], []
        for name, datatype, shape, raw in call.inputs:
            entry = {"name": name, "datatype": datatype, "shape": shape}
            inputs.append({**entry, "parameters": {"binary_data_size": len(raw)}})
            parts.append(raw)
        parameters = {**call.parameters(), "binary_data_output": True}
        head = msgspec.json.encode({"inputs": inputs, "parameters": parameters})
        return call.packed(b"".join((head, *parts)), len(head))

    async def infer(self, packed: Packed) -> Answer:
        async with self._turns.turn(packed.priority):
            return _answer(await self._ask("POST", **_inference(packed)))

    async def stream(self, packed: Packed) -> AsyncGenerator[Answer, None]:
        """The answers of a model that gives several, as server-sent events."""
        try:
            async with self._turns.turn(packed.priority), self._streaming(packed) as answer:
                if answer.status_code != 200 or not answer.headers["content-type"].startswith(EVENTS):
                    await answer.aread()
                    if answer.status_code != 200:
                        raise _error(answer)
                    yield _answer(answer)
                    return
                failed = False
                async for line in answer.aiter_lines():
                    kind, _, rest = line.partition(": ")
                    if kind == "event":
                        failed = rest == "error"
                    elif kind == "data":
                        yield _event(rest, failed)
        except httpx.HTTPError as error:
            raise _broken(error) from None

    def _streaming(self, packed: Packed) -> AbstractAsyncContextManager[httpx.Response]:
        asked = _inference(packed)
        asked["headers"]["Accept"] = EVENTS
        return self._http.stream("POST", **asked)

    async def describe(self, model: str) -> ModelInfo:
        answer = await self._ask("GET", f"/v2/models/{quote(model, safe='')}/config")
        parameters = _json(answer).get("parameters", {})
        return info_of(parameters.get(DESCRIBED, {}).get("string_value"))

    async def names(self) -> list[str]:
        return [entry["name"] for entry in _json(await self._ask("POST", "/v2/repository/index"))]

    async def _ask(self, method: str, url: str, **what: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, url, **what)
        except httpx.HTTPError as error:
            raise _broken(error) from None
        if answer.status_code != 200:
            raise _error(answer)
        return answer

    async def close(self) -> None:
        await self._http.aclose()


def _inference(packed: Packed) -> dict[str, Any]:
    headers = {
        HEADER_LENGTH: str(packed.head_nbytes),
        LEFT_HEADER: str(math.ceil(packed.left_s * 1000)),
        "Content-Type": "application/octet-stream",
    }
    if packed.traceparent is not None:
        headers["traceparent"] = packed.traceparent
    path = f"/v2/models/{quote(packed.model, safe='')}/infer"
    return {"url": path, "content": packed.body, "headers": headers}


def _broken(error: httpx.HTTPError) -> Exception:
    if isinstance(error, _NOT_SENT):
        return Unreachable(str(error))
    return Interrupted(str(error) or type(error).__name__)


def _event(text: str, failed: bool) -> Answer:
    """One answer of several. Raises the error that ends them."""
    try:
        if failed:
            found = msgspec.json.decode(text)
            raise error_of(found.get("code"), 500, str(found.get("error")), None)
        head = _head.decode(text)
    except msgspec.MsgspecError as error:
        raise BatchyardError(f"the answer can't be read: {error}") from None
    outputs = [(each.name, array_of_json(each.datatype, each.shape, each.data)) for each in head.outputs]
    return Answer(outputs, head.parameters)


def _error(answer: httpx.Response) -> Exception:
    found: Any = {}
    try:
        found = msgspec.json.decode(answer.content)
    except msgspec.MsgspecError:
        pass
    if not isinstance(found, dict):
        found = {}
    text = str(found.get("error") or answer.text[:200].strip() or f"status {answer.status_code}")
    code = found.get("code") or answer.headers.get("batchyard-code")
    return error_of(code, answer.status_code, text, answer.headers.get("retry-after"))


def _json(answer: httpx.Response) -> Any:
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.MsgspecError as error:
        raise BatchyardError(f"the answer is no JSON: {error}") from None


def _answer(answer: httpx.Response) -> Answer:
    body = memoryview(answer.content)
    try:
        length = int(answer.headers.get(HEADER_LENGTH, len(body)))
        head = _head.decode(body[:length])
        outputs, at = [], length
        for output in head.outputs:
            nbytes = int(output.parameters.get("binary_data_size", 0))
            outputs.append((output.name, array_of(output.datatype, output.shape, body[at : at + nbytes])))
            at += nbytes
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise BatchyardError(f"the answer can't be read: {error}") from None
    return Answer(outputs, head.parameters)
