"""A node's load as ORCA writes it."""

from __future__ import annotations

import json
from typing import Any

from batchyard.gateway.load import written

SNAPSHOT: dict[str, Any] = {
    "workers": 4,
    "leases": [[1, 10, {}, [["m", 8]]], [2, 11, {}, []], [3, 12, {}, [["m", 1], ["m", 2]]]],
    "models": [["m", 1, 1, [1, 2, 3, 4], {}], ["n", 1, 1, [0, 0, 0, 0], {}]],
    "rows_under_way": 21,
}


def test_text_is_a_flat_list() -> None:
    text = "TEXT application_utilization=0.5, named_metrics.rows_waiting=10, named_metrics.rows_under_way=21"
    assert written(SNAPSHOT, "text") == text


def test_json_nests_the_named_metrics() -> None:
    kind, _, body = written(SNAPSHOT, "JSON").partition(" ")
    assert kind == "JSON"
    expected = {"application_utilization": 0.5, "named_metrics": {"rows_waiting": 10, "rows_under_way": 21}}
    assert json.loads(body) == expected


def test_a_yard_without_workers_is_not_busy() -> None:
    assert written({**SNAPSHOT, "workers": 0, "leases": []}, "text").startswith("TEXT application_utilization=0,")
