"""What becomes of a request whose broker went away: whether it may be asked again, and the words that it ends
with where it may not. Pure."""

from __future__ import annotations

from ..transport.errors import BatchyardError, BrokerLost, Code, DeadlineExceeded, UnknownConnection
from ..transport.messages import Refused
from .request import Request


class MessageRefused(BrokerLost):
    """The broker could not parse our message. Another broker could not either, so nothing is resent."""


def refusal(message: Refused) -> BrokerLost:
    """What a Refused means for the requests on its connection.

    UnknownConnection: the broker was restarted since the greeting, and has run nothing of it.
    """
    if message.code == Code.UNKNOWN_CONNECTION:
        return UnknownConnection(message.text)
    return MessageRefused(f"the broker refused this connection: {message.text}")


def may_ask_again(error: BrokerLost, request: Request, is_alone: bool) -> bool:
    """Whether a request whose connection ended with `error` may be submitted once more.

    is_alone: nothing else was under way, so a broker that does not know the connection has run nothing of it.
    """
    if isinstance(error, MessageRefused):
        return False
    if request.stream is not None and request.stream.count:
        return False
    signature = request.signature
    if signature is None or signature.idempotent or not request.is_sent:
        return True
    return is_alone and isinstance(error, UnknownConnection)


def not_again(error: BrokerLost, request: Request) -> BrokerLost:
    """The error of a request that may not be sent again."""
    if isinstance(error, MessageRefused):
        return error
    if request.stream is not None and request.stream.count:
        return BrokerLost(f"{error}, after {request.stream.count} answers of this stream")
    return BrokerLost(f"{error}; {request.model!r} is not idempotent, so the request is not sent again")


def too_late(
    request: Request, now_ns: int, url: str, has_broker: bool, why_refused: BatchyardError | None
) -> BatchyardError:
    """What a request ends with whose time is up. `why_refused`: how the last attempt at a broker ended."""
    waited_s = (now_ns - request.began_ns) / 1e9
    if not has_broker:
        if not request.lost:
            return nobody_answers(url, waited_s, why_refused)
        lost_s = (now_ns - request.lost_ns) / 1e9
        is_plain = why_refused is None or isinstance(why_refused, BrokerLost)
        because = "" if is_plain else f" ({why_refused})"
        return BrokerLost(f"{request.lost}, and no other came within {lost_s:.3g} s{because}")
    if request.message is None and request.lost:
        return DeadlineExceeded(f"the deadline passed before {request.model!r} was ready again")
    if request.is_question and not request.model:
        return DeadlineExceeded(f"the broker at {url} has not answered within {waited_s:.3g} s")
    if request.message is None or request.is_question:
        return DeadlineExceeded(
            f"no worker has loaded {request.model!r} within {waited_s:.3g} s, or the broker does not answer"
        )
    return DeadlineExceeded(f"no answer within {waited_s:.3g} s")


def nobody_answers(url: str, waited_s: float, why_refused: BatchyardError | None) -> BrokerLost:
    """What a call ends with that found no broker. `why_refused`: how the last attempt at one ended."""
    because = f": {why_refused}" if why_refused is not None else ""
    return BrokerLost(
        f"no broker answers at {url} (waited {waited_s:.3g} s){because}; start one with "
        "`batchyard up`, or name the one that runs (BATCHYARD_URL, --url, or url= in Python)"
    )
