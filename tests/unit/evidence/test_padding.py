"""Padding is believed where it was seen to be harmless, and refused with a figure where it was not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from batchyard.evidence import padding
from batchyard.evidence.drawing import Drawing
from batchyard.transport.dtypes import BY_NAME
from batchyard.transport.messages import Pad
from batchyard.transport.tensors import TensorSpec

Array = np.ndarray[Any, Any]
F32, I64, BOOL = (BY_NAME[name].code for name in ("float32", "int64", "bool"))

IDS = TensorSpec("ids", I64, ["batch", "sequence"])
MASK = TensorSpec("mask", I64, ["batch", "sequence"])
TABLE = np.random.default_rng(1).standard_normal((100, 4)).astype(np.float32)
TO = {"sequence": Pad([8, 16])}


def tokens(feeds: Mapping[str, Array]) -> list[Array]:
    """Each token by itself."""
    return [TABLE[feeds["ids"]]]


def masked_mean(feeds: Mapping[str, Array]) -> list[Array]:
    mask = feeds["mask"].astype(np.float32)[..., None]
    with np.errstate(invalid="ignore"):
        return [(TABLE[feeds["ids"]] * mask).sum(1) / mask.sum(1)]


def masked_attention(feeds: Mapping[str, Array]) -> list[Array]:
    x = TABLE[feeds["ids"]]
    scores = x @ x.transpose(0, 2, 1) - 1e4 * (1 - feeds["mask"].astype(np.float32))[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return [weights @ x, weights, masked_mean(feeds)[0]]


def judged(
    run: Callable[[Mapping[str, Array]], Sequence[Array]],
    outputs: Sequence[list[Any]],
    inputs: Sequence[TensorSpec] = (IDS, MASK),
    pads: Mapping[str, Pad] = TO,
    axes: Sequence[int] | None = None,
) -> padding.PadVerdict:
    given = [TensorSpec(f"y{number}", F32, shape) for number, shape in enumerate(outputs)]
    axes = [0] * (len(inputs) + len(given)) if axes is None else axes
    return padding.judge(inputs, given, run, Drawing(inputs, axes[: len(inputs)]), axes, pads)


TOKENS: list[Any] = ["batch", "sequence", 4]
POOLED: list[Any] = ["batch", 4]


def test_tokens_that_do_not_see_each_other_may_be_padded_and_are_cut_where_their_size_stands() -> None:
    verdict = judged(tokens, [TOKENS])
    assert verdict.inputs == [[1], [1]]
    assert verdict.outputs == [{1: 0}]
    assert verdict.figure == 0
    assert "differ by 0 of the largest value" in verdict.reason


def test_attention_under_a_mask_may_be_padded_and_both_axes_of_its_weights_are_cut() -> None:
    verdict = judged(masked_attention, [TOKENS, ["batch", "sequence", "sequence"], POOLED])
    assert verdict.outputs == [{1: 0}, {1: 0, 2: 0}, {}]
    assert 0 <= verdict.figure < 1e-4


def test_an_output_axis_of_another_name_is_found_by_its_size() -> None:
    assert judged(tokens, [["n", "t", 4]]).outputs == [{1: 0}]


@pytest.mark.parametrize(
    ("run", "outputs"),
    [
        pytest.param(lambda f: [TABLE[f["ids"]].mean(1)], [POOLED], id="mean over all tokens"),
        pytest.param(lambda f: [TABLE[f["ids"]][:, -1]], [POOLED], id="the last token"),
        pytest.param(lambda f: [np.cumsum(TABLE[f["ids"]][:, ::-1], 1)], [TOKENS], id="from the end on"),
        pytest.param(
            lambda f: [np.abs(TABLE[f["ids"]]) / np.abs(TABLE[f["ids"]]).sum(1, keepdims=True)],
            [TOKENS],
            id="shares of all tokens",
        ),
        pytest.param(
            lambda f: [np.full((len(f["ids"]), 4), f["ids"].shape[1], np.float32)], [POOLED], id="length"
        ),
    ],
)
def test_where_padding_changes_an_answer_it_is_refused_with_the_figure(run: Any, outputs: Any) -> None:
    verdict = judged(run, outputs)
    assert verdict.inputs is None
    assert "padded to 8 and alone, differs by" in verdict.reason
    assert "of output 'y0' (allowed: 0.0001)" in verdict.reason


def test_what_the_padding_is_filled_with_decides() -> None:
    assert judged(masked_mean, [POOLED]).inputs is not None
    verdict = judged(masked_mean, [POOLED], pads={"sequence": Pad([8], {"mask": 1, "ids": 3})})
    # Where a mask is filled with 1, elements count where it is 0: nothing is left of such rows.
    assert verdict.inputs is None
    assert "has no finite number" in verdict.reason


def test_a_mask_of_what_is_left_out_is_filled_with_ones() -> None:
    mask = TensorSpec("key_padding_mask", BOOL, ["batch", "sequence"])

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        return masked_mean({"ids": feeds["ids"], "mask": ~feeds["key_padding_mask"]})

    pads = {"sequence": Pad([8], {"key_padding_mask": 1})}
    assert judged(run, [POOLED], [IDS, mask], pads).inputs is not None
    assert judged(run, [POOLED], [IDS, mask], TO).inputs is None


def test_two_names_are_padded_each_by_itself() -> None:
    image = TensorSpec("image", F32, ["n", "h", "w"])
    pads = {"h": Pad([8, 16]), "w": Pad([8])}
    verdict = judged(lambda f: [f["image"] * 2], [["n", "h", "w"]], [image], pads)
    assert verdict.inputs == [[1, 2]]
    assert verdict.outputs == [{1: 0, 2: 1}]


def test_two_names_for_one_size_are_tried_as_one_size() -> None:
    other = TensorSpec("mask", I64, ["batch", "sequence_1"])
    verdict = judged(masked_mean, [POOLED], [IDS, other], {"sequence": Pad([8]), "sequence_1": Pad([8])})
    assert verdict.inputs == [[1, -1], [-1, 1]]


def test_rows_on_another_axis_are_padded_as_well() -> None:
    steps = TensorSpec("ids", I64, ["sequence", "batch"])
    verdict = judged(lambda f: [TABLE[f["ids"]]], [["sequence", "batch", 4]], [steps], TO, [1, 1])
    assert verdict.inputs == [[0]]
    assert verdict.outputs == [{0: 0}]


def test_an_output_that_is_longer_than_its_input_can_not_be_cut() -> None:
    verdict = judged(lambda f: [np.repeat(TABLE[f["ids"]], 2, 1)], [["batch", "steps", 4]])
    assert verdict.inputs is None
    assert "can't be cut back" in verdict.reason


def test_a_size_on_which_it_does_not_run_is_a_reason() -> None:
    def run(feeds: Mapping[str, Array]) -> list[Array]:
        if feeds["ids"].shape[1] % 2:
            raise RuntimeError("an even number of tokens\n  at 0x7f")
        return tokens(feeds)

    verdict = judged(run, [TOKENS])
    assert verdict.inputs is None
    assert verdict.reason.endswith(": an even number of tokens")


def test_an_input_that_all_rows_share_can_not_be_padded() -> None:
    verdict = judged(tokens, [TOKENS], axes=[0, -1, 0])
    assert verdict.inputs is None
    assert "all rows of a batch share input mask" in verdict.reason


def test_without_inputs_to_try_nothing_is_padded() -> None:
    verdict = padding.judge([IDS], [TensorSpec("y", F32, TOKENS)], tokens, None, [0, 0], TO)
    assert verdict.reason == "no inputs could be invented on which it runs"


@pytest.mark.parametrize(
    ("pads", "text"),
    [
        ({"steps": Pad([8])}, "no input has an axis 'steps'; the free ones are batch, sequence"),
        ({"batch": Pad([8])}, "the axis 'batch' counts rows"),
        ({"sequence": Pad([8], {"words": 1})}, "no input is called 'words'; the model has ids, mask"),
        ({"sequence": Pad([8], {"ids": 0.5})}, "fill: 0.5 is no int64, as input 'ids' wants it"),
    ],
)
def test_what_does_not_fit_the_model_is_said_in_a_sentence(pads: dict[str, Pad], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        judged(tokens, [TOKENS], pads=pads)


@pytest.mark.parametrize(
    ("dtype", "number", "bits"),
    [
        ("float16", -1, b"\x00\xbc"),
        ("bfloat16", 1, b"\x80\x3f"),
        ("uint8", 255, b"\xff"),
        ("bool", 1, b"\x01"),
    ],
)
def test_a_fill_is_of_its_input_s_type(dtype: str, number: float, bits: bytes) -> None:
    assert padding.value_of(TensorSpec("x", BY_NAME[dtype].code, ["n", "t"]), number).tobytes() == bits


@pytest.mark.parametrize(("dtype", "number"), [("uint8", 256), ("int8", -129), ("uint16", -1), ("bool", 2)])
def test_a_fill_that_its_type_has_not_is_refused(dtype: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"is no {dtype}"):
        padding.value_of(TensorSpec("x", BY_NAME[dtype].code, ["n", "t"]), number)
