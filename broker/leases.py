"""How long a worker may run a batch: slow is not hung, and slow is not poison.

A run that takes long is evidence of a hang only where every run of the model has the same shape and has
taken what was expected of it: then HUNG_FACTOR times that is. Elsewhere a worker counts as hung only when
nobody can have the answer any more: when every deadline of the batch has passed, or its requests have
ended otherwise. `run_seconds_max` of a model bounds every run of it. None of them is ever sooner than the
least time below, but the last one.

A request whose worker was ended for its time is run again, and then time is no evidence against it: if it
is slow once more, the request is, and not the worker. No content is quarantined for being slow.

Pure.
"""

from __future__ import annotations

from .requests import NEVER_NS, Request
from .serving import Batch

HUNG_MIN_NS = 5_000_000_000  # no batch is overdue sooner; a machine that swaps is not hung
HUNG_LOADING_NS = 60_000_000_000  # while its worker loads a model: a first run may hold the device for long
HUNG_FACTOR = 20  # nor before so many times its expected time
HUNG_UNKNOWN_NS = 120_000_000_000  # when nothing is expected yet
LOOK_NS = 5_000_000_000  # how often it is looked whether anybody still waits for a run that takes long


def hung_ns(batch: Batch, began_ns: int) -> int:
    """When the worker that began this batch then counts as hung, as things are; NEVER_NS: not at all."""
    due_ns = began_ns + _least_ns(batch)
    if not _is_evidence(batch):
        for part in batch.parts:
            request = part.request
            if request.run is not None:
                awaited_ns = _awaited_ns(request)
            else:
                awaited_ns = 0 if request.ended else request.deadline_ns or NEVER_NS
            if awaited_ns > due_ns:
                due_ns = awaited_ns
    if batch.model.streams:
        due_ns += HUNG_MIN_NS  # with its next answer it hears that nobody waits any more
    limit_ns = batch.model.config.run_ns_max
    return min(due_ns, began_ns + limit_ns) if limit_ns else due_ns


def look_ns(batch: Batch, now_ns: int) -> int:
    """When to look at it next: at the first time that it may count as hung, and from then on now and then,
    because the requests that wait for it may end."""
    limit_ns = batch.model.config.run_ns_max or NEVER_NS
    first_ns = batch.began_ns + min(limit_ns, _least_ns(batch))
    return first_ns if first_ns > now_ns else min(hung_ns(batch, batch.began_ns), now_ns + LOOK_NS)


def lease_ns(batch: Batch, now_ns: int) -> int:
    """How long it may run, for the worker's own watch, which hears nothing of later events. 0:
    there is no limit."""
    due_ns = hung_ns(batch, now_ns)
    if due_ns >= NEVER_NS:
        return 0
    if batch.model.config.join and any(part.request.run is not None for part in batch.parts):
        limit_ns = batch.model.config.run_ns_max or NEVER_NS  # others may yet wait for it, and longer
        due_ns = max(due_ns, now_ns + min(limit_ns, HUNG_UNKNOWN_NS))
    return due_ns - now_ns


def is_over_limit(batch: Batch, now_ns: int) -> bool:
    """Whether it has run for longer than the model's limit."""
    limit_ns = batch.model.config.run_ns_max
    return 0 < limit_ns <= now_ns - batch.began_ns


def was_slow(batch: Batch, now_ns: int) -> bool:
    """Whether the worker that ran it died for the time that it took: by our hand, or by its own watch."""
    return batch.worker.stopped or 0 < batch.lease_ns <= now_ns - batch.began_ns


def _least_ns(batch: Batch) -> int:
    if not batch.predicted_ns:
        return HUNG_UNKNOWN_NS
    worker = batch.worker
    least_ns = HUNG_LOADING_NS if worker.loading and worker.loads_on_device else HUNG_MIN_NS
    return max(least_ns, HUNG_FACTOR * batch.predicted_ns)


def _is_evidence(batch: Batch) -> bool:
    """Whether a long run is evidence that the worker is hung."""
    model = batch.model
    if not model.has_one_shape or not model.steadiness.is_steady or not batch.predicted_ns:
        return False
    return not any(part.request.was_slow for part in batch.parts)


def _awaited_ns(request: Request) -> int:
    """Until when a client can use the answer of a request that others may wait for; 0: no client can."""
    due_ns = 0 if request.ended else request.deadline_ns or NEVER_NS
    run = request.run
    if run is not None and run.leader is request:
        due_ns = max(due_ns, max((each.deadline_ns or NEVER_NS for each in run.followers), default=0))
    return due_ns
