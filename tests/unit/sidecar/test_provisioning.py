"""What Prometheus, Grafana and Docker are told: the files fit each other, and the sidecar."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from batchyard.sidecar.__main__ import ANSWER_WITHIN_S, PORT

GRAFANA = Path(__file__).resolve().parents[3] / "grafana"
PROCFILE = (GRAFANA / "Procfile.monitoring").read_text()


def read(name: str) -> Any:
    return yaml.safe_load((GRAFANA / name).read_text())


def seconds(text: str) -> float:
    return float(re.fullmatch(r"([\d.]+)s", text)[1])  # type: ignore[index]


def test_prometheus_scrapes_where_a_sidecar_listens_and_waits_longer_than_it() -> None:
    config = read("prometheus/prometheus.yml")
    jobs = {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]}
    assert jobs == {
        "batchyard": [{"targets": [f"127.0.0.1:{PORT}"]}],
        "batchyard-gateway": [{"targets": ["127.0.0.1:8000"]}],  # `up --gateway 8000`
    }
    assert seconds(config["global"]["scrape_timeout"]) > ANSWER_WITHIN_S
    board = json.loads((GRAFANA / "dashboards/batchyard.json").read_text())
    assert seconds(config["global"]["scrape_interval"]) <= seconds(board["refresh"])
    assert [(GRAFANA / "prometheus" / name).exists() for name in config["rule_files"]] == [True]


def test_every_alert_says_how_bad_it_is_and_what_is_the_matter() -> None:
    (group,) = read("prometheus/rules.yml")["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels." in rule["annotations"]["summary"]


def test_each_rule_is_played_well_and_in_trouble() -> None:
    (group,) = read("prometheus/rules.yml")["groups"]
    well, trouble = (
        {case["alertname"]: case.get("exp_alerts", []) for case in test["alert_rule_test"]}
        for test in read("prometheus/rules_test.yml")["tests"]
    )
    names = {rule["alert"] for rule in group["rules"]}
    assert well == {key: [] for key in names}
    assert trouble.keys() == names
    assert all(trouble.values())


def test_grafana_asks_the_prometheus_that_is_started_beside_it() -> None:
    (source,) = read("provisioning/datasources/prometheus.yml")["datasources"]
    address = source["url"].removeprefix("http://")
    flag = f"--web.listen-address={address}"
    assert flag in PROCFILE
    assert flag in read("docker-compose.yml")["services"]["prometheus"]["command"]
    interval = read("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_grafana_finds_the_dashboard_where_it_is_put() -> None:
    (provider,) = read("provisioning/dashboards/batchyard.yml")["providers"]
    variable = provider["options"]["path"].removeprefix("$")
    environment = read("docker-compose.yml")["services"]["grafana"]["environment"]
    assert (
        f"./dashboards:{environment[variable]}:ro"
        in read("docker-compose.yml")["services"]["grafana"]["volumes"]
    )
    assert f'{variable}="$PWD/dashboards"' in PROCFILE
    assert provider["allowUiUpdates"] is False


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_containers_are_pinned_listen_on_loopback_and_mount_what_there_is(service: str) -> None:
    told = read("docker-compose.yml")["services"][service]
    assert re.search(r":v?\d+\.\d+\.\d+$", told["image"])
    assert told["network_mode"] == "host"
    assert "127.0.0.1" in str(told.get("command", told.get("environment")))
    for volume in told["volumes"]:
        source = volume.split(":")[0]
        assert not source.startswith(".") or (GRAFANA / source).is_dir()
