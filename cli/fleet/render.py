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
Rule = tuple[dict[str, Any], dict[str, Any], str]  # what it matches, its retries, its model
HEADER = """# Made by `batchyard fleet render`. It holds the nodes' tokens: keep it from others.
"""
MODEL = "batchyard-model"  # a header that names a request's model; our clients send it over gRPC
OTHERS = "*"  # no model has this name: it stands for all that --models does not name
_SERVICE = "/inference.GRPCInferenceService"
OPEN = {  # asked without a token, as at a gateway
    "http": ("/v2/health/live", "/v2/health/ready"),
    "grpc": (f"{_SERVICE}/ServerLive", f"{_SERVICE}/ServerReady", "/grpc.health.v1.Health/Check"),
}


def render(
    fleet: Fleet,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int = 8001,
    admin_port: int = 9901,
    client_token: str | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> str:
    """The configuration as YAML. `certificate`: the listeners' chain and key."""
    import yaml

    template: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    listeners, clusters = [], []
    for name, at, over_grpc in (("http", port, False), ("grpc", grpc_port, True)):
        listener = _listener(template, name, host, at, fleet, client_token)
        if certificate is not None:
            listener["filter_chains"][0]["transport_socket"] = _encrypted(template, certificate)
        listeners.append(listener)
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
    """A dumper that writes what is the same twice (an anchor says nothing to a reader), and quotes what
    Envoy's parser, unlike PyYAML, would take for no text: a model called y is true to it."""

    class Plain(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        is_plain = len(value) > 1 and value[0].isalpha()
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_plain else '"')

    Plain.add_representer(str, text)
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


def _encrypted(template: dict[str, Any], certificate: tuple[Path, Path]) -> dict[str, Any]:
    """Envoy reads the files when it starts."""
    made: dict[str, Any] = deepcopy(template["listener_tls"])
    (pair,) = made["typed_config"]["common_tls_context"]["tls_certificates"]
    for part, file in zip(("certificate_chain", "private_key"), certificate, strict=True):
        pair[part] = {"filename": str(file.absolute())}
    return made


def _routes(
    template: dict[str, Any], name: str, fleet: Fleet, client_token: str | None
) -> list[dict[str, Any]]:
    """The first that fits counts: what needs no token, models that must not run twice, the rest, else 401."""
    routes = []
    rules: list[Any] = _rules(template, name, fleet)
    if client_token is not None:
        given = {"name": "authorization", "string_match": {"exact": f"Bearer {client_token}"}}
        open_rules = [({"path": path}, template["retry"], "") for path in OPEN[name]]
        routes += [_route(template, name, fleet, *rule) for rule in open_rules]
        rules = [({**match, "headers": [*match.get("headers", ()), given]}, *rest) for match, *rest in rules]
    routes += [_route(template, name, fleet, *rule) for rule in rules]
    if client_token is not None:
        text = "send the fleet's token: Authorization: Bearer TOKEN"
        routes.append(_refusal(name, {"prefix": "/"}, 401, "UNAUTHENTICATED", text))
    return routes


def _rules(template: dict[str, Any], name: str, fleet: Fleet) -> list[Rule]:
    """By the model that a request names, in its path or in a header. What names none may be for any: it is
    not repeated where some model must not run twice, and finds a node that knows its model by asking."""
    retry = template["retry"]
    once = {**retry, **template["retry_once"]}
    others = OTHERS if fleet.models else ""
    rules: list[Rule] = []
    for model in dict.fromkeys([*fleet.once, *fleet.apart]):
        policy = once if model in fleet.once else retry
        where = model if model in fleet.apart else others
        quoted = quote(model, safe="")
        if name == "http":
            rules.append(({"path_separated_prefix": f"/v2/models/{quoted}"}, policy, where))
        header = {"name": MODEL, "string_match": {"exact": quoted}}
        rules.append(({"prefix": "/", "headers": [header]}, policy, where))
    if rules:
        if name == "http":
            rules.append(({"path": "/v2/models/stats"}, retry, ""))
            rules.append(({"prefix": "/v2/models/"}, retry, others))
        rules.append(({"prefix": "/", "headers": [{"name": MODEL, "present_match": True}]}, retry, others))
    policy = once if fleet.once else retry
    if fleet.models:
        unknown = template["unknown_model"]
        policy = {**policy, "retriable_headers": [*policy["retriable_headers"], unknown]}
    return [*rules, ({"prefix": "/"}, policy, "")]


def _route(
    template: dict[str, Any],
    name: str,
    fleet: Fleet,
    match: dict[str, Any],
    retry: dict[str, Any],
    model: str,
) -> dict[str, Any]:
    """`model`: only nodes that serve it are asked; "": any node is."""
    if model == OTHERS and all(node in fleet.models for node in (*fleet.nodes, *fleet.shares)):
        return _refusal(name, match, 404, "UNKNOWN_MODEL", "no node of this fleet serves the model")
    action = {"cluster": name, **deepcopy(template["route"]), "retry_policy": retry}
    if model:
        action["metadata_match"] = {"filter_metadata": {"envoy.lb": {"model": model}}}
    if fleet.mirror is not None:
        action["request_mirror_policies"] = [
            {"cluster": f"{name}-mirror", "disable_shadow_host_suffix_append": True}
        ]
    return {"match": match, "route": action}


def _refusal(name: str, match: dict[str, Any], status: int, code: str, text: str) -> dict[str, Any]:
    """Envoy answers it itself; over gRPC with the status that stands for HTTP's."""
    body = f'{{"error": "{text}", "code": "{code}"}}' if name == "http" else text
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [{"header": {"key": "batchyard-code", "value": code}}],
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
    if fleet.ca is not None:
        made["transport_socket"] = deepcopy(template["node_tls"])
        context = made["transport_socket"]["typed_config"]["common_tls_context"]
        context["alpn_protocols"] = ["h2" if over_grpc else "http/1.1"]
        context["validation_context"]["trusted_ca"] = {"filename": str(fleet.ca.absolute())}
    if fleet.models:
        subset = deepcopy(template["subset"])
        subset["typed_extension_config"]["typed_config"]["subset_lb_policy"] = made["load_balancing_policy"]
        made["load_balancing_policy"] = {"policies": [subset]}
    if not over_grpc:
        protocol["http_filters"].insert(0, template["deadline_left"])
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
    metadata: dict[str, Any] = {}
    if node in fleet.tokens:
        metadata["batchyard"] = {"token": fleet.tokens[node]}
    if fleet.models:
        others = [] if node in fleet.models else [OTHERS]
        own = [model for model in fleet.apart if fleet.serves(node, model)]
        metadata["envoy.lb"] = {"model": own + others}
    if metadata:
        made["metadata"] = {"filter_metadata": metadata}
    return made
