"""The error taxonomy: what can go wrong, who must act, and the code for it on the wire.

Every error that a user can meet is a `BatchyardError` and also the built-in that fits it, so
`except TimeoutError` works without importing us. `code` is the wire form; a code that this
version doesn't know becomes a plain `BatchyardError` with the peer's text.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

VALUE_CHARS_MAX = 80
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LITERAL = (list, tuple, dict, set)


def shown(value: object) -> str:
    """A wrong value in a sentence: as it was written, shortened, or by its type. Other objects' own words may
    be an address, or pages of numbers."""
    is_plain = type(value) in _PLAIN
    if type(value) in _LITERAL:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        is_plain = all(type(part) in _PLAIN for part in parts)  # type: ignore[attr-defined]
    if not is_plain:
        return f"an object of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 3]}..."


class Code(IntEnum):
    """Wire codes (docs/protocol.md, "Errors"). Never renumbered."""

    OK = 0
    INTERNAL = 1
    INVALID_REQUEST = 2
    UNKNOWN_MODEL = 3
    OVERLOADED = 4
    DEADLINE_EXCEEDED = 5
    CANCELLED = 6
    WORKER_LOST = 7
    MODEL_FAILED = 8
    BROKER_LOST = 9
    UNAUTHORIZED = 10
    WRONG_VERSION = 11
    UNKNOWN_CONNECTION = 12
    SEGMENT_REFUSED = 13
    ENDPOINT_IN_USE = 14


class BatchyardError(Exception):
    """Base of every error that batchyard raises on purpose."""

    code: ClassVar[Code] = Code.INTERNAL


class InvalidRequest(BatchyardError, ValueError):
    """The request can never succeed as written. The caller must change it."""

    code = Code.INVALID_REQUEST


class UnknownModel(BatchyardError, LookupError):
    """No model of that name is configured. The caller must choose another, or load it."""

    code = Code.UNKNOWN_MODEL

    def __str__(self) -> str:  # LookupError's subclasses may quote; a sentence should read as one
        return str(self.args[0]) if self.args else ""


class Overloaded(BatchyardError):
    """The yard is full. The caller may send the same request again after `retry_after_s`."""

    code = Code.OVERLOADED

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(BatchyardError, TimeoutError):
    """The answer did not come in time. The work was dropped, or its answer will be."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(BatchyardError):
    """The caller cancelled the request."""

    code = Code.CANCELLED


class WorkerLost(BatchyardError):
    """Every worker that took the request died or went away; it may be sent again."""

    code = Code.WORKER_LOST


class ModelFailed(BatchyardError):
    """The model itself failed on this request, or could not be loaded. The text is the runtime's."""

    code = Code.MODEL_FAILED


class BrokerLost(BatchyardError, ConnectionError):
    """No broker, or it went away and no other came in time, or the model is not idempotent. What was
    under way may or may not have run; the same client object works again as soon as a broker does."""

    code = Code.BROKER_LOST


class Unauthorized(BatchyardError, PermissionError):
    """This peer, key or folder may not be used. The operator must allow it."""

    code = Code.UNAUTHORIZED


class WrongVersion(BatchyardError):
    """The peer speaks another version of the protocol. Both sides need the same batchyard."""

    code = Code.WRONG_VERSION


class UnknownConnection(BrokerLost):
    """The broker has not been greeted on this connection: it was restarted, and has run nothing of it."""

    code = Code.UNKNOWN_CONNECTION


class SegmentRefused(BatchyardError, ValueError):
    """A peer offered shared memory that breaks the rules for segments. The offering side must change it."""

    code = Code.SEGMENT_REFUSED


class ArenaExhausted(BatchyardError, MemoryError):
    """The client's own shared memory is full. Finish requests, drop result arrays, or ask for more."""

    code = Code.INVALID_REQUEST


class EndpointInUse(BatchyardError, OSError):
    """Another process holds this endpoint. Stop it, or choose another URL."""

    code = Code.ENDPOINT_IN_USE


class MalformedMessage(BatchyardError, ValueError):
    """Bytes that are no message of this protocol: counted and refused, never fatal."""

    code = Code.INVALID_REQUEST


_BY_CODE: dict[int, type[BatchyardError]] = {
    kind.code: kind
    for kind in (
        BatchyardError,
        InvalidRequest,
        UnknownModel,
        Overloaded,
        DeadlineExceeded,
        Cancelled,
        WorkerLost,
        ModelFailed,
        BrokerLost,
        Unauthorized,
        WrongVersion,
        UnknownConnection,
        SegmentRefused,
        EndpointInUse,
    )
}


def from_wire(code: int, text: str, retry_after_ns: int = 0) -> BatchyardError:
    """The exception that a wire code and its text stand for."""
    kind = _BY_CODE.get(code, BatchyardError)
    if kind is Overloaded:
        return Overloaded(text, retry_after_ns / 1e9)
    return kind(text)


def no_descriptors(error: OSError) -> Overloaded:
    """The error of a call for which this process had no descriptor left."""
    return Overloaded(
        f"this process may open no more descriptors ({error.strerror}): close clients that are not "
        "used, or raise its limit (ulimit -n)"
    )
