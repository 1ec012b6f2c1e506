"""The one form of an error: an HTTP status, a code for programs, a sentence for people.

Owns what becomes of the client's errors. gRPC has its own numbers for the same statuses.
"""

from __future__ import annotations

import math
from typing import Any

from .. import (
    ArenaExhausted,
    BatchyardError,
    BrokerLost,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    ModelFailed,
    Overloaded,
    Unauthorized,
    UnknownModel,
    WorkerLost,
)

INTERNAL = "INTERNAL"  # the code of what nobody foresaw
CODE = "Batchyard-Code"  # the code as a header: a proxy decides by it whether to ask another node
RETRY_AFTER_S = 1.0  # where nobody knows better


class Refusal(Exception):
    """An error response. `retry_after_s`: when the same request may be sent again."""

    def __init__(self, status: int, code: str, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """`error` is where Open Inference clients look for the sentence."""
        return {"error": self.text, "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        headers = {CODE: self.code}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 408:  # after a 413 the rest is read away: a reset would overtake the answer
            headers["Connection"] = "close"
        return headers


def body_at(path: str, refusal: Refusal) -> dict[str, Any]:
    """The body of an error: below /v1 in OpenAI's form, because its clients show the sentence of no other."""
    if not path.startswith("/v1/"):
        return refusal.body
    kind = "invalid_request_error" if refusal.status in (400, 404, 405, 413) else "server_error"
    code = "model_not_found" if refusal.code == "UNKNOWN_MODEL" else refusal.code.lower()
    return {"error": {"message": refusal.text, "type": kind, "param": None, "code": code}}


class ClientGone(Exception):
    """The client has closed the connection: there is nobody to answer."""


def invalid(text: str) -> Refusal:
    """The request can never succeed as written."""
    return Refusal(400, "INVALID_REQUEST", text)


# The first that fits: some errors are special cases of others, and share their wire code.
_STATUS: tuple[tuple[type[BatchyardError], int, str], ...] = (
    (UnknownModel, 404, "UNKNOWN_MODEL"),
    (Overloaded, 503, "OVERLOADED"),
    (ArenaExhausted, 503, "OVERLOADED"),
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (Cancelled, 503, "CANCELLED"),
    (WorkerLost, 503, "WORKER_LOST"),
    (BrokerLost, 503, "BROKER_LOST"),
    (ModelFailed, 500, "MODEL_FAILED"),
    (MalformedMessage, 502, "BROKER_LOST"),
    (Unauthorized, 502, "UNAUTHORIZED"),
    (InvalidRequest, 400, "INVALID_REQUEST"),
)


def refusal_of(error: BaseException) -> Refusal:
    """The response to an error. An unforeseen error reveals nothing of our internals."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            retry_after_s = RETRY_AFTER_S if status == 503 else None
            if isinstance(error, Overloaded) and error.retry_after_s > 0:
                retry_after_s = error.retry_after_s
            return Refusal(status, code, str(error), retry_after_s)
    return Refusal(500, INTERNAL, "the gateway failed on this request; its log says how")
