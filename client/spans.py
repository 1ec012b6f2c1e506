"""OpenTelemetry spans of requests: the client's own, and below it queue, batch, compute, and reply,
made from the receipt when the answer has come. Nothing of a trace goes over the wire.

Imports OpenTelemetry: tracing.py loads this file when the program has. Whatever a tracer does wrong is
logged and fails no request.
"""

from __future__ import annotations

import logging
import time
from functools import lru_cache

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..transport.messages import Priority
from .reply import Reply
from .tracing import stages

NAME = "batchyard.client"  # of the instrumentation scope

_PROXY = trace.ProxyTracerProvider  # what there is until a program sets its own
_PROPAGATOR = TraceContextTextMapPropagator()
_log = logging.getLogger(NAME)


class TraceParent:
    """A tracer, and the parent context of its requests."""

    __slots__ = ("_context", "_tracer")

    def __init__(self, tracer: Tracer, context: Context) -> None:
        self._tracer = tracer
        self._context = context

    def begin(self, model: str, priority: int) -> RequestSpan | None:
        """A request's span; None when the sampler does not want it."""
        try:
            started_ns = time.time_ns()
            span = self._tracer.start_span(
                f"infer {model}",
                self._context,
                SpanKind.CLIENT,
                {"batchyard.model": model, "batchyard.priority": Priority(priority).name},
                start_time=started_ns,
            )
        except Exception:
            _log.exception("a span could not be started")
            return None
        return RequestSpan(self._tracer, span, started_ns) if span.is_recording() else None


class RequestSpan:
    """One request's span, from `TraceParent.begin` to `end`."""

    __slots__ = ("_ended", "_shift_ns", "_span", "_started_ns", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, started_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        # Edges are read from a clock that nobody sets, and moved to the time of day.
        self._started_ns = started_ns
        self._shift_ns = started_ns - time.monotonic_ns()
        self._ended = False

    def end(self, outcome: object, sent_ns: int) -> None:
        """The request has come to this, and was sent (for the last time) then, by `time.monotonic_ns`.
        Idempotent: the first outcome counts."""
        if self._ended:
            return
        self._ended = True
        try:
            ended_ns = time.monotonic_ns() + self._shift_ns
            if isinstance(outcome, Reply):
                self._replied(outcome, max(self._started_ns, sent_ns + self._shift_ns), ended_ns)
            elif isinstance(outcome, BaseException):
                self._failed(outcome, ended_ns)
            self._span.end(ended_ns)
        except Exception:
            _log.exception("a span could not be ended")

    def _replied(self, reply: Reply, sent_ns: int, ended_ns: int) -> None:
        receipt = reply.receipt
        self._span.set_attributes(
            {"batchyard.revision": receipt.revision, "batchyard.provider": receipt.provider}
        )
        laid = stages(receipt, sent_ns, ended_ns)
        if laid is None:
            return
        below = trace.set_span_in_context(self._span, Context())
        self._add("queue", laid.queue, below)
        about = {"batchyard.batch.id": receipt.batch, "batchyard.batch.rows": receipt.rows}
        for name in ("worker", "copied_bytes", "gather_ns", "scatter_ns"):
            about[f"batchyard.{name}"] = getattr(receipt, name)
        batch = self._add("batch", laid.batch, below, about)
        self._add("compute", laid.compute, trace.set_span_in_context(batch, Context()))
        self._add("reply", laid.reply, below)

    def _add(
        self, name: str, edges: tuple[int, int], below: Context, attributes: dict[str, int] | None = None
    ) -> Span:
        span = self._tracer.start_span(name, below, attributes=attributes, start_time=edges[0])
        span.end(edges[1])
        return span

    def _failed(self, error: BaseException, ended_ns: int) -> None:
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.record_exception(error, timestamp=ended_ns)
        self._span.set_status(StatusCode.ERROR, str(error))


def origin(traceparent: str | None) -> TraceParent | None:
    """As tracing.origin: None when the program has set no TracerProvider."""
    provider = trace.get_tracer_provider()
    if type(provider) is _PROXY:  # isinstance asks an abstract class, which takes longer
        return None
    try:
        context = (
            get_current()
            if traceparent is None
            else _PROPAGATOR.extract({"traceparent": traceparent}, Context())
        )
        return TraceParent(_tracer(provider), context)
    except Exception:
        _log.exception("a trace could not be followed")
        return None


@lru_cache(maxsize=1)  # a program has one
def _tracer(provider: TracerProvider) -> Tracer:
    from importlib.metadata import version

    return provider.get_tracer(NAME, version("batchyard"))
