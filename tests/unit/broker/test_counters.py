"""What the broker counts: sums, and snapshots that are plain copies."""

from __future__ import annotations

from batchyard.broker.counters import Counters, Histogram
from batchyard.transport.histograms import bucket_of
from batchyard.transport.messages import Done


def test_a_histogram_counts_and_sums() -> None:
    histogram = Histogram()
    for value in (1, 1, 1_000_000):
        histogram.add(value)
    snapshot = histogram.snapshot()
    assert snapshot == {"counts": {1: 2, bucket_of(1_000_000): 1}, "sum": 1_000_002}


def test_a_snapshot_is_a_copy_of_plain_values() -> None:
    counters = Counters()
    counters.refuse("malformed")
    counters.end("net", 2, "ok")
    counters.batch("net", 4, Done(1, 1, 10, 20, 30, 40, []))
    before = counters.snapshot()
    counters.refuse("malformed")
    counters.end("net", 2, "ok")
    counters.batch("net", 4, Done(1, 1, 10, 20, 30, 40, []))
    assert before["refused"] == {"malformed": 1}
    assert before["requests"] == [["net", 2, "ok", 1]]
    assert (before["batches"], before["rows"], before["copied_bytes"]) == (1, 4, 40)
    assert [row[:2] for row in before["batch_stages"]] == [
        ["net", stage] for stage in ("rows", "gather", "compute", "scatter")
    ]
    assert before["batch_stages"][0][2]["counts"] == {4: 1}
