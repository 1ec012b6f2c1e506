"""Every metric from the broker's snapshot: name, labels, and meaning. Pure.

A page is made of one snapshot, so it never mixes two brokers; a broker that was started again counts
from zero, which Prometheus takes for the reset that it is. What a served model may count is on the page
from the beginning, as 0: a counter that appears with its first event hides that event from `rate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from ..transport.errors import Code
from ..transport.messages import Priority
from ..transport.snapshot import Histogram, Snapshot
from .buckets import ROWS, TIME, Bounds

PRIORITIES = tuple(priority.name.lower() for priority in Priority)
STATUSES = (
    "ok",
    "gone",
    *(
        code.name.lower()
        for code in (
            Code.INVALID_REQUEST,
            Code.OVERLOADED,
            Code.DEADLINE_EXCEEDED,
            Code.CANCELLED,
            Code.WORKER_LOST,
            Code.MODEL_FAILED,
        )
    ),
)
_EMPTY = Histogram({}, 0)


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """The page of a broker that answered."""
    yield _up(1)
    yield from _requests(snapshot)
    yield from _durations(snapshot)
    yield from _batches(snapshot)
    yield from _workers(snapshot)
    yield from _memory(snapshot)


def absent() -> Iterator[Metric]:
    """The page of a broker that did not."""
    yield _up(0)


def _up(value: float) -> Metric:
    return _gauge("up", "Whether the broker has answered the sidecar (1) or not (0).", value)


def _requests(snapshot: Snapshot) -> Iterator[Metric]:
    names = [name for name, *_ in snapshot.models]
    counts = {
        (name, priority, status): 0
        for name in names
        for priority in range(len(PRIORITIES))
        for status in STATUSES
    }
    for name, priority, status, count in snapshot.requests:
        counts[name, priority, status] = counts.get((name, priority, status), 0) + count
    text = "Requests that have ended, each once. status: ok, gone (its client left), or the error's name."
    requests = CounterMetricFamily("batchyard_requests", text, labels=("model", "priority", "status"))
    for (name, priority, status), count in counts.items():
        requests.add_metric((name, PRIORITIES[priority], status), count)
    yield requests
    text = "Requests and messages that were not taken, by the reason why."
    yield _counters("refusals", text, "reason", {"overloaded": 0, **snapshot.refused})
    for how, name, text in (
        ("cached", "cache_hits", "Requests that were answered with a result that was kept."),
        ("joined", "requests_joined", "Requests that shared the run of an identical one."),
    ):
        found = dict.fromkeys(names, 0) | {model: n for model, kind, n in snapshot.identical if kind == how}
        yield _counters(name, text, "model", found)
    waiting = (
        ((model, priority_name), count)
        for model, _, _, rows, _ in snapshot.models
        for priority_name, count in zip(PRIORITIES, rows, strict=False)
    )
    yield _gauges("queue_depth_rows", "Rows that wait for a worker.", ("model", "priority"), waiting)
    yield _gauge("rows_under_way", "Rows of requests that have not ended.", snapshot.rows_under_way)
    yield _gauge("clients", "Connections of clients.", snapshot.clients)


def _durations(snapshot: Snapshot) -> Iterator[Metric]:
    served = [(name, priority) for name, *_ in snapshot.models for priority in range(len(PRIORITIES))]
    for stage, name, text in (
        ("total", "request", "Time from a request's arrival at the broker to the result of its run."),
        ("queue", "queue", "Of that, the time until it was lent to a worker."),
    ):
        found = dict.fromkeys(served, _EMPTY)
        found |= {(model, priority): h for model, priority, kind, h in snapshot.stages if kind == stage}
        rows = (((model, PRIORITIES[priority]), h) for (model, priority), h in found.items())
        yield _histogram(f"{name}_duration_seconds", text, ("model", "priority"), rows, TIME)


def _batches(snapshot: Snapshot) -> Iterator[Metric]:
    for stage, name, text, bounds in (
        ("compute", "compute_duration_seconds", "Time of a batch's run, without gather and scatter.", TIME),
        ("rows", "batch_rows", "Rows of a batch.", ROWS),
    ):
        found = dict.fromkeys((name for name, *_ in snapshot.models), _EMPTY)
        found |= {model: h for model, kind, h in snapshot.batch_stages if kind == stage}
        yield _histogram(name, text, ("model",), (((model,), h) for model, h in found.items()), bounds)
    names = [name for name, *_ in snapshot.models]
    text = "Elements of batches along padded axes, of models whose batches are padded."
    elements = dict.fromkeys(names, 0) | {model: count for model, count, _ in snapshot.elements}
    yield _counters("batch_elements", text, "model", elements)
    padding = dict.fromkeys(names, 0) | {model: count for model, _, count in snapshot.elements}
    yield _counters("padding_elements", "Of these, elements that were padding.", "model", padding)
    yield _gauge("batches_lent", "Batches that workers have and have not answered.", snapshot.batches_lent)
    yield _gauge("credit", "Batches that could be lent at once, over all workers.", snapshot.credit)
    yield _counter("batches_failed", "Batches that failed as a whole.", snapshot.batches_failed)
    yield _counter("parts_requeued", "Parts of requests that went back to their queues.", snapshot.requeued)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("workers_up", "Registered workers.", snapshot.workers)
    text = "Workers that joined in the place of one that was lost."
    yield _counter("worker_restarts", text, snapshot.workers_restarted)
    yield _counter("workers_lost", "Workers whose process or connection ended.", snapshot.workers_lost)
    yield _counter("workers_hung", "Workers that were killed over a batch.", snapshot.workers_hung)
    text = "Workers that left by themselves: their device was lost, or a better one works again."
    yield _counter("workers_left", text, snapshot.workers_left)
    text = "Workers on a provider below the best one that is installed; the broker's log says why."
    yield _gauge("workers_fallen", text, len(snapshot.workers_fallen))
    models = snapshot.models
    serving = (((name,), sum(providers.values())) for name, _, _, _, providers in models)
    yield _gauges("model_workers", "Workers that serve a model.", ("model",), serving)
    text = "The revision that is served; it changes with every swap."
    yield _gauges("model_revision", text, ("model",), (((name,), revision) for name, revision, *_ in models))
    text = "By which provider workers run a model, and which revision of it is served; always 1."
    info = (((name, str(number), each), 1) for name, number, _, _, providers in models for each in providers)
    yield _gauges("provider_info", text, ("model", "revision", "provider"), info)
    yield _gauges("build_info", "The broker's version; always 1.", ("version",), [((snapshot.version,), 1)])


def _memory(snapshot: Snapshot) -> Iterator[Metric]:
    text = "Bytes of the arenas in slots of requests that a worker may still touch."
    yield _gauge("arena_used_bytes", text, snapshot.bytes_held)
    text = "Memory that the arenas have: their pages."
    yield _gauge("arena_committed_bytes", text, snapshot.arena_committed_bytes)
    text = "Bytes of all arenas that the broker has open: address space, most of it without pages."
    yield _gauge("arena_total_bytes", text, snapshot.arena_bytes)
    copied = {"worker": snapshot.copied_bytes, "broker": snapshot.inline_copied_bytes}
    text = "Bytes of tensors that were copied: by workers into and out of batches, by the broker for tcp."
    yield _counters("copied_bytes", text, "by", copied)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"batchyard_{name}", text, value)


def _gauges(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(f"batchyard_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"batchyard_{name}", text, value)


def _counters(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"batchyard_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], Histogram]],
    bounds: Bounds,
) -> Metric:
    family = HistogramMetricFamily(f"batchyard_{name}", text, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, bounds.rebin(histogram.counts), histogram.sum / bounds.unit)
    return family
