"""The table of routes and the document that is served of it."""

from __future__ import annotations

import re
from collections import Counter

from batchyard.gateway.http_app import ROUTES, document


def test_the_document_has_every_route_and_no_other_with_its_parameters() -> None:
    paths = document("1.2.3")["paths"]
    promised = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert promised == {(method, path) for method, path, _ in ROUTES}
    assert max(Counter((method, path) for method, path, _ in ROUTES).values()) == 1
    for path, methods in paths.items():
        for operation in methods.values():
            named = {one["name"] for one in operation.get("parameters", ()) if one.get("in") == "path"}
            assert named == set(re.findall(r"{(\w+)}", path)), path


def test_every_reference_of_the_document_leads_somewhere() -> None:
    found = document("1.2.3")
    assert found["info"]["version"] == "1.2.3"

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            inner = set().union(*map(references, value.values()))
            return inner | ({value["$ref"]} if "$ref" in value else set())
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    components = found["components"]
    there = {f"#/components/{kind}/{name}" for kind, entries in components.items() for name in entries}
    assert references(found) == there
