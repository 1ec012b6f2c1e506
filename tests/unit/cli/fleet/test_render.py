"""What Envoy is told: shares, tokens, and which requests may run twice. Envoy itself checks the form of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from batchyard.cli.fleet import envoy, main
from batchyard.cli.fleet.nodes import Fleet, Node, fleet, node, share
from batchyard.cli.fleet.render import render
from batchyard.tests.required import part
from batchyard.transport.errors import InvalidRequest

yaml = pytest.importorskip("yaml", reason="pip install 'batchyard[fleet]'")
ONE, TWO, THREE = Node("10.0.0.1"), Node("gpu2", 9000), Node("::1", 8000)


def made(fleet: Fleet, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Listeners and clusters by their names."""
    parts = yaml.safe_load(render(fleet, **how))["static_resources"]
    return tuple({each["name"]: each for each in parts[kind]} for kind in ("listeners", "clusters"))  # type: ignore[return-value]


def routes(listener: dict[str, Any]) -> list[dict[str, Any]]:
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    found: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu1", Node("gpu1")), ("gpu1:9000", Node("gpu1", 9000)), ("[::1]", Node("::1")), ("[::1]:9", Node("::1", 9))],
)
def test_a_node_is_a_host_and_perhaps_a_port(text: str, expected: Node) -> None:
    assert node(text) == expected
    assert share(f"{text}=10") == (expected, 10)


@pytest.mark.parametrize("text", ["", ":8000", "http://gpu1", "gpu1:0", "gpu1:65535", "gpu1:x", "a b"])
def test_what_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        node(text)


def test_grpc_is_at_the_port_after_http_and_each_is_asked_for_its_own_health() -> None:
    _, clusters = made(Fleet([ONE, TWO]))
    ports = {
        name: [
            each["endpoint"]["address"]["socket_address"]["port_value"]
            for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for name, cluster in clusters.items()
    }
    assert ports == {"http": [8000, 9000], "grpc": [8001, 9001]}
    assert clusters["http"]["health_checks"][0]["http_health_check"]["path"] == "/v2/health/ready"
    assert "grpc_health_check" in clusters["grpc"]["health_checks"][0]


def test_a_canary_gets_its_share_and_the_nodes_the_rest_of_it() -> None:
    _, clusters = made(Fleet([ONE, TWO], {THREE: 10}))
    weights = [each["load_balancing_weight"] for each in clusters["http"]["load_assignment"]["endpoints"]]
    assert weights == [90, 10]


def test_a_mirror_is_asked_by_every_route_and_is_no_node() -> None:
    listeners, clusters = made(Fleet([ONE], mirror=TWO))
    assert list(clusters) == ["http", "http-mirror", "grpc", "grpc-mirror"]
    for name, listener in listeners.items():
        for route in routes(listener):
            assert route["route"]["request_mirror_policies"][0]["cluster"] == f"{name}-mirror"


def matched(listener: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each route does, in their order, by the path and the model's header that it is for."""
    found = {}
    for route in routes(listener):
        match = dict(route["match"])
        headers = match.pop("headers", [])
        ((_, path),) = match.items()
        named = [header.get("string_match", {"exact": "any"})["exact"] for header in headers]
        found[" ".join([path, *named])] = route
    return found


def test_a_model_that_must_not_run_twice_is_not_asked_again_after_a_lost_connection() -> None:
    listeners, _ = made(Fleet([ONE], once=["a/b"]))
    found = {path: route["route"]["retry_policy"] for path, route in matched(listeners["http"]).items()}
    on = {path: set(policy["retry_on"].split(",")) for path, policy in found.items()}
    assert list(on) == ["/v2/models/a%2Fb", "/ a%2Fb", "/v2/models/stats", "/v2/models/", "/ any", "/"]
    assert "reset" in on["/v2/models/"]
    for path in ("/v2/models/a%2Fb", "/ a%2Fb", "/"):  # the last: a path of the gateway's own names no model
        assert "reset" not in on[path]
        codes = {header["string_match"]["exact"] for header in found[path]["retriable_headers"]}
        assert codes == {"OVERLOADED", "NOT_READY"}
    over_grpc = matched(listeners["grpc"])  # the path names no model, and a header may
    assert list(over_grpc) == ["/ a%2Fb", "/ any", "/"]
    repeats = ["reset" in route["route"]["retry_policy"]["retry_on"].split(",") for route in over_grpc.values()]
    assert repeats == [False, True, False]


def test_a_request_that_names_its_model_goes_to_nodes_that_serve_it() -> None:
    listeners, clusters = made(Fleet([ONE, TWO], models={ONE: ["a", "y"]}))
    for name in ("http", "grpc"):
        ends = clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        lists = [end["metadata"]["filter_metadata"]["envoy.lb"]["model"] for end in ends]
        assert lists == [["a", "y"], ["a", "y", "*"]]
        wanted = {
            path: route["route"].get("metadata_match", {}).get("filter_metadata", {}).get("envoy.lb", {}).get("model")
            for path, route in matched(listeners[name]).items()
        }
        assert (wanted["/ a"], wanted["/ y"], wanted["/ any"], wanted["/"]) == ("a", "y", "*", None)
    codes = [each["string_match"]["exact"] for each in matched(listeners["http"])["/"]["route"]["retry_policy"]["retriable_headers"]]
    assert "UNKNOWN_MODEL" in codes, "what names no model finds its node by asking"


def test_a_model_that_no_node_serves_is_refused_by_envoy_itself() -> None:
    listeners, _ = made(Fleet([ONE, TWO], models={ONE: ["a"], TWO: ["b"]}))
    for name in ("http", "grpc"):
        refused = matched(listeners[name])["/ any"]
        assert refused["direct_response"]["status"] == 404
        assert refused["response_headers_to_add"][0]["header"]["value"] == "UNKNOWN_MODEL"


def test_tls_is_each_listeners_and_each_clusters() -> None:
    listeners, clusters = made(Fleet([ONE], ca=Path("/ca")), certificate=(Path("/c"), Path("/k")))
    for listener in listeners.values():
        common = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
        assert common["tls_certificates"] == [
            {"certificate_chain": {"filename": "/c"}, "private_key": {"filename": "/k"}}
        ]
    for name, protocol in (("http", "http/1.1"), ("grpc", "h2")):
        common = clusters[name]["transport_socket"]["typed_config"]["common_tls_context"]
        assert common["alpn_protocols"] == [protocol]
        assert common["validation_context"] == {"trusted_ca": {"filename": "/ca"}}


def test_tokens_are_each_nodes_own() -> None:
    _, clusters = made(Fleet([ONE, TWO], tokens={ONE: "t1", TWO: "t2"}))
    (locality,) = clusters["grpc"]["load_assignment"]["endpoints"]
    tokens = [each["metadata"]["filter_metadata"]["batchyard"]["token"] for each in locality["lb_endpoints"]]
    assert tokens == ["t1", "t2"]


def test_a_client_needs_the_fleets_token_but_for_health() -> None:
    listeners, _ = made(Fleet([ONE]), client_token="secret")
    *open_ones, asked, refused = routes(listeners["http"])
    assert all("path" in route["match"] for route in open_ones)
    assert asked["match"]["headers"][0]["string_match"]["exact"] == "Bearer secret"
    assert refused["direct_response"]["status"] == 401


def options(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    return main._parser().parse_args(["render", *(text.format(tmp_path) for text in arguments)])


def test_tokens_come_from_files(tmp_path: Path) -> None:
    found = fleet(options(tmp_path, "--node", "a", "--node", "b", "--token", "{}/token"))
    assert set(found.tokens.values()) == {"0123456789abcdef"}
    with pytest.raises(InvalidRequest, match="no token for b:8000"):
        fleet(options(tmp_path, "--node", "a", "--node", "b", "--token", "a={}/token"))


def test_a_fleet_that_anybody_could_use_is_refused(tmp_path: Path) -> None:
    given = options(tmp_path, "--node", "a", "--token", "{}/token", "--listen", "0.0.0.0")
    with pytest.raises(InvalidRequest, match="requires --client-token"):
        main.rendered(fleet(given), given)


@pytest.mark.parametrize(
    "arguments",
    [("--node", "a", "--node", "a"), ("--node", "a", "--mirror", "a"), ("--node", "a", "--models", "b=m"), ("--node", "a", "--split", "b=60", "--split", "c=40")],
)
def test_nodes_that_contradict_each_other_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        fleet(options(tmp_path, *arguments))


def test_envoy_itself_finds_nothing_wrong() -> None:
    part("envoy", envoy.binary())
    models = {ONE: ["y", "1e5", "null", "0x1F", "on"], THREE: ["y"]}  # what some YAML would take for no text
    tokens = dict.fromkeys([ONE, TWO, THREE, Node("n")], "y")
    every = Fleet([ONE, TWO], {THREE: 10}, Node("n"), tokens, ["once", "n"], models)
    envoy.check(render(every, client_token="1e5"))
    with pytest.raises(InvalidRequest, match="Envoy refuses") as caught:
        envoy.check(render(every).replace("LEAST", "MOST").replace("least_request", "most_request"))
    assert len(str(caught.value)) < 1000, "Envoy prints the configuration behind its reason"
