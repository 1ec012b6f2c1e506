"""The Grafana dashboard, as the JSON that Grafana reads.

`python -m batchyard.sidecar.dashboard > grafana/dashboards/batchyard.json`; a test holds the two together.
Owns the panels and their queries. The JSON repeats itself a hundred times; here each panel is what
is its own. It keeps to the rules of Grafana's dashboard-linter.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

WIDTH = 24  # of Grafana's grid
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
YARD = 'job=~"$job", instance=~"$instance"'
MODEL = YARD + ', model=~"$model"'


@dataclass(frozen=True)
class Panel:
    """`targets`: (query, legend). `width` is of Grafana's WIDTH."""

    title: str
    description: str
    unit: str
    targets: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


def rate(metric: str, by: str = "", matcher: str = MODEL) -> str:
    """Events per second, summed up."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate(batchyard_{metric}{{{matcher}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """Of a histogram of seconds."""
    grouping = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_duration_seconds_bucket', grouping)})"


def now(metric: str, by: str = "", matcher: str = YARD) -> str:
    """A gauge, summed up."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (batchyard_{metric}{{{matcher}}})"


def sensor(name: str) -> str:
    return f"batchyard_gpu_{name}{{{YARD}}}"


HOST_CPU = (
    f"sum by (instance) (rate(batchyard_host_cpu_seconds_total{{{YARD}}}[$__rate_interval]))"
    f" / sum by (instance) (batchyard_host_cpus{{{YARD}}})"
)
PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Yard",
        (
            Panel(
                "Requests per second",
                "Requests that end, whatever their outcome.",
                "reqps",
                ((rate("requests_total"), "requests"),),
                kind="gauge",
                width=6,
            ),
            Panel(
                "Latency",
                "From a request's arrival at the broker to the result of its run, over all priorities.",
                "s",
                tuple((quantile(q, "request"), name) for q, name in PERCENTILES),
                width=9,
            ),
            Panel(
                "Request status",
                "How requests end: with a result, or as what.",
                "reqps",
                ((rate("requests_total", "status"), "{{status}}"),),
                width=9,
                stacked=True,
            ),
            Panel(
                "GPU utilization",
                "Of each GPU's busiest engine. And of the host's processors: a CPU yard has no other.",
                "percentunit",
                ((sensor("utilization_ratio"), "{{name}} {{gpu}}"), (HOST_CPU, "host CPU {{instance}}")),
                width=6,
            ),
            Panel(
                "GPU memory",
                "Used and in all, on each card. The host's memory beside it.",
                "bytes",
                (
                    (sensor("memory_used_bytes"), "{{name}} {{gpu}} used"),
                    (sensor("memory_total_bytes"), "{{name}} {{gpu}} total"),
                    (now("host_memory_used_bytes", "instance"), "host used"),
                    (now("host_memory_total_bytes", "instance"), "host total"),
                ),
                width=6,
            ),
            Panel(
                "Average batch size",
                "Rows of a batch, on average.",
                "short",
                ((f"{rate('batch_rows_sum', 'model')} / {rate('batch_rows_count', 'model')}", "{{model}}"),),
                width=6,
            ),
            Panel(
                "Throughput per minute",
                "Requests that were answered with a result, in a minute.",
                "rpm",
                (("60 * " + rate("requests_total", "model", MODEL + ', status="ok"'), "{{model}}"),),
                width=6,
            ),
        ),
    ),
    (
        "Queues",
        (
            Panel(
                "Queue time by priority (p99)",
                "From a request's arrival to its lease to a worker.",
                "s",
                ((quantile(0.99, "queue", "priority"), "{{priority}}"),),
            ),
            Panel(
                "Queue depth by priority",
                "Rows that wait for a worker.",
                "short",
                ((now("queue_depth_rows", "priority", MODEL), "{{priority}}"),),
                stacked=True,
            ),
            Panel(
                "Refusals",
                "Requests and messages that were not taken, by reason.",
                "reqps",
                ((rate("refusals_total", "reason", YARD), "{{reason}}"),),
                stacked=True,
            ),
        ),
    ),
    (
        "Workers",
        (
            Panel(
                "Workers",
                "Registered workers, and how many batches could be lent to them at once.",
                "short",
                ((now("workers_up"), "workers"), (now("credit"), "credit")),
            ),
            Panel(
                "Worker restarts",
                "Workers that came in the place of a lost one, and those that were killed over a batch.",
                "short",
                tuple(
                    (f"sum (increase(batchyard_{metric}_total{{{YARD}}}[$__rate_interval]))", name)
                    for metric, name in (("worker_restarts", "restarts"), ("workers_hung", "hung"))
                ),
            ),
            Panel(
                "Compute time",
                "Of a batch's run, without gather and scatter.",
                "s",
                tuple((quantile(q, "compute", "model"), f"{{{{model}}}} {name}") for q, name in PERCENTILES),
            ),
        ),
    ),
    (
        "Memory",
        (
            Panel(
                "Arena",
                "Shared memory of all clients: in slots of requests, and in all.",
                "bytes",
                ((now("arena_used_bytes"), "used"), (now("arena_total_bytes"), "total")),
            ),
            Panel(
                "Copied bytes",
                "Tensors that were copied: small ones by workers, those that came over tcp by the broker.",
                "binBps",
                ((rate("copied_bytes_total", "by", YARD), "by the {{by}}"),),
            ),
            Panel(
                "Work saved",
                "Requests that were answered from the cache, or joined an identical one's run.",
                "reqps",
                ((rate("cache_hits_total"), "cached"), (rate("requests_joined_total"), "joined")),
            ),
        ),
    ),
    (
        "Machine",
        (
            Panel(
                "GPU temperature",
                "Of each card that says it.",
                "celsius",
                ((sensor("temperature_celsius"), "{{name}} {{gpu}}"),),
            ),
            Panel(
                "GPU power",
                "What each card draws.",
                "watt",
                ((sensor("power_watts"), "{{name}} {{gpu}}"),),
            ),
            Panel(
                "Processor time of our processes",
                "1 is one core, always busy.",
                "short",
                ((rate("process_cpu_seconds_total", "role", YARD), "{{role}}"),),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana's JSON model."""
    return {
        "uid": "batchyard",
        "title": "batchyard",
        "description": "Requests, queues, batches, workers, memory, and GPUs of a yard.",
        "tags": ["batchyard", "inference"],
        "schemaVersion": 39,
        "editable": False,  # what is changed in the browser would be lost with the next start
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [
        source,
        _variable("job", "label_values(batchyard_up, job)", ".+"),
        _variable("instance", 'label_values(batchyard_up{job=~"$job"}, instance)', ".+"),
        # .*: what is said of a model that nobody serves has no such label.
        _variable("model", f"label_values(batchyard_requests_total{{{YARD}}}, model)", ".*"),
    ]


def _variable(name: str, query: str, everything: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "definition": query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": everything,
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> list[dict[str, Any]]:
    """Laid out row by row, from left to right."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x = 0
                y += HEIGHT
            grid = {"x": x, "y": y, "w": panel.width, "h": HEIGHT}
            found.append({"id": len(found) + 1, "gridPos": grid, **_panel(panel)})
            x += panel.width
        y += HEIGHT
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any]
    if panel.kind == "gauge":
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": "green", "value": None}]}
    else:
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 10,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "editorMode": "code",
                "range": True,
            }
            for index, (query, legend) in enumerate(panel.targets)
        ],
    }


def main() -> None:
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
