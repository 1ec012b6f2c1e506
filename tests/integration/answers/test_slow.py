"""Slow is not hung: a function whose time hangs on its input keeps its worker, and its callers their answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard import BatchyardError, DeadlineExceeded

from ..alone import Alone, alone

FUNCTION = """
import time
from batchyard import model

@model(inputs={"seconds": "float32[batch]"}, outputs={"y": "float32[batch]"})
def variable(batch):
    time.sleep(float(batch["seconds"].sum()))
    return {"y": batch["seconds"] * 2}
"""
HUNG_MIN_NS = 750_000_000  # 5 s elsewhere
LONG_S = 1.6  # above that


@pytest.fixture
def yard(run_folder: Path) -> Iterator[Alone]:
    file = run_folder / "variable.py"
    file.write_text(FUNCTION)
    models = {"variable": f"{file}:variable"}
    with alone(f"ipc://{run_folder}/slow", models, max_batch=1, hung_min_ns=HUNG_MIN_NS) as started:
        yield started
    file.unlink()


def infer(client: Any, seconds: float, timeout: float) -> float:
    return float(client.infer("variable", np.full(1, seconds, np.float32), timeout=timeout)[0])


def test_a_long_document_after_many_short_ones_is_answered(yard: Alone, tools: Any) -> None:
    with yard.client() as client, yard.client() as other:
        for _ in range(20):
            assert infer(client, 0.01, 10) == pytest.approx(0.02)
        before = tools.worker_pids(client, "variable")
        beside: list[Any] = []

        def wait() -> None:
            try:
                beside.append(infer(other, 0.02, 60))
            except BatchyardError as error:
                beside.append(error)

        waiting = threading.Thread(target=wait)
        started_s = time.monotonic()
        waiting.start()
        try:
            assert infer(client, LONG_S, 60) == pytest.approx(2 * LONG_S)
        finally:
            waiting.join()
        assert time.monotonic() - started_s >= LONG_S
        assert beside == [pytest.approx(0.04)]
        assert tools.worker_pids(client, "variable") == before, "slow was taken for hung"
        assert infer(client, 0.01, 10) == pytest.approx(0.02)


def test_nothing_is_quarantined_for_being_slow(yard: Alone, tools: Any) -> None:
    """Its caller's time ends; the next caller's same request is not refused, and gets its answer."""
    with yard.client() as client:
        for _ in range(2):
            with pytest.raises((DeadlineExceeded, BatchyardError)) as refused:
                infer(client, LONG_S, 0.4)
            assert isinstance(refused.value, DeadlineExceeded), refused.value
        assert infer(client, LONG_S, 60) == pytest.approx(2 * LONG_S)
