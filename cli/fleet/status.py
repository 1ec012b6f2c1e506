"""`batchyard fleet status`: every node asked at the same time, and what differs between them."""

from __future__ import annotations

import http.client
import json
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..text import table
from .nodes import Fleet, Node

TIMEOUT_S = 5.0
HEADING = ("NODE", "HEALTH", "LOAD", "WAITING", "MODEL", "VERSION", "STATE", "DIGEST")
DIGEST_CHARS = 12


def status(fleet: Fleet) -> dict[str, Any]:
    """By node: health, load, models; and the models whose nodes differ."""
    with ThreadPoolExecutor(min(32, len(fleet.all))) as pool:
        found = list(pool.map(lambda node: _asked(node, fleet.tokens.get(node), fleet.ca), fleet.all))
    digests: dict[str, set[tuple[str, str]]] = {}
    for entry in found:
        for model in entry["models"]:
            digests.setdefault(model["name"], set()).add((model["sha256"], model["state"]))
    differing = {name for name, each in digests.items() if len({sha256 for sha256, _ in each}) > 1}
    missing = {
        name
        for node, entry in zip(fleet.all, found, strict=True)
        if entry["health"] != "unreachable"
        for name in {*digests, *fleet.apart} - {model["name"] for model in entry["models"]}
        if fleet.serves(node, name)
    }
    return {"nodes": found, "differ": sorted(differing), "missing": sorted(missing)}


def as_text(found: dict[str, Any]) -> list[str]:
    """A line for each model of each node, and a sentence for what differs."""
    rows: list[tuple[str, ...]] = [HEADING]
    for entry in found["nodes"]:
        load = entry["load"]
        head = (
            entry["node"],
            entry["health"],
            "-" if load is None else f"{load['application_utilization']:.0%}",
            "-" if load is None else f"{load['named_metrics']['rows_waiting']:g}",
        )
        models = entry["models"] or [None]
        for number, model in enumerate(models):
            if model is None:
                tail = ("-", "-", "-", "-")
            else:
                digest = model["sha256"][:DIGEST_CHARS] or "-"
                name = model["name"] if model.get("idempotent", True) else f"{model['name']} (once)"
                tail = (name, str(model["version"]), model["state"].lower(), digest)
            rows.append((*(head if number == 0 else ("", "", "", "")), *tail))
    lines = list(table(rows))
    lines += [f"{entry['node']}: {entry['reason']}" for entry in found["nodes"] if entry["reason"]]
    lines += [f"{name}: nodes serve different files" for name in found["differ"]]
    lines += [f"{name}: not every node serves it that should" for name in found["missing"]]
    return lines


def _connection(node: Node, ca: Path | None) -> http.client.HTTPConnection:
    if ca is None:
        return http.client.HTTPConnection(node.host, node.port, timeout=TIMEOUT_S)
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False  # as Envoy does it: the authority signs nothing else
    return http.client.HTTPSConnection(node.host, node.port, timeout=TIMEOUT_S, context=context)


def _asked(node: Node, token: str | None, ca: Path | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "node": str(node), "health": "unreachable", "reason": "", "load": None, "models": [],
    }  # fmt: skip
    headers = {"endpoint-load-metrics-format": "json", "Host": "localhost"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection = _connection(node, ca)
    try:
        code, _, ready = _get(connection, "/v2/health/ready", headers)
        made["health"] = "ready" if code == 200 else "not ready"
        if code != 200:
            made["reason"] = str(ready.get("error", f"status {code}"))
        code, load, server = _get(connection, "/v2", headers)
        if code != 200:
            made["reason"] = str(server.get("error", f"status {code}"))
        made["version"] = server.get("version", "")
        made["models"] = server.get("models") or []
        if load is not None:
            made["load"] = json.loads(load.partition(" ")[2])
    except (OSError, http.client.HTTPException, ValueError) as error:
        made["reason"] = str(error) or type(error).__name__
    finally:
        connection.close()
    return made


def _get(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> tuple[int, str | None, dict[str, Any]]:
    """(status, the load that the answer carries, its JSON)."""
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = json.loads(answer.read() or b"{}")
    return answer.status, answer.headers.get("endpoint-load-metrics"), body if isinstance(body, dict) else {}
