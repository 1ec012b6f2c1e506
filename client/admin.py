"""Questions and orders to a broker's admin socket: counters, and the models that it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import zmq

from ..transport import codec
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.errors import DeadlineExceeded, MalformedMessage, from_wire
from ..transport.keys import KeyFolder

Answer = TypeVar("Answer", m.SnapshotTaken, m.ModelChanged)


def snapshot(endpoint: Endpoint, timeout: float, keys: Path | None = None) -> dict[str, Any]:
    """The cumulative counters of the broker at an endpoint. Raises DeadlineExceeded, Unauthorized."""
    return ask(endpoint, m.Snapshot(), m.SnapshotTaken, timeout, keys).counters


def ask(
    endpoint: Endpoint, message: m.AdminMessage, kind: type[Answer], timeout: float, keys: Path | None = None
) -> Answer:
    """Send one message and wait for its answer. Raises what the broker refuses it with, and
    DeadlineExceeded when no answer comes within `timeout` seconds; what was ordered may still be done."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if endpoint.is_ipv6:
            socket.setsockopt(zmq.IPV6, 1)
        if keys is not None:
            KeyFolder(keys).apply_client(socket)
        socket.connect(endpoint.admin)
        socket.send(codec.encode([message]))
        if not socket.poll(int(timeout * 1000)):
            raise DeadlineExceeded(f"no broker answers at {endpoint.url} within {timeout:g} s")
        (answer,) = codec.broker_to_admin.decode(socket.recv())
        if isinstance(answer, m.Refused):
            raise from_wire(answer.code, answer.text)
        if not isinstance(answer, kind):
            raise MalformedMessage(f"the broker at {endpoint.url} answered something else than was asked")
        return answer
