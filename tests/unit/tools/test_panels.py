"""The drawing of the dashboard: which panels, where, and how values are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batchyard import BatchyardError
from batchyard.tools.panels import ask, chosen, shown

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[3] / "grafana/dashboards/batchyard.json").read_text()
)


def test_without_a_choice_every_panel_stays_where_it_is() -> None:
    assert chosen(DASHBOARD, []) == DASHBOARD["panels"]


def test_chosen_rows_close_ranks_and_keep_their_panels() -> None:
    found = chosen(DASHBOARD, ["Workers", "Memory"])
    assert [panel["title"] for panel in found if panel["type"] == "row"] == ["Workers", "Memory"]
    assert [(panel["gridPos"]["y"], panel["type"]) for panel in found] == [
        (0, "row"),
        *[(1, "timeseries")] * 3,
        (9, "row"),
        *[(10, "timeseries")] * 3,
    ]


def test_a_row_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(BatchyardError, match="no row 'Queue'; there is: Yard, Health, Queues"):
        chosen(DASHBOARD, ["Queue"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000042, "s", "4.2 µs"),
        (0.25, "s", "250 ms"),
        (2.0, "s", "2 s"),
        (0.125, "percentunit", "12.5 %"),
        (8 << 30, "bytes", "8 GiB"),
        (1536.0, "binBps", "1.5 KiB/s"),
        (1234.0, "reqps", "1234 req/s"),
        (73_240.0, "rpm", "73.2k /min"),
        (7.25, "short", "7.25"),
    ],
)
def test_values_are_written_in_their_unit(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_a_prometheus_that_is_not_there_is_an_error_of_ours() -> None:
    with pytest.raises(BatchyardError, match="does not answer"):
        ask("http://127.0.0.1:1", {"expr": "up", "legendFormat": ""}, 0.0, 60.0)
