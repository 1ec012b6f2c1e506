"""What is under way at this moment, as an operator's snapshot tells it: plain numbers and names.

Reads the core, and changes nothing. What has been done so far is in counters.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .batching import CREDIT

if TYPE_CHECKING:
    from .core import Core


def of(core: Core) -> dict[str, Any]:
    """By the names of docs/protocol.md, "Admin"."""
    return {
        "rows_under_way": core.admission.rows,
        "bytes_under_way": core.admission.nbytes,
        "bytes_held": core.held_bytes,
        "clients": len(core.connections),
        "workers": len(core.workers),
        "worker_pids": [worker.pid for worker in core.workers.values()],
        "workers_fallen": [[each.id, each.fallen] for each in core.workers.values() if each.fallen],
        "batches_lent": len(core.batches),
        "credit": CREDIT * len(core.workers) - len(core.batches),
        "models": [
            [model.name, model.revision, model.state, list(model.waiting), model.providers()]
            for model in core.models.values()
        ],
        "lanes": [
            [model.name, [list(shape) for shape in lane.signature], lane.rows]
            for model in core.models.values()
            for lane in model.lanes.values()
        ],
        "leases": [
            [
                worker.id,
                worker.pid,
                {name: info.provider for name, info in worker.models.items()},
                [[batch.lane.model.name, batch.rows] for batch in worker.leases.values()],
            ]
            for worker in core.workers.values()
        ],
    }
