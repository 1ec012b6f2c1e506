"""Bytes to messages and back: one envelope is `[version, [message, ...]]` in MessagePack.

The decoder of a direction knows which tags are legal there; a wrong type, a negative size or an
unknown tag is a MalformedMessage before any other code of ours has seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from . import messages as m
from .errors import MalformedMessage, WrongVersion

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
PAYLOAD_BYTES_MAX = 4 << 20  # far above what 4096 messages take; checked before anything is built


class _Head(msgspec.Struct, array_like=True):
    """What every version's envelope begins with; the rest is skipped, not built."""

    version: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


class _Envelope(msgspec.Struct, Generic[M], array_like=True):
    version: int
    messages: Annotated[list[M], msgspec.Meta(max_length=m.MESSAGES_MAX)]


def encode(messages: Sequence[Any]) -> bytes:
    """The payload frame for these messages."""
    return _encoder.encode((m.PROTOCOL_VERSION, messages))


def payloads(messages: Sequence[Any]) -> list[bytes]:
    """Payload frames for any number of messages, in order: as few as the other side's bounds allow."""
    if len(messages) <= m.MESSAGES_MAX:
        payload = encode(messages)
        if len(payload) <= PAYLOAD_BYTES_MAX or len(messages) == 1:
            return [payload]
    middle = len(messages) // 2
    return payloads(messages[:middle]) + payloads(messages[middle:])


class Decoder(Generic[M]):
    """Reads the envelopes of one direction."""

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(_Envelope[union]).decode

    def decode(self, payload: bytes | memoryview) -> list[M]:
        """Raises WrongVersion for another version's envelope, MalformedMessage for anything else."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise MalformedMessage(
                f"a payload has at most {PAYLOAD_BYTES_MAX} bytes, this one {len(payload)}"
            )
        try:
            envelope: _Envelope[M] = self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _raise_if_other_version(payload)
            raise MalformedMessage(f"not a message of protocol {m.PROTOCOL_VERSION}: {error}") from None
        if envelope.version != m.PROTOCOL_VERSION:
            _raise_if_other_version(payload)
        return envelope.messages


def _raise_if_other_version(payload: bytes | memoryview) -> None:
    """The one rule that holds in every version: the envelope's first element is its version."""
    try:
        version = _head_decoder.decode(payload).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if version != m.PROTOCOL_VERSION:
        raise WrongVersion(
            f"the peer speaks protocol {version}, this side speaks {m.PROTOCOL_VERSION}: "
            "install the same batchyard version on both sides"
        )


client_to_broker: Decoder[m.ClientMessage] = Decoder(m.ClientMessage)
broker_to_client: Decoder[m.BrokerToClient] = Decoder(m.BrokerToClient)
worker_to_broker: Decoder[m.WorkerMessage] = Decoder(m.WorkerMessage)
broker_to_worker: Decoder[m.BrokerToWorker] = Decoder(m.BrokerToWorker)
admin_to_broker: Decoder[m.AdminMessage] = Decoder(m.AdminMessage)
broker_to_admin: Decoder[m.BrokerToAdmin] = Decoder(m.BrokerToAdmin)
