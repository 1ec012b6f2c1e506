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
    monkeypatch.setattr(train_demo, "VERBS", {"up": ("", "")})
    monkeypatch.setattr(train_demo, "PROCFILE", "Procfile.absent")
    (up,) = next_steps(Path("trained/yard.toml"))
    assert up.split()[:4] == ["batchyard", "up", "--config", str(Path("trained/yard.toml"))]
    monkeypatch.setattr(train_demo, "VERBS", {"up": ("", ""), "top": ("", "")})
    monkeypatch.setattr(train_demo, "PROCFILE", "Procfile")
    assert [line.split()[0] for line in next_steps(Path("yard.toml"))] == ["batchyard", "batchyard", "honcho"]
