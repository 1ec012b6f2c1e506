"""The yard as the gateway uses it: requests, what is known of models, and the broker's counters.

Owns the one `AsyncClient`. What is asked of the broker for people to look at is asked once for all who
look at the same time.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from .. import AsyncClient, InvalidRequest, ModelInfo, Operator, Reply, UnknownModel
from .datatypes import Array
from .described import statistics
from .errors import Refusal, invalid

SNAPSHOT_AGE_S = 0.2  # how old the counters may be: a page that is looked at by many costs the same
LIST_AGE_S = 1.0  # how old the list of models may be that says which one is the only one
SNAPSHOT_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 30.0  # for a model to be loaded, and for a list of models


class Yard:
    """Arguments as for `AsyncClient`. Made on the loop that uses it."""

    def __init__(
        self, url: str | None, keys: str | os.PathLike[str] | None, arena_bytes: int, client: Any = None
    ) -> None:
        self.client: AsyncClient = client or AsyncClient(url, keys=keys, arena_bytes=arena_bytes)
        self._operator = Operator(url, keys)
        self._known: dict[str, ModelInfo] = {}
        self._snapshot: asyncio.Task[dict[str, Any]] | None = None
        self._taken_s = 0.0
        self._names: list[str] = []
        self._listed_s = -LIST_AGE_S
        self.last_ms: dict[str, int] = {}  # model -> when it last answered here, since the epoch

    async def model(self, name: str) -> ModelInfo:
        """A loaded model's metadata; known from before where nothing speaks against it.
        Raises UnknownModel, ModelFailed, DeadlineExceeded."""
        info = self._known.get(name)
        if info is None:
            info = self._known[name] = await self.client.wait_ready(name, ASK_TIMEOUT_S)
        return info

    async def models(self) -> list[ModelInfo]:
        """Every model, also those that cannot be served."""
        return await self.client.models()

    async def one(self, name: str, version: str = "") -> ModelInfo:
        """A model in whatever state. Raises UnknownModel, also for a version that is not served."""
        for info in await self.models():
            if info.name == name:
                check_version(info, version)
                return info
        raise UnknownModel(f"no model is called {name[:80]!r}")

    async def only(self) -> str:
        """The model that is meant when none is named. Raises Refusal where there are several."""
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
        """Run a model. (the model that answered, its reply). Raises what `AsyncClient.request` does."""
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

    async def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Statistics of one model ("": all) as the protocol's message. Raises UnknownModel."""
        infos = [await self.one(name, version)] if name else await self.models()
        snapshot = await self.snapshot()
        stats = [statistics(info, snapshot, self.last_ms.get(info.name, 0)) for info in infos]
        return {"model_stats": stats}

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
