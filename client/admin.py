"""`Operator`: questions and orders to a broker's admin socket: counters, and the models that it serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..transport import endpoints
from ..transport import messages as m
from ..transport.admin import Answer, ask
from ..transport.endpoints import Endpoint
from ..transport.keys import KeyFolder
from ..transport.messages import ModelChanged

TIMEOUT_S = 120.0  # for a change: a big model is loaded and warmed by one worker after the other


class Operator:
    """Asks and orders. `url` and `keys` as for `Client`; a connection is made for every call.

    `file` is relative to the yard's `models_root`, and must lie in it. All raise DeadlineExceeded when
    no broker is there within a few seconds, or no answer within `timeout` seconds, and Unauthorized;
    `load`, `swap`, and `unload` BrokerLost when the broker goes away meanwhile. What was ordered of a
    broker that did not answer may still be done, or not at all.
    """

    def __init__(self, url: str | None = None, keys: str | os.PathLike[str] | None = None) -> None:
        self.endpoint = Endpoint.parse(url or endpoints.default_url())
        self._keys = KeyFolder(Path(keys)) if keys is not None else None

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        """The broker's cumulative counters."""
        return self._ask(m.Snapshot(), m.SnapshotTaken, timeout).counters

    def load(
        self,
        name: str,
        file: str | os.PathLike[str],
        max_batch: int | None = None,
        timeout: float = TIMEOUT_S,
    ) -> ModelChanged:
        """Serve one more model, and return when every worker has it loaded and warm. Raises InvalidRequest
        for a name that is taken or a file that can't be used, ModelFailed with the reason why it can't
        be loaded."""
        return self._ask(m.LoadModel(name, os.fspath(file), max_batch), ModelChanged, timeout)

    def swap(
        self,
        name: str,
        file: str | os.PathLike[str] | None = None,
        tolerance: float | None = None,
        timeout: float = TIMEOUT_S,
    ) -> ModelChanged:
        """Serve a model from another file (None: its own, read anew), without failing a request.

        Every worker loads it beside the old one and runs a canary through both; `tolerance` is the
        greatest difference that any answer may have (None: any; it is in what is returned). Raises
        UnknownModel, InvalidRequest, and ModelFailed when the file can't be loaded, takes or gives
        other tensors, or fails the canary: then the old one serves on.
        """
        order = m.SwapModel(name, os.fspath(file) if file is not None else "", tolerance)
        return self._ask(order, ModelChanged, timeout)

    def unload(self, name: str, timeout: float = TIMEOUT_S) -> ModelChanged:
        """Serve a model no longer. New requests fail with UnknownModel; returns when those that were
        there have ended. Raises UnknownModel."""
        return self._ask(m.UnloadModel(name), ModelChanged, timeout)

    def _ask(self, message: m.AdminMessage, kind: type[Answer], timeout: float) -> Answer:
        return ask(self.endpoint, self._keys, message, kind, timeout)
