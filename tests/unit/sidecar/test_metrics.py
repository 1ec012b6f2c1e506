"""The page: what the broker's core counted, under the names that dashboards ask for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from batchyard.sidecar import metrics
from batchyard.transport.snapshot import read
from prometheus_client.metrics_core import Metric

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page(families: Iterable[Metric]) -> Page:
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(of: Page, name: str, **labels: str) -> float:
    return of[f"batchyard_{name}", frozenset(labels.items())]


def test_requests_are_counted_by_model_priority_and_status(counters: dict[str, Any]) -> None:
    found = page(metrics.families(read(counters)))
    assert value(found, "requests_total", model="net", priority="high", status="ok") == 3
    assert value(found, "requests_total", model="", priority="normal", status="unknown_model") == 1
    assert sum(count for (name, _), count in found.items() if name == "batchyard_requests_total") == 4
    assert value(found, "refusals_total", reason="unknown_model") == 1


def test_what_a_served_model_may_count_is_there_from_the_beginning_as_zero(counters: dict[str, Any]) -> None:
    found = page(metrics.families(read(counters)))
    for priority in metrics.PRIORITIES:
        for status in metrics.STATUSES:
            assert (
                "batchyard_requests_total",
                frozenset({("model", "net"), ("priority", priority), ("status", status)}),
            ) in found
    assert value(found, "request_duration_seconds_count", model="net", priority="urgent") == 0
    assert value(found, "cache_hits_total", model="net") == 0
    assert value(found, "refusals_total", reason="overloaded") == 0
    assert value(found, "worker_restarts_total") == 0


def test_durations_are_in_seconds_with_sums_and_counts(counters: dict[str, Any]) -> None:
    found = page(metrics.families(read(counters)))
    labels = {"model": "net", "priority": "high"}
    assert value(found, "request_duration_seconds_count", **labels) == 3
    assert value(found, "request_duration_seconds_sum", **labels) == pytest.approx(0.015)
    assert value(found, "queue_duration_seconds_sum", **labels) == pytest.approx(0.003)
    assert value(found, "compute_duration_seconds_sum", model="net") == pytest.approx(0.002)
    assert value(found, "request_duration_seconds_bucket", le="0.004194303", **labels) == 0
    assert value(found, "request_duration_seconds_bucket", le="0.006291455", **labels) == 3
    assert value(found, "request_duration_seconds_bucket", le="+Inf", **labels) == 3


def test_batches_queues_workers_and_memory_are_told(counters: dict[str, Any]) -> None:
    found = page(metrics.families(read(counters)))
    assert value(found, "batch_rows_sum", model="net") == 3
    assert value(found, "batch_rows_bucket", model="net", le="2.0") == 0
    assert value(found, "batch_rows_bucket", model="net", le="3.0") == 1
    assert value(found, "queue_depth_rows", model="net", priority="low") == 1
    assert value(found, "queue_depth_rows", model="net", priority="high") == 0
    assert value(found, "workers_left_total") == value(found, "workers_fallen") == 0
    assert value(found, "workers_up") == value(found, "model_workers", model="net") == 1
    assert value(found, "provider_info", model="net", provider="cpu", revision="1") == 1
    assert value(found, "build_info", version="0.1.0") == 1
    assert value(found, "credit") == 2
    assert value(found, "arena_used_bytes") == 32  # the LOW request's input and output
    assert value(found, "arena_committed_bytes") == 1 << 16
    assert value(found, "arena_total_bytes") == 1 << 20
    assert value(found, "copied_bytes_total", by="worker") == 96
    assert value(found, "up") == 1


def test_an_absent_broker_is_a_page_of_its_own_without_a_single_stale_figure() -> None:
    assert page(metrics.absent()) == {("batchyard_up", frozenset()): 0}
