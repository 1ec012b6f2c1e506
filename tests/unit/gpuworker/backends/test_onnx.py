"""Served models against plain onnxruntime: however a batch's tensors lie, the answers are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker.answers import IN_PLACE_MIN_BYTES, Result
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.handles import ItemRefused
from batchyard.gpuworker.memory import Memory
from batchyard.gpuworker.providers import recipe
from batchyard.transport import codec, segments
from batchyard.transport import messages as m
from batchyard.transport.dtypes import BY_CODE, DType
from batchyard.transport.tensors import Slot, Tensor

ARENA = 1
ARENA_BYTES = 16 << 20

Array = np.ndarray[Any, Any]


def serve(path: Path, max_batch: int = 8, batchable: bool | None = None, warmup: bool = False) -> ServedModel:
    return ServedModel(m.Load("net", 1, str(path), max_batch, batchable, warmup), recipe("cpu", 1))


class Yard:
    """An arena as a client writes it, mapped once more as a worker does."""

    def __init__(self) -> None:
        self.segment = segments.create(ARENA_BYTES)
        self.memory = Memory()
        self.memory.attach(ARENA, self.segment.handle, os.getpid())
        self.next = 0

    def close(self) -> None:
        self.memory.detach_all()
        self.segment.close()

    def room(self, nbytes: int, gap: int = 0) -> int:
        """A place for so many bytes, `gap` bytes behind the last one."""
        offset = self.next + gap
        self.next = offset + nbytes
        return offset

    def put(self, array: Array, code: int, gap: int = 0) -> Tensor:
        data = np.ascontiguousarray(array).tobytes()
        offset = self.room(len(data), gap)
        self.segment.buffer[offset : offset + len(data)] = data
        return Tensor(code, list(array.shape), offset)

    def read(self, slot: Slot, dtype: Any, shape: Sequence[int]) -> Array:
        data = bytes(self.segment.buffer[slot.offset : slot.offset + slot.nbytes])
        return np.frombuffer(data, dtype).reshape(shape)

    def run(self, model: ServedModel, *items: m.Item, rows: int | None = None) -> Result:
        total = sum(item.inputs[0].shape[0] for item in items) if rows is None else rows
        batch = m.Batch(1, "net", 1, total, folded(items) if total else list(items))
        (lent,) = codec.broker_to_worker.decode(codec.encode([batch]))
        return model.run(lent, self.memory)


def folded(items: Sequence[m.Item]) -> list[m.Item]:
    """Items as the broker sends them: whole requests that are alike share one."""
    kinds: list[Any] = []
    sent: list[m.Item] = []
    for item in items:
        shapes = [(tensor.dtype, tensor.shape) for tensor in item.inputs]
        kind = item.arena, shapes, [slot.nbytes for slot in item.outputs], item.packed
        is_whole = not (item.rows or item.digest or any(tensor.strings_nbytes for tensor in item.inputs))
        if is_whole and kinds and kinds[-1] == kind and kind[1]:
            sent[-1].more += [place.offset for place in (*item.inputs, *item.outputs)]
            continue
        kinds.append(kind if is_whole else None)
        sent.append(m.Item(item.arena, item.inputs, item.outputs, item.digest, item.start, item.rows, [], item.packed))
    return sent


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def answers(
    yard: Yard, model: ServedModel, inputs: Sequence[Array], width: int, gap: int
) -> tuple[list[Array], Result]:
    """Run arrays as one batch of float32, `gap` bytes between neighbours, and read the slots."""
    tensors = [yard.put(x, 1, gap) for x in inputs]
    slots = [Slot(yard.room(len(x) * width * 4, gap), len(x) * width * 4) for x in inputs]
    items = [m.Item(ARENA, [tensor], [slot]) for tensor, slot in zip(tensors, slots, strict=True)]
    result = yard.run(model, *items)
    assert result.inline_outputs == []
    assert result.frames == []
    read = [yard.read(slot, np.float32, (len(x), width)) for x, slot in zip(inputs, slots, strict=True)]
    return read, result


@pytest.mark.parametrize("gap", [0, 64])
@pytest.mark.parametrize("width", [4, 96, 40_000], ids=["small", "middle", "big"])
@pytest.mark.parametrize("rows", [(1,), (1, 1, 1), (2, 1, 3)], ids=str)
def test_in_place_gathered_and_scattered_runs_all_answer_like_plain_onnxruntime(
    yard: Yard, onnx_models: Any, reference: Any, gap: int, width: int, rows: tuple[int, ...]
) -> None:
    path = onnx_models.affine(f"affine{width}", width, 8)
    model = serve(path)
    rng = np.random.default_rng(width)
    for _ in range(3):  # the second and third time bindings are cached
        inputs = [rng.standard_normal((count, width)).astype(np.float32) for count in rows]
        got, _ = answers(yard, model, inputs, 8, gap)
        (expected,) = reference(path, x=np.concatenate(inputs))
        np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-4, atol=1e-4)


def test_the_same_handles_again_answer_what_lies_there_now(
    yard: Yard, onnx_models: Any, reference: Any
) -> None:
    """Handles that come again are bound for good; the bytes behind them are another request's."""
    path = onnx_models.affine("again", 4, 3)
    model = serve(path)
    rng = np.random.default_rng(1)
    for _ in range(5):
        yard.next = 0
        x = rng.standard_normal((2, 4)).astype(np.float32)
        (got,), _ = answers(yard, model, [x], 3, 64)
        np.testing.assert_allclose(got, reference(path, x=x)[0], rtol=1e-5)


def test_the_same_handles_after_an_arena_was_exchanged_answer_from_the_new_one(onnx_models: Any) -> None:
    path = onnx_models.unary("copy", "Identity", ["n", 4])
    model = serve(path)
    for value in (1, 2):
        yard = Yard()
        x = np.full((1, 4), value, np.float32)
        for _ in range(3):
            yard.next = 0
            (got,), _ = answers(yard, model, [x], 4, 0)
            assert (got == value).all()
        model.forget_bindings()
        yard.close()


def test_big_neighbours_are_run_where_they_lie_and_nothing_is_copied(yard: Yard, onnx_models: Any) -> None:
    width = IN_PLACE_MIN_BYTES // 4
    model = serve(onnx_models.unary("big", "Neg", ["n", width]))
    inputs = [np.full((1, width), value, np.float32) for value in (1, 2, 3)]
    for _ in range(2):  # these are run by each request, too
        answers(yard, model, inputs, width, 0)
    got, result = answers(yard, model, inputs, width, 0)
    assert [float(y[0, 0]) for y in got] == [-1, -2, -3]
    assert result.copied_bytes == 0


def test_big_tensors_that_are_no_neighbours_are_not_copied_either(yard: Yard, onnx_models: Any) -> None:
    width = (2 << 20) // 4
    model = serve(onnx_models.unary("apart", "Neg", ["n", width]), max_batch=2)
    inputs = [np.full((1, width), value, np.float32) for value in (1, 2)]
    yard.run(model, m.Item(ARENA, [yard.put(inputs[0], 1)], []))
    yard.next = 0
    got, result = answers(yard, model, inputs, width, 4096)
    assert [float(y[0, -1]) for y in got] == [-1, -2]
    assert result.copied_bytes == 0


def test_what_is_copied_is_counted(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("small", "Neg", ["n", 4]))
    _, result = answers(yard, model, [np.ones((1, 4), np.float32)] * 2, 4, 64)
    assert result.copied_bytes == 2 * 16 * 2
    assert result.compute_ns > 0


def test_items_of_several_arenas_share_a_batch(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("shared", "Neg", ["n", 4]))
    other = Yard()
    try:
        yard.memory.attach(2, other.segment.handle, os.getpid())
        mine, theirs = (
            yard.put(np.full((1, 4), 1, np.float32), 1),
            other.put(np.full((1, 4), 2, np.float32), 1),
        )
        slots = [Slot(yard.room(16), 16), Slot(other.room(16), 16)]
        yard.run(model, m.Item(ARENA, [mine], [slots[0]]), m.Item(2, [theirs], [slots[1]]))
        assert yard.read(slots[0], np.float32, 4)[0] == -1
        assert other.read(slots[1], np.float32, 4)[0] == -2
    finally:
        model.forget_bindings()
        yard.memory.detach(2)
        other.close()


@pytest.mark.parametrize("width", [4, 70_000], ids=["gathered", "in place"])
def test_several_inputs_and_outputs_keep_their_order(
    yard: Yard, onnx_models: Any, reference: Any, width: int
) -> None:
    path = onnx_models.save(
        f"several{width}",
        [("Sub", ["a", "b"], ["d"], {}), ("Add", ["a", "b"], ["s"], {}), ("Neg", ["k"], ["j"], {})],
        [("a", 1, ["n", width]), ("b", 1, ["n", width]), ("k", 7, ["n"])],
        [("d", 1, ["n", width]), ("s", 1, ["n", width]), ("j", 7, ["n"])],
    )
    model = serve(path)
    rng = np.random.default_rng(0)
    feeds = []
    items = []
    for rows in (2, 1):
        a, b = (rng.standard_normal((rows, width)).astype(np.float32) for _ in "ab")
        k = rng.integers(0, 99, rows)
        feeds.append((a, b, k))
        tensors = [yard.put(a, 1), yard.put(b, 1), yard.put(k, 7)]
        sizes = (a.nbytes, a.nbytes, k.nbytes)
        items.append(m.Item(ARENA, tensors, [Slot(yard.room(nbytes), nbytes) for nbytes in sizes]))
    yard.run(model, *items)
    for (a, b, k), item in zip(feeds, items, strict=True):
        expected = reference(path, a=a, b=b, k=k)
        for slot, want in zip(item.outputs, expected, strict=True):
            np.testing.assert_array_equal(yard.read(slot, want.dtype, want.shape), want)


def test_outputs_without_slots_come_back_as_frames(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("frames", "Neg", ["n", 4]))
    inputs = [np.full((rows, 4), rows, np.float32) for rows in (1, 2)]
    result = yard.run(model, *(m.Item(ARENA, [yard.put(x, 1)], []) for x in inputs))
    assert [entry.item for entry in result.inline_outputs] == [0, 1]
    for x, entry in zip(inputs, result.inline_outputs, strict=True):
        (tensor,) = entry.outputs
        assert (tensor.dtype, tensor.shape) == (1, list(x.shape))
        np.testing.assert_array_equal(np.frombuffer(result.frames[tensor.frame - 1], np.float32), -x.ravel())


def test_items_with_slots_and_items_without_share_a_batch(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("mixed", "Neg", ["n", 4]))
    first, second, third = (yard.put(np.full((1, 4), value, np.float32), 1) for value in (1, 2, 3))
    slots = [Slot(yard.room(16), 16) for _ in range(2)]
    result = yard.run(
        model,
        m.Item(ARENA, [first], [slots[0]]),
        m.Item(ARENA, [second], []),
        m.Item(ARENA, [third], [slots[1]]),
    )
    assert [yard.read(slot, np.float32, 4)[0] for slot in slots] == [-1, -3]
    assert [entry.item for entry in result.inline_outputs] == [1]
    assert np.frombuffer(result.frames[0], np.float32)[0] == -2


@pytest.mark.parametrize("width", [3, 9, 0])
def test_outputs_with_a_free_axis_come_back_as_frames_with_their_shape(
    yard: Yard, onnx_models: Any, width: int
) -> None:
    model = serve(onnx_models.unary("free", "Neg", ["n", "width"]))
    inputs = [np.arange(rows * width, dtype=np.float32).reshape(rows, width) for rows in (2, 1)]
    result = yard.run(model, *(m.Item(ARENA, [yard.put(x, 1)], []) for x in inputs))
    for x, entry in zip(inputs, result.inline_outputs, strict=True):
        (tensor,) = entry.outputs
        assert tensor.shape == list(x.shape)
        np.testing.assert_array_equal(np.frombuffer(result.frames[tensor.frame - 1], np.float32), -x.ravel())


# ---- element types ------------------------------------------------------------------------------

ORT_IDENTITY_LACKS = {"float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"}  # in opset 18
BITS = [0, 1, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("sized", [True, False], ids=["slots", "frames"])
@pytest.mark.parametrize(
    "entry", [entry for entry in BY_CODE.values() if entry.itemsize], ids=lambda entry: entry.name
)
def test_every_element_type_passes_through_unchanged(
    yard: Yard, onnx_models: Any, entry: DType, sized: bool
) -> None:
    float8 = entry.name in ORT_IDENTITY_LACKS
    path = onnx_models.unary(
        f"identity_{entry.name}_{sized}",
        "Identity",
        ["n", 4 if sized else "w"],
        entry.code,
        19 if float8 else 18,
    )
    try:
        model = serve(path, warmup=True)
    except CannotServe as refusal:
        if not entry.name.startswith(("complex", "float8")) or "does not run" not in str(refusal):
            raise
        pytest.skip(f"onnxruntime has no Identity of {entry.name}")
    data = bytes(BITS) if entry.name == "bool" else bytes(range(8 * entry.itemsize))
    nbytes = len(data)
    offset = yard.room(nbytes)
    yard.segment.buffer[offset : offset + nbytes] = data
    slot = Slot(yard.room(nbytes), nbytes)
    item = m.Item(ARENA, [Tensor(entry.code, [2, 4], offset)], [slot] if sized else [])
    for _ in range(3):
        result = yard.run(model, item)
        if sized:
            assert bytes(yard.segment.buffer[slot.offset : slot.offset + nbytes]) == data
        else:
            ((tensor,),) = (one.outputs for one in result.inline_outputs)
            assert (tensor.dtype, tensor.shape) == (entry.code, [2, 4])
            assert bytes(result.frames[-1]) == data


# ---- models that cannot batch -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes_in", "axes_out", "why"),
    [
        ([1, 4], [1, 4], "every axis of output 'y' is fixed (y: float32[1, 4])"),
        (["n", 4], [1, 4], "every axis of output 'y' is fixed (y: float32[1, 4])"),
        ([], [], "does not say how many axes output 'y' has"),
    ],
)
def test_a_model_without_a_free_batch_axis_runs_alone_and_says_why(
    onnx_models: Any, axes_in: list[Any], axes_out: list[Any], why: str
) -> None:
    name = f"alone_{len(axes_in)}_{axes_in[:1]}_{axes_out[:1]}"
    path = onnx_models.save(name, [("Neg", ["x"], ["y"], {})], [("x", 1, axes_in)], [("y", 1, axes_out)])
    model = serve(path)
    assert not model.batchable
    assert model.max_batch == 1
    assert why in model.alone_reason


def test_a_model_whose_outputs_do_not_follow_the_rows_is_found_out_when_it_is_loaded(onnx_models: Any) -> None:
    path = onnx_models.save(
        "unique", [("Unique", ["x"], ["y"], {"sorted": 1})], [("x", 1, ["n"])], [("y", 1, ["distinct"])]
    )
    model = serve(path)
    assert not model.batchable
    assert "axis 0 of 'x' may count rows, but rows run " in model.alone_reason


def test_an_operator_may_say_that_a_model_does_not_batch(onnx_models: Any) -> None:
    model = serve(onnx_models.unary("said", "Neg", ["n", 4]), batchable=False)
    assert not model.batchable
    assert "batchable = false" in model.alone_reason


def test_a_model_that_runs_alone_takes_its_whole_shape(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("whole", "Neg", [3, 4]))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    slot = Slot(yard.room(48), 48)
    item = m.Item(ARENA, [yard.put(x, 1)], [slot])
    for _ in range(3):
        yard.run(model, item, rows=0)
        np.testing.assert_array_equal(yard.read(slot, np.float32, (3, 4)), -x)


def test_a_scalar_goes_in_and_comes_out(yard: Yard, onnx_models: Any) -> None:
    """In a frame, unless its client expects it: onnxruntime says the same of a scalar and of any shape."""
    model = serve(onnx_models.unary("scalar", "Neg", [], 7), warmup=True)
    for _ in range(3):
        result = yard.run(model, m.Item(ARENA, [yard.put(np.array(7, np.int64), 7)], []), rows=0)
        (tensor,) = result.inline_outputs[0].outputs
        assert tensor.shape == []
        assert np.frombuffer(result.frames[0], np.int64) == -7
    slot = Slot(yard.room(8), 8)
    for _ in range(3):
        result = yard.run(model, m.Item(ARENA, [yard.put(np.array(7, np.int64), 7)], [slot]), rows=0)
        assert not result.inline_outputs
        assert yard.read(slot, np.int64, ()) == -7


def test_outputs_of_unknown_size_of_a_model_that_runs_alone_come_back_whole(
    yard: Yard, onnx_models: Any
) -> None:
    path = onnx_models.save(
        "nonzero", [("NonZero", ["x"], ["y"], {})], [("x", 1, [6])], [("y", 7, [1, "found"])]
    )
    model = serve(path, warmup=True)
    for x, found in (([0, 1, 0, 0, 5, 0], [1, 4]), ([0] * 6, [])):
        result = yard.run(model, m.Item(ARENA, [yard.put(np.array(x, np.float32), 1)], []), rows=0)
        (tensor,) = result.inline_outputs[0].outputs
        assert tensor.shape == [1, len(found)]
        assert np.frombuffer(result.frames[0], np.int64).tolist() == found


# ---- what cannot be served ----------------------------------------------------------------------


def test_a_file_that_is_no_model_cannot_be_served_and_says_so_in_one_line(
    tmp_path: Path, onnx_models: Any
) -> None:
    whole = onnx_models.affine("cut", 16, 16).read_bytes()
    for name, content in (
        ("noise", b"\x00garbage\xff" * 50),
        ("empty", b""),
        ("cut", whole[: len(whole) // 2]),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(CannotServe) as caught:
            serve(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value)
        assert str(tmp_path) not in str(caught.value), "clients read it, over the gateway as well"


def test_a_file_that_is_not_there_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="there is no such file") as caught:
        serve(tmp_path / "nothing.onnx")
    assert str(tmp_path) not in str(caught.value)


def test_warm_up_times_every_power_of_two_up_to_the_maximum(onnx_models: Any) -> None:
    model = serve(onnx_models.unary("warm", "Neg", ["n", 4]), max_batch=6, warmup=True)
    assert list(model.warmup_ns) == [1, 2, 4, 6]
    assert all(time_ns > 0 for time_ns in model.warmup_ns.values())


# ---- handles that lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        m.Item(ARENA, [Tensor(1, [1, 4], ARENA_BYTES - 8)], [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(1, [1, 4], ARENA_BYTES)], [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(1, [1, 4], 1 << 45)], [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(1, [1, 4], 0)], [Slot(ARENA_BYTES - 8, 16)]),
        m.Item(9, [Tensor(1, [1, 4], 0)], [Slot(0, 16)]),
        m.Item(ARENA, [], [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(1, [1, 4], 0)] * 2, [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(99, [1, 4], 0)], [Slot(0, 16)]),
        m.Item(ARENA, [Tensor(1, [1 << 40, 1 << 40], 0)], [Slot(0, 16)]),
    ],
    ids=range(9),
)
def test_an_item_with_a_lying_handle_is_refused_by_its_place_in_the_batch(
    yard: Yard, onnx_models: Any, bad: m.Item
) -> None:
    model = serve(onnx_models.unary("lies", "Neg", ["n", 4]))
    good = m.Item(ARENA, [yard.put(np.ones((1, 4), np.float32), 1)], [Slot(yard.room(16), 16)])
    for place in range(3):
        items = [good] * 3
        items[place] = bad
        for _ in range(3):
            with pytest.raises(ItemRefused) as caught:
                yard.run(model, *items, rows=3)
            assert caught.value.item == place
    yard.run(model, good, good)


def test_bytes_that_are_no_items_are_refused(yard: Yard, onnx_models: Any) -> None:
    import msgspec

    model = serve(onnx_models.unary("noitems", "Neg", ["n", 4]))
    for items in (5, "text", [[1]], [[1, [[1, [-1], 0, 0]], []]], {"a": 1}):
        lent = m.LentBatch(1, "net", 1, 1, msgspec.Raw(msgspec.msgpack.encode(items)))
        with pytest.raises(ItemRefused):
            model.run(lent, yard.memory)


def test_a_segment_that_cannot_be_mapped_refuses_its_requests_with_the_reason(onnx_models: Any) -> None:
    memory = Memory()
    memory.attach(3, segments.SegmentHandle("memfd", "999999:1", 4096), os.getpid())
    with pytest.raises(ValueError, match="not mapped here: the offered descriptor"):
        memory.range(3, 0, 16)
    with pytest.raises(ValueError, match="never announced"):
        memory.range(4, 0, 16)
    memory.detach(3)
    memory.detach(3)


def test_detaching_unmaps(yard: Yard) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:batchyard")

    before = mapped()
    yard.memory.detach(ARENA)
    assert mapped() == before - 1


def test_rows_are_not_dealt_out_when_the_outputs_do_not_follow_them(yard: Yard, onnx_models: Any) -> None:
    """One client once got another's rows: axis 0 of the output was free, and was not the batch."""
    nodes = [
        ("Shape", ["x"], ["width"], {"start": 1}),
        ("Div", ["width", "two"], ["half"], {}),
        ("Concat", ["all", "half"], ["shape"], {"axis": 0}),
        ("Reshape", ["x", "shape"], ["y"], {}),
    ]
    constants = {"two": np.array([2], np.int64), "all": np.array([-1], np.int64)}
    path = onnx_models.save("half", nodes, [("x", 1, ["n", "w"])], [("y", 1, ["m", "k"])], constants)
    assert not serve(path).batchable
    load = m.Load("net", 1, str(path), 8, None, False, batch_axis=0, trusted=True)
    model = ServedModel(load, recipe("cpu", 1))
    items = [m.Item(ARENA, [yard.put(np.full((1, 4), n, np.float32), 1)], []) for n in (1, 2)]
    assert model.disproved == ""
    result = yard.run(model, *items)  # its operator vouches for it; the run shows that it is not so
    assert "output 'y' came out with shape [4, 2] for 2 rows" in model.disproved
    assert [np.frombuffer(frame, np.float32).tolist() for frame in result.frames] == [[1] * 4, [2] * 4]
    for n, item in enumerate(items, start=1):
        (frame,) = yard.run(model, item).frames
        assert np.frombuffer(frame, np.float32).tolist() == [n] * 4


def test_rows_that_only_real_values_show_to_depend_on_each_other_are_found_by_their_first_batch(
    yard: Yard, onnx_models: Any
) -> None:
    """At two millions, which nobody draws, the mean of all rows counts."""
    path = onnx_models.save(
        "rare",
        [
            ("ReduceMean", ["x", "zero"], ["mean"], {"keepdims": 1}),
            ("ReduceMax", ["x"], ["top"], {"keepdims": 0}),
            ("Equal", ["top", "rare"], ["is_rare"], {}),
            ("Sub", ["x", "mean"], ["centred"], {}),
            ("Where", ["is_rare", "centred", "x"], ["y"], {}),
        ],
        [("x", 1, ["n", 4])],
        [("y", 1, ["n", 4])],
        {"zero": np.array([0]), "rare": np.array(2e6, np.float32)},
    )
    model = serve(path)
    assert model.batchable
    tensors = [yard.put(np.full((1, 4), value, np.float32), 1, 0) for value in (1, 2e6, 3)]
    result = yard.run(model, *(m.Item(ARENA, [tensor], []) for tensor in tensors))
    firsts = [np.frombuffer(frame, np.float32)[0] for frame in result.frames]
    assert firsts == [1, 0, 3], "each as if it were alone"
    assert "run together and by themselves, differ by" in model.disproved
