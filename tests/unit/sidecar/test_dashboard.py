"""The dashboard: the committed file, the owner's panels, and the rules of Grafana's dashboard-linter.

The rules' names are the linter's own (github.com/grafana/dashboard-linter, docs/rules and lint/): what
each demands is asked here of the JSON. That every query is valid PromQL is for a real Prometheus to say
(tests/integration/test_monitoring.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from batchyard.sidecar.collector import YardCollector
from batchyard.sidecar.dashboard import dashboard
from batchyard.sidecar.sensors import Gpu
from batchyard.transport.snapshot import read

GRAFANA = Path(__file__).resolve().parents[3] / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/batchyard.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
QUERIES = [target["expr"] for target in TARGETS]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
SELECTOR = re.compile(r"(batchyard_\w+)\{([^}]*)\}(\[[^]]*\])?")
RATES = ("rate", "irate", "increase")
# Of the linter's list (packages/grafana-data/src/valueFormats/categories.ts), those that panels use.
UNITS = {"none", "short", "percentunit", "bytes", "s", "reqps", "rpm", "binBps", "celsius", "watt"}


def by_title(title: str) -> dict[str, Any]:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    return panel


def test_the_committed_file_is_what_the_source_makes() -> None:
    how = "python -m batchyard.sidecar.dashboard > grafana/dashboards/batchyard.json"
    assert dashboard() == BOARD, how


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Requests per second", "gauge"),
        ("Latency", "timeseries"),
        ("GPU utilization", "timeseries"),
        ("GPU memory", "timeseries"),
        ("Request status", "timeseries"),
        ("Average batch size", "timeseries"),
        ("Throughput per minute", "timeseries"),
    ],
)
def test_each_of_the_seven_panels_is_there_in_the_first_row(title: str, kind: str) -> None:
    assert by_title(title)["type"] == kind
    assert by_title(title)["id"] <= 8


def test_latency_has_three_percentiles_status_is_stacked_and_memory_shows_used_and_total() -> None:
    assert [target["legendFormat"] for target in by_title("Latency")["targets"]] == ["p50", "p95", "p99"]
    stacking = by_title("Request status")["fieldConfig"]["defaults"]["custom"]["stacking"]
    assert stacking["mode"] == "normal"
    memory = [target["expr"] for target in by_title("GPU memory")["targets"]]
    assert any("gpu_memory_used" in query for query in memory)
    assert any("gpu_memory_total" in query for query in memory)


def test_it_is_drawn_every_five_seconds_over_a_quarter_of_an_hour() -> None:
    assert BOARD["refresh"] == "5s"
    assert BOARD["time"] == {"from": "now-15m", "to": "now"}


def test_panels_have_numbers_of_their_own_and_lie_side_by_side_on_the_grid() -> None:
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_that_is_asked_for_is_on_the_page(counters: dict[str, Any]) -> None:
    gpus = [Gpu("a", "card", 0.5, 1, 2, 50.0, 20.0)]
    collector = YardCollector(lambda: read(counters), [lambda: gpus], False)
    known = {sample.name for family in collector.collect() for sample in family.samples} | {"batchyard_up"}
    rules = (GRAFANA / "prometheus/rules.yml").read_text()
    asked = set(re.findall(r"batchyard_\w+", " ".join([*QUERIES, rules])))
    assert asked <= known
    assert "batchyard_requests_total" in asked


# ---- the linter's rules -----------------------------------------------------------------------------


def test_template_datasource_rule() -> None:
    source = VARIABLES["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")


@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_rule_and_template_instance_rule(name: str) -> None:
    variable = VARIABLES[name]
    assert variable["type"] == "query"
    assert variable["datasource"]["uid"] == "${datasource}"
    assert variable["label"] == name.capitalize()
    assert variable["multi"] is True
    assert variable["allValue"] == ".+"


def test_template_label_promql_rule() -> None:
    """A variable's query is label_values(selector, label), of a metric that there is."""
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((batchyard_\w+)(\{[^}]*\})?, (\w+)\)", variable["query"])
            assert found, variable["query"]
            assert found[3] == variable["name"]


def test_template_on_time_change_reload_rule() -> None:
    assert {variable["refresh"] for variable in VARIABLES.values() if variable["type"] == "query"} == {2}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_datasource_title_description_units_and_no_targets_rules(panel: dict[str, Any]) -> None:
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])


@pytest.mark.parametrize("query", QUERIES)
def test_target_job_instance_rate_interval_counter_agg_and_histogram_rules(query: str) -> None:
    selectors = list(SELECTOR.finditer(query))
    assert {found[1] for found in selectors} == set(re.findall(r"batchyard_\w+", query))
    for found in selectors:
        metric, matchers, window = found.groups()
        assert {'job=~"$job"', 'instance=~"$instance"'} <= set(matchers.split(", "))
        assert window in (None, "[$__rate_interval]")
        called = re.search(r"(\w+)\($", query[: found.start()])
        if window is not None or metric.endswith(("_total", "_bucket", "_sum", "_count")):
            assert window is not None
            assert called is not None
            assert called[1] in RATES
        if metric.endswith("_bucket"):
            assert query.startswith("histogram_quantile(")


def test_uneditable_dashboard_rule() -> None:
    assert BOARD["editable"] is False
