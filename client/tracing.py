"""Whether a request is traced, and where its time lies in its trace. Pure, and without OpenTelemetry:
`spans.py` is loaded only in a program that has loaded OpenTelemetry itself.

A program that has not cannot have set up anything that would take spans, so looking for it in
`sys.modules` is all that an untraced request pays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..transport.errors import InvalidRequest, shown
from .reply import Receipt

if TYPE_CHECKING:
    from .spans import RequestSpan, TraceParent

_Origin = Callable[[str | None], "TraceParent | None"]
_origin: _Origin | None = None  # of spans.py, once it is loaded: an import costs as much as all the rest


def origin(traceparent: str | None) -> TraceParent | None:
    """Where the spans of requests hang in their trace; None when nobody takes spans.

    traceparent: the parent as W3C Trace Context writes it, `00-<32 hex>-<16 hex>-<2 hex>`; what is not
        of that form starts a new trace, as the recommendation wants it. None: OpenTelemetry's current span.

    Raises InvalidRequest when it is no text.
    """
    if traceparent is not None and not isinstance(traceparent, str):
        raise InvalidRequest(f"traceparent is the text of a W3C header, not {shown(traceparent)}")
    if "opentelemetry.trace" not in sys.modules:
        return None
    return (_origin or _load())(traceparent)


def _load() -> _Origin:
    global _origin
    from .spans import origin

    _origin = origin
    return origin


def begin(model: str, priority: int, traceparent: str | None) -> RequestSpan | None:
    """The span of one request; None when it is not traced."""
    found = origin(traceparent)
    return found.begin(model, priority) if found is not None else None


class Stages(NamedTuple):
    """When the stages of a request began and ended, in nanoseconds of the client's own clock.

    The queue and the batch each have the duration that the broker measured, and the computation the one
    that the worker did. Where they lie between `sent` and `ended` is derived; see `stages`.
    """

    queue: tuple[int, int]
    batch: tuple[int, int]
    compute: tuple[int, int]
    reply: tuple[int, int]


def stages(receipt: Receipt, sent_ns: int, ended_ns: int) -> Stages | None:
    """Lay a receipt's durations between two readings of the client's clock; None for a result that was
    kept: nothing has waited or run.

    What is left, the messages' ways to the broker and back, is halved, as NTP does: that is how far an
    edge can be off. The computation and the scatter end with the batch. So a wait for the batch before
    comes ahead of them, and the worker's own way to the broker is taken for none. A request that joined
    an identical one which ran already was there for its end only: stages are cut at `sent_ns`.
    """
    if not receipt.worker:
        return None
    worked_ns = receipt.gather_ns + receipt.compute_ns + receipt.scatter_ns
    lent_ns = max(receipt.lent_ns, worked_ns)  # by two processes' clocks
    ways_ns = max(0, ended_ns - sent_ns - receipt.queue_ns - lent_ns)
    lent_until = ended_ns - ways_ns // 2
    lent_at = max(sent_ns, lent_until - lent_ns)
    computed_until = max(lent_at, lent_until - receipt.scatter_ns)
    return Stages(
        (max(sent_ns, lent_at - receipt.queue_ns), lent_at),
        (lent_at, lent_until),
        (max(lent_at, computed_until - receipt.compute_ns), computed_until),
        (lent_until, ended_ns),
    )
