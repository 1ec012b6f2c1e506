"""Traces of real requests, taken by OpenTelemetry's own tracer: which spans there are, whose children they
are, and that their times fit into each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard import AsyncClient, Client, Yard
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

TRACE, PARENT = 0xAB << 100, 0xCD << 40
STAGES = ["batch", "compute", "queue", "reply"]
X = np.arange(4, dtype=np.float32)[None]


def header(flags: str = "01") -> str:
    return f"00-{TRACE:032x}-{PARENT:016x}-{flags}"


class Spans:
    """What a program's tracer was given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def requests(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.name.startswith("infer ")]

    def below(self, parent: ReadableSpan) -> dict[str, ReadableSpan]:
        return {s.name: s for s in self.all if s.parent and s.parent.span_id == parent.context.span_id}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A program that traces; a provider can be set only once in a process, so its getter is replaced."""
    found = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: found.provider)
    return found


@pytest.fixture(scope="module")
def yard(neg_model: Path, slow_model: Path) -> Iterator[Yard]:
    with batchyard.serve({"neg": neg_model, "slow": slow_model}, threads=1) as yard:
        yield yard


@pytest.fixture(scope="module")
def client(yard: Yard) -> Iterator[Client]:
    with yard.client() as client:
        yield client


def _in_a_loop(use: Callable[[AsyncClient], Any]) -> Callable[[Client, Yard], Any]:
    async def run(yard: Yard) -> Any:
        async with AsyncClient(yard.url) as client:
            return await use(client)

    return lambda _, yard: asyncio.run(run(yard))


async def _gather(results: Any) -> list[Any]:
    return [result async for result in results]


Verb = Callable[[Client, Yard, dict[str, Any], Any], Any]  # with these options, of these inputs
VERBS: dict[str, Verb] = {
    "infer": lambda c, y, o, x: c.infer("neg", x, **o),
    "request": lambda c, y, o, x: c.request("neg", x, **o),
    "submit": lambda c, y, o, x: c.submit("neg", x, **o).result(),
    "map": lambda c, y, o, x: list(c.map("neg", [x], **o)),
    "async infer": lambda c, y, o, x: _in_a_loop(lambda a: a.infer("neg", x, **o))(c, y),
    "async submit": lambda c, y, o, x: _in_a_loop(lambda a: a.submit("neg", x, **o))(c, y),
    "async map": lambda c, y, o, x: _in_a_loop(lambda a: _gather(a.map("neg", [x], **o)))(c, y),
}
each_verb = pytest.mark.parametrize("verb", VERBS)


@each_verb
def test_a_request_is_a_span_below_the_header_s_with_its_stages_below_it(
    verb: str, yard: Yard, client: Client, spans: Spans
) -> None:
    VERBS[verb](client, yard, {"traceparent": header(), "priority": "high"}, X)

    (request,) = spans.requests
    assert (request.name, request.kind) == ("infer neg", trace.SpanKind.CLIENT)
    assert request.parent is not None
    assert (request.parent.trace_id, request.parent.span_id) == (TRACE, PARENT)
    assert {span.context.trace_id for span in spans.all} == {TRACE}
    below = spans.below(request)
    below |= spans.below(below["batch"])
    assert sorted(below) == STAGES
    for span in below.values():
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    batch, compute = below["batch"], below["compute"]
    assert below["queue"].end_time == batch.start_time
    assert batch.start_time <= compute.start_time < compute.end_time <= batch.end_time == below["reply"].start_time
    assert below["reply"].end_time == request.end_time
    assert dict(request.attributes) == {
        "batchyard.model": "neg",
        "batchyard.priority": "HIGH",
        "batchyard.revision": 1,
        "batchyard.provider": "cpu",
    }


@each_verb
def test_without_a_header_it_hangs_below_the_span_that_is_open(
    verb: str, yard: Yard, client: Client, spans: Spans
) -> None:
    with spans.provider.get_tracer("program").start_as_current_span("page") as page:
        VERBS[verb](client, yard, {}, X)

    (request,) = spans.requests
    assert request.parent is not None
    assert request.parent.span_id == page.get_span_context().span_id
    (finished,) = (span for span in spans.all if span.name == "page")
    assert finished.start_time <= request.start_time < request.end_time <= finished.end_time


@each_verb
def test_a_request_that_fails_says_why_in_its_span(verb: str, yard: Yard, client: Client, spans: Spans) -> None:
    with pytest.raises(batchyard.InvalidRequest):
        VERBS[verb](client, yard, {}, X.astype(np.float64))

    (request,) = spans.requests
    assert request.status.status_code is trace.StatusCode.ERROR
    assert "float64" in str(request.status.description)
    assert request.attributes["error.type"] == "InvalidRequest"
    assert [event.name for event in request.events] == ["exception"]
    assert spans.below(request) == {}


@each_verb
def test_what_is_not_sampled_leaves_no_span(verb: str, yard: Yard, client: Client, spans: Spans) -> None:
    VERBS[verb](client, yard, {"traceparent": header("00")}, X)
    spans.provider = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    spans.provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    VERBS[verb](client, yard, {}, X)

    assert spans.all == []


def test_a_header_that_is_none_starts_a_trace_of_its_own(client: Client, spans: Spans) -> None:
    for malformed in ("", "00-zz-zz-01", "ff" + header()[2:], header().replace(f"{TRACE:032x}", "0" * 32)):
        client.infer("neg", X, traceparent=malformed)

    assert [request.parent for request in spans.requests] == [None] * 4
    assert len({request.context.trace_id for request in spans.requests}) == 4


def test_the_stages_are_as_long_as_the_receipt_says(client: Client, spans: Spans) -> None:
    receipt = client.request("slow", np.ones((1, 512), np.float32)).receipt

    (request,) = spans.requests
    below = spans.below(request)
    below |= spans.below(below["batch"])
    lengths = {name: span.end_time - span.start_time for name, span in below.items()}
    assert receipt.lent_ns > receipt.compute_ns > 1_000_000
    assert lengths["queue"] == receipt.queue_ns
    assert lengths["batch"] == receipt.lent_ns
    assert lengths["compute"] == receipt.compute_ns
    assert dict(below["batch"].attributes) == {
        "batchyard.batch.id": receipt.batch,
        "batchyard.batch.rows": 1,
        "batchyard.worker": receipt.worker,
        "batchyard.copied_bytes": receipt.copied_bytes,
        "batchyard.gather_ns": receipt.gather_ns,
        "batchyard.scatter_ns": receipt.scatter_ns,
    }


def test_requests_that_ran_together_name_the_same_batch(client: Client, spans: Spans) -> None:
    list(client.map("slow", [np.ones((1, 512), np.float32)] * 12, window=12))

    batches = sorted(
        (span.attributes["batchyard.batch.id"], span.attributes["batchyard.batch.rows"])
        for span in spans.all
        if span.name == "batch"
    )
    groups = [(rows, len(list(group))) for (_, rows), group in groupby(batches)]
    assert sum(count for _, count in groups) == 12
    assert all(rows == count for rows, count in groups)
    assert max(count for _, count in groups) > 1


def test_what_is_cancelled_says_so(client: Client, spans: Spans) -> None:
    rows = np.ones((32, 512), np.float32)  # a run of its own
    running, waiting = client.submit("slow", rows), client.submit("slow", rows, priority="low")
    assert waiting.cancel()
    running.result()
    mapping = client.map("slow", [rows] * 3)
    next(mapping)
    mapping.close()

    kinds = [request.attributes.get("error.type") for request in spans.requests]
    assert sorted(kinds, key=str) == ["Cancelled", "Cancelled", "Cancelled", None, None]


def test_a_task_that_is_cancelled_says_so(yard: Yard, spans: Spans) -> None:
    async def run() -> None:
        async with AsyncClient(yard.url) as client:
            await client.wait_ready("slow")
            task = client.submit("slow", np.ones((1, 512), np.float32))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    (request,) = spans.requests
    assert request.attributes["error.type"] == "CancelledError"


def test_a_request_that_outlives_its_broker_is_one_span(yard: Yard, tools: Any, spans: Spans) -> None:
    rows = np.ones((32, 512), np.float32)  # a run of its own

    async def ask() -> None:
        async with yard.async_client() as client:
            await asyncio.gather(*(client.submit("slow", rows) for _ in range(3)))

    with yard.client() as client, ThreadPoolExecutor(3) as pool:
        client.wait_ready("slow")
        calls = [
            pool.submit(client.infer, "slow", rows),
            pool.submit(lambda: list(client.map("slow", [rows] * 3))),
            pool.submit(lambda: asyncio.run(ask())),
            *(client.submit("slow", rows) for _ in range(3)),
        ]
        tools.until(lambda: yard.snapshot()["rows_under_way"] >= 8 * 32)
        before = len(spans.requests)
        tools.kill(yard.snapshot()["pid"])
        for call in calls:
            call.result(30)

    assert len(spans.requests) == 10 > before
    for request in spans.requests:
        assert request.status.status_code is trace.StatusCode.UNSET
        below = spans.below(request)
        assert request.start_time <= below["queue"].start_time
        assert below["reply"].end_time == request.end_time


class _Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name != "queue":
            raise RuntimeError("this processor has a bug")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("this processor has a bug")


@each_verb
def test_a_tracer_with_a_bug_fails_no_request(
    verb: str, yard: Yard, client: Client, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    spans.provider.add_span_processor(_Broken())
    assert VERBS[verb](client, yard, {}, X) is not None
    assert "a span could not be started" in caplog.text


def test_a_program_that_loads_opentelemetry_and_sets_nothing_up_is_not_traced(client: Client) -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(TRACE, PARENT, True, trace.TraceFlags(1)))):
        assert client.infer("neg", X, traceparent=header()) is not None
