"""One question or order to a broker's admin socket, and its answer, on a connection of its own.

Owns the dialogue that operators (client/operator.py) and the sidecar have with a broker. A connection
that lives for one question can't mix two brokers' answers up, and leaves nothing behind when its
process is stopped half-way.
"""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from . import codec, secret
from . import messages as m
from .endpoints import Endpoint, require_own
from .errors import BrokerLost, DeadlineExceeded, MalformedMessage, Unauthorized, from_wire
from .keys import KeyFolder
from .sockets import CONTEXT_DESCRIPTORS, SOCKET_DESCRIPTORS, Socket, configure, require_descriptors

Answer = TypeVar("Answer", m.SnapshotTaken, m.ModelChanged)
CONNECT_TIMEOUT_S = 5.0  # for a broker to be there at all

_REFUSED = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSED[0] | _REFUSED[1]


def ask(
    endpoint: Endpoint,
    keys: KeyFolder | None,
    message: m.AdminMessage,
    kind: type[Answer],
    timeout_s: float,
    shared: str = "",
) -> Answer:
    """The broker's answer to `message`, which is of `kind`. `shared`: the yard's secret, if it is known.

    Raises DeadlineExceeded when no broker is there within a few seconds, or no answer within
    `timeout_s`; Unauthorized; BrokerLost when the broker goes away under an order; MalformedMessage
    for an answer to something else; and what the broker refuses with.
    """
    require_own(endpoint)
    require_descriptors(CONTEXT_DESCRIPTORS + SOCKET_DESCRIPTORS)
    if keys is None and not endpoint.is_ipc:
        message = msgspec.structs.replace(message, secret=shared or secret.find(endpoint))
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        configure(socket, endpoint)
        if keys is not None:
            keys.apply_client(socket)
        monitor: Socket = socket.get_monitor_socket(_EVENTS)
        try:
            socket.connect(endpoint.admin)
            socket.send(codec.encode([message]))
            payload = _receive(endpoint.url, socket, monitor, timeout_s, isinstance(message, m.Snapshot))
            answers = codec.broker_to_admin.decode(payload)
        finally:
            socket.disable_monitor()
            monitor.close(0)
    if len(answers) == 1 and isinstance(answers[0], m.Refused):
        raise from_wire(answers[0].code, answers[0].text)
    if len(answers) != 1 or not isinstance(answers[0], kind):
        raise MalformedMessage(f"the broker at {endpoint.url} answered something else than was asked")
    return answers[0]


def _receive(url: str, socket: Socket, monitor: Socket, timeout_s: float, patient: bool) -> bytes:
    """The answer. `patient`: a broker that ends may be followed by one that answers; for questions."""
    started_s = time.monotonic()
    connected = False
    within_s = min(timeout_s, CONNECT_TIMEOUT_S)
    text = (
        f"no broker answers at {url} within {within_s:g} s; start one with "
        "`batchyard up`, or name the one that runs (BATCHYARD_URL, --url, or url= in Python)"
    )
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
            within_s = timeout_s
            text = f"the broker at {url} has not answered within {timeout_s:g} s"
        elif connected and not patient:
            raise BrokerLost(f"the broker at {url} went away; what was ordered may not be done")
