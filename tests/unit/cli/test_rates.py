"""What two snapshots of a broker come to."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.cli.rates import Interval, Times, between
from batchyard.transport.histograms import bucket_of
from batchyard.transport.snapshot import read

MS = 1_000_000


def histogram(*values: int) -> dict[str, Any]:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    return {"counts": counts, "sum": sum(values)}


def counters(**changed: Any) -> dict[str, Any]:
    """A snapshot of an idle broker with one model and one worker, but for what has changed."""
    return {
        "version": "0.1.0",
        "pid": 7,
        "epoch": 1,
        "requests": [],
        "refused": {},
        "identical": [],
        "stages": [],
        "batch_stages": [],
        "models": [["net", 1, 1, [0, 0, 0, 0], {"cpu": 1}]],
        "lanes": [],
        "lanes_omitted": {},
        "leases": [[1, 8, {"net": "cpu"}, []]],
        "workers": 1,
        "worker_pids": [8],
        "workers_fallen": [],
    } | dict.fromkeys(
        (
            "batches", "batches_failed", "rows", "requeued", "copied_bytes", "inline_copied_bytes",
            "workers_lost", "workers_restarted", "workers_hung", "workers_left", "clients", "credit", "batches_lent",
            "rows_under_way", "bytes_under_way", "arenas", "arena_bytes", "arena_committed_bytes", "bytes_held", "inline_used_bytes",
        ),
        0,
    ) | changed  # fmt: skip


def interval(before: dict[str, Any] | None, after: dict[str, Any], interval_s: float = 2.0) -> Interval:
    return between(read(before) if before else None, read(after), interval_s, 1.8e9, "ipc:///yard")


def test_rates_are_of_the_interval_alone() -> None:
    before = counters(
        requests=[["net", 0, "ok", 100], ["net", 3, "ok", 7]],
        refused={"overloaded": 5},
        batches=10,
        rows=100,
        copied_bytes=1_000,
        batch_stages=[["net", "rows", histogram(*[10] * 10)]],
    )
    after = counters(
        requests=[
            ["net", 0, "ok", 160],
            ["net", 3, "ok", 7],
            ["net", 3, "cancelled", 4],
            ["", 2, "unknown_model", 2],
        ],
        refused={"overloaded": 8, "unknown_model": 2},
        batches=14,
        rows=164,
        copied_bytes=5_000,
        batch_stages=[["net", "rows", histogram(*[10] * 10, *[16] * 4)]],
    )

    seen = interval(before, after)

    assert (seen.interval_s, seen.requests_per_s, seen.rows_per_s, seen.batches_per_s) == (2.0, 33, 32, 2)
    assert (seen.rows_per_batch, seen.copied_bytes_per_s) == (16, 2_000)
    assert seen.outcomes_per_s == {"ok": 30, "cancelled": 2, "unknown_model": 1}
    assert seen.refused_per_s == {"overloaded": 1.5, "unknown_model": 1}
    (model,) = seen.models
    assert (model.requests_per_s, model.rows_per_s, model.batches_per_s, model.rows_per_batch) == (
        32,
        32,
        2,
        16,
    )
    assert [(t.priority, t.requests_per_s, t.failed_per_s) for t in model.tracks] == [
        ("URGENT", 30, 0),
        ("LOW", 2, 2),
    ]


def test_quantiles_are_of_the_interval_alone_and_within_a_bucket() -> None:
    slow = [100 * MS] * 1_000
    quick = [*[1 * MS] * 98, *[20 * MS] * 2]
    stages = [["net", 2, "total", histogram(*slow)], ["net", 2, "queue", histogram(*slow)]]
    after = [["net", 2, "total", histogram(*slow, *quick)], ["net", 2, "queue", histogram(*slow)]]

    seen = interval(
        counters(stages=stages, requests=[["net", 2, "ok", 1_000]]),
        counters(stages=after, requests=[["net", 2, "ok", 1_100]]),
    )

    (track,) = seen.models[0].tracks
    assert isinstance(track.latency, Times)
    assert track.latency.p50_ns == pytest.approx(1 * MS, rel=0.19)
    assert track.latency.p99_ns == pytest.approx(20 * MS, rel=0.19)
    assert track.queue is None


@pytest.mark.parametrize("before", [None, counters(epoch=2, batches=50, rows=90)], ids=["none", "another's"])
def test_one_snapshot_tells_what_is_now_and_no_rates(before: dict[str, Any] | None) -> None:
    seen = interval(
        before,
        counters(
            batches=3, rows=9, requests=[["net", 1, "ok", 3]], models=[["net", 2, 1, [0, 5, 0, 2], {"cpu": 1}]],
            stages=[["net", 1, "total", histogram(5)], ["net", 1, "queue", histogram(5)]],
            batch_stages=[["net", "rows", histogram(3, 3, 3)], ["net", "compute", histogram(1)]],
        ),
    )  # fmt: skip

    assert seen.interval_s is None
    assert (seen.requests_per_s, seen.rows_per_s, seen.rows_per_batch) == (None, None, None)
    assert (seen.outcomes_per_s, seen.rows_waiting) == ({}, 7)
    (model,) = seen.models
    assert (model.requests_per_s, model.rows_per_batch, model.compute, model.revision) == (
        None,
        None,
        None,
        2,
    )
    assert [(t.priority, t.waiting_rows, t.latency) for t in model.tracks] == [
        ("HIGH", 5, None),
        ("LOW", 2, None),
    ]


def test_what_a_worker_runs_and_what_follows_is_told() -> None:
    leases = [[1, 8, {"net": "cpu", "other": "cpu"}, [["net", 16], ["other", 2]]], [2, 9, {}, []]]

    fallen = [[2, "no adapter"]]

    busy, loading = interval(None, counters(leases=leases, workers_fallen=fallen)).workers

    assert (busy.worker, busy.pid, busy.providers) == (1, 8, ["cpu"])
    assert busy.runs is not None
    assert busy.follows is not None
    assert [(run.model, run.rows) for run in (busy.runs, busy.follows)] == [("net", 16), ("other", 2)]
    assert (loading.providers, loading.runs, loading.follows) == ([], None, None)
    assert (busy.fallback_reason, loading.fallback_reason) == ("", "no adapter")


def test_the_busiest_model_comes_first_and_has_its_own_lanes() -> None:
    models = [["a", 1, 1, [0, 0, 0, 0], {}], ["net", 1, 2, [0, 0, 1, 0], {}]]
    lanes = [["a", [], 0], ["net", [[3, 224, 224]], 1], ["net", [[3, 64, 64]], 0]]
    rows = [["net", "rows", histogram(1)]]

    omitted = {"net": 7}
    seen = interval(
        counters(), counters(models=models, lanes=lanes, lanes_omitted=omitted, batch_stages=rows)
    )

    assert [model.lanes_omitted for model in seen.models] == [7, 0]
    assert [(model.name, model.state) for model in seen.models] == [("net", "failed"), ("a", "ready")]
    assert [(lane.shapes, lane.waiting_rows) for lane in seen.models[0].lanes] == [
        ([[3, 224, 224]], 1),
        ([[3, 64, 64]], 0),
    ]
