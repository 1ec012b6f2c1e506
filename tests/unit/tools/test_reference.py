"""The reference: a document as a page, and the page that the gateway has."""

from __future__ import annotations

from typing import Any

from batchyard.gateway.http_app import ROUTES, document
from batchyard.tools.reference import BEGIN, END, PAGE, reference


def test_the_gateways_page_is_what_openapi_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference(page, document("1.2.3")), "run: .venv/bin/python -m batchyard.tools.reference"


def test_every_route_is_on_the_page_below_its_heading() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for method, path, _ in ROUTES:
        assert f'<b class="{method.lower()}">{method}</b> <code>{path}</code>' in page
    assert page.index("Predictions and jobs") < page.index("/predict/async") < page.index("Texts")
    assert page.index("shared memory") < page.index("<code>/v2/cudasharedmemory")


def test_a_schema_is_drawn_with_types_bounds_and_what_is_optional_and_nothing_is_markup() -> None:
    priority = {"oneOf": [{"enum": ["high", "low"]}, {"type": "integer", "minimum": 0, "maximum": 4}]}
    asked: dict[str, Any] = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {"type": "array", "items": {"type": "number"}, "description": "<b>Numbers.</b>"},
            "priority": {"$ref": "#/components/schemas/Priority"},
        },
    }
    page = reference(
        BEGIN + END,
        {
            "info": {"version": "1"},
            "paths": {
                "/predict": {
                    "post": {
                        "requestBody": {"content": {"application/json": {"schema": asked}}},
                        "responses": {"404": {"description": "There is none."}},
                    }
                }
            },
            "components": {"schemas": {"Priority": priority}},
        },
    )
    assert "data&quot;: [number, …]    // &lt;b&gt;Numbers.&lt;/b&gt;" in page
    assert "priority&quot;?: &quot;high&quot; | &quot;low&quot; | integer &gt;= 0 and &lt;= 4" in page
    assert "<dt><b>404</b></dt><dd>There is none.</dd>" in page
