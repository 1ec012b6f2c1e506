"""The broker's check of a request against its model: every way in which a handle can lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.broker.config import ModelConfig
from batchyard.broker.models import Model
from batchyard.transport.errors import InvalidRequest
from batchyard.transport.messages import Loaded, ModelState, Submit
from batchyard.transport.tensors import ABSENT, NBYTES_MAX, Slot, Tensor, TensorSpec

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
        (0, {"shape": [ARENA_BYTES, 4]}, "outside its arena"),
        (1, {"shape": [NBYTES_MAX]}, "outside its arena"),
        (0, {"shape": []}, "expects x: float32"),
        (1, {"shape": []}, "expects k: int64"),
        (0, {"shape": [2, 5]}, "expects x: float32"),
        (0, {"shape": [2, 4, 1]}, "expects x: float32"),
        (0, {"shape": [8]}, "expects x: float32"),
        (0, {"dtype": 11}, "float64"),
        (0, {"dtype": 8}, r"string\[2, 4\]"),
        (0, {"dtype": 23}, "dtype code 23"),
        (0, {"dtype": ABSENT}, "expects x: float32"),
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
        ([Slot(ARENA_BYTES - 7, 8)], "outside its arena"),
        ([Slot(NBYTES_MAX, 8)], "outside its arena"),
        ([Slot(0, 8), Slot(8, 8)], "has 1 outputs, and the request has 2 slots: send none, or one for each"),
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
    guessed = Submit(1, "net", 2, 0, [Tensor(FLOAT32, [1, 1], 0)], [Slot(0, 12)])
    assert free.check(guessed, ARENA_BYTES) == (1, 16)  # the worker uses it where that is its size
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


@pytest.mark.parametrize(
    ("config", "loaded", "packs"),
    [
        ({}, {}, True),
        ({"idempotent": False}, {}, False),
        ({"join": True}, {}, False),
        ({"cache_ns": 1}, {}, False),
        ({}, {"batchable": False}, False),
    ],
    ids=str,
)
def test_requests_go_as_rows_of_one_only_where_each_may_be_sent_again_and_none_is_another_s(
    config: dict[str, Any], loaded: dict[str, Any], packs: bool
) -> None:
    made = Model(ModelConfig("net", Path("/net.onnx"), 4, **config))
    spec = TensorSpec("x", 1, ["n", 4])
    fields: dict[str, Any] = {"batchable": True, "alone_reason": ""} | loaded
    made.loaded(1, 5001, Loaded("net", 1, [spec], [spec], max_batch=4, provider="cpu", placement="", warmup_ns={}, **fields))
    assert made.info().packs is packs
    made.disprove("rows mix")
    assert not made.info().packs


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


# ---- rows on any axis, inputs that are shared, requests that run alone --------------------------


def vad() -> Model:
    """x: float32[n, 4], state: float32[2, n, 3], sr: int64 of any shape, bias: float32[4] or none."""
    inputs = [
        TensorSpec("x", FLOAT32, ["n", 4]),
        TensorSpec("state", FLOAT32, [2, "n", 3]),
        TensorSpec("sr", INT64, None),
        TensorSpec("bias", FLOAT32, [4], True),
    ]
    outputs = [TensorSpec("y", FLOAT32, ["n", 1]), TensorSpec("stateN", FLOAT32, [2, "n", 3])]
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    axes = [0, 1, -1, -1, 0, 1]
    said = Loaded("net", 1, inputs, outputs, True, "", 8, "cpu", "", {}, batch_axes=axes, evidence="as seen")
    made.loaded(1, 501, said)
    return made


def asked(x: int = 2, state: int | None = None, sr: list[int] | None = None, bias: bool = False) -> Submit:
    inputs = [
        Tensor(FLOAT32, [x, 4], 0),
        Tensor(FLOAT32, [2, x if state is None else state, 3], 512),
        Tensor(INT64, sr or [], 1024),
        Tensor(FLOAT32, [4], 1536) if bias else Tensor(ABSENT, [], 0),
    ]
    return Submit(1, "net", 2, 0, inputs, [])


def test_rows_and_bytes_are_counted_where_each_input_has_them() -> None:
    net = vad()
    assert net.check(asked(3), ARENA_BYTES) == (3, 3 * 16 + 3 * 24 + 8)
    assert net.check(asked(3, bias=True), ARENA_BYTES) == (3, 3 * 16 + 3 * 24 + 8 + 16)
    assert net.rows(asked(3).inputs) == 3
    assert net.output_shapes(3) == [(FLOAT32, [3, 1]), (FLOAT32, [2, 3, 3])]
    assert net.info().batch_axes == [0, 1, -1, -1, 0, 1]
    assert net.info().evidence == "as seen"
    assert net.shared_inputs == [2, 3]


@pytest.mark.parametrize("message", [asked(3, 2), asked(0), asked(0, 4)])
def test_a_request_whose_inputs_disagree_or_have_no_rows_has_none_and_counts_as_one(message: Submit) -> None:
    net = vad()
    assert net.rows(message.inputs) == 0
    assert net.check(message, ARENA_BYTES)[0] == 1
    lane = net.lane(message.inputs)
    assert lane.is_alone
    assert lane is net.lane(asked(9, 1).inputs)
    assert lane is not net.lane(asked(3).inputs)


def test_sizes_that_disagree_are_still_held_to_the_arena() -> None:
    with pytest.raises(InvalidRequest, match="outside its arena"):
        vad().check(asked(2, 1 << 20), ARENA_BYTES)


def test_an_input_of_any_rank_is_held_to_its_type_and_to_the_arena() -> None:
    net = vad()
    assert net.check(asked(1, sr=[2, 3]), ARENA_BYTES) == (1, 16 + 24 + 48)
    wrong = asked(1)
    wrong.inputs[2].dtype = FLOAT32
    with pytest.raises(InvalidRequest, match=r"expects sr: int64\[\.\.\.\]"):
        net.check(wrong, ARENA_BYTES)
    for shape in ([1 << 20], [1 << 40, 1 << 40]):
        with pytest.raises(InvalidRequest):
            net.check(asked(1, sr=shape), ARENA_BYTES)


def test_only_an_optional_input_may_be_left_out() -> None:
    for index in range(3):
        message = asked()
        message.inputs[index] = Tensor(ABSENT, [], 0)
        with pytest.raises(InvalidRequest, match="expects"):
            vad().check(message, ARENA_BYTES)


def test_requests_share_a_lane_exactly_when_what_they_share_is_the_same() -> None:
    net = vad()
    lane = net.lane(asked(1).inputs, b"16 kHz")
    assert lane is net.lane(asked(7).inputs, b"16 kHz")
    assert lane is not net.lane(asked(1).inputs, b"8 kHz")
    assert lane is not net.lane(asked(1, sr=[1]).inputs, b"16 kHz")
    assert lane is not net.lane(asked(1, bias=True).inputs, b"16 kHz")
    assert not lane.is_alone


def test_strings_have_the_size_that_they_say_and_are_held_to_the_arena() -> None:
    texts = model([TensorSpec("t", 8, ["n"])], [TensorSpec("y", 8, ["n"])], batchable=False)
    message = Submit(1, "net", 2, 0, [Tensor(8, [3], 64, 0, 100)], [])
    assert texts.check(message, ARENA_BYTES) == (1, 100)
    assert texts.output_shapes(3) is None
    message.inputs[0].strings_nbytes = ARENA_BYTES
    with pytest.raises(InvalidRequest, match="outside its arena"):
        texts.check(message, ARENA_BYTES)


def test_a_model_without_inputs_is_asked_with_none() -> None:
    constant = model([], [TensorSpec("y", FLOAT32, [3])], batchable=False)
    message = Submit(1, "net", 2, 0, [], [Slot(0, 12)])
    assert constant.check(message, ARENA_BYTES) == (1, 12)
    assert constant.state is ModelState.READY
    assert constant.lane([]).is_alone
    assert constant.output_shapes(1) == [(FLOAT32, [3])]


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        ([0, 0], "2 batch axes for its inputs and outputs"),
        ([-1, -1, 0], "rows that no input has"),
        ([0, 0, -1], "or some output has not"),
        ([0, 1, 0], "k: int64[n] has no axis 1"),
        ([0, 0, 2], "y: float16[n, 2] has no axis 2"),
    ],
)
def test_axes_that_can_not_be_are_refused_and_nothing_has_changed(net: Model, axes: list[int], why: str) -> None:
    said = Loaded("net", 1, net.inputs, net.outputs, True, "", 8, "cpu", "", {}, batch_axes=axes)
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    with pytest.raises(InvalidRequest) as refused:
        made.loaded(1, 501, said)
    assert why in str(refused.value)
    assert (made.outputs, made.workers) == ([], {})


@pytest.mark.parametrize("dtype", [8, 21, 22])
def test_what_can_not_be_cut_into_rows_has_none(dtype: int) -> None:
    with pytest.raises(InvalidRequest, match="can't be cut"):
        model([TensorSpec("x", dtype, ["n", 4])], [TensorSpec("y", FLOAT32, ["n", 4])])


def test_a_model_that_is_disproved_runs_everything_alone_until_another_revision_comes(net: Model) -> None:
    before = net.lane(good().inputs)
    before.users = 1
    net.disprove("it came out with shape [1]")
    assert (net.batchable, net.max_batch, net.info().alone_reason) == (False, 1, "it came out with shape [1]")
    assert before.is_alone, "what waits there runs alone too"
    assert net.lane(good().inputs).is_alone
    assert net.lane(good().inputs) is not before, "no later request joins it"
    assert net.check(good(5), ARENA_BYTES)[0] == 1
    assert net.output_shapes(1) is None
    again = Loaded("net", 1, net.inputs, net.outputs, True, "", 8, "cpu", "", {}, evidence="as seen")
    net.loaded(2, 502, again)
    assert (net.batchable, net.max_batch, net.info().evidence) == (False, 1, ""), "a worker that has not seen it"
    net.become(net.config, 2)
    net.loaded(1, 501, again)
    after = net.lane(good().inputs)
    assert net.batchable
    assert not after.is_alone
    assert before in net.lanes.values()
    net.drop_lane(before)
    assert before not in net.lanes.values()
    assert after in net.lanes.values()


def test_lanes_that_nobody_uses_are_gone_when_a_model_is_disproved(net: Model) -> None:
    net.lane(good().inputs)
    net.disprove("so it was seen")
    assert net.lanes == {}


def test_rows_of_a_model_that_has_them_on_axis_1_alone_are_counted_there() -> None:
    spec = [TensorSpec("x", FLOAT32, [4, "n"])]
    made = Model(ModelConfig("net", Path("/net.onnx"), 8))
    made.loaded(1, 501, Loaded("net", 1, spec, spec, True, "", 8, "cpu", "", {}, batch_axes=[1, 1]))
    for rows in (1, 4, 7):
        inputs = [Tensor(FLOAT32, [4, rows], 0)]
        assert made.rows(inputs) == rows
        assert made.check(Submit(1, "net", 2, 0, inputs, []), ARENA_BYTES) == (rows, 16 * rows)
        assert not made.lane(inputs).is_alone
    assert len(made.lanes) == 1
