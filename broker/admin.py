"""The operators' side of the broker: its counters, and orders to load, swap, and unload models.

Owns the admin ROUTER (loop.py polls it). A reader that is slow or gone costs nothing: what can't be
sent at once is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ..transport import codec
from ..transport import messages as m
from ..transport.errors import BatchyardError, Code, MalformedMessage
from ..transport.sockets import MORE_NOBLOCK, NOBLOCK, Socket, readable
from . import events as e
from .config import ModelConfig, YardConfig, with_file
from .core import Core

ANSWERS_MAX = 4  # messages read at one look: a flood of them must not keep others waiting
QUESTIONS_MAX = 16  # in one message, for the same reason: a snapshot takes some 12 us for each model
ORDERS_MAX = 64  # orders under way at once


class Admin:
    """`act` carries out what the core wants; `snapshot` collects the counters of every room."""

    def __init__(
        self,
        socket: Socket,
        core: Core,
        config: YardConfig,
        act: Callable[[list[e.Action]], None],
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self._socket = socket
        self._core = core
        self._config = config
        self._act = act
        self._snapshot = snapshot
        self._orders: dict[int, bytes] = {}  # under way -> who is to be told
        self._sequence = 0

    def look(self, now_ns: int) -> None:
        """Read what has come, a few messages at most."""
        for _ in range(ANSWERS_MAX):
            if not readable(self._socket):
                return
            identity, payload, *_rest = self._socket.recv_multipart()
            try:
                messages = codec.admin_to_broker.decode(payload)
                if len(messages) > QUESTIONS_MAX:
                    raise MalformedMessage(f"an operator asks {QUESTIONS_MAX} things at once at most")
            except BatchyardError as error:
                self._refuse(identity, "admin_malformed", error)
                continue
            for message in messages:
                try:
                    self._handle(identity, message, now_ns)
                except BatchyardError as error:
                    self._refuse(identity, "admin_refused", error)

    def answer(self, action: e.ToAdmin) -> None:
        """An order has been carried out, or refused."""
        identity = self._orders.pop(action.admin, None)
        if identity is not None:
            self._send(identity, action.message)

    def _handle(self, identity: bytes, message: m.AdminMessage, now_ns: int) -> None:
        if isinstance(message, m.Snapshot):
            self._send(identity, m.SnapshotTaken(self._snapshot()))
            return
        if len(self._orders) >= ORDERS_MAX:
            text = f"{ORDERS_MAX} changes of models are under way; try again"
            self._send(identity, m.Refused(Code.OVERLOADED, text))
            return
        event: e.ModelUnwanted | e.ModelWanted
        number = self._sequence + 1
        if isinstance(message, m.UnloadModel):
            event = e.ModelUnwanted(number, message.model)
        else:
            swap = isinstance(message, m.SwapModel)
            tolerance = message.tolerance if isinstance(message, m.SwapModel) else None
            event = e.ModelWanted(number, self._wanted(message), swap, tolerance)
        self._sequence = number
        self._orders[number] = identity
        self._act(self._core.handle(event, now_ns))

    def _wanted(self, message: m.LoadModel | m.SwapModel) -> ModelConfig:
        """The model as it would be. Raises InvalidRequest, UnknownModel."""
        root, load_python = self._config.models_root, self._config.load_python
        if isinstance(message, m.SwapModel):
            return with_file(self._core.served(message.model).config, message.file, root, load_python)
        max_batch = message.max_batch or self._config.max_batch
        new = ModelConfig(message.model, Path(), max_batch)
        return with_file(new, message.file, root, load_python)

    def _refuse(self, identity: bytes, reason: str, error: BatchyardError) -> None:
        self._core.counters.refuse(reason)
        self._send(identity, m.Refused(error.code, str(error)))

    def _send(self, identity: bytes, message: m.BrokerToAdmin) -> None:
        reply = codec.encode([message])
        try:
            self._socket.send(identity, MORE_NOBLOCK)
            self._socket.send(reply, NOBLOCK)
        except zmq.ZMQError:
            self._core.counters.refuse("admin_unreachable")
