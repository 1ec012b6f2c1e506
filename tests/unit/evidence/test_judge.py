"""The judge over small models in NumPy, of each kind right and wrong: rows alone, together, in another order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from batchyard.evidence import judge as room
from batchyard.evidence.axes import SHARED, by_position, propose
from batchyard.evidence.judge import Verdict, judge, tolerance_of
from batchyard.transport.tensors import TensorSpec

FLOAT, UINT8, INT64, BOOL, COMPLEX64 = 1, 2, 7, 9, 14
Feeds = Mapping[str, Any]
WEIGHTS = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
TABLE = np.random.default_rng(1).standard_normal((500, 8)).astype(np.float32)


def spec(name: str, *shape: int | str, dtype: int = FLOAT) -> TensorSpec:
    return TensorSpec(name, dtype, list(shape))


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is tried depends on what a run takes: here, on what this thread does, and not on others'."""
    monkeypatch.setattr(time, "perf_counter_ns", time.thread_time_ns)


def verdict(
    inputs: list[TensorSpec], outputs: list[TensorSpec], run: Callable[[Feeds], Any], axis: Any = None
) -> Verdict:
    """What is said of a model that takes arrays by name and returns one or several."""

    def answers(feeds: Feeds) -> list[Any]:
        found = run(feeds)
        return list(found) if isinstance(found, tuple) else [found]

    proposals = propose(inputs, outputs)[0] if axis is None else [by_position(inputs, outputs, axis)]
    return judge(inputs, outputs, answers, proposals)


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attend(query: Any, key: Any) -> Any:
    return softmax(query @ key.swapaxes(-1, -2), -1) @ key


X, Y = spec("x", "n", 4), spec("y", "n", 4)
TOKENS, STATES = spec("x", "n", "t", 4), spec("y", "n", "t", 4)

# name -> inputs, outputs, model, where its rows are (None: alone)
LENGTHS, MASK = spec("lengths", "n", dtype=INT64), spec("attention_mask", "n", "t", dtype=INT64)


def alike(lengths: Any) -> Any:
    if len(set(lengths)) > 1:
        raise ValueError("takes rows of one length alone")
    return lengths[:, None]


def without_zeros(x: Any) -> Any:
    if (x == 0).any():
        raise ZeroDivisionError("Integer division by zero")
    return x


def at_most(x: Any, most: float) -> Any:
    if abs(x).max() > most:
        raise ValueError("too large")
    return most


RIGHT: dict[str, tuple[list[TensorSpec], list[TensorSpec], Callable[[Feeds], Any], list[int]]] = {
    "linear": ([X], [Y], lambda f: f["x"] @ WEIGHTS, [0, 0]),
    "softmax over features": ([X], [Y], lambda f: softmax(f["x"], 1), [0, 0]),
    "attention inside a row": ([TOKENS], [STATES], lambda f: attend(f["x"], f["x"]), [0, 0]),
    "embedding": ([spec("ids", "n", "t", dtype=INT64)], [spec("y", "n", 8)], lambda f: TABLE[f["ids"]].mean(1), [0, 0]),
    "sequence first": ([spec("x", "t", "n", 4)], [spec("y", "t", "n", 4)], lambda f: np.cumsum(f["x"], 0), [1, 1]),
    "state on axis 1": (
        [X, spec("h", 2, "n", 4)], [Y, spec("hn", 2, "n", 4)],
        lambda f: (f["x"] + f["h"].sum(0), f["h"] * 0.5), [0, 1, 0, 1],
    ),
    "a shared input": ([X, spec("sr", dtype=INT64)], [Y], lambda f: f["x"] * (1 + f["sr"]), [0, SHARED, 0]),
    "names that differ": ([spec("x", "in", 4)], [spec("y", "out", 4)], lambda f: np.tanh(f["x"]), [0, 0]),
    "rows in the last axis": ([spec("x", 4, "n")], [spec("y", 2, "n")], lambda f: WEIGHTS[:2] @ f["x"], [1, 1]),
    "one that is turned": ([spec("x", "n", 4)], [spec("y", 4, "n")], lambda f: f["x"].T, [0, 1]),
    "top index": ([X], [spec("y", "n", dtype=INT64)], lambda f: f["x"].argmax(1), [0, 0]),
    "booleans": ([X], [spec("y", "n", 4, dtype=BOOL)], lambda f: f["x"] > 0, [0, 0]),
    "complex": (
        [spec("x", "n", 4, dtype=COMPLEX64)], [spec("y", "n", 4, dtype=COMPLEX64)],
        lambda f: np.fft.fft(f["x"], axis=1).astype(np.complex64), [0, 0],
    ),
    "a mask inside a row": ([TOKENS, MASK], [Y], lambda f: (f["x"] * f["attention_mask"][..., None]).sum(1), [0, 0, 0]),
    "rows of one length alone": ([X, LENGTHS], [Y], lambda f: f["x"] * alike(f["lengths"]), [0, 0, 0]),
    "a division by whole numbers": (
        [spec("x", "n", 4, dtype=INT64)], [spec("y", "n", 4, dtype=INT64)],
        lambda f: 100 // without_zeros(f["x"]), [0, 0],
    ),
    "numbers that are not too large": (
        [X], [Y], lambda f: f["x"] / at_most(f["x"], 50), [0, 0],
    ),
    "nan and infinity": ([X], [Y], lambda f: np.where(f["x"] > 1, np.inf, np.where(f["x"] < -1, np.nan, f["x"])), [0, 0]),
    "rounding": (
        [X], [Y], lambda f: f["x"] @ WEIGHTS * np.float32(1 + 1e-6 * len(f["x"])), [0, 0],
    ),
    "eight bits inside": (
        [X], [spec("y", "n", 4, dtype=UINT8)],
        lambda f: np.clip(128 + f["x"] * 30 + (len(f["x"]) > 1) * 0.4, 0, 255).round().astype(np.uint8), [0, 0],
    ),
}  # fmt: skip


def beyond(x: Any, rows: int) -> Any:
    """Each row less the one so many rows before."""
    before = np.concatenate([np.zeros((rows, x.shape[1]), x.dtype), x])[: len(x)]
    return x - before


WRONG: dict[str, tuple[list[TensorSpec], list[TensorSpec], Callable[[Feeds], Any], str]] = {
    "softmax over rows": ([X], [Y], lambda f: softmax(f["x"], 0), "differ by"),
    "attention over rows": ([X], [Y], lambda f: attend(f["x"], f["x"]), "differ by"),
    "the mean of all rows": ([X], [Y], lambda f: f["x"] - f["x"].mean(0), "differ by"),
    "a running sum": ([X], [Y], lambda f: np.cumsum(f["x"], 0), "differ by"),
    "rows in reverse": ([X], [Y], lambda f: f["x"][::-1], "differ by"),
    "sorted rows": ([X], [Y], lambda f: f["x"][np.argsort(f["x"][:, 0])], "differ by"),
    "a row's place counts": ([X], [Y], lambda f: f["x"] + np.arange(len(f["x"]))[:, None], "differ by"),
    "how many rows counts": ([X], [Y], lambda f: f["x"] * len(f["x"]), "differ by"),
    "pairs of all": ([X], [spec("y", "n", "m")], lambda f: f["x"] @ f["x"].T, "a row of output 'y' has shape [1, 1] alone, [1, 5] together"),
    "the row five before": ([X], [Y], lambda f: beyond(f["x"], 5), "differ by"),
    "the first twelve, and the rest otherwise": ([X], [Y], lambda f: f["x"] * np.where(np.arange(len(f["x"])) < 12, 1, 2)[:, None], "differ by"),
    "a thousandth of the mean": ([X], [Y], lambda f: f["x"] + 1e-3 * f["x"].mean(0), "differ by"),
    "rows filtered": ([X], [spec("y", "n", 4)], lambda f: f["x"][f["x"][:, 0] > 0], "output 'y' has shape"),
    "one answer for all": ([X], [spec("y", "n", 4)], lambda f: f["x"].sum(0, keepdims=True), "output 'y' has shape [1, 4] for 2 rows"),
    "a graph's edges": (
        [X, spec("edges", 2, "m", dtype=INT64)], [Y],
        lambda f: f["x"] + np.roll(f["x"], int(f["edges"].sum()) * 0 + 1, 0), "differ by",
    ),
    "two sizes of one name": (
        [spec("x", "n", 4), spec("k", "n", 4)], [Y], lambda f: attend(f["x"], f["k"]), "differ by",
    ),
    "indices of rows": ([X], [spec("y", "n", dtype=INT64)], lambda f: np.argsort(f["x"][:, 0]), "differ by"),
    "cut to the longest": ([TOKENS, LENGTHS], [spec("y", "n", "s", 4)], lambda f: f["x"][:, : f["lengths"].max()], "has shape [1, 4, 4] alone, [1, 7, 4] together"),
    "nothing beyond the longest": (
        [spec("x", "n", 7), LENGTHS], [spec("y", "n", 7)],
        lambda f: f["x"] * (np.arange(7) < f["lengths"].max()), "differ by",
    ),
    "cut to the longest mask": ([TOKENS, MASK], [spec("y", "n", "s", 4)], lambda f: f["x"][:, : f["attention_mask"].sum(1).max()], "has shape [1, 4, 4] alone, [1, 7, 4] together"),
    "one at a time": ([X], [Y], lambda f: f["x"].reshape(1, 4), "it does not run on 5 rows"),
    "infinity spreads": ([X], [Y], lambda f: f["x"] if len(f["x"]) == 1 else f["x"] / np.zeros(()), "differ by 1 "),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_are_independent_share_a_run(name: str) -> None:
    inputs, outputs, run, axes = RIGHT[name]
    found = verdict(inputs, outputs, run)
    assert found.axes == axes, found.reason
    assert 0 <= found.figure <= max(map(tolerance_of, outputs))
    assert "rows run alone, together and in another order differ by" in found.reason
    assert found.drawing is not None


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_are_not_independent_never_share_one(name: str) -> None:
    inputs, outputs, run, said = WRONG[name]
    found = verdict(inputs, outputs, run)
    assert found.axes is None
    assert said in found.reason
    assert found.drawing is not None, "the warm-up and a canary may use it all the same"


def test_the_reason_has_the_figure_and_what_was_allowed() -> None:
    found = verdict([X], [Y], lambda f: f["x"] - f["x"].mean(0))
    assert found.reason.startswith(
        "every output has the axis 'n', but rows run alone and together differ by "
    )
    assert found.reason.endswith(f"of the largest value of output 'y' (allowed: {tolerance_of(Y):g})")


def test_a_model_that_draws_random_numbers_is_called_so() -> None:
    rng = np.random.default_rng(0)
    found = verdict([X], [Y], lambda f: f["x"] + rng.standard_normal(f["x"].shape))
    assert found.axes is None
    assert found.reason == room.RANDOM
    assert not found.undecided


def test_the_next_proposal_is_tried_where_the_first_is_wrong() -> None:
    """Sequence-first, and axis 0 has a name in all tensors too."""
    found = verdict([TOKENS], [STATES], lambda f: np.cumsum(f["x"], 0))
    assert found.axes == [1, 1]


def test_what_a_configuration_says_is_tried_like_a_name() -> None:
    assert verdict([X], [Y], lambda f: f["x"] * 2, axis=0).axes == [0, 0]
    found = verdict([X], [Y], lambda f: f["x"].cumsum(0), axis=0)
    assert found.axes is None
    assert found.reason.startswith("its configuration says batch_axis, but rows run")


def test_a_model_that_runs_on_nothing_that_is_drawn_shares_no_run() -> None:
    found = verdict([X], [Y], lambda f: 1 / 0)
    assert found.axes is None
    assert found.drawing is None
    assert "no inputs could be invented on which it runs" in found.reason


def test_a_model_that_runs_on_zeros_alone_shares_no_run() -> None:
    """Equal rows are in any order the same."""

    def run(feeds: Feeds) -> Any:
        assert not feeds["x"].any()
        return feeds["x"].cumsum(0)

    found = verdict([X], [Y], run)
    assert found.axes is None
    assert "no inputs could be invented whose rows differ" in found.reason


def test_an_index_that_luck_had_kept_in_its_table_does_not_cost_a_model_its_batches() -> None:
    table = TABLE[:60]  # of five indices below 100 all may be in it; of twenty, hardly
    for length in (1, 2, 5):
        ids = spec("ids", "n", length, dtype=INT64)
        found = verdict([ids], [spec("y", "n", 8)], lambda f: table[f["ids"]].sum(1))
        assert found.axes == [0, 0], found.reason


def test_a_slow_model_is_run_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    counts = {}
    for row_ns in (room.EFFORTS[0][0] // 2, room.EFFORTS[0][0] * 2, room.EFFORTS[1][0] * 2):
        rows: list[int] = []

        def run(feeds: Feeds, row_ns: int = row_ns, rows: list[int] = rows) -> Any:
            clock[0] += row_ns
            rows.append(len(feeds["x"]))
            return feeds["x"] * 2

        assert verdict([X], [Y], run).axes == [0, 0]
        counts[row_ns] = sum(rows)
    quick, slow, big = counts.values()
    assert quick > slow > big
    assert big == 1 + 2 + 1


@pytest.mark.parametrize(
    "run", [lambda f: f["x"].cumsum(0), lambda f: f["x"][::-1] * 1, lambda f: f["x"] - f["x"].mean(0)]
)
def test_a_big_model_that_is_wrong_is_found_out_by_its_few_runs(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Feeds], Any]
) -> None:
    monkeypatch.setattr(room, "EFFORTS", room.EFFORTS[-1:])
    assert verdict([X], [Y], run).axes is None


def test_rows_of_a_video_frame_are_judged_by_two_of_them() -> None:
    frame, seen = spec("x", "n", 3, 1080, 1920), []

    def run(feeds: Feeds) -> Any:
        seen.append(len(feeds["x"]))
        return feeds["x"].mean((1, 2, 3))

    found = verdict([frame], [spec("y", "n")], run)
    assert found.axes == [0, 0], found.reason
    assert max(seen) == 2
    assert verdict([frame], [spec("y", "n")], lambda f: f["x"].mean((1, 2, 3)).cumsum()).axes is None


def test_a_row_that_is_too_large_to_be_tried_shares_no_run_and_is_no_reason_to_refuse_the_model() -> None:
    found = verdict([spec("x", "n", 1 << 30)], [Y], lambda f: f["x"])
    assert found.axes is None
    assert "too large to be tried with invented values, so its rows never share a run" in found.reason


def test_a_difference_is_measured_by_the_largest_value_of_its_output() -> None:
    noise = lambda f: f["x"] * 100_000 + (len(f["x"]) > 1) * 1.0  # noqa: E731
    found = verdict([X], [Y], noise)
    assert found.axes == [0, 0]
    assert 1e-7 < found.figure < tolerance_of(Y)
    wide = lambda f: f["x"] + (len(f["x"]) > 1) * 1.0  # noqa: E731
    assert verdict([X], [Y], wide).axes is None


def test_wide_whole_numbers_must_be_equal() -> None:
    off = lambda f: (f["x"][:, 0] * 1000).astype(np.int64) + (len(f["x"]) > 1)  # noqa: E731
    assert verdict([X], [spec("y", "n", dtype=INT64)], off).axes is None
