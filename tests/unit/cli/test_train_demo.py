"""What `demo --train` says of batches, and where it sends its reader next."""

from __future__ import annotations

from pathlib import Path

import pytest
from batchyard.broker.counters import Histogram
from batchyard.cli import train_demo
from batchyard.cli.train_demo import batch_sizes, next_steps


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


def test_the_reader_is_sent_only_to_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = next_steps(Path("yard.toml"))
    assert [line.split()[0] for line in everything] == ["batchyard", "batchyard", "docker"]
    assert everything[0].split()[:6] == ["batchyard", "up", "--config", "yard.toml", "--metrics", "9877"]
    monkeypatch.setattr(train_demo, "GRAFANA", "grafana/absent.yml")
    up, _ = next_steps(Path("yard.toml"))
    assert "--metrics" not in up
