"""Inputs as people write them."""

from __future__ import annotations

import numpy as np
import pytest
from batchyard.export.specs import InputSpec, parse, parse_all, sample, specs_of
from batchyard.transport.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1,3,32,32", InputSpec("input", (1, 3, 32, 32))),
        ("image=1,3,32,32", InputSpec("image", (1, 3, 32, 32))),
        ("tokens=int64:1,128:30000", InputSpec("tokens", (1, 128), "int64", 30000)),
        ("float16:2,5", InputSpec("input", (2, 5), "float16")),
    ],
)
def test_an_input_is_read(text: str, spec: InputSpec) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize(
    "text", ["", "=1,2", "a=", "1,x", "float99:1,2", "1,2:3:4", "1,0", "1,-3", "a=int64:"]
)
def test_nonsense_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"an input is|needs at least one axis|no type float99"):
        parse(text)


def test_unnamed_inputs_are_numbered_and_names_are_unique() -> None:
    assert [spec.name for spec in parse_all(["1,2", "1,3"])] == ["input_0", "input_1"]
    with pytest.raises(InvalidRequest, match="share a name"):
        parse_all(["a=1,2", "a=1,3"])
    with pytest.raises(InvalidRequest, match="at least one input"):
        parse_all([])


def test_callers_may_give_one_shape_or_named_ones_or_specs() -> None:
    spec = InputSpec("tokens", (1, 8), "int64", 100)
    assert specs_of((1, 3)) == (InputSpec("input", (1, 3)),)
    assert specs_of({"a": (1, 3), "b": [1, 4]}) == (InputSpec("a", (1, 3)), InputSpec("b", (1, 4)))
    assert specs_of([spec]) == (spec,)
    with pytest.raises(InvalidRequest, match="input_shape is"):
        specs_of(("image", 3))  # type: ignore[arg-type]


def test_samples_have_their_rows_and_stay_in_range_and_repeat() -> None:
    axes = ("batch", "")
    specs = (
        InputSpec("x", (1, 3), axes=axes),
        InputSpec("t", (1, 50), "int64", 7, axes),
        InputSpec("m", (1, 4), "bool", axes=axes),
    )
    one, same = (sample(specs, {"batch": 5}, seed=3) for _ in range(2))
    assert [one[name].shape for name in "xtm"] == [(5, 3), (5, 50), (5, 4)]
    assert one["t"].min() >= 0
    assert one["t"].max() == 6
    assert one["m"].dtype == np.bool_
    assert all(np.array_equal(one[name], same[name]) for name in one)
