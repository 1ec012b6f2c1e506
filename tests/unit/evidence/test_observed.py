"""Real requests in place of invented ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.evidence.axes import SHARED, propose
from batchyard.evidence.judge import judge
from batchyard.evidence.observed import BYTES_MAX, REQUESTS, Observed, Requests
from batchyard.transport.tensors import TensorSpec

IDS = TensorSpec("ids", 7, ["n", 3])
RATE = TensorSpec("rate", 7, [])
Y = TensorSpec("y", 1, ["n", 3])


def ids(rows: int, seed: int = 0) -> dict[str, Any]:
    return {"ids": np.random.default_rng(seed).integers(1000, 1050, (rows, 3))}


def kept(*requests: dict[str, Any]) -> Requests:
    first = Requests()
    for request in requests:
        first.keep(request)
    return first


def looked_up(feeds: dict[str, Any]) -> list[Any]:
    if not feeds["ids"].size or not (feeds["ids"] >= 1000).all():
        raise IndexError("out of the table")
    return [np.sqrt(feeds["ids"]).astype(np.float32)]


def test_a_model_that_runs_on_no_invented_input_is_judged_by_its_requests() -> None:
    proposals = propose([IDS], [Y])[0]
    found = judge([IDS], [Y], looked_up, proposals)
    assert (found.axes, found.undecided) == (None, True)
    requests = kept(ids(1, 1), ids(2, 2), ids(2, 3))
    assert judge([IDS], [Y], looked_up, proposals, requests.ways).axes == [0, 0]

    def mixing(feeds: dict[str, Any]) -> list[Any]:
        (y,) = looked_up(feeds)
        return [y - y.mean(0)]

    found = judge([IDS], [Y], mixing, proposals, requests.ways)
    assert (found.axes, found.undecided) == (None, False)


def test_rows_are_taken_in_turn_and_shared_inputs_must_agree() -> None:
    one, two = {**ids(2, 1), "rate": np.array(16)}, {**ids(1, 2), "rate": np.array(16)}
    observed = Observed([IDS, RATE], [0, SHARED], [one, two])
    feeds = observed.feeds(4, np.random.default_rng(0))
    assert np.array_equal(feeds["ids"], np.concatenate([one["ids"], two["ids"], one["ids"][:1]]))
    assert (feeds["rate"], observed.rows, observed.row_values()) == (16, 3, 3)
    with pytest.raises(ValueError, match="differ in rate"):
        Observed([IDS, RATE], [0, SHARED], [one, {**two, "rate": np.array(8)}])


def test_requests_that_do_not_go_together_are_left_out() -> None:
    other = {"ids": np.ones((2, 4), np.int64)}
    (way,) = kept(other, ids(2, 1), ids(2, 2)).ways([IDS], [0], 0)
    assert isinstance(way, Observed)
    assert way.rows == 4
    assert list(kept(ids(2)).ways([IDS], [0], 0)) == [], "too few rows to show anything"


def test_no_more_is_kept_than_there_is_room_for() -> None:
    assert kept(*[ids(1)] * REQUESTS).is_full
    assert not kept(*[ids(1)] * (REQUESTS - 1)).is_full
    large = kept({"ids": np.zeros((BYTES_MAX // 8 + 1, 1), np.int64)})
    assert large.is_full
    assert list(large.ways([IDS], [0], 0)) == []
