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
# Of a client's payload and of one message in it: finding where its messages begin takes 2 us for each KiB,
# and decoding one up to 20.
CLIENT_BYTES_MAX = 1 << 20
CLIENT_MESSAGE_BYTES_MAX = 192 << 10


class _Head(msgspec.Struct, array_like=True):
    """The beginning of every version's envelope; the rest is skipped, not built."""

    version: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


class _Envelope(msgspec.Struct, Generic[M], array_like=True):
    version: int
    messages: Annotated[list[M], msgspec.Meta(max_length=m.MESSAGES_MAX)]


def encode(messages: Sequence[Any]) -> bytes:
    """The payload frame for these messages."""
    return _encoder.encode((m.PROTOCOL_VERSION, messages))


def payloads(messages: Sequence[Any], bytes_max: int = PAYLOAD_BYTES_MAX) -> list[bytes]:
    """Payload frames for any number of messages, in order: as few as the other side's bounds allow."""
    if len(messages) <= m.MESSAGES_MAX:
        payload = _encoder.encode((m.PROTOCOL_VERSION, messages))
        if len(payload) <= bytes_max or len(messages) == 1:
            return [payload]
    middle = len(messages) // 2
    return payloads(messages[:middle], bytes_max) + payloads(messages[middle:], bytes_max)


class Decoder(Generic[M]):
    """Reads the envelopes of one direction."""

    def __init__(self, union: Any, bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._decode = msgspec.msgpack.Decoder(_Envelope[union]).decode
        self._split = msgspec.msgpack.Decoder(_Envelope[msgspec.Raw]).decode
        self._decode_one = msgspec.msgpack.Decoder(union).decode
        self._bytes_max = bytes_max

    def refusal(self, message: Any) -> str:
        """Why the other side would refuse this message; "" when it would not. Ask before you send a message
        that is made of a model's or a user's data: a refused message is lost."""
        try:
            self.decode(encode([message]))
        except MalformedMessage as error:
            return str(error)
        return ""

    def decode(self, payload: bytes | memoryview) -> list[M]:
        """Raises WrongVersion for another version's envelope, MalformedMessage for anything else."""
        messages: list[M] = self._read(payload, self._decode)
        return messages

    def split(self, payload: bytes | memoryview) -> list[msgspec.Raw]:
        """The messages of an envelope, each as it is, for `decode_one`: a long envelope is read bit by bit.
        Raises as `decode`."""
        messages: list[msgspec.Raw] = self._read(payload, self._split)
        return messages

    def decode_one(self, message: msgspec.Raw) -> M:
        """Raises MalformedMessage."""
        nbytes = len(memoryview(message))
        if nbytes > CLIENT_MESSAGE_BYTES_MAX:
            text = f"one message has at most {CLIENT_MESSAGE_BYTES_MAX} bytes, this one {nbytes}"
            raise MalformedMessage(text)
        try:
            decoded: M = self._decode_one(message)
            return decoded
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedMessage(f"not a message of protocol {m.PROTOCOL_VERSION}: {error}") from None

    def _read(self, payload: bytes | memoryview, decode: Any) -> Any:
        if len(payload) > self._bytes_max:
            raise MalformedMessage(f"a payload has at most {self._bytes_max} bytes, this one {len(payload)}")
        try:
            envelope = decode(payload)
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


client_to_broker: Decoder[m.ClientMessage] = Decoder(m.ClientMessage, CLIENT_BYTES_MAX)
broker_to_client: Decoder[m.BrokerToClient] = Decoder(m.BrokerToClient)
worker_to_broker: Decoder[m.WorkerMessage] = Decoder(m.WorkerMessage)
broker_to_worker: Decoder[m.BrokerToWorker] = Decoder(m.BrokerToWorker)
admin_to_broker: Decoder[m.AdminMessage] = Decoder(m.AdminMessage)
broker_to_admin: Decoder[m.BrokerToAdmin] = Decoder(m.BrokerToAdmin)
