"""What is checked before a request leaves the client: the error shows what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchyard.client.signature import Signature
from batchyard.transport.errors import InvalidRequest, ModelFailed
from batchyard.transport.messages import ModelInfo, ModelState
from batchyard.transport.tensors import TensorSpec


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
    assert "cast it yourself" in refusal(IMAGE, np.zeros((1, 3, 4), dtype))


def test_a_single_item_without_the_batch_axis_is_told_to_add_it() -> None:
    assert "x[None]" in refusal(IMAGE, np.zeros((3, 4), np.float32))


def test_no_rows_are_told_to_be_one_at_least() -> None:
    assert "at least one row" in refusal(IMAGE, np.zeros((0, 3, 4), np.float32))


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


def test_rows_of_all_inputs_must_agree() -> None:
    text = refusal(PAIR, {"a": np.zeros((2, 4), np.float32), "b": np.zeros(3, np.int64)})
    assert "same number of rows, not [2, 3]" in text


def test_a_mapping_does_for_a_single_input_too() -> None:
    assert IMAGE.arrays({"image": np.zeros((1, 3, 4), np.float32)})[1] == 1
    assert "has the inputs image" in refusal(IMAGE, {"x": np.zeros((1, 3, 4), np.float32)})


def test_free_axes_take_any_size_and_fixed_ones_only_their_own() -> None:
    net = signature(TensorSpec("x", 1, ["n", "width", 3]))
    for width in (0, 1, 77):
        assert net.arrays(np.zeros((2, width, 3), np.float32))[1] == 2
    refusal(net, np.zeros((2, 7, 4), np.float32))


def test_a_model_that_cannot_batch_wants_its_whole_shape() -> None:
    net = signature(TensorSpec("x", 1, [2, 4]), batchable=False)
    assert net.arrays(np.zeros((2, 4), np.float32))[1] == 1
    assert "x[None]" not in refusal(net, np.zeros(4, np.float32))
    scalar = signature(TensorSpec("x", 7, []), batchable=False)
    assert scalar.arrays(np.array(3, np.int64))[1] == 1


def test_sizes_of_outputs_are_known_exactly_when_no_axis_is_free() -> None:
    known = signature(
        IMAGE.inputs[0].spec, outputs=[TensorSpec("y", 10, ["n", 5]), TensorSpec("z", 7, ["n"])]
    )
    assert known.output_tails == [(5,), ()]
    assert known.output_row_nbytes == [10, 8]
    assert signature(IMAGE.inputs[0].spec, outputs=[TensorSpec("y", 1, ["n", "k"])]).output_tails is None


def test_types_that_numpy_lacks_may_be_handed_over_as_their_bits() -> None:
    half = signature(TensorSpec("x", 16, ["n", 2]))
    assert half.arrays(np.zeros((1, 2), np.uint16))[1] == 1
    eighth = signature(TensorSpec("x", 17, ["n", 2]))
    assert eighth.arrays(np.zeros((1, 2), np.uint8))[1] == 1
    refusal(half, np.zeros((1, 2), np.uint8))


def test_a_name_that_sounds_like_a_type_does_not_change_what_is_accepted() -> None:
    net = signature(TensorSpec("float8_codes", 1, ["n", 2]))
    assert "cast it yourself" in refusal(net, np.zeros((1, 2), np.uint8))


@pytest.mark.parametrize("state", [ModelState.FAILED, ModelState.LOADING])
def test_a_model_that_is_not_ready_has_no_signature(state: ModelState) -> None:
    with pytest.raises(ModelFailed, match="cannot be served: why"):
        signature(TensorSpec("x", 1, ["n"]), state=state, reason="why")
