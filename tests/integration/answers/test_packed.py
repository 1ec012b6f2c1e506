"""Small requests of a `map` that go as rows of one: every answer is the model's on that row alone, also where a
run shows that rows mix, where one of them fails, and over frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import batchyard
import numpy as np
import pytest
from batchyard.transport.errors import ModelFailed

FLOAT = 1


@pytest.fixture(scope="module")
def counted(onnx_models: Any) -> Path:
    """Looks up row x of a table of 100: a larger x fails."""
    found: Path = onnx_models.save(
        "counted",
        [("Gather", ["table", "x"], ["y"], {})],
        [("x", 7, ["n"])], [("y", FLOAT, ["n", 2])], {"table": np.arange(200, dtype=np.float32).reshape(100, 2)},
    )  # fmt: skip
    return found


@pytest.mark.parametrize("segment", [None, "frames"])
def test_rows_that_mix_are_told_apart_and_answered_one_by_one(onnx_models: Any, segment: str | None) -> None:
    given = [np.full((1, 4), number, np.float32) for number in range(100)]
    given[2][0, 3] = 1234.5
    with batchyard.serve(onnx_models.mixing(4), max_batch=16) as yard, yard.client(segment=segment) as client:
        answers = list(client.map("mixing", given))
        (info,) = client.models()
    expected = [x + (x == 1234.5).any() for x in given]
    assert all((answer == wanted).all() for answer, wanted in zip(answers, expected, strict=True))
    assert not info.batchable
    assert "run together and by themselves, differ" in info.alone_reason


def test_one_that_fails_fails_in_its_place_and_takes_nobody_along(counted: Path) -> None:
    numbers = [*range(50), 1000, *range(50, 60)]
    got: list[Any] = []
    with batchyard.serve(counted, max_batch=16) as yard, yard.client() as client:
        answers = client.map("counted", (np.array([number]) for number in numbers))
        with pytest.raises(ModelFailed):
            got.extend(answers)
        assert [float(y[0, 0]) for y in got] == [2.0 * number for number in range(50)]
        again = list(client.map("counted", (np.array([number % 100]) for number in range(1000))))
    assert all((y == [[2 * (n % 100), 2 * (n % 100) + 1]]).all() for n, y in enumerate(again))
