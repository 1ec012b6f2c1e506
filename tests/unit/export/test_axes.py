"""Free axes as people write them, and the sizes at which they are tried."""

from __future__ import annotations

from typing import Any

import pytest
from batchyard.export.axes import Bounds, labelled, own_sizes, parse, traced_sizes, values
from batchyard.export.specs import InputSpec, size_of
from batchyard.transport.errors import InvalidRequest

IDS, MASK = InputSpec("ids", (1, 128), "int64", 100), InputSpec("mask", (1, 128))


def names(specs: Any) -> list[tuple[str, ...]]:
    return [spec.axes for spec in specs]


def test_axis_0_is_the_batch_where_nothing_else_is_said() -> None:
    assert names(labelled([IDS, MASK], parse(None, [IDS, MASK]), True)) == [("batch", ""), ("batch", "")]
    assert names(labelled([IDS], parse(None, [IDS]), False)) == [("", "")]


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        (["ids:1=sequence", "mask:1=sequence"], [("batch", "sequence"), ("batch", "sequence")]),
        ({"ids": {1: "batch"}, "mask": {0: "fixed"}}, [("", "batch"), ("", "")]),
        (["ids:0=sequence"], [("sequence", ""), ("batch", "")]),
        (["ids:1=sequence:2-512", "mask:1=8*sequence"], [("batch", "sequence"), ("batch", "8*sequence")]),
    ],
)
def test_names_stand_where_they_were_given(given: Any, axes: Any) -> None:
    assert names(labelled([IDS, MASK], parse(given, [IDS, MASK]), True)) == axes


def test_a_lone_input_needs_no_name_and_bounds_are_kept() -> None:
    free = parse(["1=sequence:2-", "0=batch"], [IDS])
    assert free.names == {"ids": {1: "sequence", 0: "batch"}}
    assert free.bounds == {"sequence": Bounds(2, None)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["ids"], "a free axis is INPUT:AXIS=NAME"),
        (["ids:1=a-b"], "a free axis is INPUT:AXIS=NAME"),
        ([3], "a free axis is INPUT:AXIS=NAME"),
        ({"ids": 1}, "dynamic is {input: {axis: name}}"),
        (["other:1=sequence"], "the inputs are ids, mask"),
        (["1=sequence"], "the inputs are ids, mask"),
        (["ids:2=sequence"], "axes 0 to 1, and no axis 2"),
        (["ids:1=a", "ids:1=b"], "axis 1 of ids has two names"),
        (["ids:0=batch", "ids:1=batch"], "two axes of ids cannot be the batch"),
        (["ids:1=a:0-4"], "of 1 or more"),
        (["ids:1=a:9-4"], "the lesser first"),
        (["ids:1=batch:1-4"], "--batch-max bounds a batch"),
        (["ids:1=a:1-4", "mask:1=a:1-5"], "a has two pairs of bounds"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(given: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(given, [IDS, MASK])
    assert said in str(caught.value)


def test_one_name_has_one_size_and_a_fixed_batch_is_no_free_axis() -> None:
    short = InputSpec("mask", (1, 64))
    with pytest.raises(InvalidRequest, match="sequence is 128 on one input, and 64 on axis 1 of mask"):
        labelled([IDS, short], parse(["ids:1=sequence", "mask:1=sequence"], [IDS, short]), True)
    with pytest.raises(InvalidRequest, match="fixed batch"):
        labelled([IDS], parse(["ids:1=batch"], [IDS]), False)


def test_nothing_is_traced_at_a_size_of_one() -> None:
    specs = (InputSpec("x", (1, 1, 3), axes=("batch", "a", "b")),)
    assert own_sizes(specs) == {"a": 1, "b": 3}
    assert traced_sizes(specs, 2) == {"batch": 2, "a": 4, "b": 3}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("sequence", 5),
        ("cache + sequence", 12),
        ("cache+sequence", 12),
        ("2*cache - 1", 13),
        ("7", 7),
        ("unknown", None),
        ("((cache - 1)//2) + 1", None),
        ("cache sequence", None),
        ("", None),
    ],
)
def test_sizes_follow_from_others(text: str, size: int | None) -> None:
    assert size_of(text, {"sequence": 5, "cache": 7}) == size


def test_sizes_that_are_tried_are_smaller_larger_odd_and_keep_factors_of_two() -> None:
    assert values(640, Bounds()) == [320, 480, 960, 639, 641, 643, 1]
    assert values(224, Bounds()) == [96, 160, 320, 223, 225, 227, 1]
    assert values(1, Bounds()) == [2, 4]
    assert values(20, Bounds(16, 24)) == [19, 21, 23, 16, 24]
    assert all(1 <= value != own for own in range(1, 70) for value in values(own, Bounds()))
