"""What is checked before a request leaves the client: the error shows what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.client.signature import MISSES_MAX, Expecting, Signature
from batchyard.transport.errors import InvalidRequest, ModelFailed
from batchyard.transport.messages import ModelInfo, ModelState
from batchyard.transport.tensors import Tensor, TensorSpec


def signature(
    *inputs: TensorSpec, outputs: list[TensorSpec] | None = None, batchable: bool = True, **changed: Any
) -> Signature:
    fields = {"state": ModelState.READY, "reason": ""} | changed
    return Signature(
        ModelInfo(
            "net",
            fields["state"],
            fields["reason"],
            1,
            list(inputs),
            outputs or [TensorSpec("y", 1, ["n", 2])],
            batchable,
            "",
            8,
            [],
        )
    )


IMAGE = signature(TensorSpec("image", 1, ["n", 3, 4]))
PAIR = signature(TensorSpec("a", 1, ["n", 4]), TensorSpec("b", 7, ["n"]))


def refusal(net: Signature, inputs: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        net.arrays(inputs)
    return str(caught.value)


def test_a_good_array_is_taken_as_it_is() -> None:
    x = np.zeros((5, 3, 4), np.float32)
    (taken,), rows = IMAGE.arrays(x)
    assert taken is x
    assert rows == 5


def test_float64_is_refused_with_the_cast_to_write() -> None:
    text = refusal(IMAGE, np.zeros((1, 3, 4)))
    assert "given float64" in text
    assert "x.astype(np.float32)" in text
    assert "image: float32[n, 3, 4]" in text


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, np.bool_, np.complex64, ">f4", "O", "U3"])
def test_every_other_type_is_refused_and_never_converted(dtype: Any) -> None:
    assert "convert it explicitly" in refusal(IMAGE, np.zeros((1, 3, 4), dtype))


def test_a_single_item_without_the_batch_axis_is_told_to_add_it() -> None:
    assert "x[None]" in refusal(IMAGE, np.zeros((3, 4), np.float32))


def test_no_rows_share_no_run() -> None:
    assert IMAGE.arrays(np.zeros((0, 3, 4), np.float32))[1] == 0
    assert IMAGE.output_nbytes(0) == []


@pytest.mark.parametrize("shape", [(1, 3, 5), (1, 4, 3), (1, 12), (1, 1, 3, 4), ()])
def test_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    text = refusal(IMAGE, np.zeros(shape, np.float32))
    assert str(shape) in text
    assert "float32[n, 3, 4]" in text


def test_a_list_becomes_an_array_of_the_models_type() -> None:
    (taken,), rows = PAIR.arrays({"a": [[1, 2, 3, 4]], "b": [9]})[0][:1], 1
    assert taken.dtype == np.float32
    assert rows == 1


@pytest.mark.parametrize("given", [[[1, 2], [3]], "text", object(), [[["a"]]], None, {1, 2}])
def test_what_is_no_array_is_an_invalid_request_like_the_others(given: Any) -> None:
    assert refusal(IMAGE, given)


def test_an_array_like_of_another_type_is_not_converted_behind_the_callers_back() -> None:
    """A tensor of another library says what it is by `__array__`; it is not a list of numbers."""

    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.zeros((1, 3, 4), np.float64 if dtype is None else dtype)

    assert "float64" in refusal(IMAGE, Foreign())


def test_names_are_taken_in_any_order_and_must_be_exactly_the_models() -> None:
    a, b = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    assert [array.dtype for array in PAIR.arrays({"b": b, "a": a})[0]] == [np.float32, np.int64]
    for wrong in ({"a": a}, {"a": a, "c": b}, {"a": a, "b": b, "c": b}, {}):
        assert "has the inputs a, b" in refusal(PAIR, wrong)
    assert "pass a mapping of a, b" in refusal(PAIR, a)


def test_a_request_whose_inputs_disagree_on_their_rows_runs_alone() -> None:
    """5 queries and 9 keys are a good request, but nobody else's rows may be in its run."""
    five, nine = np.zeros((5, 4), np.float32), np.zeros(9, np.int64)
    assert PAIR.arrays({"a": five, "b": nine})[1] == 0
    assert PAIR.arrays({"a": five, "b": nine[:5]})[1] == 5


def test_a_mapping_does_for_a_single_input_too() -> None:
    assert IMAGE.arrays({"image": np.zeros((1, 3, 4), np.float32)})[1] == 1
    assert "has the input image; the request has the input x" in refusal(IMAGE, {"x": np.zeros((1, 3, 4), np.float32)})


def test_free_axes_take_any_size_and_fixed_ones_only_their_own() -> None:
    net = signature(TensorSpec("x", 1, ["n", "width", 3]))
    for width in (0, 1, 77):
        assert net.arrays(np.zeros((2, width, 3), np.float32))[1] == 2
    refusal(net, np.zeros((2, 7, 4), np.float32))


def test_a_model_that_cannot_batch_wants_its_whole_shape() -> None:
    net = signature(TensorSpec("x", 1, [2, 4]), batchable=False)
    assert net.arrays(np.zeros((2, 4), np.float32))[1] == 0
    assert "x[None]" not in refusal(net, np.zeros(4, np.float32))
    scalar = signature(TensorSpec("x", 7, []), batchable=False)
    assert scalar.arrays(np.array(3, np.int64))[1] == 0


def test_sizes_of_outputs_are_known_exactly_when_no_axis_is_free() -> None:
    known = signature(
        IMAGE.inputs[0].spec, outputs=[TensorSpec("y", 10, ["n", 5]), TensorSpec("z", 7, ["n"])]
    )
    assert known.output_tails == [(5,), ()]
    assert known.output_nbytes(3) == [30, 24]
    assert known.output_shapes(3) == [(3, 5), (3,)]
    assert signature(IMAGE.inputs[0].spec, outputs=[TensorSpec("y", 1, ["n", "k"])]).output_tails is None


def test_types_that_numpy_lacks_may_be_handed_over_as_their_bits() -> None:
    half = signature(TensorSpec("x", 16, ["n", 2]))
    assert half.arrays(np.zeros((1, 2), np.uint16))[1] == 1
    eighth = signature(TensorSpec("x", 17, ["n", 2]))
    assert eighth.arrays(np.zeros((1, 2), np.uint8))[1] == 1
    refusal(half, np.zeros((1, 2), np.uint8))


def test_a_name_that_sounds_like_a_type_does_not_change_what_is_accepted() -> None:
    net = signature(TensorSpec("float8_codes", 1, ["n", 2]))
    assert "convert it explicitly" in refusal(net, np.zeros((1, 2), np.uint8))


@pytest.mark.parametrize("state", [ModelState.FAILED, ModelState.LOADING])
def test_a_model_that_is_not_ready_has_no_signature(state: ModelState) -> None:
    with pytest.raises(ModelFailed, match="cannot be served: why"):
        signature(TensorSpec("x", 1, ["n"]), state=state, reason="why")


# ---- rows on any axis, inputs that are shared, left out, or of any shape ------------------------


def axes(inputs: list[TensorSpec], outputs: list[TensorSpec], batch_axes: list[int]) -> Signature:
    return Signature(
        ModelInfo("net", ModelState.READY, "", 1, inputs, outputs, True, "", 8, [], True, None, batch_axes)
    )


VAD = axes(
    [TensorSpec("x", 1, ["n", 4]), TensorSpec("state", 1, [2, "n", 3]), TensorSpec("sr", 7, None)],
    [TensorSpec("y", 1, ["n", 1]), TensorSpec("stateN", 1, [2, "n", 3])],
    [0, 1, -1, 0, 1],
)


def vad(rows: int, state_rows: int | None = None) -> dict[str, Any]:
    state = np.zeros((2, rows if state_rows is None else state_rows, 3), np.float32)
    return {"x": np.zeros((rows, 4), np.float32), "state": state, "sr": np.array(16_000, np.int64)}


def test_rows_are_counted_where_the_model_has_them() -> None:
    arrays, rows = VAD.arrays(vad(5))
    assert rows == 5
    assert [array.shape for array in arrays if array is not None] == [(5, 4), (2, 5, 3), ()]
    assert VAD.arrays(vad(5, 6))[1] == 0, "it runs alone"
    assert "state: float32[2, n, 3]" in refusal(VAD, vad(5) | {"state": np.zeros((3, 5, 3), np.float32)})


def test_outputs_have_their_rows_where_the_model_says() -> None:
    assert VAD.output_nbytes(5) == [20, 120]
    assert VAD.output_shapes(5) == [(5, 1), (2, 5, 3)]
    assert VAD.output_nbytes(0) == [], "what comes out of a run alone is not known before it"


def test_only_on_axis_0_is_a_row_too_few_axes_explained_as_a_batch() -> None:
    assert "axis 0 is the batch: pass x[None]" in refusal(VAD, vad(2) | {"x": np.zeros(4, np.float32)})
    assert "x[None]" not in refusal(VAD, vad(2) | {"state": np.zeros((2, 3), np.float32)})


def test_an_input_of_unknown_rank_takes_any_shape_of_its_type() -> None:
    for shape in ((), (1,), (2, 3, 4)):
        assert VAD.arrays(vad(2) | {"sr": np.zeros(shape, np.int64)})[1] == 2
    assert "convert it explicitly" in refusal(VAD, vad(2) | {"sr": np.zeros((), np.float32)})


def test_an_optional_input_may_be_left_out_or_none_and_another_may_not() -> None:
    net = axes(
        [TensorSpec("x", 1, ["n", 2]), TensorSpec("scale", 1, [2], True)], [TensorSpec("y", 1, ["n", 2])], [0, -1, 0]
    )
    x, scale = np.zeros((3, 2), np.float32), np.ones(2, np.float32)
    for inputs in ({"x": x}, {"x": x, "scale": None}):
        (first, second), rows = net.arrays(inputs)
        assert first is x
        assert second is None
        assert rows == 3
    assert net.arrays({"x": x, "scale": scale})[0][1] is scale
    assert "x: float32[n, 2] of 'net' was given None, and is not optional" in refusal(net, {"x": None})
    assert "has the inputs x, scale; the request has the input scale" in refusal(net, {"scale": scale})
    assert "scale: float32[2]" in refusal(net, {"x": x, "scale": np.ones(3, np.float32)})


def test_a_model_without_inputs_is_asked_with_nothing() -> None:
    net = signature(outputs=[TensorSpec("y", 1, [3])], batchable=False)
    for nothing in (None, {}):
        assert net.arrays(nothing) == ([], 0)
    assert net.output_nbytes(0) == [12]
    assert "has no inputs; the request has the input x" in refusal(net, {"x": [1.0]})


def test_texts_are_taken_as_str_and_their_answers_have_no_size_before_the_run() -> None:
    net = signature(TensorSpec("t", 8, ["n"]), outputs=[TensorSpec("y", 8, ["n"])], batchable=False)
    for texts in (["a", "bc"], np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        (array,), _ = net.arrays({"t": texts})
        assert array is not None
        assert array.dtype == object
        assert array.tolist() == ["a", "bc"]
    assert net.output_tails is None
    assert net.output_nbytes(0) == []


def test_outputs_of_half_bytes_or_of_any_rank_have_no_size_before_the_run() -> None:
    for output in (TensorSpec("y", 22, [4]), TensorSpec("y", 1, None)):
        net = signature(TensorSpec("x", 1, [2]), outputs=[output], batchable=False)
        assert net.output_nbytes(0) == []


def test_shapes_that_are_not_declared_are_learned_by_the_inputs_shapes() -> None:
    net = signature(TensorSpec("x", 1, ["n", "w"]), outputs=[TensorSpec("y", 1, ["n", "?"])])
    two = [Tensor(1, [2, 3], 0)]
    assert net.foreseen([[2, 3]], 2) is None
    net.learn(two, [np.zeros((2, 6), np.float32)], 2, False)
    assert net.foreseen([[5, 3]], 5) == [(5, 6)]
    assert net.foreseen([[5, 4]], 5) is None
    assert net.foreseen([[9, 3]], 9) is None, "it is run in parts"
    expecting = Expecting(net, [(5, 6)])
    assert (expecting.output_nbytes(5), expecting.expected) == ([120], [(5, 6)])
    for width in range(MISSES_MAX):
        assert net.foreseen([[2, 3]], 2) is not None
        expecting.learn(two, [np.zeros((2, width), np.float32)], 2, True)
    assert net.foreseen([[2, 3]], 2) is None, "they vary"


def test_declared_shapes_and_texts_are_not_learned() -> None:
    texts = signature(TensorSpec("x", 1, ["n"]), outputs=[TensorSpec("y", 8, ["n", "?"])])
    for net in (PAIR, texts):
        net.learn([Tensor(1, [2, 4], 0), Tensor(7, [2], 0)][: len(net.inputs)], [np.zeros((2, 2))], 2, False)
        assert net._learned == {}
