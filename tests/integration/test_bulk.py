"""Bulk work over yards, by real Dask workers: a lost node's partitions run again on the others.
examples/bulk/rows_dask.py is the program."""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import serve

from ..required import module

distributed = module("distributed", "dask")
from batchyard.examples.bulk import rows_dask  # noqa: E402

CODE = """
import pathlib, time, batchyard

@batchyard.model(inputs={"x": "float32[n, width]"}, outputs={"y": "float32[n]"})
def nap(batch):
    time.sleep(0.02)
    with open(pathlib.Path(__file__).with_name("runs"), "a") as runs:
        runs.writelines(f"{number:g}\\n" for number in batch["x"][:, 0])
    return {"y": batch["x"].sum(1)}
"""
PARTITIONS, ROWS = 12, 16


@pytest.mark.parametrize("lost", ["node", "yard"])
def test_a_lost_nodes_partitions_run_again_elsewhere_and_every_row_comes_back_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """`yard`: its Dask worker lives on, and has nobody to ask."""
    (tmp_path / "models.py").write_text(CODE)
    rows = np.random.default_rng(1).random((PARTITIONS * ROWS, 8), np.float32)
    rows[:, 0] = np.arange(len(rows))
    options = argparse.Namespace(model="nap", rows_per_request=2)
    model = {"nap": f"{tmp_path}/models.py:nap"}
    with serve(model, max_batch=2, threads=1) as first, serve(model, max_batch=2, threads=1) as second:
        monkeypatch.setenv(rows_dask.URLS_VARIABLE, f"{first.url} {second.url}")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster) as dask,
        ):

            def lose(dask: Any) -> None:
                """The node with most of what is done so far: that has to run again."""
                kept = dask.run(lambda dask_worker: (len(dask_worker.data), int(dask_worker.name), os.getpid()))
                _, number, pid = max(kept.values())
                (first, second)[number].close()
                if lost == "node":
                    os.kill(pid, signal.SIGKILL)

            results, _ = rows_dask.run(dask, np.array_split(rows, PARTITIONS), options, lose)
    np.testing.assert_allclose(results, rows.sum(1), rtol=1e-5)
    assert f"{PARTITIONS} of {PARTITIONS} partitions" in capsys.readouterr().err
    ran = Counter(float(line) for line in (tmp_path / "runs").read_text().split())
    assert len(ran) == len(rows)
    if lost == "node":
        assert max(ran.values()) > 1, "nothing ran again: nothing was lost"
