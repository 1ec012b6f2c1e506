"""What `batchyard check` makes of what was measured. Its processes: tests/integration/commands/test_check.py."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest
from batchyard.broker.config import MODEL_NAME
from batchyard.cli import check


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("net.onnx", "net"),
        ("my model (1).onnx", "my_model__1_"),
        ("_hidden.onnx", "hidden"),
        ("ü.onnx", "model"),
        ("-.onnx", "model"),
        (f"{'x' * 300}.onnx", "x" * 255),
    ],
)
def test_a_file_gives_a_name_that_a_model_may_have(file: str, name: str) -> None:
    assert check.name_of(Path(file)) == name
    assert MODEL_NAME.fullmatch(name)


def test_the_smallest_batch_that_is_about_as_good_is_proposed() -> None:
    runs = [{"rows": rows, "run_ns": ns} for rows, ns in ((1, 100), (2, 110), (4, 170), (8, 310), (16, 620))]
    assert check.best({"cpu": runs}) == 8
    assert check.best({"cpu": runs, "cuda": [{"rows": 1, "run_ns": 9}, {"rows": 2, "run_ns": 9}]}) == 2
    assert check.best({"cpu": [{"rows": 1, "failed": "?"}]}) is None
    assert check.best({}) is None


def test_where_rows_are_is_said_by_tensor() -> None:
    model = {
        "inputs": [{"name": "x"}, {"name": "state"}, {"name": "sr"}],
        "outputs": [{"name": "y"}],
        "batch_axes": [0, 1, -1, 0],
    }
    text = "axis 0 of x, axis 1 of state, axis 0 of y; one sr for all rows of a batch"
    assert check.rows_where(model) == text


def test_a_death_is_said_with_its_signal_and_last_words() -> None:
    assert check.died(-signal.SIGKILL, True, "") == (
        "the process ended with signal SIGKILL while it was run: so would a worker"
    )
    assert check.died(3, False, "oh").endswith(
        "status 3 while it was loaded: so would a worker; its last words: oh"
    )


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shows in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = check.Progress("cpu: loading")
        progress.now("cpu: 8 rows")
        progress.end()
        assert ("cpu: 8 rows" in stream.getvalue()) is shows
        assert stream.getvalue().endswith("\r") or not shows
