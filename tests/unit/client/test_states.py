"""A model's state from its metadata: which outputs come back, what they begin with, what is foreseen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.client.signature import Signature
from batchyard.client.states import Foresight, find, zeros
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.messages import ModelInfo, ModelState
from batchyard.transport.tensors import TensorSpec

F = 1  # float32
Shape = list[Any] | None


def signature(takes: dict[str, Shape], gives: dict[str, Shape], axes: list[int] | None = None) -> Signature:
    """Of a model that batches on these axes of its inputs and outputs; None: it runs alone."""
    inputs = [TensorSpec(name, F, shape) for name, shape in takes.items()]
    outputs = [TensorSpec(name, F, shape) for name, shape in gives.items()]
    return Signature(
        ModelInfo(
            "net", ModelState.READY, "", 1, inputs, outputs, axes is not None, "", 8, [], batch_axes=axes or []
        )
    )


@pytest.mark.parametrize(
    ("takes", "gives"),
    [
        ("state", "stateN"),
        ("h", "hn"),
        ("c", "cn"),
        ("h0", "hn"),
        ("h_0", "h_n"),
        ("h", "h_out"),
        ("cache_in", "cache_out"),
        ("in_cache", "out_cache"),
        ("prev_hidden", "next_hidden"),
        ("initial_h", "final_h"),
        ("memory", "new_memory"),
        ("past", "present"),
        ("past.3.value", "present.3.value"),
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.decoder.key", "present.0.decoder.key"),
        ("past_key_0", "present_key_0"),
    ],
)
def test_states_are_found_by_their_names(takes: str, gives: str) -> None:
    model = signature({"x": ["n", 4], takes: [2, "n", 3]}, {"y": ["n", 1], gives: [2, "n", 3]})
    assert find(model, None) == {takes: gives}


def test_every_output_is_one_inputs_next_value() -> None:
    takes = {f"past_key_values.{n}.{kind}": ["n", 2, "p", 8] for n in range(2) for kind in ("key", "value")}
    gives = {f"present.{n}.{kind}": ["n", 2, "p + s", 8] for n in range(2) for kind in ("key", "value")}
    pairs = find(signature({"ids": ["n", "s"], **takes}, {"logits": ["n", "s", 9], **gives}), None)
    assert pairs == dict(zip(takes, gives, strict=True))


@pytest.mark.parametrize(
    ("takes", "gives"),
    [([2, "n", 3], [2, "n", 4]), ([2, "n", 3], ["n", 3]), ([3], [4])],
)
def test_a_name_is_not_enough_where_the_shape_cannot_be_fed_back(takes: Shape, gives: Shape) -> None:
    model = signature({"x": ["n", 4], "h": takes}, {"y": ["n", 1], "hn": gives})
    with pytest.raises(InvalidRequest, match="it takes x, h and gives y, hn; say which"):
        find(model, None)
    with pytest.raises(InvalidRequest, match="can't be the next value of h"):
        find(model, {"h": "hn"})


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"g": "hn"}, "has no input 'g'; it has x, h"),
        ({"h": "gn"}, "has no output 'gn'; it has y, hn"),
        ({}, "a mapping such as .*, not {}"),
        (["h"], "a mapping such as .*, not .'h'."),
    ],
)
def test_pairs_that_cannot_be_are_refused(states: dict[str, str], said: str) -> None:
    model = signature({"x": ["n", 4], "h": ["n", 3]}, {"y": ["n", 1], "hn": ["n", 3]})
    with pytest.raises(InvalidRequest, match=said):
        find(model, states)


@pytest.mark.parametrize(
    ("takes", "gives", "axes", "begins"),
    [
        ([2, "n", 3], [2, "n", 3], [0, 1, 0, 1], (2, 5, 3)),  # rows on the batch axis
        ([2, "n", 3], [2, "n", 3], None, (2, 5, 3)),  # or by the axis's name
        ([2, "?", 3], ["?", "?", "?"], None, (2, 5, 3)),  # or because nothing else is free
        ([2, "h_dim_1", 3], ["o_dim_0", "o_dim_1", 3], None, (2, 5, 3)),
        ([1, 3], [1, 3], None, (1, 3)),
        ([], [], None, ()),
        (["n", 4, "past_length", 8], ["n", 4, "total_length", 8], [0, 0, 0, 0], (5, 4, 0, 8)),
        (["n", 4, "len", 8], ["n", 4, "len + 1", 8], None, (5, 4, 0, 8)),
        (["n", 4, "cache", 8], ["n", 4, "?", 8], None, (5, 4, 0, 8)),
    ],
)
def test_a_state_begins_with_zeros_for_the_first_steps_rows(
    takes: Shape, gives: Shape, axes: list[int] | None, begins: tuple[int, ...]
) -> None:
    model = signature({"x": ["n", 7], "h": takes}, {"y": ["n", 1], "hn": gives}, axes)
    state = zeros(model, {"h": "hn"}, "h", {"x": np.ones((5, 7), np.float32)})
    assert (state.shape, state.dtype, state.any()) == (begins, np.float32, False)


@pytest.mark.parametrize(
    ("takes", "why"),
    [(None, "its number of axes is not known"), (["?", "?", 8], "the size of its axis 1 is not known")],
)
def test_a_size_that_nobody_knows_is_asked_for(takes: Shape, why: str) -> None:
    model = signature({"x": ["n", 7], "h": takes}, {"y": ["n", 1], "hn": takes})
    with pytest.raises(InvalidRequest, match=f"{why}: give it, as client.sequence"):
        zeros(model, {"h": "hn"}, "h", {"x": np.ones((5, 7), np.float32)})


def test_what_is_declared_needs_no_foresight() -> None:
    model = signature({"x": ["n", 4], "h": ["n", 3]}, {"y": ["n", 1], "hn": ["n", 3]}, [0, 0, 0, 0])
    step, states = {"x": np.ones((2, 4))}, {"h": np.ones((2, 3))}
    assert Foresight().shapes(model, {"h": "hn"}, step, states) is None


def test_a_state_of_undeclared_size_comes_back_in_its_inputs() -> None:
    model = signature(
        {"x": ["n", 4], "h": [2, "?", 3]}, {"y": ["n", 1], "hn": ["?", "?", "?"]}, [0, 1, 0, 1]
    )
    step, states = {"x": np.ones((5, 4))}, {"h": np.ones((2, 5, 3))}
    assert Foresight().shapes(model, {"h": "hn"}, step, states) == [(5, 1), (2, 5, 3)]


def test_what_grew_before_is_expected_to_grow_again_with_steps_of_one_shape() -> None:
    model = signature({"x": ["n", "s"], "past": ["n", "p", 3]}, {"y": ["n", 1], "present": ["n", "q", 3]})
    pairs, foresight = {"past": "present"}, Foresight()
    model.output_axes = [0, 0]
    step, past = {"x": np.ones((1, 2))}, np.ones((1, 4, 3))
    assert foresight.shapes(model, pairs, step, {"past": past}) is None
    foresight.learn(step, {"past": past}, {"y": np.ones((1, 1)), "present": np.ones((1, 6, 3))})
    assert foresight.shapes(model, pairs, step, {"past": np.ones((1, 6, 3))}) == [(1, 1), (1, 8, 3)]
    assert foresight.shapes(model, pairs, {"x": np.ones((1, 9))}, {"past": np.ones((1, 6, 3))}) is None


def test_two_sizes_that_nobody_knows_are_not_guessed() -> None:
    """2 x 3 and 3 x 2 elements are as many: a slot of that size would say nothing of the shape."""
    model = signature({"x": ["n", 4], "h": ["n", 3]}, {"found": ["a", "b"], "hn": ["n", 3]})
    foresight, step, states = Foresight(), {"x": np.ones((1, 4))}, {"h": np.ones((1, 3))}
    foresight.learn(step, states, {"found": np.ones((2, 3)), "hn": np.ones((1, 3))})
    assert foresight.shapes(model, {"h": "hn"}, step, states) is None
