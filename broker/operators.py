"""The operators' side of the broker: their bytes become events, the core's actions become their bytes.

Owns the admin socket: questions about counters, and orders to load, swap, and unload models. It knows no
core. A reader that is slow or gone costs nothing: an answer that can't be kept for it is dropped and counted.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..transport import codec, secret
from ..transport import messages as m
from ..transport.errors import BatchyardError, MalformedMessage, Overloaded
from ..transport.wire import Ended, Full, Listener, Peer
from . import events as e
from .config import ModelConfig, YardConfig, with_file, with_options
from .counters import Counters
from .models import Model, served

ANSWERS_MAX = 4  # messages read at one look: a flood of them must not keep others waiting
QUESTIONS_MAX = 16  # in one message, for the same reason: a snapshot takes some 12 us for each model
ORDERS_MAX = 64  # orders under way at once
GREET_WITHIN_NS = 10_000_000_000  # a connection that has sent nothing by then is closed
STRANGERS_MAX = 64  # or is the oldest of so many


class Operators:
    """`models`: the ones that a swap may be of. `secret`: an operator must know it; "": none is asked for."""

    def __init__(
        self,
        listener: Listener,
        models: Mapping[str, Model],
        counters: Counters,
        config: YardConfig,
        secret: str = "",
    ) -> None:
        self.listener = listener
        self._models = models
        self._counters = counters
        self._config = config
        self._secret = secret.encode()
        self.models_root = str(config.models_root or "")
        self._asked: dict[int, Peer] = {}  # questions and orders without an answer -> the connection
        self._orders = 0  # of these, orders
        self._sequence = 0

    def read(self, now_ns: int) -> Iterator[e.Event]:
        """The events of a few messages, one by one: an order may refer to the one before."""
        for peer, parts in self.listener.receive(ANSWERS_MAX, codec.PAYLOAD_BYTES_MAX):
            if parts is not None:
                yield from self._receive(peer, parts[0])
        for _ in range(self.listener.dismiss_strangers(now_ns, GREET_WITHIN_NS, STRANGERS_MAX)):
            self._counters.refuse("never_greeted")

    def _receive(self, peer: Peer, payload: Any) -> Iterator[e.Event]:
        try:
            messages = codec.admin_to_broker.decode(payload)
            if len(messages) > QUESTIONS_MAX:
                raise MalformedMessage(f"an operator sends at most {QUESTIONS_MAX} messages at once")
        except BatchyardError as error:
            self._refuse(peer, "admin_malformed", error)
            return
        if self._secret and not all(self._knows(message.secret) for message in messages):
            self._refuse(peer, "admin_unauthorized", secret.required("operator"))
            return
        self.listener.admit(peer)
        for message in messages:
            try:
                event = self._event(message)
            except BatchyardError as error:
                self._refuse(peer, "admin_refused", error)
            else:
                self._asked[self._sequence] = peer
                yield event

    def _knows(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._secret)

    def write(self, action: e.ToAdmin) -> None:
        self._orders -= 1
        self.answer(action.admin, codec.encode([action.message]))

    def answer(self, admin: int, payload: bytes) -> None:
        peer = self._asked.pop(admin, None)
        if peer is not None:
            self._send(peer, payload)

    def flush(self) -> None:
        self.listener.flush()

    def _event(self, message: m.AdminMessage) -> e.Event:
        """Numbered by `_sequence`. Raises InvalidRequest, UnknownModel, Overloaded."""
        if isinstance(message, m.Snapshot):
            self._sequence += 1
            return e.SnapshotAsked(self._sequence)
        if self._orders >= ORDERS_MAX:
            raise Overloaded(f"{ORDERS_MAX} changes of models are under way; try again")
        number = self._sequence + 1
        event: e.ModelUnwanted | e.ModelWanted
        if isinstance(message, m.UnloadModel):
            event = e.ModelUnwanted(number, message.model)
        else:
            swap = isinstance(message, m.SwapModel)
            tolerance = message.tolerance if isinstance(message, m.SwapModel) else None
            event = e.ModelWanted(number, self._wanted(message), swap, tolerance)
        self._sequence = number
        self._orders += 1
        return event

    def _wanted(self, message: m.LoadModel | m.SwapModel) -> ModelConfig:
        """The model as it would be. Raises InvalidRequest, UnknownModel."""
        config = self._config
        if isinstance(message, m.SwapModel):
            model = served(self._models, message.model).config
        else:
            model = ModelConfig(message.model, Path(), message.max_batch or config.max_batch)
        if message.run_ns_max is not None:
            model = replace(model, run_ns_max=message.run_ns_max)
        return with_file(
            with_options(model, message.options),
            message.file,
            config.models_root,
            config.load_python,
            config.real_folders,
        )

    def _refuse(self, peer: Peer, reason: str, error: BatchyardError) -> None:
        self._counters.refuse(reason)
        self._send(peer, codec.encode([m.Refused(error.code, str(error))]))

    def _send(self, peer: Peer, payload: bytes) -> None:
        try:
            peer.send((payload,))
        except (Ended, Full):
            self._counters.refuse("admin_unreachable")
