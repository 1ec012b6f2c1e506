"""Cumulative counts of the broker's work: plain integers, pulled by their readers, never reset.

Histograms are log-spaced: transport/histograms.py says what a bucket's number means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..transport.histograms import BUCKETS_PER_OCTAVE

if TYPE_CHECKING:
    from ..transport.errors import BatchyardError
    from ..transport.messages import Done
    from .requests import Request
    from .serving import Batch

SIZES_MAX = 8192  # (model, rows) that are counted one by one: more than a yard of any size has batches of

Ended = tuple["Batch", "Done", list["Request"], int]  # a batch, its requests that were answered, and when


class Histogram:
    """Counts by bucket, with sum and count; `counts` grows to the largest bucket seen."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sum_ns = 0

    def add(self, value_ns: int, count: int = 1) -> None:
        if value_ns < BUCKETS_PER_OCTAVE:
            bucket = max(value_ns, 0)
        else:  # as bucket_of, whose call would be a third of the time
            shift = value_ns.bit_length() - 3
            bucket = shift * BUCKETS_PER_OCTAVE + (value_ns >> shift)
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + count
        self.sum_ns += value_ns * count

    def snapshot(self) -> dict[str, Any]:
        return {"counts": self.counts.copy(), "sum": self.sum_ns}


class Counters:
    """The counts that the admin socket shows."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int, str], int] = {}  # (model, priority, outcome)
        self.identical: dict[tuple[str, str], int] = {}  # (model, "joined" or "cached")
        self.refused: dict[str, int] = {}  # reason
        self.workers_lost = 0
        self.workers_restarted = 0  # joined in the place of one that was lost
        self.workers_hung = 0  # and killed for it
        self.workers_left = 0  # by their own word: a lost device, or a better one
        self.requeued = 0  # parts
        self.batches = 0
        self.batches_failed = 0
        self.rows = 0
        self.copied_bytes = 0  # moved by workers into and out of batches
        self.elements: dict[str, list[int]] = {}  # by model: along padded axes, in all; of these, padding
        self.unaccounted: list[Ended] = []  # since the last tally
        self._stages: dict[tuple[str, int, str], Histogram] = {}  # (model, priority, stage)
        self._batches: dict[tuple[str, str], Histogram] = {}  # (model, stage or rows)
        self._sizes: dict[tuple[str, int], list[int]] = {}  # (model, rows): runs, then ns of each stage

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def turned_away(self, model: str, priority: int, error: BatchyardError) -> None:
        """A request was refused: that is its outcome."""
        reason = error.code.name.lower()
        self.refuse(reason)
        self.end(model, priority, reason)

    def spared(self, model: str, how: str) -> None:
        """A request has cost no run: it "joined" another's, or its result was "cached"."""
        self.identical[model, how] = self.identical.get((model, how), 0) + 1

    def end(self, model: str, priority: int, outcome: str, count: int = 1) -> None:
        key = (model, priority, outcome)
        self.requests[key] = self.requests.get(key, 0) + count

    def observe(self, model: str, priority: int, total_ns: int, queue_ns: int, count: int) -> None:
        """`count` requests have got their results."""
        stages = self._stages
        total = stages.get((model, priority, "total"))
        if total is None:
            total = stages[model, priority, "total"] = Histogram()
            stages[model, priority, "queue"] = Histogram()
        total.add(total_ns, count)
        stages[model, priority, "queue"].add(queue_ns, count)

    def batch(self, model: str, rows: int, done: Done) -> None:
        self.batches += 1
        self.rows += rows
        self.copied_bytes += done.copied_bytes
        measured = (("rows", rows), ("gather", done.gather_ns), ("compute", done.compute_ns))
        for stage, value in (*measured, ("scatter", done.scatter_ns)):
            histogram = self._batches.get((model, stage))
            if histogram is None:
                histogram = self._batches[(model, stage)] = Histogram()
            histogram.add(value)
        sums = self._sizes.get((model, rows))
        if sums is None:
            if len(self._sizes) >= SIZES_MAX:
                return
            sums = self._sizes[model, rows] = [0, 0, 0, 0]
        sums[0] += 1
        sums[1] += done.gather_ns
        sums[2] += done.compute_ns
        sums[3] += done.scatter_ns

    def tally(self) -> None:
        """Account for the requests that have ended since the last call."""
        for batch, message, finished, ended_ns in self.unaccounted:
            name = batch.model.name
            self.batch(name, batch.rows, message)
            # Requests that came in one envelope have waited equally long: few groups, many requests.
            groups: dict[tuple[int, int], int] = {}
            for request in finished:
                key = (request.priority, request.arrived_ns)
                groups[key] = groups.get(key, 0) + 1
            for (priority, arrived_ns), count in groups.items():
                self.end(name, priority, "ok", count)
                self.observe(name, priority, ended_ns - arrived_ns, batch.sent_ns - arrived_ns, count)
        self.unaccounted.clear()

    def padded(self, model: str, elements: int, padding: int) -> None:
        """A batch of so many elements has run, of which some were padding."""
        totals = self.elements.setdefault(model, [0, 0])
        totals[0] += elements
        totals[1] += padding

    def snapshot(self) -> dict[str, Any]:
        """Plain values for the wire."""
        return {
            "requests": [[*key, count] for key, count in self.requests.items()],
            "identical": [[*key, count] for key, count in self.identical.items()],
            "refused": dict(self.refused),
            "workers_lost": self.workers_lost,
            "workers_restarted": self.workers_restarted,
            "workers_hung": self.workers_hung,
            "workers_left": self.workers_left,
            "requeued": self.requeued,
            "batches": self.batches,
            "batches_failed": self.batches_failed,
            "rows": self.rows,
            "copied_bytes": self.copied_bytes,
            "elements": [[model, *totals] for model, totals in self.elements.items()],
            "stages": [[*key, h.snapshot()] for key, h in self._stages.items()],
            "batch_stages": [[*key, h.snapshot()] for key, h in self._batches.items()],
            "batch_sizes": [[*key, *sums] for key, sums in self._sizes.items()],
        }
