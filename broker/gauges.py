"""The present moment in an operator's snapshot: plain numbers and names of everything under way.

Reads the core, and changes nothing. counters.py has the counts so far.
"""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Any

from .policy import CREDIT

if TYPE_CHECKING:
    from .core import Core
    from .lanes import Lane
    from .models import Model

LANES_MAX = 64  # that are named, the fullest; shapes come from clients, and may be any number


def snapshot(core: Core) -> dict[str, Any]:
    """All counts so far, and everything under way now; by the names of docs/protocol.md, "Admin"."""
    core.counters.tally()
    return core.counters.snapshot() | {"pid": core.pid, "epoch": core.epoch} | of(core)


def of(core: Core) -> dict[str, Any]:
    """The gauges: all work under way now."""
    every = (lane for model in core.models.values() for lane in model.lanes.values())
    lanes = nlargest(LANES_MAX, every, key=lambda lane: lane.rows)
    return {
        "rows_under_way": core.admission.rows,
        "bytes_under_way": core.admission.nbytes,
        "bytes_held": core.books.held_bytes,
        "clients": len(core.connections),
        "workers": len(core.workers),
        "worker_pids": [worker.pid for worker in core.workers.values()],
        "workers_fallen": [
            [each.id, each.fallback_reason] for each in core.workers.values() if each.fallback_reason
        ],
        "batches_lent": len(core.batches),
        "credit": CREDIT * len(core.workers) - len(core.batches),
        "models": [
            [model.name, model.revision, model.state, list(model.waiting), model.providers()]
            for model in core.models.values()
        ],
        "model_files": {model.name: _source(model) for model in core.models.values()},
        "lanes": [
            [lane.model_name, lane.shapes, lane.rows]
            for lane in lanes
        ],
        "lanes_omitted": _omitted(core, lanes),
        "leases": [
            [
                worker.id,
                worker.pid,
                {name: info.provider for name, info in worker.models.items()},
                [[batch.model.name, batch.rows] for batch in worker.leases.values()],
            ]
            for worker in core.workers.values()
        ],
    }


def _source(model: Model) -> str:
    """The file that a model is read from, or the Python function in a module."""
    config = model.config
    return str(config.path) if config.path.is_absolute() else config.file


def _omitted(core: Core, lanes: list[Lane]) -> dict[str, int]:
    """How many lanes of each model are left out."""
    left = {model.name: len(model.lanes) for model in core.models.values()}
    for lane in lanes:
        left[lane.model_name] -= 1
    return {name: count for name, count in left.items() if count}
