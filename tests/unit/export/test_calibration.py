"""Calibration data: from files, arrays and callables, and what is wrong with them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.export.calibration import ROWS_MAX, batches, rows_of
from batchyard.export.specs import InputSpec
from batchyard.transport.errors import InvalidRequest

X = InputSpec("x", (1, 3), axes=("batch", ""))
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


def test_npy_npz_arrays_and_callables_say_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "rows.npz", anything=ROWS)
    for data in (
        tmp_path / "rows.npy",
        tmp_path / "rows.npz",
        ROWS,
        {"x": ROWS},
        lambda: iter([ROWS[:4], {"x": ROWS[4:]}]),
    ):
        assert np.array_equal(rows_of(data, [X])["x"], ROWS)  # type: ignore[arg-type]


def test_an_endless_callable_is_read_to_the_limit() -> None:
    def endless() -> Any:
        while True:
            yield ROWS

    assert len(rows_of(endless, [X])["x"]) == ROWS_MAX


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"y": ROWS}, "the inputs are x"),
        (ROWS[:, :2], "has shape"),
        (ROWS[:0], "rows"),
        (ROWS.astype(complex), "is complex128"),
        (Path("no-such.npy"), "there is no file"),
        (lambda: iter([ROWS, ROWS[:, :1]]), "don't fit together"),
        (lambda: iter([]), "has arrays none"),
    ],
)
def test_what_does_not_fit_is_said(data: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        rows_of(data, [X])


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="no readable"):
        rows_of(tmp_path / "rows.npy", [X])


def test_batches_are_equal_and_a_few_rows_are_one() -> None:
    assert [len(batch["x"]) for batch in batches({"x": ROWS}, [X], 4)] == [4, 4]
    assert [len(batch["x"]) for batch in batches({"x": ROWS}, [X], 64)] == [10]


def test_rows_lie_where_the_batch_axis_is_and_shared_inputs_have_none() -> None:
    specs = [InputSpec("x", (3, 1), axes=("", "batch")), InputSpec("rate", (1,), axes=("",))]
    data = {"x": ROWS.T, "rate": np.float32([16000])}
    found = rows_of(data, specs)
    assert [batch["x"].shape for batch in batches(found, specs, 4)] == [(3, 4), (3, 4)]
    assert all(batch["rate"].tolist() == [16000] for batch in batches(found, specs, 4))
    assert np.array_equal(batches(found, specs, 4)[1]["x"], ROWS[4:8].T)
    with pytest.raises(InvalidRequest, match=r"x's data has shape \(10, 3\), and not \(3, rows\)"):
        rows_of({**data, "x": ROWS}, specs)


def test_without_a_batch_the_data_are_pieces_of_the_inputs_own_size() -> None:
    specs = [InputSpec("tokens", (5, 3)), InputSpec("weight", (2,))]
    found = rows_of({"tokens": ROWS, "weight": np.float32([1, 2, 3, 4])}, specs)
    pieces = batches(found, specs, 8)
    assert [(piece["tokens"].shape, piece["weight"].tolist()) for piece in pieces] == [
        ((5, 3), [1, 2]),
        ((5, 3), [3, 4]),
    ]
    with pytest.raises(InvalidRequest, match=r"\[1, 2\] rows"):
        rows_of({"tokens": ROWS, "weight": np.float32([1, 2])}, specs)


def test_a_free_axis_of_the_data_may_have_any_size() -> None:
    spec = InputSpec("x", (1, 8), axes=("batch", "sequence"))
    assert rows_of({"x": ROWS}, [spec])["x"].shape == (10, 3)


def some_rows() -> Any:
    return iter([ROWS])


def test_a_function_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rows_here")
    vars(module).update(batches=some_rows, number=3)
    monkeypatch.setitem(sys.modules, "rows_here", module)
    assert np.array_equal(rows_of("rows_here:batches", [X])["x"], ROWS)
    with pytest.raises(InvalidRequest, match="no function"):
        rows_of("rows_here:number", [X])
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        rows_of("rows_here:missing", [X])
