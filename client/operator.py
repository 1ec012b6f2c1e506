"""`Operator`: questions and orders to a broker's admin socket: counters, and the models that it serves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..transport import endpoints
from ..transport import messages as m
from ..transport.admin import Answer, ask
from ..transport.endpoints import Endpoint
from ..transport.errors import InvalidRequest, shown
from ..transport.keys import KeyFolder
from ..transport.messages import ModelChanged
from .options import check_seconds
from .session import YARD_CLOSED, ClientClosed, check_name

TIMEOUT_S = 120.0  # for a change: a big model is loaded and warmed by one worker after the other


class Operator:
    """Asks and orders. `url` and `keys` as for `Client`; a connection is made for every call. `secret`: of a
    yard on tcp without keys; by default $BATCHYARD_SECRET, or what its broker has written down for its user.

    `file` is relative to the yard's `models_root`, and must lie in it. All raise DeadlineExceeded when
    no broker is there within a few seconds, or no answer within `timeout` seconds, and Unauthorized;
    `load`, `swap`, and `unload` BrokerLost when the broker goes away meanwhile. What was ordered of a
    broker that did not answer may still be done, or not at all.
    """

    def __init__(
        self, url: str | None = None, keys: str | os.PathLike[str] | None = None, *, secret: str = ""
    ) -> None:
        self.endpoint = Endpoint.parse(url or endpoints.default_url())
        self._keys = KeyFolder(Path(keys)) if keys is not None else None
        self._secret = secret
        self._closed = ""

    def snapshot(self, timeout: float = 5.0) -> dict[str, Any]:
        """The broker's cumulative counters."""
        return self._ask(m.Snapshot(), m.SnapshotTaken, timeout).counters

    def load(
        self,
        name: str,
        file: str | os.PathLike[str],
        max_batch: int | None = None,
        timeout: float = TIMEOUT_S,
        options: Mapping[str, Any] | None = None,
        *,
        run_seconds_max: float | None = None,
    ) -> ModelChanged:
        """Serve one more model, and return when every worker has it loaded and warm. `options`: what its
        table in a batchyard.toml may say besides its file, by the same keys (docs/configuration.md). A
        worker that runs one batch of it for longer than `run_seconds_max` is ended (None: there is no such
        bound). Raises InvalidRequest for a name that is taken, a file that can't be used, or options that
        can't be, ModelFailed with the reason why it can't be loaded."""
        check_name(name)
        if max_batch is not None and not (isinstance(max_batch, int) and 1 <= max_batch <= m.ROWS_MAX):
            raise InvalidRequest(f"max_batch is a number of rows, 1 to {m.ROWS_MAX}, not {shown(max_batch)}")
        run_ns_max = _run_ns_max(run_seconds_max)
        order = m.LoadModel(name, _path(file), max_batch, run_ns_max, plain(options or {}))
        return self._ask(order, ModelChanged, timeout)

    def swap(
        self,
        name: str,
        file: str | os.PathLike[str] | None = None,
        tolerance: float | None = None,
        timeout: float = TIMEOUT_S,
        options: Mapping[str, Any] | None = None,
        *,
        run_seconds_max: float | None = None,
    ) -> ModelChanged:
        """Serve a model from another file (None: its own, read anew), without failing a request.

        Every worker loads it beside the old one and runs a canary through both; `tolerance` is the
        greatest difference that any answer may have (None: any; it is in what is returned). `options`
        and `run_seconds_max` as of `load`; what they don't say stays as it is, and 0 takes that bound away.
        Whether it batches can't change. Raises UnknownModel, InvalidRequest, and ModelFailed when the file
        can't be loaded, takes or gives other tensors, or fails the canary: then the old one serves on.
        """
        check_name(name)
        if tolerance is not None and (not isinstance(tolerance, int | float) or not tolerance >= 0):
            raise InvalidRequest(f"tolerance is a number, 0 or more, not {shown(tolerance)}")
        path = _path(file) if file is not None else ""
        order = m.SwapModel(name, path, tolerance, _run_ns_max(run_seconds_max), plain(options or {}))
        return self._ask(order, ModelChanged, timeout)

    def unload(self, name: str, timeout: float = TIMEOUT_S) -> ModelChanged:
        """Serve a model no longer. New requests fail with UnknownModel; returns when those that were
        there have ended. Raises UnknownModel."""
        check_name(name)
        return self._ask(m.UnloadModel(name), ModelChanged, timeout)

    def yard_closed(self) -> None:
        """There will be no broker any more."""
        self._closed = YARD_CLOSED

    def _ask(self, message: m.AdminMessage, kind: type[Answer], timeout: float) -> Answer:
        if self._closed:
            raise ClientClosed(self._closed)
        check_seconds("timeout", timeout)
        return ask(self.endpoint, self._keys, message, kind, timeout, self._secret)


def _path(file: object) -> str:
    """Raises InvalidRequest for what names no file."""
    if isinstance(file, str | os.PathLike):
        path = os.fspath(file)
        if isinstance(path, str) and path.isprintable():
            return path
    raise InvalidRequest(f"file is the path of a file in the yard's models_root, not {shown(file)}")


def _run_ns_max(seconds: float | None) -> int | None:
    """Raises InvalidRequest for what is no number of seconds, or more than a week."""
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= m.RUN_SECONDS_MAX:
        most = m.RUN_SECONDS_MAX
        found = shown(seconds)
        raise InvalidRequest(f"run_seconds_max: expected seconds, 0 (no bound) to {most}, found {found}")
    return round(seconds * 1e9)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they can be sent. Raises InvalidRequest."""
    try:
        found = msgspec.to_builtins(options, str_keys=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"options are plain values, as a batchyard.toml has them: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InvalidRequest(f"options are a mapping such as {{'batchable': False}}, not {shown(options)}")
    return found
