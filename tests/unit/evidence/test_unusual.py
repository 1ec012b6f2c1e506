"""Models whose rows look at each other only for some values, and models that are right about such values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from batchyard.evidence import unusual
from batchyard.evidence.axes import propose
from batchyard.evidence.judge import judge
from batchyard.transport.tensors import TensorSpec

Feeds = dict[str, Any]
X = TensorSpec("x", 1, ["n", 4])
IDS = TensorSpec("ids", 7, ["n", 6])
MASK = TensorSpec("attention_mask", 7, ["n", 4])
USER = TensorSpec("user", 7, ["n"])
FLAGS = TensorSpec("flags", 9, ["n", 3])
PIXELS = TensorSpec("image", 2, ["n", 4])
Y = TensorSpec("y", 1, ["n", 4])
WEIGHTS = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def verdict(inputs: list[TensorSpec], outputs: list[TensorSpec], run: Callable[[Feeds], Any]) -> Any:
    return judge(inputs, outputs, lambda feeds: [run(feeds)], propose(inputs, outputs)[0])


def twice(x: Any) -> Any:
    """Rows that were there already are nought."""
    earlier = np.array([any((x[i] == x[j]).all() for j in range(i)) for i in range(len(x))])
    return np.where(earlier[:, None], 0, x)


MIXING: dict[str, tuple[TensorSpec, Callable[[Feeds], Any]]] = {
    "a large one decides": (X, lambda f: f["x"] - np.maximum(f["x"] - 5000, 0).max(0)),
    "a very negative one decides": (X, lambda f: f["x"] - np.maximum(-f["x"] - 5000, 0).max(0)),
    "a tiny one decides": (X, lambda f: f["x"] + (abs(f["x"]) < 1e-3).any()),
    "a row of nothing decides": (X, lambda f: f["x"] + (f["x"] == 0).all(1).any()),
    "what is not a number spreads": (X, lambda f: f["x"] + 0 * f["x"].max()),
    "what has no end spreads": (X, lambda f: f["x"] + 0 * f["x"].sum(0)),
    "a row that was there already is nought": (X, lambda f: twice(f["x"])),
    "where all are positive": (X, lambda f: f["x"] - f["x"].mean(0) if (f["x"] > 0).all() else f["x"]),
    "where all lie between 0 and 1": (
        X,
        lambda f: f["x"] - f["x"].mean(0) if ((f["x"] > 0) & (f["x"] < 1)).all() else f["x"],
    ),
    "an id above a thousand decides": (IDS, lambda f: f["ids"] + (f["ids"] > 1000).any()),
    "an id below nought decides": (IDS, lambda f: f["ids"] + (f["ids"] < 0).any()),
    "a row of ids of nought decides": (IDS, lambda f: f["ids"] + (f["ids"] == 0).all(1).any()),
    "a large number decides": (IDS, lambda f: f["ids"] + (f["ids"] > 9000).any()),
    "an id for each row": (USER, lambda f: f["user"] + (f["user"] > 1000).any()),
    "a mask with a hole decides": (MASK, lambda f: f["attention_mask"] + (f["attention_mask"] == 0).any()),
    "a mask without a one decides": (MASK, lambda f: f["attention_mask"] + (f["attention_mask"] == 0).all(1).any()),
    "where all are true": (FLAGS, lambda f: f["flags"] ^ f["flags"].all()),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_look_at_each_other_for_some_values_share_no_run(name: str) -> None:
    takes, run = MIXING[name]
    found = verdict([takes], [TensorSpec("y", takes.dtype, takes.shape)], run)
    assert found.axes is None


@pytest.mark.parametrize("row_ms", [12, 19])
def test_of_a_slow_model_a_few_unusual_rows_are_run(row_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    monkeypatch.setattr("time.perf_counter_ns", lambda: now_ns)

    def run(feeds: Feeds) -> Any:
        nonlocal now_ns
        now_ns += row_ms * 1_000_000 * len(feeds["x"])
        return twice(feeds["x"])

    found = verdict([X], [Y], run)
    assert found.axes is None
    assert "beside unusual values" in found.reason
    assert now_ns < 20 * row_ms * 1_000_000


def looked_up(feeds: Feeds) -> Any:
    if (feeds["ids"] >= 50).any():
        raise IndexError("out of the vocabulary")
    return WEIGHTS[feeds["ids"] % 4].sum(1)


RIGHT: dict[str, tuple[TensorSpec, Callable[[Feeds], Any]]] = {
    "a layer": (X, lambda f: np.tanh(f["x"] @ WEIGHTS)),
    "a softmax": (X, lambda f: (e := np.exp(f["x"] - f["x"].max(1, keepdims=True))) / e.sum(1, keepdims=True)),
    "a division by nought": (X, lambda f: f["x"] / f["x"].sum(1, keepdims=True)),
    "a vocabulary": (IDS, looked_up),
    "pixels": (PIXELS, lambda f: f["image"] / np.float32(255) @ WEIGHTS),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_stand_alone_share_a_run_whatever_is_beside_them(name: str) -> None:
    takes, run = RIGHT[name]
    found = verdict([takes], [Y], run)
    assert found.axes == [0, 0], found.reason


def test_a_batch_has_ordinary_rows_first_and_a_shared_input_is_not_changed() -> None:
    feeds: Feeds = {"x": np.arange(1, 9, dtype=np.float32).reshape(2, 4), "sr": np.array(16000)}
    specs = [X, TensorSpec("sr", 7, [])]
    batches = list(unusual.batches(feeds, specs, [0, -1], np.random.default_rng(0)))
    for batch in batches[:-1]:
        assert batch["x"].shape == (unusual.ROWS, 4)
        assert (batch["x"][: unusual.ORDINARY] == feeds["x"]).all()
        assert batch["sr"] is feeds["sr"]
    assert ((batches[-1]["x"] > 0) & (batches[-1]["x"] < 1)).all()
