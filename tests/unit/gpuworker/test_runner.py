"""Batches whose rows lie on any axis, inputs that a batch shares, parts, slots and frames: each answer is
plain onnxruntime's for that request alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker import runner as runner_module
from batchyard.gpuworker.answers import ALIGN, IN_PLACE_MIN_BYTES, Result
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.handles import ItemRefused
from batchyard.gpuworker.providers import recipe
from batchyard.tests.unit.gpuworker.backends.test_onnx import ARENA, ARENA_BYTES, Array, Yard
from batchyard.transport import messages as m
from batchyard.transport import strings
from batchyard.transport.tensors import ABSENT, Slot, Tensor

FLOAT, INT64, STRING = 1, 7, 8


def serve(path: Path, max_batch: int = 8, **how: Any) -> ServedModel:
    return ServedModel(m.Load("net", 1, str(path), max_batch, None, False, **how), recipe("cpu", 1))


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def frames_of(result: Result, item: int) -> list[Array]:
    """The float32 outputs of one item that came back in a frame."""
    (found,) = [entry for entry in result.inline_outputs if entry.item == item]
    return [
        np.frombuffer(result.frames[t.frame - 1], np.float32, int(np.prod(t.shape)), t.offset).reshape(t.shape)
        for t in found.outputs
    ]


def slots(yard: Yard, *arrays: Array) -> list[Slot]:
    return [Slot(yard.room(a.nbytes), a.nbytes) for a in arrays]


def read(yard: Yard, item: m.Item, *like: Array) -> list[Array]:
    return [yard.read(slot, a.dtype, a.shape) for slot, a in zip(item.outputs, like, strict=True)]


@pytest.fixture(scope="module")
def recurrent(onnx_models: Any) -> Any:
    """x float32[n, w], state [2, n, w] -> y [n, w], stateN [2, n, w]: state has its rows on axis 1."""

    def make(width: int) -> Path:
        found: Path = onnx_models.save(
            f"recurrent{width}",
            [("ReduceSum", ["state", "zero"], ["s"], {"keepdims": 0}), ("Add", ["x", "s"], ["y"], {}),
             ("Mul", ["state", "half"], ["stateN"], {})],
            [("x", FLOAT, ["n", width]), ("state", FLOAT, [2, "n", width])],
            [("y", FLOAT, ["n", width]), ("stateN", FLOAT, [2, "n", width])],
            {"zero": np.array([0], np.int64), "half": np.array(0.5, np.float32)},
        )  # fmt: skip
        return found

    return make


# ---- rows on axis 1 -------------------------------------------------------------------------------


@pytest.mark.parametrize("slotted", [True, False], ids=["slots", "frames"])
@pytest.mark.parametrize("buckets", [[], [1, 4, 8]], ids=["any size", "padded"])
@pytest.mark.parametrize("width", [3, 20_000], ids=["small", "in place"])
@pytest.mark.parametrize("rows", [(1,), (3,), (1, 1, 1), (2, 1, 3)], ids=str)
def test_state_on_axis_1_is_gathered_and_given_back_to_its_own_requests(
    yard: Yard, recurrent: Any, reference: Any, slotted: bool, buckets: list[int], width: int, rows: tuple[int, ...]
) -> None:
    path = recurrent(width)
    model = serve(path, buckets=buckets)
    assert model.batch_axes == [0, 1, 0, 1]
    for turn in range(3):
        yard.next = 0
        asked = [(draw(n, width, seed=turn), draw(2, n, width, seed=9 + turn)) for n in rows]
        items = [
            m.Item(ARENA, [yard.put(x, FLOAT), yard.put(h, FLOAT)], slots(yard, x, h) if slotted else [])
            for x, h in asked
        ]
        result = yard.run(model, *items)
        assert bool(result.inline_outputs) is not slotted
        for number, (item, (x, h)) in enumerate(zip(items, asked, strict=True)):
            got = read(yard, item, x, h) if slotted else frames_of(result, number)
            for mine, right in zip(got, reference(path, x=x, state=h), strict=True):
                np.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize("slotted", [True, False], ids=["slots", "frames"])
@pytest.mark.parametrize("width", [3, 20_000], ids=["small", "in place"])
def test_parts_of_a_request_are_its_own_rows_on_any_axis(
    yard: Yard, recurrent: Any, reference: Any, slotted: bool, width: int
) -> None:
    path = recurrent(width)
    model = serve(path)
    x, h = draw(10, width), draw(2, 10, width)
    tensors, room = [yard.put(x, FLOAT), yard.put(h, FLOAT)], slots(yard, x, h) if slotted else []
    other = m.Item(ARENA, [yard.put(x[:2], FLOAT), yard.put(h[:, :2], FLOAT)], [])
    found = []
    for start, count, beside in ((4, 4, []), (0, 4, []), (8, 2, [other])):
        part = m.Item(ARENA, tensors, room, b"", start, count)
        result = yard.run(model, *beside, part, rows=count + 2 * len(beside))
        if not slotted:
            found.append((start, frames_of(result, len(beside))))
    right = reference(path, x=x, state=h)
    if slotted:
        got = [yard.read(slot, np.float32, r.shape) for slot, r in zip(room, right, strict=True)]
    else:
        columns = zip(*(outputs for _, outputs in sorted(found, key=lambda entry: entry[0])), strict=True)
        got = [np.concatenate(column, axis) for column, axis in zip(columns, (0, 1), strict=True)]
    for mine, one in zip(got, right, strict=True):
        np.testing.assert_array_equal(mine, one)


@pytest.mark.parametrize(("start", "rows"), [(0, 11), (8, 3), (10, 1), (1 << 40, 1), (-1, 2)])
def test_a_part_that_is_not_in_its_request_is_refused(yard: Yard, recurrent: Any, start: int, rows: int) -> None:
    model = serve(recurrent(3))
    tensors = [yard.put(draw(10, 3), FLOAT), yard.put(draw(2, 10, 3), FLOAT)]
    with pytest.raises(ItemRefused):
        yard.run(model, m.Item(ARENA, tensors, [], b"", start, rows), rows=rows)


def test_a_parts_slot_of_another_size_than_its_requests_is_not_written(yard: Yard, onnx_models: Any) -> None:
    """Its rows would lie behind the slot, and behind the arena perhaps."""
    width = IN_PLACE_MIN_BYTES // 4
    model = serve(onnx_models.unary("wide", "Neg", ["n", width]), max_batch=2)
    x = draw(4, width)
    tensor = yard.put(x, FLOAT)
    yard.run(model, m.Item(ARENA, [tensor], slots(yard, x)[:1], b"", 0, 2), rows=2)
    small = Slot(ARENA_BYTES - 4 * width, 4 * width)  # of one row, at the very end
    before = bytes(yard.segment.buffer[small.offset :])
    for start in (0, 2):
        result = yard.run(model, m.Item(ARENA, [tensor], [small], b"", start, 2), rows=2)
        np.testing.assert_array_equal(frames_of(result, 0)[0], -x[start : start + 2])
    assert bytes(yard.segment.buffer[small.offset :]) == before


# ---- inputs that a batch shares -------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled(onnx_models: Any) -> Path:
    """x float32[n, 4] * w float32[4]."""
    found: Path = onnx_models.save(
        "scaled", [("Mul", ["x", "w"], ["y"], {})], [("x", FLOAT, ["n", 4]), ("w", FLOAT, [4])],
        [("y", FLOAT, ["n", 4])],
    )  # fmt: skip
    return found


@pytest.mark.interpreted
def test_only_requests_with_the_same_shared_input_are_in_one_run(yard: Yard, scaled: Path) -> None:
    model = serve(scaled)
    assert model.batch_axes == [0, -1, 0]
    weights = [draw(4, seed=s) for s in (1, 1, 2, 2, 1)]
    inputs = [draw(rows, 4) for rows in (1, 2, 1, 3, 1)]
    items = [
        m.Item(ARENA, [yard.put(x, FLOAT), yard.put(w, FLOAT)], slots(yard, x))
        for x, w in zip(inputs, weights, strict=True)
    ]
    runs: list[int] = []
    together = model._runner._run_together
    model._runner._run_together = lambda group, *rest: runs.append(len(group)) or together(group, *rest)  # type: ignore
    yard.run(model, *items)
    assert runs == [2, 2, 1]
    for item, x, w in zip(items, inputs, weights, strict=True):
        np.testing.assert_array_equal(read(yard, item, x)[0], x * w)


@pytest.mark.interpreted
@pytest.mark.parametrize("rows", [(1, 1, 1), (1, 1, 2)], ids=["of one shape", "of two"])
def test_a_client_that_changes_its_shared_input_under_way_changes_nobody_elses_answer(
    yard: Yard, scaled: Path, rows: tuple[int, ...]
) -> None:
    model = serve(scaled)
    w = draw(4, seed=1)
    inputs = [draw(count, 4, seed=s) for s, count in enumerate(rows)]
    items = [m.Item(ARENA, [yard.put(x, FLOAT), yard.put(w, FLOAT)], slots(yard, x)) for x in inputs]
    at = items[0].inputs[1].offset
    look, look_at_all = model._runner._shared_bytes, model._runner._shared_by_all

    def looked(item: m.Item, arena: Any) -> list[bytes]:
        found = look(item, arena)
        if item.inputs[1].offset == items[2].inputs[1].offset:  # all have been compared
            yard.segment.buffer[at : at + 16] = bytes(16)
        return found

    def looked_at_all(*batch: Any) -> list[bytes] | None:
        found = look_at_all(*batch)
        yard.segment.buffer[at : at + 16] = bytes(16)
        return found

    model._runner._shared_bytes = looked  # type: ignore[method-assign]
    model._runner._shared_by_all = looked_at_all  # type: ignore[method-assign]
    yard.run(model, *items)
    for item, x in zip(items[1:], inputs[1:], strict=True):
        np.testing.assert_array_equal(read(yard, item, x)[0], x * w)


# ---- padding --------------------------------------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize("axis", [0, 1])
def test_behind_the_last_row_lies_the_last_row_again(yard: Yard, onnx_models: Any, axis: int) -> None:
    shape: list[int | str] = ["n", 3] if axis == 0 else [3, "n"]
    model = serve(onnx_models.unary(f"padded{axis}", "Neg", shape), buckets=[8])
    seen: list[Array] = []
    compute = model._runner._compute

    def look(form: Any, size: int, addresses: Any, places: Any) -> Any:
        view = model._runner.view(addresses[0], 96)
        seen.append(np.frombuffer(bytes(view or b""), np.float32).reshape((8, 3) if axis == 0 else (3, 8)))
        return compute(form, size, addresses, places)

    model._runner._compute = look  # type: ignore[method-assign]
    inputs = [draw(2, 3), draw(3, 3)]
    items = [m.Item(ARENA, [yard.put(x if axis == 0 else x.T, FLOAT)], []) for x in inputs]
    result = yard.run(model, *items, rows=5)
    rows = seen[0] if axis == 0 else seen[0].T
    np.testing.assert_array_equal(rows, np.concatenate([*inputs, np.repeat(inputs[1][-1:], 3, 0)]))
    for number, x in enumerate(inputs):
        (got,) = frames_of(result, number)
        np.testing.assert_array_equal(got if axis == 0 else got.T, -x)


# ---- slots, frames, and outputs that are not as declared ------------------------------------------


def test_all_outputs_of_an_item_are_in_one_frame_one_behind_the_other(yard: Yard, recurrent: Any) -> None:
    model = serve(recurrent(3))
    result = yard.run(model, m.Item(ARENA, [yard.put(draw(1, 3), FLOAT), yard.put(draw(2, 1, 3), FLOAT)], []))
    (entry,) = result.inline_outputs
    assert [(t.frame, t.offset) for t in entry.outputs] == [(1, 0), (1, ALIGN)]
    assert [len(frame) for frame in result.frames] == [ALIGN + 24], "it ends where its last tensor does"


@pytest.mark.parametrize("wrong", [-4, 4, 1 << 10])
def test_slots_of_another_size_are_left_alone(yard: Yard, onnx_models: Any, wrong: int) -> None:
    model = serve(onnx_models.unary("slots", "Neg", ["n", 4]))
    x = draw(2, 4)
    slot = Slot(yard.room(4096), 32 + wrong)
    for _ in range(3):
        result = yard.run(model, m.Item(ARENA, [yard.put(x, FLOAT)], [slot]))
        np.testing.assert_array_equal(frames_of(result, 0)[0], -x)
    assert not any(yard.segment.buffer[slot.offset : slot.offset + 4096])


def test_declared_shapes_that_lie_are_answered_with_what_comes_out(yard: Yard, onnx_models: Any) -> None:
    """onnxruntime only warns of an output of another shape than its model declares."""
    path = onnx_models.save(
        "liar", [("Reshape", ["x", "to"], ["y"], {})], [("x", FLOAT, [2, 6]), ("to", INT64, [2])],
        [("y", FLOAT, [3, 4])],
    )  # fmt: skip
    model = serve(path)
    x = draw(2, 6)
    for shape in ([3, 4], [4, 3], [12, 1], [3, 4], [4, 3]):
        slot = Slot(yard.room(48), 48)
        item = m.Item(ARENA, [yard.put(x, FLOAT), yard.put(np.array(shape), INT64)], [slot])
        result = yard.run(model, item, rows=0)
        got = frames_of(result, 0)[0] if result.inline_outputs else yard.read(slot, np.float32, [3, 4])
        np.testing.assert_array_equal(got, x.reshape(shape))


@pytest.mark.parametrize("slotted", [True, False], ids=["slots", "frames"])
def test_an_output_that_is_an_input_or_a_constant_is_what_it_is_in_every_request(
    yard: Yard, onnx_models: Any, slotted: bool
) -> None:
    """Bound to a place, onnxruntime does not write it: zeros came back, or an earlier request's answer."""
    path = onnx_models.save(
        "passed", [("Neg", ["x"], ["y"], {})], [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4]), ("x", FLOAT, ["n", 4])],
    )  # fmt: skip
    model = serve(path)
    for turn in range(4):
        inputs = [draw(rows, 4, seed=turn) for rows in (1, 2)]
        items = [m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x, x) if slotted else []) for x in inputs]
        result = yard.run(model, *items)
        for number, (item, x) in enumerate(zip(items, inputs, strict=True)):
            y, passed = read(yard, item, x, x) if slotted else frames_of(result, number)
            np.testing.assert_array_equal(y, -x)
            np.testing.assert_array_equal(passed, x)
    assert model._runner._written == [True, False]


def test_a_run_that_takes_long_is_not_repeated_to_see_what_it_writes(
    yard: Yard, onnx_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease counts from the first, and what is saved is one copy of its outputs."""
    monkeypatch.setattr(runner_module, "TRIED_NS_MAX", 0)
    model = serve(onnx_models.unary("slow", "Neg", ["n", 4]))
    ran: list[int] = []
    compute = model._runner._bindings.run
    model._runner._bindings.run = lambda *run: ran.append(1) or compute(*run)  # type: ignore
    for turn in range(1, 4):
        x = draw(2, 4, seed=turn)
        item = m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x))
        assert yard.run(model, item).inline_outputs == []
        np.testing.assert_array_equal(read(yard, item, x)[0], -x)
        assert len(ran) == turn


def test_an_output_that_is_a_constant_of_its_model_is_answered(yard: Yard, onnx_models: Any) -> None:
    path = onnx_models.save(
        "constant", [("Neg", ["x"], ["y"], {})], [("x", FLOAT, [4])], [("y", FLOAT, [4]), ("c", FLOAT, [3])],
        {"c": np.array([1, 2, 3], np.float32)},
    )  # fmt: skip
    model = serve(path)
    for turn in range(3):
        x = draw(4, seed=turn)
        item = m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x, x[:3]))
        result = yard.run(model, item, rows=0)
        y, c = frames_of(result, 0) if result.inline_outputs else read(yard, item, x, x[:3])
        np.testing.assert_array_equal(y, -x)
        assert c.tolist() == [1, 2, 3]


# ---- requests that run alone ----------------------------------------------------------------------


def test_inputs_that_disagree_in_size_are_run_as_they_are(yard: Yard, onnx_models: Any, reference: Any) -> None:
    path = onnx_models.save(
        "scores", [("Transpose", ["k"], ["t"], {"perm": [1, 0]}), ("MatMul", ["q", "t"], ["y"], {})],
        [("q", FLOAT, ["q", 4]), ("k", FLOAT, ["k", 4])], [("y", FLOAT, ["q", "k"])],
    )  # fmt: skip
    model = serve(path)
    for q, k in ((5, 9), (1, 3), (5, 9)):
        queries, keys = draw(q, 4), draw(k, 4, seed=3)
        result = yard.run(model, m.Item(ARENA, [yard.put(queries, FLOAT), yard.put(keys, FLOAT)], []), rows=0)
        np.testing.assert_array_equal(frames_of(result, 0)[0], reference(path, q=queries, k=keys)[0])


def test_a_model_without_inputs_answers(yard: Yard, onnx_models: Any) -> None:
    path = onnx_models.save(
        "nothing", [("Neg", ["c"], ["y"], {})], [], [("y", FLOAT, [3])], {"c": np.array([1, 2, 3], np.float32)}
    )
    model = serve(path)
    assert not model.batchable
    slot = Slot(yard.room(12), 12)
    for _ in range(3):
        assert yard.run(model, m.Item(ARENA, [], [slot]), rows=0).inline_outputs == []
        assert yard.read(slot, np.float32, 3).tolist() == [-1, -2, -3]


def test_an_input_with_a_default_may_be_left_out(yard: Yard, onnx_models: Any) -> None:
    import onnx

    path = onnx_models.save(
        "default", [("Mul", ["x", "w"], ["y"], {})], [("x", FLOAT, ["n", 2]), ("w", FLOAT, [2])],
        [("y", FLOAT, ["n", 2])], {"w": np.array([10, 100], np.float32)},
    )  # fmt: skip
    assert len(onnx.load(str(path)).graph.input) == 2
    model = serve(path)
    assert [spec.optional for spec in model.inputs] == [False, True]
    x, given = np.ones((1, 2), np.float32), np.array([2, 3], np.float32)
    for right, second in (([10, 100], None), ([2, 3], given), ([10, 100], None)):
        tensor = Tensor(ABSENT, [], 0) if second is None else yard.put(second, FLOAT)
        result = yard.run(model, m.Item(ARENA, [yard.put(x, FLOAT), tensor], []))
        assert frames_of(result, 0)[0].tolist() == [right]


@pytest.mark.parametrize("shape", [[], [0], [2, 3]])
def test_strings_go_in_and_come_out(yard: Yard, onnx_models: Any, shape: list[int]) -> None:
    axes: list[Any] = [f"d{index}" for index in range(len(shape))]
    model = serve(onnx_models.unary(f"strings{len(shape)}", "Identity", axes, STRING))
    assert not model.batchable
    count = int(np.prod(shape))
    texts = [f"t{'ä' * n}" for n in range(count)]
    data = strings.encode(texts)
    offset = yard.room(len(data))
    yard.segment.buffer[offset : offset + len(data)] = data
    for _ in range(3):
        result = yard.run(model, m.Item(ARENA, [Tensor(STRING, shape, offset, 0, len(data))], []), rows=0)
        (tensor,) = result.inline_outputs[0].outputs
        assert (tensor.dtype, tensor.shape, tensor.strings_nbytes) == (STRING, shape, len(data))
        part = bytes(result.frames[0])[tensor.offset : tensor.offset + tensor.strings_nbytes]
        assert strings.decode(part, tensor.shape).ravel().tolist() == texts


# ---- rows that are none after all -----------------------------------------------------------------


@pytest.fixture(scope="module")
def positive(onnx_models: Any) -> Path:
    """The rows of x float32[n, 2] whose first number is above 0."""
    found: Path = onnx_models.save(
        "positive",
        [("Gather", ["x", "zero"], ["first"], {"axis": 1}), ("Greater", ["first", "none"], ["keep"], {}),
         ("Compress", ["x", "keep"], ["y"], {"axis": 0})],
        [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 2])],
        {"zero": np.array(0, np.int64), "none": np.array(0, np.float32)},
    )  # fmt: skip
    return found


def rows(*first: float) -> Array:
    return np.array([[value, 7] for value in first], np.float32)


@pytest.mark.parametrize("slotted", [True, False], ids=["slots", "frames"])
def test_a_run_that_shows_that_rows_are_none_is_run_again_one_by_one(
    yard: Yard, positive: Path, slotted: bool
) -> None:
    model = serve(positive, trusted=True)
    assert model.batchable
    batches = [[rows(1), rows(2, 3)], [rows(1, 2), rows(-1, 5), rows(-4)], [rows(1), rows(2)]]
    for number, inputs in enumerate(batches):
        items = [m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x) if slotted else []) for x in inputs]
        result = yard.run(model, *items)
        in_frames = {entry.item for entry in result.inline_outputs}
        for place, (item, x) in enumerate(zip(items, inputs, strict=True)):
            (got,) = frames_of(result, place) if place in in_frames else read(yard, item, x)
            np.testing.assert_array_equal(got, x[x[:, 0] > 0])
        assert bool(model.disproved) is (number > 0)
    assert model.disproved == "output 'y' came out with shape [3, 2] for 5 rows"
    assert model.alone_reason == "" or not model.batchable


def test_foreseen_slots_that_come_again_are_written_in_place_until_another_shape_comes_out(
    yard: Yard, positive: Path
) -> None:
    model = serve(positive)
    given = yard.put(rows(1, -1, 2), FLOAT)
    held = np.frombuffer(yard.segment.buffer, np.float32, 6, given.offset).reshape(3, 2)
    slot = yard.room(16)
    item = m.Item(ARENA, [given], [Slot(slot, 16, [2, 2])])
    copied = []
    for turn in range(6):
        held[:] = rows(1 + turn, -1, 2)
        result = yard.run(model, item)
        copied.append(result.copied_bytes)
        assert not result.inline_outputs
        np.testing.assert_array_equal(yard.read(item.outputs[0], np.float32, (2, 2)), rows(1 + turn, 2))
    assert copied[0] > 0
    assert copied[-1] == 0
    for turn in range(3):
        held[:] = rows(1, 5 + turn, 2)
        (got,) = frames_of(yard.run(model, item), 0)
        np.testing.assert_array_equal(got, held)
    held[:] = rows(-1, 3, -2)
    (got,) = frames_of(yard.run(model, item), 0)
    np.testing.assert_array_equal(got, rows(3))


def test_a_part_that_comes_after_that_is_run_as_its_whole_request(yard: Yard, positive: Path) -> None:
    """The broker throws it away, and lends the request once more: it only must not fail."""
    model = serve(positive, trusted=True)
    yard.run(model, m.Item(ARENA, [yard.put(rows(-1, 1), FLOAT)], []))
    assert model.disproved
    x = rows(1, 2, 3, -4, 5)
    part = m.Item(ARENA, [yard.put(x, FLOAT)], [], b"", 3, 2)
    for lent_rows in (0, 2):
        (got,) = frames_of(yard.run(model, part, rows=lent_rows), 0)
        np.testing.assert_array_equal(got, x[x[:, 0] > 0])


def test_packed_rows_are_checked_by_themselves_and_refused_where_they_mix(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.mixing(2))
    assert model.batchable
    x = rows(1, 2, 3)
    item = m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x), packed=True)
    yard.run(model, item)
    np.testing.assert_array_equal(read(yard, item, x)[0], x)
    odd = rows(1, 1234.5, 3, 4)
    mixed = m.Item(ARENA, [yard.put(odd, FLOAT)], slots(yard, odd), packed=True)
    with pytest.raises(ItemRefused, match="rows of 4 requests, run together and by themselves, differ"):
        yard.run(model, mixed)
    assert model.disproved
    for lent_rows in (0, 3):
        with pytest.raises(ItemRefused, match="packed requests of 'net' may not share a run"):
            yard.run(model, item, rows=lent_rows)
    one = m.Item(ARENA, [yard.put(odd, FLOAT)], slots(yard, odd))  # a caller's own rows run as he gave them
    yard.run(model, one)
    np.testing.assert_array_equal(read(yard, one, odd)[0], odd + 1)


def test_packed_handles_that_come_again_are_looked_at_again(
    yard: Yard, onnx_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(onnx_models.unary("again", "Neg", ["n", 4]))
    asked = []
    monkeypatch.setattr(runner_module.SpotChecks, "wants", lambda *_: bool(asked.append(1)))
    for is_packed in (False, True):
        asked.clear()
        x = draw(3, 4)
        item = m.Item(ARENA, [yard.put(x, FLOAT)], slots(yard, x), packed=is_packed)
        for _ in range(6):
            yard.run(model, item)
        np.testing.assert_array_equal(read(yard, item, x)[0], -x)
        assert len(asked) == (6 if is_packed else 0)


def test_a_model_that_filters_rows_is_not_batched_where_that_is_seen_at_load(positive: Path) -> None:
    model = serve(positive)
    assert not model.batchable
    assert "output 'y' has shape" in model.alone_reason


def test_a_spot_check_is_no_part_of_what_a_batch_takes(
    yard: Yard, onnx_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would expect it of every batch of that size."""
    clock = [0]

    def checked(*_: Any) -> None:
        clock[0] += 1_000_000

    monkeypatch.setattr(runner_module, "perf_counter_ns", lambda: clock[0])
    monkeypatch.setattr(runner_module, "check_pieces", checked)
    model = serve(onnx_models.unary("checked", "Neg", ["n", 4]))
    result = yard.run(model, *(m.Item(ARENA, [yard.put(draw(1, 4), FLOAT)], []) for _ in range(3)))
    assert clock[0]
    assert result.gather_ns + result.compute_ns + result.scatter_ns == 0
