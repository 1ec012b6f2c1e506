"""The status page: one HTML file with its own script and style, and the figures that it asks for.

Owns the policy under which a browser shows it: nothing from elsewhere, and no script or style but the two
that are in the file, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import ModelInfo

HTML = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _hash(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    assert found is not None, f"the page has no <{tag}>"
    return "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def figures(infos: Sequence[ModelInfo], snapshot: dict[str, Any]) -> dict[str, Any]:
    """Everything cumulative, so that the page makes rates of any two answers.

    `latency`: bucket -> count over all priorities, in the broker's buckets (docs/protocol.md, "Admin").
    """
    models = {info.name: _model(info) for info in infos}
    for name, _, outcome, count in snapshot["requests"]:
        if name in models:
            models[name]["ok" if outcome == "ok" else "failed"] += count
    for name, _, stage, histogram in snapshot["stages"]:
        if name in models and stage == "total":
            latency = models[name]["latency"]
            for bucket, count in histogram["counts"].items():
                latency[bucket] = latency.get(bucket, 0) + count
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
        "models": list(models.values()),
    }


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
        "ok": 0,
        "failed": 0,
        "rows": 0,
        "batches": 0,
        "latency": {},
    }
