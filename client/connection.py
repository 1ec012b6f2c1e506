"""A DEALER to the broker: greeting, sending, and noticing that the broker is gone.

Used by one thread at a time. Every wait here is finite: a receive comes up for air every
LOOK_AROUND_MS to see whether the connection has ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..transport import codec, errors
from ..transport import messages as m
from ..transport.endpoints import Endpoint
from ..transport.keys import KeyFolder
from ..transport.sockets import configure, has_more, readable
from .channel import Channel, Pending, Settled
from .memory import SlotMemory
from .resubmit import MessageRefused

LOOK_AROUND_MS = 25  # how late a lost broker or a passed timeout is noticed while waiting

_ENDINGS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Connection:
    """A connection and its channel, to be used once it is `welcomed`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: Endpoint,
        keys: KeyFolder | None,
        memory: SlotMemory | None,
        numbers: count[int],
        open_sockets: set[zmq.Socket[bytes]],
    ) -> None:
        """Greets whatever broker there is or will be. `open_sockets` is told of every socket that has
        to be closed before the context ends."""
        self.endpoint = endpoint
        self.channel = Channel(memory, numbers)
        self.greeted = False
        self.socket = context.socket(zmq.DEALER)
        self._open_sockets = open_sockets
        open_sockets.add(self.socket)
        configure(self.socket, endpoint)
        self.socket.setsockopt(zmq.RCVTIMEO, LOOK_AROUND_MS)
        self.socket.setsockopt(zmq.SNDTIMEO, 5_000)  # a broker that reads nothing for so long is lost
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.monitor: zmq.Socket[bytes] | None = None
        try:
            if keys is not None:
                keys.apply_client(self.socket)
            self.monitor = self.socket.get_monitor_socket(_ENDINGS)
            open_sockets.add(self.monitor)
            self.socket.connect(self.endpoint.clients)
            handle = memory.segment.handle if memory is not None else None
            self.send([m.Hello(handle, f"python {os.getpid()}")])
        except BaseException:
            self.close()
            raise

    def welcomed(self) -> bool:
        """Whether the broker has answered the greeting; waits for it up to LOOK_AROUND_MS. Raises
        BrokerLost when the connection ended, Unauthorized, or what the broker says."""
        for message in self.receive()[0]:
            if isinstance(message, m.Welcome):
                self.greeted = True
                return True
            if isinstance(message, m.Refused):
                raise errors.from_wire(message.code, message.text)
        self.check()
        return False

    def await_welcome(self, timeout_s: float) -> None:
        """Return when `welcomed`; raise BrokerLost when that took longer."""
        give_up_s = time.monotonic() + timeout_s
        while not self.welcomed():
            if time.monotonic() >= give_up_s - LOOK_AROUND_MS / 2e3:
                raise nobody_answers(self.endpoint, timeout_s)

    def send(self, messages: Sequence[Any], frames: Sequence[Any] = ()) -> None:
        """Send messages, in as few envelopes as they fit into; frames go with a single one. Raises
        BrokerLost when the broker takes nothing."""
        try:
            if frames:
                self.socket.send_multipart([codec.encode(messages), *frames])
                return
            for payload in codec.payloads(messages):
                self.socket.send(payload)
        except zmq.Again:
            raise errors.BrokerLost(f"the broker at {self.endpoint.url} does not read") from None

    def receive(self) -> tuple[list[m.BrokerToClient], Sequence[Any]]:
        """(messages, frames) of the next envelope; ([], ()) when none came for LOOK_AROUND_MS."""
        socket = self.socket
        try:
            payload = socket.recv()
        except zmq.Again:
            return [], ()
        frames: list[Any] = []
        while has_more(socket):
            frames.append(socket.recv(copy=False).buffer)
        return codec.broker_to_client.decode(payload), frames

    def check(self) -> None:
        """Raise BrokerLost (or Unauthorized) when the connection has ended."""
        monitor = self.monitor
        if monitor is None or not readable(monitor):
            return
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise errors.Unauthorized(
                f"the yard at {self.endpoint.url} does not admit this client's key; its operator copies "
                "client.key into the broker's authorized/ folder"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            raise errors.Unauthorized(
                f"the yard at {self.endpoint.url} and this client disagree on CURVE: pass keys=, or drop it"
            )
        if not self.greeted and not self.endpoint.is_ipc:
            raise errors.Unauthorized(
                f"the yard at {self.endpoint.url} closed the connection unread: if it asks for CURVE keys, "
                "pass keys=; if it asks for none, drop them"
            )
        raise errors.BrokerLost(f"the broker at {self.endpoint.url} went away")

    def wait(self, pending: Pending, give_up_s: float) -> Any:
        """The request's outcome: returned, or raised.

        Raises DeadlineExceeded at `give_up_s` (time.monotonic), whatever the broker does, and
        BrokerLost when the connection ends. Other requests of the channel are settled on the way.
        """
        channel = self.channel
        while True:
            messages, frames = self.receive()
            for message in messages:
                if type(message) is m.Refused:
                    raise refusal(message)
                for entry, outcome in channel.handle(message, frames):
                    if entry is pending:
                        if isinstance(outcome, Exception):
                            raise outcome
                        return outcome
            if not messages:
                self.check()
                if time.monotonic() >= give_up_s - LOOK_AROUND_MS / 2e3:
                    raise errors.DeadlineExceeded("no answer in time")

    def drain(self) -> list[Settled]:
        """Handle what has come without waiting; slots of abandoned requests come back this way."""
        settled: list[Settled] = []
        while readable(self.socket):
            messages, frames = self.receive()
            for message in messages:
                settled += self.channel.handle(message, frames)
        return settled

    def close(self) -> None:
        """Say goodbye and close. Idempotent."""
        if self.monitor is not None:
            try:
                self.socket.setsockopt(zmq.LINGER, 100)
                self.socket.send(codec.encode([m.Bye()]), zmq.NOBLOCK)
            except zmq.ZMQError:
                pass  # the broker sees the connection end instead
            if not self.socket.closed:  # see session._close_sockets
                self.socket.disable_monitor()
            self.monitor.close(0)
            self._open_sockets.discard(self.monitor)
            self.monitor = None
        self.socket.close()
        self._open_sockets.discard(self.socket)


def refusal(message: m.Refused) -> errors.BatchyardError:
    """What a Refused means to whoever has requests under way on the connection.

    UnknownConnection: the broker was restarted since the greeting, and has run nothing of it.
    """
    if message.code == errors.Code.UNKNOWN_CONNECTION:
        return errors.UnknownConnection(message.text)
    return MessageRefused(f"the broker refused this connection: {message.text}")


def nobody_answers(endpoint: Endpoint, waited_s: float) -> errors.BrokerLost:
    """What a call ends with that found no broker."""
    return errors.BrokerLost(
        f"no broker answers at {endpoint.url} (waited {waited_s:.3g} s); start one with "
        "`batchyard up`, or set BATCHYARD_URL to the one that runs"
    )
