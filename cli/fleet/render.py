"""Envoy's configuration for a fleet, out of envoy.yaml. Pure, but for reading that file."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .nodes import Fleet, Node

TEMPLATE = Path(__file__).with_name("envoy.yaml")
CONNECTIONS_PER_NODE = 200  # a gateway takes a quarter of its descriptors: 256 of the usual 1,024
REQUESTS_PER_NODE = 1024  # a gateway's own bound
HEADER = """# Made by `batchyard fleet render`. It holds the nodes' tokens: keep it from others.
"""
OPEN = ("/v2/health/live", "/v2/health/ready", "/inference.GRPCInferenceService/ServerLive")


def render(
    fleet: Fleet,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int = 8001,
    admin_port: int = 9901,
    client_token: str | None = None,
) -> str:
    """The configuration as YAML."""
    import yaml

    template: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    listeners, clusters = [], []
    for name, at, over_grpc in (("http", port, False), ("grpc", grpc_port, True)):
        listeners.append(_listener(template, name, host, at, fleet, client_token))
        weights = dict.fromkeys(fleet.nodes, 0) | fleet.shares
        clusters.append(_cluster(template, name, weights, fleet, over_grpc))
        if fleet.mirror is not None:
            clusters.append(_cluster(template, f"{name}-mirror", {fleet.mirror: 0}, fleet, over_grpc))
    admin = template["admin"]
    admin["address"]["socket_address"]["port_value"] = admin_port
    made = {"admin": admin, "static_resources": {"listeners": listeners, "clusters": clusters}}
    text: str = yaml.dump(made, Dumper=_plain(yaml), sort_keys=False, width=110)
    return HEADER + text


def _plain(yaml: Any) -> Any:
    """A dumper that writes what is the same twice: an anchor says nothing to a reader."""

    class Plain(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: object) -> bool:
            return True

    return Plain


def _listener(
    template: dict[str, Any], name: str, host: str, port: int, fleet: Fleet, client_token: str | None
) -> dict[str, Any]:
    made: dict[str, Any] = deepcopy(template["listener"])
    made["name"] = name
    made["address"]["socket_address"] = {"address": host, "port_value": port}
    manager = made["filter_chains"][0]["filters"][0]["typed_config"]
    manager["stat_prefix"] = name
    host_of_all = manager["route_config"]["virtual_hosts"][0]
    host_of_all["routes"] = _routes(template, name, fleet, client_token)
    if name == "http":  # gRPC has its text in a header
        for mapper in manager["local_reply_config"]["mappers"]:
            code = mapper["headers_to_add"][0]["header"]["value"]
            body = {"error": "%LOCAL_REPLY_BODY%", "code": code}
            mapper["body_format_override"] = {"json_format": body, "content_type": "application/json"}
    return made


def _routes(
    template: dict[str, Any], name: str, fleet: Fleet, client_token: str | None
) -> list[dict[str, Any]]:
    """The first that fits counts: what needs no token, models that must not run twice, the rest, else 401."""
    retry = template["retry"]
    once = {**retry, **template["retry_once"]}
    rules: list[tuple[dict[str, Any], dict[str, Any]]] = [({"prefix": "/"}, once if fleet.once else retry)]
    if fleet.once and name == "http":  # other paths, and gRPC's, do not name their model
        models = [({"prefix": f"/v2/models/{quote(model, safe='')}/"}, once) for model in fleet.once]
        rules = [*models, ({"prefix": "/v2/models/"}, retry), *rules]
    routes = []
    if client_token is not None:
        given = {"name": "authorization", "string_match": {"exact": f"Bearer {client_token}"}}
        routes += [_route(template, name, fleet, {"path": path}, retry) for path in OPEN]
        rules = [({**match, "headers": [given]}, policy) for match, policy in rules]
    routes += [_route(template, name, fleet, match, policy) for match, policy in rules]
    if client_token is not None:
        routes.append(_refused(name))
    return routes


def _route(
    template: dict[str, Any], name: str, fleet: Fleet, match: dict[str, Any], retry: dict[str, Any]
) -> dict[str, Any]:
    action = {"cluster": name, **deepcopy(template["route"]), "retry_policy": retry}
    if fleet.mirror is not None:
        action["request_mirror_policies"] = [
            {"cluster": f"{name}-mirror", "disable_shadow_host_suffix_append": True}
        ]
    return {"match": match, "route": action}


def _refused(name: str) -> dict[str, Any]:
    """gRPC's 401 is its UNAUTHENTICATED."""
    text = "send the fleet's token: Authorization: Bearer TOKEN"
    body = f'{{"error": "{text}", "code": "UNAUTHENTICATED"}}' if name == "http" else text
    code = {"header": {"key": "batchyard-code", "value": "UNAUTHENTICATED"}}
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": 401, "body": {"inline_string": body}},
        "response_headers_to_add": [code],
    }


def _cluster(
    template: dict[str, Any], name: str, weights: dict[Node, int], fleet: Fleet, over_grpc: bool
) -> dict[str, Any]:
    """`weights`: percent of a canary; 0: the rest, which these nodes share."""
    made: dict[str, Any] = deepcopy(template["cluster"])
    made["name"] = made["load_assignment"]["cluster_name"] = name
    count = len(weights)
    (bounds,), (per_host,) = made["circuit_breakers"].values()
    bounds["max_connections"] = bounds["max_requests"] = bounds["max_retries"] = REQUESTS_PER_NODE * count
    per_host["max_connections"] = CONNECTIONS_PER_NODE
    (protocol,) = made["typed_extension_protocol_options"].values()
    protocol["explicit_http_config"] = (
        {"http2_protocol_options": {}} if over_grpc else {"http_protocol_options": {}}
    )
    if over_grpc:
        (check,) = made["health_checks"]
        del check["http_health_check"]
        check["grpc_health_check"] = {}
    if fleet.tokens:
        protocol["http_filters"].insert(0, template["node_token"])
    localities: dict[str, list[Node]] = {}
    for node, percent in weights.items():
        localities.setdefault(str(node) if percent else "fleet", []).append(node)
    made["load_assignment"]["endpoints"] = [
        {
            "locality": {"zone": zone},
            "load_balancing_weight": weights[nodes[0]] or 100 - sum(weights.values()),
            "lb_endpoints": [_endpoint(node, fleet, over_grpc) for node in nodes],
        }
        for zone, nodes in localities.items()
    ]
    return made


def _endpoint(node: Node, fleet: Fleet, over_grpc: bool) -> dict[str, Any]:
    address = {"socket_address": {"address": node.host, "port_value": node.port + over_grpc}}
    made: dict[str, Any] = {"endpoint": {"address": address}}
    if node in fleet.tokens:
        made["metadata"] = {"filter_metadata": {"batchyard": {"token": fleet.tokens[node]}}}
    return made
