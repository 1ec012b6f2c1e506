"""How good a candidate is: by labelled rows, and by a function of somebody else's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from batchyard.export import runtime
from batchyard.export.benchmark.evaluation import evaluation
from batchyard.transport.errors import InvalidRequest, ModelFailed

SCORES = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]] - 0.5


@pytest.fixture
def session(onnx_models: Any) -> Any:
    """Answers with what it is given: the largest entry of a row is its class."""
    return runtime.session(str(onnx_models.unary("identity", "Identity", ["batch", 4])))


def labelled(folder: Path, labels: Any, rows: Any = SCORES) -> str:
    path = folder / "labelled.npz"
    np.savez(path, anything=rows, labels=labels)
    return str(path)


def test_accuracy_is_the_share_of_rows_whose_largest_output_is_the_label(
    session: Any, tmp_path: Path
) -> None:
    right = SCORES.argmax(1)
    assert evaluation(labelled(tmp_path, right))(session) == 1.0
    wrong = right.copy()
    wrong[:3] = (wrong[:3] + 1) % 4
    assert evaluation(labelled(tmp_path, wrong))(session) == pytest.approx(0.7)


def test_all_rows_count_not_only_those_that_calibration_would_take(session: Any, tmp_path: Path) -> None:
    rows = np.repeat(SCORES[:1], 1000, axis=0)
    labels = np.zeros(1000, np.int64)
    labels[900:] = 1
    assert evaluation(labelled(tmp_path, labels, rows))(session) == pytest.approx(0.9)


def test_a_fixed_batch_is_judged_by_whole_batches(onnx_models: Any, tmp_path: Path) -> None:
    fixed = runtime.session(str(onnx_models.unary("identity4", "Identity", [4, 4])))
    labels = SCORES.argmax(1)
    labels[8:] = 3  # of the third batch, which is not whole
    assert evaluation(labelled(tmp_path, labels))(fixed) == 1.0
    short = labelled(tmp_path, labels[:3], SCORES[:3])
    with pytest.raises(InvalidRequest, match="fewer rows than the model's fixed batch of 4"):
        evaluation(short)(fixed)


@pytest.mark.parametrize(
    ("labels", "rows", "said"),
    [
        (np.zeros((10, 1), np.int64), SCORES, r"labels are int64\[10, 1\], and not int\[rows\]"),
        (np.zeros(10), SCORES, r"labels are float64\[10\]"),
        (np.zeros(3, np.int64), SCORES[:2], "has 2 rows and 3 labels"),
        (np.zeros(10, np.int64), SCORES[:, :3], "data has shape"),
    ],
)
def test_labels_that_do_not_belong_are_refused(
    labels: Any, rows: Any, said: str, session: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        evaluation(labelled(tmp_path, labels, rows))(session)


def test_a_file_without_labels_is_refused_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=SCORES)
    np.save(tmp_path / "rows.npy", SCORES)
    for name in ("bare.npz", "rows.npy", "none.npz"):
        with pytest.raises(InvalidRequest):
            evaluation(str(tmp_path / name))


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


def test_a_function_gets_the_model_as_a_function_of_arrays(session: Any, theirs: Any) -> None:
    theirs.score = lambda answer: answer({"x": SCORES})["y"].max()
    assert evaluation("theirs:score")(session) == 0.5


@pytest.mark.parametrize("returned", [float("nan"), float("inf"), "no number", None])
def test_what_is_no_figure_is_the_candidates_failure(returned: Any, session: Any, theirs: Any) -> None:
    theirs.score = lambda answer: returned
    with pytest.raises(ModelFailed, match="theirs:score"):
        evaluation("theirs:score")(session)
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        evaluation("theirs:no_such")
