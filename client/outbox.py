"""What waits to be sent on one connection, and the envelopes that it leaves in. Pure.

Requests that are like the one before them go in its columns: the broker looks at all of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport.messages import More, Submit
from .request import Request

REQUESTS_PER_ENVELOPE = 256

Envelope = tuple[list[Any], Sequence[Any], list[Request]]  # messages, frames behind them, whose they are


class Outbox:
    """`entries`: messages in order, with the requests whose they are (None: a Cancel)."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[tuple[Any, Request | None]] = []

    def take(self) -> list[Envelope]:
        """Everything, as few envelopes as it fits into; a request with frames goes by itself."""
        entries, self.entries = self.entries, []
        envelopes: list[Envelope] = []
        messages: list[Any] = []
        requests: list[Request] = []
        leader: Request | None = None  # of the last message, if others may go with it
        for message, request in entries:
            if request is not None and request.message is not message:
                continue  # it was let go before it was sent
            if len(requests) >= REQUESTS_PER_ENVELOPE or len(messages) >= REQUESTS_PER_ENVELOPE:
                envelopes.append((messages, (), requests))
                messages, requests, leader = [], [], None
            if request is None:
                messages.append(message)
                leader = None
                continue
            request.is_sent = True
            if request.frames:
                if messages:
                    envelopes.append((messages, (), requests))
                    messages, requests, leader = [], [], None
                envelopes.append(([message], request.frames, [request]))
                continue
            requests.append(request)
            if leader is not None and _are_alike(leader, request):
                if messages[-1] is leader.message:
                    messages[-1] = _leading(leader.message)
                _add(messages[-1].more, message)
            else:
                messages.append(message)
                leader = None if request.is_question else request
        if messages:
            envelopes.append((messages, (), requests))
        return envelopes

    def take_only(self, request: Request) -> Any:
        """The message of this request, when it is all there is to send and has no frames; else None."""
        entries = self.entries
        if len(entries) != 1 or entries[0][1] is not request or request.frames:
            return None
        self.entries = []
        request.is_sent = True
        return request.message


def _are_alike(leader: Request, request: Request) -> bool:
    """Whether nothing but their numbers, time and places tells two requests apart. Slots have the sizes
    that the signature says for so many rows."""
    signature = request.signature
    if (
        signature is None
        or signature is not leader.signature
        or request.rows != leader.rows
        or (request.packed is None) != (leader.packed is None)
        or request.priority != leader.priority
        or not signature.is_uniform
    ):
        return False
    if request.kind is leader.kind is not None or (signature.has_one_shape and request.rows):
        return True
    for mine, other in zip(request.message.inputs, leader.message.inputs, strict=True):
        if mine.dtype != other.dtype or mine.shape != other.shape:
            return False
    return True


def _leading(message: Submit) -> Submit:
    """The same message, which takes others along."""
    return Submit(
        message.request,
        message.model,
        message.priority,
        message.deadline_ns,
        message.inputs,
        message.outputs,
        More([], [], []),
        message.packed,
    )


def _add(more: More, message: Submit) -> None:
    more.requests.append(message.request)
    more.deadlines_ns.append(message.deadline_ns)
    offsets = more.offsets
    for tensor in message.inputs:
        offsets.append(tensor.offset)
    for slot in message.outputs:
        offsets.append(slot.offset)
