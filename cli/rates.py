"""What a yard did between two broker snapshots: rates, quantiles, queues, and workers.
Pure: no socket, no clock, no terminal.

Broker counters are cumulative, so an interval is a difference. Quantiles cover only the interval; they are
exact to a bucket, which is at most 25 % wide.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

import msgspec

from ..transport.histograms import quantile
from ..transport.messages import ModelState, Priority
from ..transport.snapshot import Histogram, Snapshot

_STATES = {state.value: state.name.lower() for state in ModelState}
Key = TypeVar("Key", bound=Hashable)


class Times(msgspec.Struct, frozen=True):
    """Half of them took at most `p50_ns`, and 99 of 100 at most `p99_ns`."""

    p50_ns: float
    p99_ns: float


class Track(msgspec.Struct, frozen=True):
    """The requests of one model and priority. Rates are per second; None: not known yet, because there is
    but one snapshot. Times are those of requests that a run answered; None: there were none."""

    priority: str
    waiting_rows: int
    requests_per_s: float | None
    failed_per_s: float | None  # they ended without a result, for whatever reason
    latency: Times | None  # in the broker: from the request's arrival to its answer
    queue: Times | None


class Lane(msgspec.Struct, frozen=True):
    """Requests that may share a batch."""

    shapes: list[list[int]]  # of the inputs, without their rows; empty: the model has but one lane
    waiting_rows: int


class Model(msgspec.Struct, frozen=True):
    name: str
    revision: int
    state: str
    providers: dict[str, int]  # -> workers
    requests_per_s: float | None
    rows_per_s: float | None
    batches_per_s: float | None
    rows_per_batch: float | None
    rows_per_batch_p99: float | None
    spared_per_s: float | None  # requests that joined another's run, or whose result was kept
    gather: Times | None
    compute: Times | None
    scatter: Times | None
    tracks: list[Track]  # those that have had a request, by priority
    lanes: list[Lane]
    padding_share: float | None = None  # of its batches' elements along padded axes; None: none are padded
    lanes_omitted: int = 0  # that it has besides


class Run(msgspec.Struct, frozen=True):
    """A batch on a worker."""

    model: str
    rows: int


class Worker(msgspec.Struct, frozen=True):
    """One worker at the time of the second snapshot."""

    worker: int
    pid: int
    providers: list[str]
    runs: Run | None  # None: idle
    follows: Run | None  # bound to it already
    fallback_reason: str = ""  # why it is on no better provider, where it might be


class Interval(msgspec.Struct, frozen=True):
    """A yard, between two snapshots."""

    ended_s: float  # time of day, as time.time() has it
    interval_s: float | None  # None: there is but one snapshot, and no rates
    url: str
    version: str
    pid: int
    epoch: int
    clients: int
    credit: int  # batches that could be lent at once
    rows_waiting: int
    rows_under_way: int
    requests_per_s: float | None
    outcomes_per_s: dict[str, float]  # of requests
    refused_per_s: dict[str, float]  # requests and messages that were not taken, by reason
    rows_per_s: float | None
    batches_per_s: float | None
    rows_per_batch: float | None
    copied_bytes_per_s: float | None  # by workers, into and out of batches
    models: list[Model]  # the busiest first
    workers: list[Worker]
    workers_lost: int  # these six since the broker started
    workers_restarted: int
    workers_hung: int
    workers_left: int  # by themselves: their device was lost, or a better one works again
    batches_failed: int
    requeued: int
    arenas: int
    arena_bytes: int  # of address space
    arena_committed_bytes: int  # of it, pages
    held_bytes: int  # in slots of requests that have not been released
    inline_used_bytes: int  # of tensors that came as frames


def between(
    before: Snapshot | None, after: Snapshot, interval_s: float, ended_s: float, url: str
) -> Interval:
    """What happened from `before` to `after`, `interval_s` later. Another broker's snapshot, or none, is
    nothing to count from."""
    if before is not None and before.epoch != after.epoch:
        before = None
    over = _Over(before, after, interval_s)
    fallback_reasons = dict(after.workers_fallen)
    models = [over.model(*entry) for entry in after.models]
    models.sort(key=lambda model: (-(model.rows_per_s or 0.0), model.name))
    batches = over.rate(after.batches, before.batches if before else 0)
    rows = over.rate(after.rows, before.rows if before else 0)
    outcomes = over.grouped((outcome, change) for (_, _, outcome), change in over.requests.items())
    refused = over.grouped(
        (reason, count - (before.refused.get(reason, 0) if before else 0))
        for reason, count in after.refused.items()
    )
    own = {name: getattr(after, name) for name in Interval.__struct_fields__ if hasattr(after, name)}
    found = {
        "ended_s": ended_s,
        "interval_s": interval_s if before else None,
        "url": url,
        "rows_waiting": sum(sum(waiting) for _, _, _, waiting, _ in after.models),
        "requests_per_s": over.per_s(sum(over.requests.values())),
        "outcomes_per_s": outcomes,
        "refused_per_s": refused,
        "rows_per_s": rows,
        "batches_per_s": batches,
        "rows_per_batch": rows / batches if rows and batches else None,
        "copied_bytes_per_s": over.rate(after.copied_bytes, before.copied_bytes if before else 0),
        "models": models,
        "workers": [_worker(*entry, fallback_reasons.get(entry[0], "")) for entry in after.leases],
        "held_bytes": after.bytes_held,
    }
    return Interval(**own | found)


class _Over:
    """Differences of two snapshots of one broker; `before` None: none are known."""

    def __init__(self, before: Snapshot | None, after: Snapshot, interval_s: float) -> None:
        self._known = before is not None
        self._interval_s = max(interval_s, 1e-9)
        self._after = after
        had = {(*key,): count for *key, count in before.requests} if before else {}
        self.requests = {
            (model, priority, outcome): count - had.get((model, priority, outcome), 0)
            for model, priority, outcome, count in after.requests
        }
        had_elements = {model: found for model, *found in before.elements} if before else {}
        self._elements = {
            model: tuple(now - then for now, then in zip(found, had_elements.get(model, (0, 0)), strict=True))
            for model, *found in after.elements
        }
        self._spared = _changes(_counted(after.identical), _counted(before.identical) if before else {})
        self._stages = _histograms(after.stages, before.stages if before else ())
        self._batch_stages = _histograms(after.batch_stages, before.batch_stages if before else ())

    def per_s(self, change: float) -> float | None:
        return change / self._interval_s if self._known else None

    def rate(self, after: int, before: int) -> float | None:
        return self.per_s(after - before)

    def grouped(self, changes: Iterable[tuple[str, int]]) -> dict[str, float]:
        """Rates by name, without those that are zero."""
        found: dict[str, float] = {}
        for name, change in changes:
            if self._known and change:
                found[name] = found.get(name, 0.0) + change / self._interval_s
        return found

    def times(self, key: tuple[object, ...]) -> Times | None:
        counts, _ = (self._stages if len(key) == 3 else self._batch_stages).get(key, ({}, 0))
        p50_ns, p99_ns = quantile(counts, 0.5), quantile(counts, 0.99)
        if not self._known or p50_ns is None or p99_ns is None:
            return None
        return Times(p50_ns, p99_ns)

    def model(
        self, name: str, revision: int, state: int, waiting: list[int], providers: dict[str, int]
    ) -> Model:
        counts, rows = self._batch_stages.get((name, "rows"), ({}, 0))
        batches = sum(counts.values())
        has_batches = self._known and batches > 0
        mine = {key: change for key, change in self.requests.items() if key[0] == name}
        return Model(
            name=name,
            revision=revision,
            state=_STATES.get(state, "unknown"),
            providers=providers,
            requests_per_s=self.per_s(sum(mine.values())),
            rows_per_s=self.per_s(rows),
            batches_per_s=self.per_s(batches),
            rows_per_batch=rows / batches if has_batches else None,
            rows_per_batch_p99=quantile(counts, 0.99) if has_batches else None,
            spared_per_s=self.per_s(sum(count for key, count in self._spared.items() if key[0] == name)),
            gather=self.times((name, "gather")),
            compute=self.times((name, "compute")),
            scatter=self.times((name, "scatter")),
            tracks=[
                self._track(name, priority, waiting[priority], mine)
                for priority in Priority
                if waiting[priority] or any(key[1] == priority for key in mine)
            ],
            lanes=[Lane(shapes, rows) for model, shapes, rows in self._after.lanes if model == name],
            padding_share=self._padding_share(name),
            lanes_omitted=self._after.lanes_omitted.get(name, 0),
        )

    def _padding_share(self, name: str) -> float | None:
        elements, padding = self._elements.get(name, (0, 0))
        return padding / elements if self._known and elements else None

    def _track(
        self, name: str, priority: Priority, waiting: int, mine: dict[tuple[str, int, str], int]
    ) -> Track:
        changes = {outcome: change for (_, of, outcome), change in mine.items() if of == priority}
        total = sum(changes.values())
        return Track(
            priority=priority.name,
            waiting_rows=waiting,
            requests_per_s=self.per_s(total),
            failed_per_s=self.per_s(total - changes.get("ok", 0)),
            latency=self.times((name, priority, "total")),
            queue=self.times((name, priority, "queue")),
        )


def _worker(
    worker: int, pid: int, providers: dict[str, str], leases: list[tuple[str, int]], fallback_reason: str
) -> Worker:
    runs = [Run(*lease) for lease in leases[:2]]
    return Worker(
        worker,
        pid,
        sorted(set(providers.values())),
        runs[0] if runs else None,
        runs[1] if len(runs) > 1 else None,
        fallback_reason,
    )


def _counted(entries: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
    return {(model, kind): count for model, kind, count in entries}


def _changes(after: dict[Key, int], before: dict[Key, int]) -> dict[Key, int]:
    return {key: count - before.get(key, 0) for key, count in after.items()}


def _histograms(
    after: Iterable[tuple[object, ...]], before: Iterable[tuple[object, ...]]
) -> dict[tuple[object, ...], tuple[dict[int, int], int]]:
    """What was counted from one to the other: (counts by bucket, their sum), by key."""
    had = {entry[:-1]: entry[-1] for entry in before}
    found = {}
    for *key, histogram in after:
        assert isinstance(histogram, Histogram)
        old = had.get((*key,), Histogram({}, 0))
        assert isinstance(old, Histogram)
        found[(*key,)] = (_changes(histogram.counts, old.counts), histogram.sum - old.sum)
    return found
