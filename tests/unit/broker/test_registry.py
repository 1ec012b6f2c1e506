"""The broker's check of a request against its model: every way in which a handle can lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.registry import Model
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.messages import Loaded, ModelState, Submit
from batchyard.transport.tensors import NBYTES_MAX, Slot, Tensor, TensorSpec

ARENA_BYTES = 4096
FLOAT32, FLOAT16, INT64 = 1, 10, 7


def model(
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    batchable: bool = True,
    max_batch: int = 8,
    **changed: Any,
) -> Model:
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    made.loaded(1, 501, Loaded("net", 1, inputs, outputs, batchable, "", max_batch, "cpu", "", {}))
    return made


@pytest.fixture
def net() -> Model:
    """x: float32[n, 4], k: int64[n] -> y: float16[n, 2]."""
    return model(
        [TensorSpec("x", FLOAT32, ["n", 4]), TensorSpec("k", INT64, ["n"])],
        [TensorSpec("y", FLOAT16, ["n", 2])],
    )


def good(rows: int = 2) -> Submit:
    inputs = [Tensor(FLOAT32, [rows, 4], 0), Tensor(INT64, [rows], 1024)]
    return Submit(1, "net", 2, 0, inputs, [Slot(2048, rows * 4)])


def test_a_good_request_is_measured_in_rows_and_bytes(net: Model) -> None:
    assert net.check(good(), ARENA_BYTES) == (2, 2 * 16 + 2 * 8 + 2 * 4)


def test_a_worker_that_loads_a_model_at_last_is_no_failure_any_more(net: Model) -> None:
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    made.failures[1] = "the file was not there"
    made.loaded(1, 501, Loaded("net", 1, net.inputs, net.outputs, True, "", 8, "cpu", "", {}))
    assert made.info().reason == ""


def test_without_output_slots_only_the_inputs_count(net: Model) -> None:
    message = good()
    message.outputs = []
    assert net.check(message, ARENA_BYTES) == (2, 48)


def test_handles_may_touch_the_very_end_of_the_arena(net: Model) -> None:
    message = good()
    message.inputs[0].offset = ARENA_BYTES - 32
    message.inputs[1].offset = ARENA_BYTES - 16
    message.outputs[0].offset = ARENA_BYTES - 8
    assert net.check(message, ARENA_BYTES)[0] == 2


@pytest.mark.parametrize(
    ("index", "changed", "why"),
    [
        (0, {"offset": ARENA_BYTES - 31}, "outside its arena"),
        (0, {"offset": ARENA_BYTES}, "outside its arena"),
        (0, {"offset": ARENA_BYTES + 1}, "outside its arena"),
        (0, {"offset": NBYTES_MAX}, "outside its arena"),
        (1, {"offset": ARENA_BYTES - 15}, "outside its arena"),
        (0, {"shape": [3, 4]}, "differ in rows"),
        (0, {"shape": [ARENA_BYTES, 4]}, "outside its arena"),
        (1, {"shape": [3]}, "differ in rows"),
        (1, {"shape": [NBYTES_MAX]}, "differ in rows"),
        (0, {"shape": [0, 4]}, "at least one row"),
        (0, {"shape": []}, "at least one row"),
        (1, {"shape": []}, "expects k: int64"),
        (0, {"shape": [2, 5]}, "expects x: float32"),
        (0, {"shape": [2, 4, 1]}, "expects x: float32"),
        (0, {"shape": [8]}, "expects x: float32"),
        (0, {"dtype": 11}, "float64"),
        (0, {"dtype": 8}, "dtype code 8"),
        (0, {"dtype": -1}, "dtype code -1"),
        (0, {"frame": 1}, "handles, not frames"),
        (1, {"frame": NBYTES_MAX}, "handles, not frames"),
    ],
)
def test_a_lying_input_is_refused_with_what_is_expected(
    net: Model, index: int, changed: dict[str, Any], why: str
) -> None:
    message = good()
    for name, value in changed.items():
        setattr(message.inputs[index], name, value)
    with pytest.raises(InvalidRequest, match=why):
        net.check(message, ARENA_BYTES)


@pytest.mark.parametrize(
    ("slots", "why"),
    [
        ([Slot(2048, 7)], "7 bytes, and 2 rows of 'net' take 8"),
        ([Slot(2048, 9)], "take 8"),
        ([Slot(2048, 0)], "take 8"),
        ([Slot(ARENA_BYTES - 7, 8)], "outside its arena"),
        ([Slot(NBYTES_MAX, 8)], "outside its arena"),
        ([Slot(0, 8), Slot(8, 8)], "send none, or one per output"),
    ],
)
def test_a_lying_output_slot_is_refused(net: Model, slots: list[Slot], why: str) -> None:
    message = good()
    message.outputs = slots
    with pytest.raises(InvalidRequest, match=why):
        net.check(message, ARENA_BYTES)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_inputs_are_refused(net: Model, count: int) -> None:
    message = good()
    message.inputs = (message.inputs * 2)[:count]
    with pytest.raises(InvalidRequest, match=f"2 inputs, the request has {count}"):
        net.check(message, ARENA_BYTES)


def test_rows_beyond_the_arena_are_refused_however_large_the_product(net: Model) -> None:
    for rows in (300, 1 << 32, NBYTES_MAX):
        message = good()
        for tensor in message.inputs:
            tensor.shape[0] = rows
        message.outputs = []
        with pytest.raises(InvalidRequest):
            net.check(message, ARENA_BYTES)


def test_a_free_axis_takes_any_size_that_fits_and_slots_cannot_be_reserved_for_it() -> None:
    free = model([TensorSpec("x", FLOAT32, ["n", "width"])], [TensorSpec("y", FLOAT32, ["n", "width"])])
    for width in (0, 1, 512):
        message = Submit(1, "net", 2, 0, [Tensor(FLOAT32, [2, width], 0)], [])
        assert free.check(message, ARENA_BYTES) == (2, 8 * width)
    for shape in ([2, 513], [2, 1 << 32], [1 << 32, 1 << 32]):
        with pytest.raises(InvalidRequest):
            free.check(Submit(1, "net", 2, 0, [Tensor(FLOAT32, shape, 0)], []), ARENA_BYTES)
    with pytest.raises(InvalidRequest, match="send none"):
        free.check(Submit(1, "net", 2, 0, [Tensor(FLOAT32, [1, 1], 0)], [Slot(0, 4)]), ARENA_BYTES)
    assert free.output_shapes(3) is None


def test_requests_share_a_lane_exactly_when_their_free_axes_agree() -> None:
    free = model([TensorSpec("x", FLOAT32, ["n", "w"])], [TensorSpec("y", FLOAT32, ["n", "w"])])
    narrow, wide = [Tensor(FLOAT32, [2, 3], 0)], [Tensor(FLOAT32, [2, 4], 0)]
    assert free.lane(narrow) is free.lane([Tensor(FLOAT32, [7, 3], 64)])
    assert free.lane(narrow) is not free.lane(wide)


def test_a_model_that_cannot_batch_takes_its_whole_shape_as_one_row() -> None:
    alone = model(
        [TensorSpec("x", FLOAT32, [3, 4])], [TensorSpec("y", FLOAT32, [2])], batchable=False, max_batch=8
    )
    message = Submit(1, "net", 2, 0, [Tensor(FLOAT32, [3, 4], 0)], [Slot(64, 8)])
    assert alone.check(message, ARENA_BYTES) == (1, 56)
    assert alone.max_batch == 1
    message.inputs[0].shape = [6, 4]
    with pytest.raises(InvalidRequest, match="expects x: float32"):
        alone.check(message, ARENA_BYTES)
    assert alone.output_shapes(1) == [(FLOAT32, [2])]


def test_the_smaller_of_configured_and_loaded_maximum_holds() -> None:
    spec = [TensorSpec("x", FLOAT32, ["n", 4])]
    assert model(spec, spec, max_batch=3).max_batch == 3
    assert model(spec, spec, max_batch=500).max_batch == 8


def test_a_model_is_loading_until_one_worker_is_ready_and_failed_only_if_all_have_failed() -> None:
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    assert made.state is ModelState.LOADING
    made.failures[1] = "no"
    assert made.state is ModelState.FAILED
    spec = [TensorSpec("x", FLOAT32, ["n", 4])]
    made.loaded(2, 502, Loaded("net", 1, spec, spec, True, "", 8, "cpu", "", {}))
    assert made.state is ModelState.READY
    assert made.info().workers[0].pid == 502
