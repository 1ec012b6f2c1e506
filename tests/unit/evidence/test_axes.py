"""What names propose: which axis of each tensor might count rows, and the sentence where none might."""

from __future__ import annotations

import pytest
from batchyard.evidence.axes import PROPOSALS_MAX, SHARED, UNNAMED, Proposal, by_position, propose
from batchyard.transport.tensors import TensorSpec

FLOAT, INT64 = 1, 7


def x(*shape: int | str, name: str = "x") -> TensorSpec:
    return TensorSpec(name, FLOAT, list(shape))


def axes(found: Proposal) -> list[int]:
    """Of the inputs, then of the outputs where they are known."""
    return [*found.inputs, *(found.outputs or ())]


def first(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> list[int]:
    """The axes of the best proposal."""
    proposals, why_not = propose(inputs, outputs)
    assert why_not == ""
    return axes(proposals[0])


def refusal(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> str:
    proposals, why_not = propose(inputs, outputs)
    assert proposals == []
    return why_not


# ---- names --------------------------------------------------------------------------------------


def test_a_name_that_all_tensors_have_on_axis_0_is_the_batch() -> None:
    assert first([x("n", 4)], [x("n", 2), x("n")]) == [0, 0, 0]


def test_state_has_its_rows_on_axis_1() -> None:
    state = x(2, "batch", 128, name="state")
    assert first([x("batch", 512), state], [x("batch", 1), state]) == [0, 1, 0, 1]


def test_an_input_without_the_name_is_shared() -> None:
    rate = TensorSpec("sr", INT64, None)
    assert first([x("batch", 512), rate], [x("batch", 1)]) == [0, SHARED, 0]
    assert first([x("batch", 512), x(3, name="weights")], [x("batch", 1)]) == [0, SHARED, 0]


def test_a_name_may_stand_on_different_axes_of_inputs_and_outputs() -> None:
    assert first([x("n", "w")], [x("k", "n")]) == [0, 1]


def test_a_name_that_an_output_lacks_is_none() -> None:
    """CLIP: the texts are not in every output, and neither are the images."""
    proposals, _ = propose([x("texts", 77), x("images", 3, 224, 224)], [x("images", "texts"), x("texts", 512)])
    assert [(found.inputs, found.outputs) for found in proposals] == [((0, SHARED), (1, 0))]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([x("n", "n")], [x("n", 2)]),  # twice in an input
        ([x("n", 4)], [x("n", "n")]),  # twice in an output
        ([x("m", 4)], [x("n", 2)]),  # in no input
    ],
)
def test_a_name_that_does_not_stand_once_is_no_proposal_by_name(
    inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    proposals, _ = propose(inputs, outputs)
    assert not any(found.is_named for found in proposals)
    assert (proposals[0].inputs, proposals[0].outputs) == ((0,), None), "axis 0 is tried, and judged"


def test_a_name_on_axis_0_is_tried_before_others() -> None:
    """Sequence-first and batch-first files have the same two names."""
    proposals, _ = propose([x("n", "t", 4)], [x("n", "t", 2)])
    assert list(map(axes, proposals)) == [[0, 0], [1, 1]]
    turned, _ = propose([x(2, "t", "n")], [x(2, "t", "n")])
    assert list(map(axes, turned)) == [[1, 1], [2, 2]]


def test_no_more_names_are_tried_than_are_worth_their_runs() -> None:
    names = [f"a{number}" for number in range(9)]
    proposals, _ = propose([x(*names)], [x(*names)])
    assert len(proposals) == PROPOSALS_MAX
    assert axes(proposals[0]) == [0, 0]


def test_where_names_differ_axis_0_is_proposed() -> None:
    (found,), _ = propose([x("in", 4)], [x("out", 2)])
    assert (found.inputs, found.outputs, found.is_named) == ((0,), None, False)
    assert found.why == "axis 0 of 'x' may count rows"


def test_axes_without_names_are_tried_in_front_first_and_on_as_many_inputs_as_have_one() -> None:
    """silero-vad: no axis has a name, and its state has the rows on axis 1."""
    state, rate = x(2, UNNAMED, 128, name="state"), TensorSpec("sr", INT64, None)
    proposals, _ = propose([x(UNNAMED, UNNAMED), state, rate], [x(UNNAMED, 1)])
    assert [found.inputs for found in proposals] == [
        (0, 1, SHARED), (1, 1, SHARED), (0, SHARED, SHARED), (1, SHARED, SHARED), (SHARED, 1, SHARED)
    ]  # fmt: skip
    assert proposals[0].why == "axis 0 of 'x' and 1 of 'state' may count rows"
    assert not any(found.is_named or found.outputs for found in proposals)


def test_where_names_differ_an_input_with_no_free_axis_is_shared() -> None:
    (found,), _ = propose([x("in", 4), x(3, 4, name="boxes")], [x("out", 2)])
    assert found.inputs == (0, SHARED)


def test_an_optional_input_has_no_rows_by_trial() -> None:
    (found,), _ = propose([x("in", 4), TensorSpec("scale", FLOAT, ["k"], optional=True)], [x("out", 2)])
    assert found.inputs == (0, SHARED)


# ---- why there is none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([], [x("n")], "it has no inputs"),
        ([x("n")], [TensorSpec("y", FLOAT, None)], "the file does not say how many axes output 'y' has"),
        ([x("n")], [x(name="y")], "output 'y' has no axes, so no batch axis"),
        ([x("n")], [x(1, 4, name="y")], "every axis of output 'y' is fixed (y: float32[1, 4]): it has no free batch axis"),
        ([x(1, 4)], [x("n", 4)], "every axis of its inputs is fixed, or not known (x: float32[1, 4]): there is no free batch axis"),
        ([TensorSpec("x", FLOAT, None)], [x("n")], "every axis of its inputs is fixed, or not known (x: float32[...]): there is no free batch axis"),
    ],
)
def test_where_there_is_none_a_sentence_says_why(
    inputs: list[TensorSpec], outputs: list[TensorSpec], said: str
) -> None:
    assert refusal(inputs, outputs) == said


# ---- what a configuration says ------------------------------------------------------------------


def test_one_axis_is_that_axis_wherever_it_is_free() -> None:
    found = by_position([x("t", "n", 4), x(3, name="w")], [x("t", "n", 2)], 1)
    assert (axes(found), found.is_named) == ([1, SHARED, 1], True)
    assert found.why == "its configuration says batch_axis"


def test_a_table_names_the_axis_of_each_tensor_and_leaves_the_others_to_be_shared() -> None:
    inputs = [x("t", "n", 4), x("n", 2, name="state"), x("k", name="rate")]
    outputs = [x("t", "n", 2, name="y")]
    assert axes(by_position(inputs, outputs, {"x": 1, "state": 0, "y": 1})) == [1, 0, SHARED, 1]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"z": 0, "y": 0}, "batch_axis names 'z'; the model has x, y"),
        ({"x": 1, "y": 0}, "batch_axis: axis 1 of x: float32[n, 4] is not free"),
        ({"x": 5, "y": 0}, "batch_axis: axis 5 of x: float32[n, 4] is not free"),
        ({"x": 0}, "batch_axis: output 'y' has no rows, so it cannot be divided among requests"),
        ({"y": 0}, "batch_axis: no input has rows on that axis"),
        (1, "batch_axis: no input has rows on that axis"),
        (2, "batch_axis: no input has rows on that axis"),
    ],
)
def test_what_can_not_be_is_refused_with_a_sentence(wanted: int | dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match="batch_axis") as refused:
        by_position([x("n", 4)], [x("n", "k", name="y")], wanted)
    assert str(refused.value) == said
