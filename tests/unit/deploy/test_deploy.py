"""The image and the manifests: against Kubernetes' schemas, and against what batchyard itself says."""

from __future__ import annotations

import json
import re
import shlex
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker.config import STOP_SECONDS_DEFAULT
from batchyard.cli import up
from batchyard.client.yard import END_S
from batchyard.gateway.options import TOKEN_VARIABLE
from batchyard.sidecar import metrics
from batchyard.tests.required import module

ROOT = Path(__file__).resolve().parents[3]
VERSION = "1.34"
# Of operators: no schemas of Kubernetes' own. Where what cloudcoil generates from their definitions lies.
THEIRS = {
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
}
yaml = pytest.importorskip("yaml", reason="pip install 'batchyard[fleet]'")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")


def documents() -> list[dict[str, Any]]:
    files = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str, name: str = "batchyard") -> dict[str, Any]:
    (found,) = [each for each in documents() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = one("Deployment")["spec"]["template"]["spec"]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = [each for each in pod()["containers"] if each["name"] == name]
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_a_manifest_is_what_kubernetes_takes(document: dict[str, Any]) -> None:
    if document["kind"] not in THEIRS:
        kubernetes_validate.validate(document, VERSION, strict=True)


def taken(kind: str, document: dict[str, Any]) -> bool:
    """Whether its operator takes all of it: a field that it does not know is dropped, as on a cluster."""
    module("cloudcoil", "crds")
    model = getattr(import_module(THEIRS[kind]), kind)
    try:
        read = model.model_validate(document)
    except ValueError:  # pydantic's
        return False
    return bool(read.model_dump(by_alias=True, exclude_unset=True, mode="json") == document)


@pytest.mark.parametrize("kind", sorted(THEIRS))
def test_an_operators_kind_is_what_its_operator_takes(kind: str) -> None:
    assert taken(kind, one(kind))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ServiceMonitor", "spec/endpoints/0/intervall", "5s"),
        ("ServiceMonitor", "spec/endpoints/0/interval", "5 seconds"),
        ("ServiceMonitor", "spec/selector", "batchyard"),
        ("ServiceMonitor", "apiVersion", "monitoring.coreos.com/v1alpha1"),
        ("ScaledObject", "spec/misspelt", 1),
        ("ScaledObject", "spec/maxReplicaCount", "ten"),
        ("ScaledObject", "spec/triggers/0/metadata/threshold", 0.02),
        ("ScaledObject", "spec/advanced/horizontalPodAutoscalerConfig/behavior/scaleDown/policies/0/period", 1),
    ],
)
def test_what_an_operator_does_not_take_is_seen(kind: str, path: str, value: object) -> None:
    """Else the test above would hold whatever stood there."""
    document = deepcopy(one(kind))
    at: Any = document
    *folders, last = path.split("/")
    for name in folders:
        at = at[int(name) if name.isdigit() else name]
    at[last] = value
    assert not taken(kind, document)


def test_a_pod_has_the_time_that_its_yard_takes_to_stop() -> None:
    options = up._parser().parse_args(container("yard")["args"][1:])
    assert options.gateway_notice > 2 * container("yard")["readinessProbe"]["periodSeconds"]
    assert pod()["terminationGracePeriodSeconds"] >= options.gateway_notice + 30 + END_S  # as its comment says
    assert STOP_SECONDS_DEFAULT <= 30
    spec = one("Deployment", "batchyard-envoy")["spec"]["template"]["spec"]
    (envoy,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > envoy["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_ports_meet_and_every_pod_is_selected() -> None:
    named = {port["name"]: port["containerPort"] for each in pod()["containers"] for port in each["ports"]}
    service = one("Service")["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == named
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        service["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("ServiceMonitor")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_nothing_runs_as_root_or_writes_to_its_image() -> None:
    for deployment in ("batchyard", "batchyard-envoy"):
        spec = one("Deployment", deployment)["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for each in spec["containers"]:
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


def test_the_image_and_the_pod_start_what_the_command_line_knows() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (.*)$", dockerfile, re.M)[1])  # type: ignore[index]
    for line in (command, container("yard")["args"]):
        assert line[0] == "up"
        options = up._parser().parse_args(line[1:])
        assert (options.gateway, options.gateway_host) == (8000, "0.0.0.0"), shlex.join(line)
    assert [each["name"] for each in container("yard")["env"]] == [TOKEN_VARIABLE]


def test_it_scales_by_a_figure_that_the_sidecar_has() -> None:
    query = one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    source = Path(metrics.__file__).read_text()
    assert '"queue", "queue"' in source
    assert "_duration_seconds" in source
    assert set(re.findall(r"batchyard_\w+", query)) == {
        "batchyard_queue_duration_seconds_sum",
        "batchyard_queue_duration_seconds_count",
    }
