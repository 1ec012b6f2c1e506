"""What a gateway's error codes are raised as, and the two ends of a call that are no answer. Pure."""

from __future__ import annotations

from ...transport import errors as e

NO_NODE = "NO_NODE"  # a fleet's proxy has nobody to pass a request on to
CODES: dict[str, type[e.BatchyardError]] = {
    "INVALID_REQUEST": e.InvalidRequest,
    "TOO_LARGE": e.InvalidRequest,
    "UNKNOWN_MODEL": e.UnknownModel,
    "OVERLOADED": e.Overloaded,
    "NOT_READY": e.Overloaded,
    "TOO_MANY_REQUESTS": e.Overloaded,
    "DEADLINE_EXCEEDED": e.DeadlineExceeded,
    "CANCELLED": e.Cancelled,
    "WORKER_LOST": e.WorkerLost,
    "BROKER_LOST": e.BrokerLost,
    "MODEL_FAILED": e.ModelFailed,
    "UNAUTHORIZED": e.Unauthorized,
    "UNAUTHENTICATED": e.Unauthorized,
    "FORBIDDEN": e.Unauthorized,
}
# What stands for an error without a code: a proxy's own.
STATUSES: dict[int, type[e.BatchyardError]] = {
    400: e.InvalidRequest,
    401: e.Unauthorized,
    403: e.Unauthorized,
    404: e.InvalidRequest,
    413: e.InvalidRequest,
    429: e.Overloaded,
    502: e.BrokerLost,
    503: e.Overloaded,
    504: e.DeadlineExceeded,
}


class Unreachable(Exception):
    """Nothing of the call has been sent: it may be made again whatever it is."""


class Interrupted(Exception):
    """The connection ended before the answer: it may have run."""


def error_of(code: str | None, status: int, text: str, retry_after: str | None) -> Exception:
    """The exception for an error answer. `retry_after`: the header's seconds."""
    if code == NO_NODE:
        return Unreachable(text)
    kind = CODES.get(code or "") or STATUSES.get(status, e.BatchyardError)
    if kind is e.Overloaded:
        return e.Overloaded(text, _seconds(retry_after))
    return kind(text)


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1.0))
    except ValueError:
        return 1.0
