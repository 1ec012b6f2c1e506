"""The typed snapshot: what a broker's own core says is read, and what is none is refused."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.transport.errors import MalformedMessage
from batchyard.transport.snapshot import read


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"workers": "1"},
        {"requests": [["net", 4, "ok", 1]]},
        {"requests": [["net", 1, "ok"]]},
        {"stages": [["net", 1, "total", {"counts": {"one": 1}, "sum": 1}]]},
        {"stages": [["net", 1, "total", {"counts": {1: -1}, "sum": 1}]]},
        {"refused": None},
        {"rows": -1},
        {"models": [["net", 1, 1, [0, 0], {}]]},
        {"leases": [[1, 8]]},
        {"epoch": "new"},
    ],
)
def test_a_snapshot_that_is_none_is_refused_by_an_error_of_ours(counters: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="not the snapshot"):
        read(counters | wrong)


def test_keys_of_a_later_broker_are_let_be_and_a_missing_one_is_not(counters: dict[str, Any]) -> None:
    assert read(counters | {"something new": 1}) == read(counters)
    del counters["credit"]
    with pytest.raises(MalformedMessage, match="credit"):
        read(counters)
