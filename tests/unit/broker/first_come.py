"""A scheduling policy that is not ours: first come, first served, one batch at a time for each worker.

One file; test_policy_seam.py has the one line that lists it.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.broker.lanes import Lane
from batchyard.broker.policy import Batch
from batchyard.broker.requests import NEVER_NS
from batchyard.broker.serving import Worker
from batchyard.broker.taking import take_rows


class FirstCome:
    """The lane that has waited longest goes first, and as many rows of it as the worker takes."""

    def __init__(self, budgets_ns: Sequence[int]) -> None:
        self.lanes: dict[Lane, None] = {}

    def place_ns(self, priority: int, deadline_ns: int, now_ns: int) -> int:
        return now_ns

    def add(self, lane: Lane) -> None:
        self.lanes[lane] = None

    def drop(self, lane: Lane) -> None:
        self.lanes.pop(lane, None)

    def next_batch(self, worker: Worker, now_ns: int) -> Batch | int:
        if worker.leases:
            return NEVER_NS
        for lane in list(self.lanes):
            if lane.is_empty():
                self.drop(lane)
                continue
            if lane.model_name not in worker.served:
                continue
            rows_max = worker.rows_max[lane.model_name]
            parts = lane.take_again(rows_max) or take_rows(lane, rows_max)
            if lane.is_empty():
                self.drop(lane)
            if parts:
                return lane, parts
        return NEVER_NS
