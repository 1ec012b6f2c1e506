"""The dashboard's JSON: the owner's panels, and the rules of Grafana's dashboard-linter.

The rules' names are the linter's own (github.com/grafana/dashboard-linter, docs/rules and lint/): what
each demands is asked here of the JSON. That every query is valid PromQL is for a real Prometheus to say
(tests/integration/test_monitoring.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from batchyard.gateway.http_app import gauges
from batchyard.gateway.metrics import Metrics
from batchyard.sidecar import metrics
from batchyard.sidecar.collector import YardCollector
from batchyard.sidecar.sensors import Gpu
from batchyard.transport.snapshot import read

GRAFANA = Path(__file__).resolve().parents[3] / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards/batchyard.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
QUERIES = [target["expr"] for target in TARGETS]
EVENTS = BOARD["annotations"]["list"]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
SELECTOR = re.compile(r"(batchyard_\w+)\{([^}]*)\}(\[[^]]*\])?")
RATES = ("rate", "irate", "increase")
# Of the linter's list (packages/grafana-data/src/valueFormats/categories.ts), those that panels use.
UNITS = {"none", "short", "percentunit", "bytes", "s", "reqps", "rpm", "binBps", "celsius", "watt"}


def by_title(title: str) -> dict[str, Any]:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    return panel


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Requests per second", "gauge"),
        ("Latency", "timeseries"),
        ("${device} utilization", "timeseries"),  # GPU, or Host where there is none
        ("${device} memory", "timeseries"),
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
    memory = [target["expr"] for target in by_title("${device} memory")["targets"]]
    assert any("gpu_memory_used" in query for query in memory)
    assert any("gpu_memory_total" in query for query in memory)


def colours(panel: dict[str, Any]) -> dict[str, str]:
    """What is drawn in a colour of its own, by its name in the legend."""
    return {
        override["matcher"]["options"]: prop["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if override["matcher"]["id"] == "byName" and prop["id"] == "color"
    }


@pytest.mark.parametrize(("label", "names"), [("priority", metrics.PRIORITIES), ("status", metrics.STATUSES)])
def test_a_priority_and_a_status_have_one_colour_on_every_panel(label: str, names: tuple[str, ...]) -> None:
    """But for the gateway's, whose status is HTTP's."""
    drawn = [
        colours(panel)
        for panel in PANELS
        if f"{{{{{label}}}}}" in panel["targets"][0]["legendFormat"] and "gateway_" not in panel["targets"][0]["expr"]
    ]
    assert drawn
    assert set(names) <= drawn[0].keys()
    assert all(each == drawn[0] for each in drawn)


def test_restarts_and_swaps_are_events_on_every_panel() -> None:
    names = [event["name"] for event in EVENTS]
    assert names == ["Restarts of workers", "Starts of the broker", "Swaps of models"]
    assert all(event["enable"] and event["datasource"]["uid"] == "${datasource}" for event in EVENTS)
    assert by_title("Worker restarts")["fieldConfig"]["defaults"]["custom"]["drawStyle"] == "bars"


def test_health_is_a_row_of_its_own() -> None:
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows[:2] == ["Yard", "Health"]
    health = [panel["title"] for panel in PANELS if panel["type"] == "stat"]
    assert health == ["Broker", "Sidecar", "Gateway", "Model workers", "Workers on a lesser provider", "Failed batches"]


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
    gateway = Metrics("1.2.3")
    gateway.observe("/", 200, 0.1)
    known |= {sample.name for family in gateway.registry.collect() for sample in family.samples}
    known |= {f"batchyard_gateway_{name}" for name in gauges(Mock())}
    rules = (GRAFANA / "prometheus/rules.yml").read_text()
    asked = set(re.findall(r"batchyard_\w+", " ".join([*QUERIES, *(event["expr"] for event in EVENTS), rules])))
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
