"""`Operator`: questions and orders to a broker's admin socket: counters, and the models that it serves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, TypeVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..transport import codec, endpoints
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import BrokerLost, DeadlineExceeded, MalformedMessage, Unauthorized, from_wire
from ..transport.keys import KeyFolder
from ..transport.messages import ModelChanged
from ..transport.sockets import (
    CONTEXT_DESCRIPTORS,
    SOCKET_DESCRIPTORS,
    Socket,
    configure,
    require_descriptors,
)

Answer = TypeVar("Answer", m.SnapshotTaken, ModelChanged)
TIMEOUT_S = 120.0  # for a change: a big model is loaded and warmed by one worker after the other
CONNECT_TIMEOUT_S = 5.0  # for a broker to be there at all

_REFUSED = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSED[0] | _REFUSED[1]


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
        endpoint = self.endpoint
        require_descriptors(CONTEXT_DESCRIPTORS + SOCKET_DESCRIPTORS)
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            configure(socket, endpoint)
            if self._keys is not None:
                self._keys.apply_client(socket)
            monitor: Socket = socket.get_monitor_socket(_EVENTS)
            try:
                socket.connect(endpoint.admin)
                socket.send(codec.encode([message]))
                payload = self._receive(socket, monitor, timeout, isinstance(message, m.Snapshot))
                (answer,) = codec.broker_to_admin.decode(payload)
            finally:
                socket.disable_monitor()
                monitor.close(0)
        if isinstance(answer, m.Refused):
            raise from_wire(answer.code, answer.text)
        if not isinstance(answer, kind):
            raise MalformedMessage(f"the broker at {endpoint.url} answered something else than was asked")
        return answer

    def _receive(self, socket: Socket, monitor: Socket, timeout: float, patient: bool) -> bytes:
        """The answer. `patient`: a broker that ends may be followed by one that answers; for questions."""
        url = self.endpoint.url
        started_s = time.monotonic()
        connected = False
        within_s = min(timeout, CONNECT_TIMEOUT_S)
        text = f"no broker answers at {url} within {within_s:g} s"
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        while True:
            left_s = started_s + within_s - time.monotonic()
            ready = dict(poller.poll(max(0, int(left_s * 1000))))
            if socket in ready:
                return socket.recv()
            if not ready:
                raise DeadlineExceeded(text)
            event = recv_monitor_message(monitor)["event"]
            if event in _REFUSED:
                raise Unauthorized(f"the yard at {url} does not admit this operator: see its CURVE keys")
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                connected = True
                within_s = timeout
                text = f"the broker at {url} has not answered within {timeout:g} s"
            elif connected and not patient:
                raise BrokerLost(f"the broker at {url} went away; what was ordered may not be done")
