"""A connection to the broker: greeting, sending, and noticing that the broker is gone.

Used by one thread at a time. Every wait here is finite, and no send waits: what the broker does not read
is kept, up to a bound.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..transport import codec, errors, lent
from ..transport import messages as m
from ..transport.endpoints import Endpoint, another_users
from ..transport.wire import ALONG_MAX, Bounds, Carrier, Ended, Full
from .memory import SlotMemory

LOOK_AROUND_MS = 25  # how late a passed timeout is noticed while waiting
BOUNDS = Bounds(m.ANSWER_BYTES_MAX, parts=m.TENSORS_MAX + 1, message_bytes=2 * m.ANSWER_BYTES_MAX)

Envelope = tuple[list[m.BrokerToClient], Sequence[Any]]  # messages, and the frames behind them


class NotSent(errors.Overloaded):
    """The broker does not read, and what waits for it is as much as is kept. Nothing of this was sent."""


class HandshakeLost(errors.BrokerLost):
    """The broker died while it was greeted; or, where that goes on, it has another key than we were given."""


class BrokerConnection:
    """A connection, to be used once it is `welcomed`."""

    def __init__(self, carrier: Carrier, endpoint: Endpoint, memory: SlotMemory | None) -> None:
        """Greets the broker that is there, or the next one."""
        self.endpoint = endpoint
        self.greeted = False
        handle = memory.segment.handle if memory is not None else None
        along = memory.segment.descriptor if memory is not None else None
        self.wire = carrier.connect(endpoint.clients, BOUNDS, along, 2 * ALONG_MAX)
        borrows = memory is not None and self.wire.lends
        try:
            self.send([m.Hello(handle, f"python {os.getpid()}", borrows)])
        except BaseException:
            self.close()
            raise

    def welcomed(self, timeout_ms: int = LOOK_AROUND_MS) -> bool:
        """Whether the broker has answered the greeting; waits for it up to `timeout_ms`. Raises
        BrokerLost when the connection ended, Unauthorized, or what the broker says."""
        envelope = self.receive(timeout_ms)
        for message in envelope[0] if envelope is not None else ():
            if isinstance(message, m.Welcome):
                self.greeted = True
                return True
            if isinstance(message, m.Refused):
                raise errors.from_wire(message.code, message.text)
        return False

    def send(self, messages: Sequence[Any], frames: Sequence[Any] = ()) -> None:
        """Send messages without waiting, in as few envelopes as they fit into; frames go with a single one.
        Raises NotSent. That the connection has ended is `receive`'s to say."""
        try:
            if frames:
                self.wire.send([codec.encode(messages), *frames])
                return
            for payload in codec.payloads(messages, codec.CLIENT_BYTES_MAX):
                self.wire.send((payload,))
        except Full as full:
            raise self.not_sent(full) from None

    def not_sent(self, full: Full) -> NotSent:
        """The error of a message that the wire refuses."""
        return NotSent(f"the broker at {self.endpoint.url} does not read: {full}", 1.0)

    def tell(self, messages: Sequence[Any]) -> None:
        """Send what can be done without: a Cancel that a broker never reads is no loss."""
        try:
            self.send(messages)
        except NotSent:
            pass

    def receive(self, timeout_ms: int = LOOK_AROUND_MS) -> Envelope | None:
        """The next envelope; None when none came for `timeout_ms`. Raises
        BrokerLost (or Unauthorized) when the connection has ended."""
        try:
            parts = self.wire.receive(timeout_ms)
        except Ended as ended:
            raise self.lost(ended) from None
        return self.opened(parts) if parts is not None else None

    def opened(self, parts: Sequence[Any]) -> Envelope:
        """The messages of an envelope, and its frames."""
        messages = codec.broker_to_client.decode(parts[0])
        frames: Sequence[Any] = parts[1:]
        if frames and type(messages[0]) is m.Answer and messages[0].lent:
            frames = self._borrowed(messages[0], frames)
        return messages, frames

    def _borrowed(self, answer: m.Answer, frames: Sequence[Any]) -> Sequence[Any]:
        """The answer's frames. Without them, where they can't be mapped, only its request fails."""
        try:
            return lent.plain(lent.received(frames, answer.lent, self.wire.take_descriptor))
        except (errors.SegmentRefused, OSError):
            return ()

    def lost(self, ended: Ended) -> errors.BatchyardError:
        """The error that the connection's end means."""
        url = self.endpoint.url
        if ended.why == "key":
            return errors.Unauthorized(
                f"the yard at {url} does not admit this client's key; its operator copies "
                "client.key into the broker's authorized/ folder"
            )
        if ended.why == "mechanism":
            return errors.Unauthorized(
                f"the yard at {url} and this client disagree on CURVE: pass keys= (--keys), or drop it"
            )
        if ended.why == "protocol":
            return errors.BrokerLost(f"what listens at {url} is no broker: {ended}")
        if ended.why == "denied":
            return errors.Unauthorized(another_users(url))
        if ended.why == "handshake":
            return HandshakeLost(
                f"the broker at {url} closed the connection during the handshake (a yard with CURVE keys "
                "does so: pass its folder as keys=, or --keys)"
            )
        if self.wire.undelivered:
            return errors.UnknownConnection(f"the broker at {url} went away before it was asked")
        return errors.BrokerLost(f"the broker at {url} went away")

    def close(self) -> None:
        """Say goodbye and close. Idempotent."""
        if self.greeted:
            self.greeted = False
            self.tell([m.Bye()])
        self.wire.close()
