"""The API's reference, gateway/docs.html: what openapi.json says, as one page without a script.

`.venv/bin/python -m batchyard.tools.reference` writes it anew, between its two marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

GATEWAY = Path(__file__).resolve().parents[1] / "gateway"
PAGE = GATEWAY / "docs.html"
BEGIN, END = "<!-- from openapi.json -->", "<!-- end -->"
# Heading -> how the paths below it begin; the longest that fits counts.
SECTIONS = {
    "Predictions and jobs": ("/predict",),
    "Texts": ("/v1/", "/embed", "/rerank"),
    "Open Inference Protocol": ("/v2",),
    "Clients' shared memory": ("/v2/systemsharedmemory", "/v2/cudasharedmemory"),
    "Pages and figures": ("/",),
}
DEEPEST = 8  # levels of a schema that are written out

Json = dict[str, Any]


def reference(page: str, document: Json) -> str:
    """`page` with the operations of `document` between its marks, one a line."""
    sections: dict[str, list[str]] = {heading: [] for heading in SECTIONS}
    for path, methods in document["paths"].items():
        sections[_heading(path)] += [
            "".join(_operation(document, method, path, operation)) for method, operation in methods.items()
        ]
    body = "\n".join(
        "\n".join((f"<section><h2>{escape(heading)}</h2>", *operations, "</section>"))
        for heading, operations in sections.items()
        if operations
    )
    return page.partition(BEGIN)[0] + f"{BEGIN}\n{body}\n{END}" + page.partition(END)[2]


def _heading(path: str) -> str:
    starts = {start: heading for heading, several in SECTIONS.items() for start in several}
    return starts[max((start for start in starts if path.startswith(start)), key=len)]


def _operation(document: Json, method: str, path: str, operation: Json) -> Iterator[str]:
    yield f'<details class="card"><summary><b class="{method}">{method.upper()}</b> '
    yield f"<code>{escape(path)}</code>"
    yield f"<span>{escape(operation.get('summary', ''))}</span></summary>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    parameters = [_resolved(document, one) for one in operation.get("parameters", ())]
    if parameters:
        yield "<h3>Parameters</h3><dl>"
        for one in parameters:
            kind = " | ".join(_lines(document, one.get("schema", {}), 0))
            needed = ", required" if one.get("required") else ""
            yield f"<dt><code>{escape(one['name'])}</code> <i>{escape(one['in'])}{needed}</i></dt>"
            yield f"<dd>{escape(one.get('description', ''))} <code>{escape(kind)}</code></dd>"
        yield "</dl>"
    if "requestBody" in operation:
        yield "<h3>Body</h3>"
        yield from _content(document, _resolved(document, operation["requestBody"]))
    yield "<h3>Answers</h3>"
    errors = []
    for status, response in operation["responses"].items():
        found = _resolved(document, response)
        if status.startswith("2"):
            yield f"<p><b>{escape(status)}</b> {escape(found['description'])}</p>"
            yield from _content(document, found)
        else:
            errors.append(f"<dt><b>{escape(status)}</b></dt><dd>{escape(found['description'])}</dd>")
    yield f"<dl class='answers'>{''.join(errors)}</dl></details>"


def _content(document: Json, holder: Json) -> Iterator[str]:
    for kind, content in holder.get("content", {}).items():
        schema = content.get("schema", {})
        is_binary = schema.get("type") == "string"
        text = "" if is_binary else "\n".join(_lines(document, schema, 0))
        yield f"<p class='kind'><code>{escape(kind)}</code></p>"
        if text:
            yield f"<pre>{escape(text)}</pre>"


def _resolved(document: Json, value: Json) -> Json:
    """What a reference leads to."""
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def _lines(document: Json, schema: Json, level: int) -> list[str]:
    """A schema as a JSON text is drawn: names, types, and what is optional (?)."""
    schema = _resolved(document, schema)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            found = ["\n".join(_lines(document, one, level)) for one in schema[several]]
            return " | ".join(dict.fromkeys(found)).split("\n")
    if "enum" in schema:
        return [" | ".join(repr(one).replace("'", '"') for one in schema["enum"])]
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return [" | ".join(kind)]
    if level >= DEEPEST:
        return ["…"]
    if kind == "array" and schema.get("items"):
        inner = _lines(document, schema["items"], level + 1)
        return ["[" + inner[0], *inner[1:-1], inner[-1] + ", …]"] if len(inner) > 1 else [f"[{inner[0]}, …]"]
    if kind == "object" and schema.get("properties"):
        return ["{", *_properties(document, schema, level), "}"]
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        inner = _lines(document, schema["additionalProperties"], level + 1)
        return ["{NAME: " + inner[0], *inner[1:-1], *([inner[-1] + "}"] if len(inner) > 1 else ["}"])]
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS if name in schema]
    return [f"{kind} {' and '.join(bounds)}".rstrip()]


_BOUNDS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))


def _properties(document: Json, schema: Json, level: int) -> Iterator[str]:
    for name, value in schema["properties"].items():
        first, *rest = _lines(document, value, level + 1)
        optional = "" if name in schema.get("required", ()) else "?"
        comment = _resolved(document, value).get("description") or value.get("description")
        yield f'  "{name}"{optional}: {first}' + (f"    // {comment}" if comment and not rest else "")
        yield from ("  " + line for line in rest)


if __name__ == "__main__":
    described = json.loads((GATEWAY / "openapi.json").read_text(encoding="utf-8"))
    PAGE.write_text(reference(PAGE.read_text(encoding="utf-8"), described), encoding="utf-8")
