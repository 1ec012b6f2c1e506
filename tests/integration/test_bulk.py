"""Bulk work over yards, by real Dask workers: a lost node's partitions run again on the others.
examples/bulk/rows_dask.py is the program."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import Yard, serve
from batchyard.transport.errors import BatchyardError, ModelFailed

from ..required import module

distributed = module("distributed", "dask")
from batchyard.examples.bulk import rows_dask  # noqa: E402

WITHIN_S = 60.0

CODE = """
import pathlib, time, batchyard

@batchyard.model(inputs={"x": "float32[n, width]"}, outputs={"y": "float32[n]"})
def nap(batch):
    time.sleep(0.02)
    with open(pathlib.Path(__file__).with_name("runs"), "a") as runs:
        runs.writelines(f"{number:g}\\n" for number in batch["x"][:, 0])
    if batch["x"].min() < 0:
        raise ValueError("less than nothing")
    return {"y": batch["x"].sum(1)}
"""
PARTITIONS, ROWS = 12, 16
OPTIONS = argparse.Namespace(model="nap", rows_per_request=2, timeout=5.0)


class Nodes:
    """Two yards, and a Dask worker for each."""

    def __init__(self, yards: list[Yard], dask: Any, runs: Path) -> None:
        self.yards = yards
        self.dask = dask
        self.rows = np.random.default_rng(1).random((PARTITIONS * ROWS, 8), np.float32)
        self.rows[:, 0] = np.arange(len(self.rows))
        self._runs = runs

    def run(self, lose: Callable[[Any], None] | None = None) -> Any:
        return rows_dask.run(self.dask, np.array_split(self.rows, PARTITIONS), OPTIONS, lose)[0]

    def runs(self) -> Counter[float]:
        """How often each row has run."""
        return Counter(float(line) for line in self._runs.read_text().split())

    def busy(self) -> tuple[int, int]:
        """(the number of a worker with a partition under way, its process)."""
        found: dict[str, tuple[int, int]] = {}
        give_up_s = time.monotonic() + WITHIN_S
        while not found:  # each is without one for a moment between two
            assert time.monotonic() < give_up_s, "no worker has a partition under way"
            processing = {worker: keys for worker, keys in self.dask.processing().items() if keys}
            found = self.dask.run(_named, workers=list(processing)) if processing else {}
        return next(iter(found.values()))


def _named(dask_worker: Any) -> tuple[int, int]:
    return int(dask_worker.name), os.getpid()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    (tmp_path / "models.py").write_text(CODE)
    model = {"nap": f"{tmp_path}/models.py:nap"}
    with ExitStack() as stack:
        yards = [stack.enter_context(serve(model, max_batch=2, threads=1)) for _ in range(2)]
        monkeypatch.setenv(rows_dask.URLS_VARIABLE, " ".join(yard.url for yard in yards))
        cluster = stack.enter_context(
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        )
        yield Nodes(yards, stack.enter_context(distributed.Client(cluster)), tmp_path / "runs")


def test_a_lost_nodes_partitions_run_again_and_every_row_comes_back_right(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dask starts its worker again, which has no yard then."""

    def lose(dask: Any) -> None:
        number, pid = nodes.busy()
        nodes.yards[number].close()
        os.kill(pid, signal.SIGKILL)

    np.testing.assert_allclose(nodes.run(lose), nodes.rows.sum(1), rtol=1e-5)
    assert f"{PARTITIONS} of {PARTITIONS} partitions" in capsys.readouterr().err
    assert len(nodes.runs()) == len(nodes.rows)


def test_a_worker_that_has_lost_its_yard_leaves_the_work_to_the_others(nodes: Nodes) -> None:
    """Dask knows nothing of it, and finds it idle: it would be given the same partition for ever."""

    def lose(dask: Any) -> None:
        nodes.yards[nodes.busy()[0]].close()

    np.testing.assert_allclose(nodes.run(lose), nodes.rows.sum(1), rtol=1e-5)
    assert len(nodes.runs()) == len(nodes.rows)
    assert len(nodes.dask.nthreads()) == 2, "the worker lives on"


def test_a_models_own_error_ends_it_at_once_and_without_any_yard_it_says_what_each_worker_saw(nodes: Nodes) -> None:
    nodes.rows[5, 1] = -1
    with pytest.raises(ModelFailed, match="less than nothing"):
        nodes.run()
    assert nodes.runs()[5] == 1, "it was tried elsewhere, too"
    nodes.rows[5, 1] = 1

    def lose(dask: Any) -> None:
        for yard in nodes.yards:
            yard.close()

    workers = list(nodes.dask.nthreads())
    with pytest.raises(BatchyardError, match="no node is left that could do partition") as caught:
        nodes.run(lose)
    assert all(worker in str(caught.value) for worker in workers), caught.value
