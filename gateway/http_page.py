"""The pages: the status page with the figures that it asks for, and the API's reference.

Owns the policy under which a browser shows them: nothing from elsewhere, and no script or style but those
that are in the file, by their hashes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import ModelInfo, Priority
from .errors import Refusal
from .http_answer import answer
from .metrics import CONTENT_TYPE
from .rooms import Rooms

STATUS_WITHIN_S = 1.5  # the page itself waits for 2 s: a broker that stands still is said in time
PRIORITIES = tuple(priority.name.lower() for priority in Priority)
HTML, DOCS = (
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.html", "docs.html")
)


def headers(html: str) -> dict[str, str]:
    """What a page is sent with."""
    sources = {}
    for tag in ("script", "style"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
        sources[tag] = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


HEADERS = headers(HTML)


async def page(request: Request, rooms: Rooms) -> Response:
    return Response(HTML, media_type="text/html", headers=HEADERS)


async def docs(request: Request, rooms: Rooms) -> Response:
    """The API's reference, which tools/reference.py makes of openapi.json."""
    html = DOCS.replace("<!-- version -->", rooms.version)
    return Response(html, media_type="text/html", headers=headers(html))


async def status(request: Request, rooms: Rooms) -> Response:
    """What the page shows: models, and the broker's cumulative counters of them.
    Raises Refusal where the broker does not answer in time."""
    try:
        async with asyncio.timeout(STATUS_WITHIN_S):
            infos, snapshot = await asyncio.gather(rooms.yard.models(), rooms.yard.snapshot())
    except TimeoutError:
        text = f"the broker has not answered within {STATUS_WITHIN_S:g} s"
        raise Refusal(504, "DEADLINE_EXCEEDED", text) from None
    return answer(figures(infos, snapshot))


async def metrics_page(request: Request, rooms: Rooms) -> Response:
    """The gateway's own figures; the broker's are the sidecar's."""
    return Response(rooms.metrics.page(), headers={"Content-Type": CONTENT_TYPE})


def figures(infos: Sequence[ModelInfo], snapshot: dict[str, Any]) -> dict[str, Any]:
    """Everything cumulative, so that the page makes rates of any two answers.

    `latency`: bucket -> count, of a model over all priorities and the other way round, in the broker's
    buckets (docs/protocol.md, "Admin").
    """
    models = {info.name: _model(info) for info in infos}
    priorities = [{"name": name} | _nothing() for name in PRIORITIES]
    for name, priority, outcome, count in snapshot["requests"]:
        for counted in (priorities[priority], models.get(name)):
            if counted is not None:
                counted["ok" if outcome == "ok" else "failed"] += count
    for name, priority, stage, histogram in snapshot["stages"]:
        for counted in (priorities[priority], models.get(name)) if stage == "total" else ():
            if counted is not None:
                latency = counted["latency"]
                for bucket, count in histogram["counts"].items():
                    latency[bucket] = latency.get(bucket, 0) + count
    for name, _, _, waiting, _ in snapshot["models"]:
        for counted, rows in zip(priorities, waiting, strict=True):
            counted["waiting"] += rows
        if name in models:
            models[name]["waiting"] = sum(waiting)
    for name, stage, histogram in snapshot["batch_stages"]:
        if name in models and stage == "rows":
            models[name]["rows"] = histogram["sum"]
            models[name]["batches"] = sum(histogram["counts"].values())
    return {
        "pid": snapshot["pid"],
        "clients": snapshot["clients"],
        "rows_under_way": snapshot["rows_under_way"],
        "refused": sum(snapshot["refused"].values()),
        "workers_lost": snapshot["workers_lost"],
        "priorities": priorities,
        "models": list(models.values()),
    }


def _nothing() -> dict[str, Any]:
    return {"ok": 0, "failed": 0, "waiting": 0, "latency": {}}


def _model(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "state": info.state.name.lower(),
        "reason": info.reason,
        "revision": info.revision,
        "max_batch": info.max_batch if info.batchable else 1,
        "inputs": [str(spec) for spec in info.inputs],
        "outputs": [str(spec) for spec in info.outputs],
        "workers": [{"worker": one.worker, "pid": one.pid, "provider": one.provider} for one in info.workers],
        "rows": 0,
        "batches": 0,
    } | _nothing()
