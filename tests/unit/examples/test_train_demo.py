"""What `demo --train` says of batches."""

from __future__ import annotations

from batchyard.broker.counters import Histogram
from batchyard.examples.training.demo import batch_sizes


def counters(*rows: int) -> dict[str, object]:
    histogram = Histogram()
    for count in rows:
        histogram.add(count)
    other = Histogram()
    other.add(10**6)
    return {
        "batch_stages": [["digits", "compute", other.snapshot()], ["digits", "rows", histogram.snapshot()]]
    }


def test_batch_sizes_are_the_brokers_own_of_this_model() -> None:
    assert batch_sizes(counters(1, 1, 1, 2, 32), "digits") == (
        "5: half of them of up to 1 scan, the largest of 32"
    )
    assert batch_sizes(counters(1, 5, 5), "digits").endswith("of up to 5 scans, the largest of 5")
    assert batch_sizes(counters(1), "another").startswith("0: ")
