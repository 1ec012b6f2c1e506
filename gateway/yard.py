"""The gateway's view of the yard: requests, known models, and the broker's counters.

Owns the one `AsyncClient`. Status questions that arrive at the same time share one question to the broker.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec.structs import replace

from .. import (
    AsyncClient,
    BatchyardError,
    BrokerLost,
    InvalidRequest,
    ModelInfo,
    Operator,
    Reply,
    UnknownModel,
)
from .datatypes import Array
from .described import served, statistics
from .errors import Refusal, invalid

STREAMS = (
    "answers a request several times: ask it by gRPC's ModelStreamInfer, or by v2/models/M/infer with "
    "Accept: text/event-stream"
)
SNAPSHOT_AGE_S = 0.2  # how old the counters may be: a page that is looked at by many costs the same
LIST_AGE_S = 1.0  # how old the list of models may be that says which one is the only one
SNAPSHOT_TIMEOUT_S = 2.0
LEAVING = "this gateway is being stopped, and will soon refuse requests"
READY_WITHIN_S = 1.0  # a broker that says nothing for so long is not ready
ASK_TIMEOUT_S = 30.0  # for a model to be loaded, and for a list of models


class Yard:
    """Arguments as for `AsyncClient`. Made on the loop that uses it."""

    def __init__(
        self,
        url: str | None,
        keys: str | os.PathLike[str] | None,
        arena_bytes: int,
        client: Any = None,
        ready_with_any: bool = False,
    ) -> None:
        self._enough = any if ready_with_any else all
        self.client: AsyncClient = client or AsyncClient(url, keys=keys, arena_bytes=arena_bytes)
        self._operator = Operator(url, keys)
        self._ordering = asyncio.Lock()  # a load holds a thread for as long as it takes
        self._known: dict[str, ModelInfo] = {}
        self._snapshot: asyncio.Task[dict[str, Any]] | None = None
        self._taken_s = 0.0
        self._names: list[str] = []
        self._listed_s = -LIST_AGE_S
        self._leaving = ""
        self.last_ms: dict[str, int] = {}  # model -> when it last answered here, since the epoch

    async def model(self, name: str) -> ModelInfo:
        """A loaded model's metadata, from the cache while that is valid.
        Raises UnknownModel, ModelFailed, DeadlineExceeded."""
        info = self._known.get(name)
        if info is None:
            info = self._known[name] = await self.client.wait_ready(name, ASK_TIMEOUT_S)
        return info

    async def models(self) -> list[ModelInfo]:
        """Every model, also those that cannot be served."""
        return await self.client.models()

    async def why_not_ready(self) -> str:
        """What keeps the yard from answering; "": it does. It is ready when every model can be served, or, as
        it was asked to be, any of them; and not once it, or this gateway, is being stopped."""
        if self._leaving:
            return self._leaving
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                infos = await self.models()
        except TimeoutError:
            return f"the broker has not answered within {READY_WITHIN_S:g} s"
        except BatchyardError as error:
            return str(error)
        reasons = [self.why_not_served(info) for info in infos]
        if not infos or self._enough(not reason for reason in reasons):
            return ""
        return "; ".join(filter(None, reasons))

    def why_not_served(self, info: ModelInfo) -> str:
        """What keeps a model from being served, or soon will; "": nothing."""
        if info.state.name != "READY":
            return f"{info.name!r} cannot be served: {info.reason or 'it is still loading'}"
        no_worker = "" if info.workers else f"{info.name!r} has no worker at the moment"
        return self._leaving or info.reason or no_worker

    def leave(self) -> None:
        """Nothing is ready from now on; it is served as before."""
        self._leaving = LEAVING

    async def is_gone(self) -> bool:
        """Whether no broker answers."""
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self.models()
        except (TimeoutError, BrokerLost):
            return True
        except BatchyardError:
            pass
        return False

    async def served(self) -> list[dict[str, Any]] | None:
        """The models with their digests; None where the broker does not answer soon."""
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                return served(await self.models())
        except (TimeoutError, BatchyardError):
            return None

    async def one(self, name: str, version: str = "") -> ModelInfo:
        """A model in any state. Raises UnknownModel, also for a version that is not served."""
        infos = await self.models()
        for info in infos:
            if info.name == name:
                check_version(info, version)
                return info
        names = ", ".join(sorted(info.name for info in infos)) or "none"
        raise UnknownModel(f"no model is called {name[:80]!r}; this yard has: {names[:200]}")

    async def described(self, name: str, version: str = "") -> ModelInfo:
        """As `one`, with the entries of its file where it is loaded."""
        info = await self.one(name, version)
        if info.state.name != "READY":
            return info
        known = await self.model(name)
        if known.revision != info.revision:
            self._known.pop(name, None)
            known = await self.model(name)
        return replace(info, origin=known.origin)

    async def only(self) -> str:
        """The only model, for a request that names none. Raises Refusal if there are several."""
        if time.monotonic() - self._listed_s > LIST_AGE_S:
            self._names = sorted(info.name for info in await self.models())
            self._listed_s = time.monotonic()
        if len(self._names) != 1:
            raise invalid(f"name a model: this yard serves {', '.join(self._names) or 'none'}")
        return self._names[0]

    async def infer(
        self,
        info: ModelInfo,
        inputs: dict[str, Array] | Array,
        priority: int,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> tuple[ModelInfo, Reply]:
        """Run a model. (the model that answered, its reply). Raises what `AsyncClient.request` does, and
        Refusal for a model that answers several times."""
        if info.streams:
            raise invalid(f"{info.name!r} {STREAMS}")
        try:
            reply = await self.client.request(
                info.name, inputs, priority=priority, timeout=timeout_s, traceparent=traceparent
            )
        except (InvalidRequest, UnknownModel):
            self._known.pop(info.name, None)  # another may have been loaded under the name
            raise
        self.last_ms[info.name] = int(time.time() * 1000)
        if reply.receipt.revision != info.revision:
            self._known.pop(info.name, None)
            info = await self.model(info.name)
        return info, reply

    async def stream(
        self,
        info: ModelInfo,
        inputs: dict[str, Array],
        priority: int,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> AsyncGenerator[dict[str, Array], None]:
        """The answers of a model that has several, each by its outputs' names. Raises what
        `AsyncClient.stream` does."""
        answers = self.client.stream(
            info.name, inputs, priority=priority, timeout=timeout_s, traceparent=traceparent
        )
        try:
            async for answer in answers:
                self.last_ms[info.name] = int(time.time() * 1000)
                yield answer if isinstance(answer, dict) else {info.outputs[0].name: answer}
        except (InvalidRequest, UnknownModel):
            self._known.pop(info.name, None)
            raise
        finally:
            await answers.aclose()

    async def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Statistics of one model ("": all) as the protocol's message. Raises UnknownModel."""
        infos = [await self.one(name, version)] if name else await self.models()
        snapshot = await self.snapshot()
        stats = [statistics(info, snapshot, self.last_ms.get(info.name, 0)) for info in infos]
        return {"model_stats": stats}

    async def order(self, name: str, how: Callable[[Operator], Any]) -> None:
        """An operator's order about a model, one at a time. Raises what the operator does."""
        async with self._ordering:
            try:
                await asyncio.to_thread(how, self._operator)
            finally:
                self._known.pop(name, None)

    async def snapshot(self) -> dict[str, Any]:
        """The broker's counters, a little old at most. Raises DeadlineExceeded."""
        task = self._snapshot
        if task is None or (task.done() and time.monotonic() - self._taken_s > SNAPSHOT_AGE_S):
            # On a thread: an operator's questions wait.
            task = self._snapshot = asyncio.ensure_future(
                asyncio.to_thread(self._operator.snapshot, SNAPSHOT_TIMEOUT_S)
            )
            task.add_done_callback(self._taken)
        return await asyncio.shield(task)

    def _taken(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._taken_s = time.monotonic()
        if not task.cancelled():
            task.exception()  # who asked may have gone: an error that nobody looks at is no mistake

    async def close(self) -> None:
        await self.client.close()


def check_version(info: ModelInfo, version: str) -> None:
    """Raises Refusal unless the model's revision is the one that was asked for, if one was."""
    if version and version != str(info.revision):
        text = f"{info.name!r} is served in version {info.revision}, not {version[:20]}"
        raise Refusal(404, "UNKNOWN_MODEL", text)
