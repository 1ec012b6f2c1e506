"""A real Prometheus scrapes the sidecar of a yard under load: it answers every query of the dashboard and
of the alert rules, and its figures are those of the load generator."""

from __future__ import annotations

import bisect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard.bench.loops import open_loop
from batchyard.bench.statistics import Measured, percentile
from batchyard.sidecar.buckets import TIME
from batchyard.tools import monitoring
from batchyard.tools.__main__ import main as measure
from batchyard.transport.errors import BatchyardError

from ..required import part
from ..sysfs import RX_580, lay

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "grafana/prometheus"
RATE_PER_S = 25.0  # few enough for a shared machine: what waits for long is the client's time as well
HOPELESS = 10
LOAD_S = 6.0
WINDOW = "10s"  # for $__rate_interval: of a scrape a second
BOARD = json.loads((ROOT / "grafana/dashboards/batchyard.json").read_text())
EVENTS = BOARD["annotations"]["list"]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


def tool(name: str) -> str:
    return part("prometheus", shutil.which(name))


def fetch(url: str, **query: str) -> str:
    address = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


@dataclass
class Server:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: (labels, value) of each series."""
        try:
            said = json.loads(fetch(f"{self.url}/api/v1/query", query=expression))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        return [(series["metric"], float(series["value"][1])) for series in said["data"]["result"]]

    def number(self, expression: str) -> float:
        """The only value of an expression; NaN where there is none."""
        found = self.query(expression)
        return found[0][1] if found else math.nan


@dataclass
class Scene:
    """A yard that has been under load, who watches it, and what the load generator saw."""

    yard: Any
    page: str  # the sidecar's address
    sidecar: Any
    prometheus: Server
    measured: Measured
    ended: Counter[str]


@pytest.fixture(scope="module")
def scene(slow_model: Path, tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Iterator[Scene]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    port = tools.free_port()
    page = f"http://127.0.0.1:{port}/metrics"
    url = f"http://127.0.0.1:{port + 1}"
    lay(folder / "sys", "card0", RX_580)  # the figures of a GPU, on a machine that need have none
    shutil.copy(PROMETHEUS / "rules.yml", folder)
    config = (PROMETHEUS / "prometheus.yml").read_text()
    for committed, here in (
        ("127.0.0.1:9877", f"127.0.0.1:{port}"),
        ("127.0.0.1:8000", f"127.0.0.1:{port + 2}"),
        (" 5s", " 1s"),
        (" 4s", " 1s"),
        (" 15s", " 1s"),
    ):
        assert committed in config
        config = config.replace(committed, here)
    (folder / "prometheus.yml").write_text(config)
    server = Server(url)
    started = [
        subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port + 1}",
                "--log.level=warn",
            ]
        )
    ]
    try:  # it takes 5 s to its first scrape, and the yard less to be there
        with batchyard.serve({"slow": slow_model}, threads=1, max_batch=4) as yard:
            sidecar = subprocess.Popen(sidecar_command(yard.url, port, "--sysfs", str(folder / "sys")))
            started.append(sidecar)
            http = ["batchyard.gateway", "--url", yard.url, "--port", str(port + 2), "--grpc-port", "0", "-q"]
            started.append(subprocess.Popen([sys.executable, "-m", *http]))
            tools.until(lambda: scraped(server), 60, "Prometheus has scraped the sidecar and the gateway")
            measured, ended = load(yard)
            all_of_them = sum(ended.values())  # a page that was shared with Prometheus may be a little older
            tools.until(
                lambda: figure(page, "batchyard_requests_total") == all_of_them, 60, "all are counted"
            )
            yield Scene(yard, page, sidecar, server, measured, ended)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def sidecar_command(url: str, port: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchyard.sidecar", "--url", url, "--port", str(port), "-q", *arguments]


def scraped(server: Server) -> bool:
    """Also that the gateway has been asked twice: its figures are those of Prometheus' own questions."""
    try:
        fetch(f"{server.url}/-/ready")  # 503 until it can be asked
        asked = server.number('batchyard_gateway_requests_total{route="/metrics"}')
        return server.number("batchyard_up") == 1 and asked >= 1
    except OSError:
        return False


def load(yard: Any) -> tuple[Measured, Counter[str]]:
    """Requests of every class, then some whose deadline nobody can meet: (what was measured of the first,
    how all have ended)."""
    x = np.zeros((1, 512), np.float32)
    with yard.client() as client:
        measured = open_loop(
            client, "slow", [x], RATE_PER_S, LOAD_S, 5, priorities=list(batchyard.Priority), warm_up_s=0.0
        )
        assert not measured.errors, measured.error_texts
        ended = Counter(ok=len(measured.latencies_ns))
        for _ in range(HOPELESS):
            try:
                client.infer("slow", x, deadline=0.001)
                ended["ok"] += 1
            except BatchyardError as error:
                ended[error.code.name.lower()] += 1
    return measured, ended


def test_figures_agree_with_the_load_generators_own(scene: Scene, tools: Any) -> None:
    total = sum(scene.ended.values())
    counted = "sum(batchyard_requests_total)"
    tools.until(lambda: scene.prometheus.number(counted) >= total, 60, "the last scrape has seen them all")
    assert scene.prometheus.number(counted) == pytest.approx(total, rel=0.001)
    by_status = scene.prometheus.query("sum by (status) (batchyard_requests_total) > 0")
    assert {labels["status"]: count for labels, count in by_status} == scene.ended
    answered = scene.ended["ok"]
    assert scene.prometheus.number("sum(batchyard_request_duration_seconds_count)") == answered
    assert scene.prometheus.number("sum(batchyard_batch_rows_sum)") >= answered
    assert scene.prometheus.number("histogram_quantile(0.5, batchyard_compute_duration_seconds_bucket)") > 0


def bucket(seconds: float) -> int:
    return bisect.bisect_left([float(le) for le in TIME.labels], seconds)


@pytest.mark.parametrize("percent", [50, 99])
def test_percentiles_agree_with_the_load_generators_within_a_bucket(scene: Scene, percent: int) -> None:
    """Of URGENT requests, whose latencies come from the load's own schedule alone. The slowest may have waited
    for a core in the client, which the broker does not see."""
    latencies_ns = sorted(scene.measured.by_priority_ns["URGENT"])
    found_s = scene.prometheus.number(
        f"histogram_quantile({percent / 100}, "
        'sum by (le) (batchyard_request_duration_seconds_bucket{priority="urgent"}))'
    )
    seen = bucket(percentile(latencies_ns, percent) / 1e9)
    least = bucket(percentile(latencies_ns, 50) / 1e9)
    assert least - 1 <= bucket(found_s) <= seen + 1
    assert percent == 99 or bucket(found_s) >= seen - 1


@pytest.mark.parametrize(
    ("title", "target"), TARGETS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_panels_query_is_answered_with_numbers_and_the_labels_of_its_legend(
    scene: Scene, title: str, target: dict[str, Any]
) -> None:
    answered_with_labels(scene, target["expr"], target["legendFormat"])


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event["name"]))
def test_an_events_query_looks_at_something_that_has_the_labels_of_its_title(
    scene: Scene, event: dict[str, Any]
) -> None:
    looked_at = event["expr"].removesuffix(" > 0")
    answered_with_labels(scene, looked_at, f"{event['titleFormat']} {{{{{event['tagKeys']}}}}}")


def answered_with_labels(scene: Scene, query: str, legend: str) -> None:
    query = query.replace("$__rate_interval", WINDOW)
    for name, value in (("$job", "batchyard.*"), ("$instance", ".+"), ("$model", ".*")):
        query = query.replace(name, value)
    assert "$" not in query
    found = scene.prometheus.query(query)
    assert found, query
    for labels, value in found:
        assert math.isfinite(value), (query, labels)
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            assert labels.get(label), (query, labels)


def test_every_rule_is_well_quiet_and_looks_at_something(scene: Scene, tools: Any) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = json.loads(fetch(f"{scene.prometheus.url}/api/v1/rules"))["data"]["groups"]
        return list(group["rules"])

    tools.until(lambda: all(rule["health"] == "ok" for rule in rules()), 10, "every rule was evaluated")
    assert len(rules()) == (PROMETHEUS / "rules.yml").read_text().count("- alert:")
    for rule in rules():
        assert rule["state"] != "firing", rule
        looked_at, compared = re.fullmatch(r"(.+) [<>] ([\d.]+)", rule["query"]).groups()  # type: ignore[union-attr]
        found = scene.prometheus.query(looked_at)
        assert found, rule["query"]
        for labels, value in found:
            assert math.isfinite(value), (rule["query"], labels)
            for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
                assert labels.get(label), (rule["query"], labels)
        assert math.isfinite(float(compared))


def test_the_dashboards_variables_find_the_yard(scene: Scene) -> None:
    for name, expected in (("job", {"batchyard", "batchyard-gateway"}), ("model", {"slow"}), ("device", {"GPU"})):
        (variable,) = [v for v in BOARD["templating"]["list"] if v["name"] == name]
        selector = re.match(r"label_values\((.+), \w+\)", variable["query"])[1]  # type: ignore[index]
        selector = selector.replace("$job", "batchyard.*").replace("$instance", ".+")
        said = json.loads(fetch(f"{scene.prometheus.url}/api/v1/series", **{"match[]": selector}))
        assert {series[name] for series in said["data"]} == expected


def test_promtool_finds_no_fault_with_the_page(scene: Scene) -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=fetch(scene.page),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_no_fault_with_the_committed_files(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def figure(page: str, name: str) -> float:
    """The sum of a metric over its labels, on the sidecar's page."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", fetch(page), re.MULTILINE)
    assert found, name
    return sum(map(float, found))


def infer(yard: Any, times: int) -> None:
    with yard.client() as client:
        for _ in range(times):
            client.infer("slow", np.zeros((1, 512), np.float32))


def test_a_sidecar_that_stands_still_or_starts_again_loses_nothing(scene: Scene, tools: Any) -> None:
    ok = "batchyard_requests_total"
    before = figure(scene.page, ok)
    os.kill(scene.sidecar.pid, signal.SIGSTOP)
    try:
        infer(scene.yard, 3)
    finally:
        os.kill(scene.sidecar.pid, signal.SIGCONT)
    tools.until(lambda: figure(scene.page, ok) == before + 3, 30, "the page has what it slept through")
    port = tools.free_port()
    page = f"http://127.0.0.1:{port}/metrics"
    another = subprocess.Popen(sidecar_command(scene.yard.url, port))
    try:
        tools.until(lambda: answers(page), 10, "another sidecar answers")
        assert figure(page, ok) == before + 3
    finally:
        another.kill()
        another.wait()
    infer(scene.yard, 1)  # the broker has not missed it


def answers(page: str) -> bool:
    try:
        return "batchyard_up 1.0" in fetch(page)
    except OSError:
        return False


def test_a_broker_that_does_not_answer_is_down_on_a_page_that_does(scene: Scene, tools: Any) -> None:
    broker = scene.yard.processes[0].pid
    os.kill(broker, signal.SIGSTOP)
    try:
        tools.until(lambda: figure(scene.page, "batchyard_up") == 0, 10, "the page says that it is down")
        assert figure(scene.page, "batchyard_host_cpus") >= 1
    finally:
        os.kill(broker, signal.SIGCONT)
    tools.until(lambda: answers(scene.page), 10, "it is up again")


def test_a_broker_that_follows_a_dead_one_counts_from_zero(scene: Scene, tools: Any) -> None:
    """After all tests that look at the load's figures: they are gone with the first."""
    scene_pid = scene.yard.processes[0].pid
    tools.kill(scene_pid)
    tools.until(
        lambda: scene.yard.processes[0].pid != scene_pid and answers(scene.page), 30, "the next answers"
    )
    infer(scene.yard, 2)
    tools.until(lambda: figure(scene.page, "batchyard_requests_total") == 2, 30, "both are counted, alone")


def test_a_port_that_is_taken_is_one_sentence_and_not_a_traceback(scene: Scene) -> None:
    port = int(scene.page.rpartition(":")[2].partition("/")[0])
    done = subprocess.run(
        sidecar_command(scene.yard.url, port), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"sidecar: cannot listen at 127.0.0.1:{port}: Address already in use\n"


def test_the_benchmark_of_watching_measures_each_state_of_a_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "SLICES", 1)
    figures = tmp_path / "figures.json"
    assert measure(["monitoring", "--rounds", "1", "--seconds", "0.4", "--json", str(figures)]) == 0
    ratios = json.loads(figures.read_text())["benchmarks"]["monitoring"]["figures"]["ratios"]
    states = ("scraped", "stopped", "killed")
    assert set(ratios) == {f"p{p}, {state}" for p in ("50", "99", "99.9") for state in states}
    assert all(ratio["median"] > 0 for ratio in ratios.values())
