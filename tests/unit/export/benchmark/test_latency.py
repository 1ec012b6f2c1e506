"""Timing many in turn, with a clock that does as it is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.export import runtime
from batchyard.export.benchmark import latency
from batchyard.export.benchmark.latency import GROUP_BYTES, GROUP_FILES, groups, interleaved
from batchyard.export.timing import ROUNDS_MIN


class Machine:
    """A clock, and runs that take so long; all take twice as long from time to time."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[int] = []

    def run(self, number: int, took_ns: int) -> Any:
        def run() -> None:
            self.order.append(number)
            slow = 2 if len(self.order) // 30 % 2 else 1
            self.now_ns += took_ns * slow

        return run


def test_ratios_hold_on_a_machine_that_is_slow_from_time_to_time() -> None:
    machine = Machine()
    found = interleaved(
        machine.run(0, 1000), [machine.run(1, 500), machine.run(2, 4000)], 8, 1e-6, lambda: machine.now_ns
    )
    assert [one.ratio for one in found] == [pytest.approx(0.5), pytest.approx(4.0)]
    assert {one.rounds for one in found} == {ROUNDS_MIN}
    assert {one.batch for one in found} == {8}


def test_no_one_always_runs_behind_the_same_neighbour() -> None:
    machine = Machine()
    interleaved(machine.run(0, 1), [machine.run(1, 1), machine.run(2, 1)], 1, 1e-9, lambda: machine.now_ns)
    rounds = [tuple(machine.order[at : at + 3]) for at in range(0, len(machine.order), 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(set(rounds)) > 1


def test_groups_hold_no_more_files_and_bytes_than_may_be_loaded_at_once() -> None:
    assert groups([]) == []
    assert [len(group) for group in groups([1] * (GROUP_FILES + 3))] == [GROUP_FILES, 3]
    assert groups([GROUP_BYTES - 1, 1, 1, 2 * GROUP_BYTES, 1]) == [[0, 1], [2], [3], [4]]


def test_a_fixed_batch_is_run_as_often_as_the_rows_need(
    onnx_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = runtime.session(str(onnx_models.unary("fixed", "Neg", [4, 3])))
    fed = []
    monkeypatch.setattr(runtime, "run", lambda session, feeds: fed.append(feeds["x"].shape))
    monkeypatch.setattr(latency, "WARM_RUNS", 1)
    latency.run_of(session, 9)
    assert fed == [(4, 3)] * 3
    free = runtime.session(str(onnx_models.unary("free_batch", "Neg", ["n", 3], 7)))
    monkeypatch.setattr(runtime, "run", lambda session, feeds: fed.append(feeds["x"].dtype))
    latency.run_of(free, 9)
    assert fed[-1] == np.int64
