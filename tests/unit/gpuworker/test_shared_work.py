"""What the worker does for work that is shared and for sizes that are padded, with real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker import warmup
from batchyard.gpuworker.answers import IN_PLACE_MIN_BYTES
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.providers import recipe
from batchyard.gpuworker.runner import APART_MIN_BYTES
from batchyard.tests.unit.gpuworker.backends.test_onnx import ARENA, Array, Yard
from batchyard.transport import messages as m
from batchyard.transport.digests import digest
from batchyard.transport.tensors import Slot

BUCKETS = [1, 4, 16]


def serve(
    path: Path,
    buckets: Sequence[int] = (),
    max_batch: int = 16,
    warmup: bool = False,
    batchable: bool | None = None,
) -> ServedModel:
    return ServedModel(
        m.Load("net", 1, str(path), max_batch, batchable, warmup, list(buckets)), recipe("cpu", 1)
    )


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def draw(count: int, width: int = 4, seed: int = 0) -> Array:
    return np.random.default_rng(seed + count).standard_normal((count, width)).astype(np.float32)


def slotted(yard: Yard, x: Array, width: int) -> m.Item:
    return m.Item(ARENA, [yard.put(x, 1)], [Slot(yard.room(len(x) * width * 4), len(x) * width * 4)])


def shared(yard: Yard, *inputs: Array, gap: int = 0) -> m.Item:
    """An item whose result others want too."""
    of = digest([np.ascontiguousarray(x).tobytes() for x in inputs])
    return m.Item(ARENA, [yard.put(x, 1, gap) for x in inputs], [], of)


# ---- digests ------------------------------------------------------------------------------------


def test_what_is_as_its_digest_says_is_answered_in_frames_and_nothing_is_said(
    yard: Yard, onnx_models: Any
) -> None:
    model = serve(onnx_models.unary("neg", "Neg", ["n", 4]))
    inputs = [draw(rows) for rows in (1, 3, 2)]
    result = yard.run(model, *(shared(yard, x) for x in inputs))
    assert result.changed == []
    assert [entry.item for entry in result.inline_outputs] == [0, 1, 2]
    assert [frame == (-x).tobytes() for frame, x in zip(result.frames, inputs, strict=True)] == [True] * 3


@pytest.mark.parametrize("changed", [{0}, {1}, {2}, {0, 2}], ids=str)
def test_what_was_changed_since_is_named_and_the_others_are_not(
    yard: Yard, onnx_models: Any, changed: set[int]
) -> None:
    model = serve(onnx_models.unary("neg", "Neg", ["n", 4]))
    items = [shared(yard, draw(rows, seed=rows)) for rows in (2, 1, 3)]
    for index in changed:
        tensor = items[index].inputs[0]
        last = tensor.offset + tensor.shape[0] * 16 - 1
        yard.segment.buffer[last] ^= 1
    assert yard.run(model, *items).changed == sorted(changed)


def test_all_inputs_are_compared(yard: Yard, onnx_models: Any) -> None:
    path = onnx_models.save(
        "sub",
        [("Sub", ["a", "b"], ["y"], {})],
        [("a", 1, ["n", 4]), ("b", 1, ["n", 4])],
        [("y", 1, ["n", 4])],
    )
    model = serve(path)
    item = shared(yard, draw(2), draw(2, seed=9))
    assert yard.run(model, item).changed == []
    yard.segment.buffer[item.inputs[1].offset] ^= 1
    assert yard.run(model, item).changed == [0]


def test_items_without_a_digest_are_not_compared(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("neg", "Neg", ["n", 4]))
    own = slotted(yard, draw(1), 4)
    result = yard.run(model, own, shared(yard, draw(2)), slotted(yard, draw(3), 4))
    assert result.changed == []
    assert [entry.item for entry in result.inline_outputs] == [1], "the others are in their slots"
    assert (yard.read(own.outputs[0], np.float32, (1, 4)) == -draw(1)).all()


def test_what_others_want_is_copied_first_however_large_it_is(yard: Yard, onnx_models: Any) -> None:
    """Where it lies its client could change it between the comparison and the run."""
    width = IN_PLACE_MIN_BYTES // 4
    model = serve(onnx_models.unary("big", "Neg", ["n", width]))
    x = draw(2, width)
    yard.run(model, slotted(yard, x, width))
    alone = yard.run(model, slotted(yard, x, width))
    assert alone.copied_bytes == 0
    for _ in range(3):  # handles that come again are bound for good, but not these
        yard.next = 1 << 20
        result = yard.run(model, shared(yard, x))
        assert result.copied_bytes == 2 * x.nbytes
        assert result.frames == [(-x).tobytes()]
        assert result.changed == []


def test_large_items_that_are_run_one_by_one_are_named_by_their_place_in_the_batch(
    yard: Yard, onnx_models: Any
) -> None:
    width = APART_MIN_BYTES // 4
    model = serve(onnx_models.unary("apart", "Neg", ["n", width]))
    items = [shared(yard, draw(1, width, seed), gap=64) for seed in range(3)]
    yard.segment.buffer[items[2].inputs[0].offset] ^= 1
    result = yard.run(model, *items)
    assert result.changed == [2]
    assert [entry.item for entry in result.inline_outputs] == [0, 1, 2]


def test_a_model_that_runs_alone_compares_its_whole_input(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("alone", "Neg", [3, 4]))
    item = shared(yard, draw(3))
    assert yard.run(model, item, rows=0).changed == []
    yard.segment.buffer[item.inputs[0].offset + 47] ^= 1
    assert yard.run(model, item, rows=0).changed == [0]


# ---- sizes that are padded ----------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 17))
def test_a_padded_run_answers_like_plain_onnxruntime_for_any_rows(
    yard: Yard, onnx_models: Any, reference: Any, size: int
) -> None:
    path = onnx_models.affine("padded", 4, 3)
    model = serve(path, BUCKETS)
    for cut in {1, size // 2, size}:
        parts = [draw(rows, seed=cut) for rows in (cut, size - cut) if rows > 0]
        items = [slotted(yard, x, 3) for x in parts]
        for _ in range(3):
            assert yard.run(model, *items).inline_outputs == []
            got = [
                yard.read(item.outputs[0], np.float32, (len(x), 3))
                for item, x in zip(items, parts, strict=True)
            ]
            np.testing.assert_allclose(
                np.concatenate(got), reference(path, x=np.concatenate(parts))[0], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("size", range(1, 17))
def test_outputs_of_unknown_size_are_cut_back_to_the_rows_that_were_asked_for(
    yard: Yard, onnx_models: Any, size: int
) -> None:
    model = serve(onnx_models.unary("free", "Neg", ["n", "width"]), BUCKETS)
    for parts in ([draw(size)], [draw(1), draw(size - 1)] if size > 1 else []):
        items = [m.Item(ARENA, [yard.put(x, 1)], []) for x in parts]
        if not items:
            continue
        result = yard.run(model, *items)
        assert [entry.outputs[0].shape for entry in result.inline_outputs] == [[len(x), 4] for x in parts]
        assert result.frames == [(-x).tobytes() for x in parts]


@pytest.mark.parametrize("spec", [["n", 4], ["n", "width"]], ids=["known", "unknown"])
def test_the_model_sees_only_the_sizes_that_are_run(yard: Yard, onnx_models: Any, spec: list[Any]) -> None:
    model = serve(onnx_models.unary("seen", "Neg", spec), BUCKETS)
    seen = []
    binding = model._runner._bindings.of
    yard.run(model, m.Item(ARENA, [yard.put(draw(1), 1)], []))  # in which it sees what is written where it asks
    model._runner._bindings.of = lambda form, rows, *rest: seen.append(rows) or binding(form, rows, *rest)  # type: ignore
    for rows in (1, 2, 4, 5, 15, 16):
        yard.run(model, m.Item(ARENA, [yard.put(draw(rows), 1)], []))
    assert seen == [1, 4, 4, 16, 16, 16]


def test_what_makes_a_run_fail_does_not_come_back_as_padding(yard: Yard, onnx_models: Any) -> None:
    """An index that is not in the table fails the run. The next, smaller batch is padded over it."""
    path = onnx_models.save(
        "lookup", [("Gather", ["table", "k"], ["y"], {"axis": 0})], [("k", 7, ["n"])], [("y", 1, ["n", 3])],
        {"table": np.arange(15, dtype=np.float32).reshape(5, 3)},
    )  # fmt: skip
    model = serve(path, BUCKETS)

    def run(*indices: int) -> list[list[float]]:
        result = yard.run(model, m.Item(ARENA, [yard.put(np.array(indices, np.int64), 7)], []))
        return np.frombuffer(result.frames[0], np.float32).reshape(-1, 3).tolist()

    with pytest.raises(Exception, match=r"indices|Gather"):
        run(1, 2, 3, 99)
    assert run(1, 2) == [[3, 4, 5], [6, 7, 8]]
    with pytest.raises(Exception, match=r"indices|Gather"):
        run(*range(5), *[99] * 11)
    assert run(0, 1, 2, 3, 4) == np.arange(15).reshape(5, 3).tolist()


def test_a_size_that_is_met_exactly_is_run_where_it_lies(yard: Yard, onnx_models: Any) -> None:
    width = IN_PLACE_MIN_BYTES // 4
    model = serve(onnx_models.unary("exact", "Neg", ["n", width]), BUCKETS)
    yard.run(model, slotted(yard, draw(1, width), width))  # in which it sees what is written where it asks
    for rows, is_exact in ((1, True), (4, True), (3, False)):
        yard.next = 0
        x = draw(rows, width)
        item = slotted(yard, x, width)
        for _ in range(3):
            result = yard.run(model, item)
            assert (result.copied_bytes == 0) is is_exact
            assert (yard.read(item.outputs[0], np.float32, x.shape) == -x).all()


def test_small_handles_that_come_again_are_bound_for_good_only_where_nothing_is_padded(
    yard: Yard, onnx_models: Any
) -> None:
    model = serve(onnx_models.unary("again", "Neg", ["n", 4]), BUCKETS)
    for rows, is_exact in ((4, True), (3, False)):
        item = slotted(yard, draw(rows), 4)
        for _ in range(3):
            result = yard.run(model, item)
        assert (result.copied_bytes == 0) is is_exact
        assert (yard.read(item.outputs[0], np.float32, (rows, 4)) == -draw(rows)).all()


def test_padding_is_not_compared_with_a_digest(yard: Yard, onnx_models: Any) -> None:
    model = serve(onnx_models.unary("both", "Neg", ["n", 4]), BUCKETS)
    items = [shared(yard, draw(2)), shared(yard, draw(3))]
    result = yard.run(model, *items)
    assert result.changed == []
    assert result.frames == [(-draw(2)).tobytes(), (-draw(3)).tobytes()]
    yard.segment.buffer[items[1].inputs[0].offset] ^= 1
    assert yard.run(model, *items).changed == [1]


def test_rows_are_not_cut_back_when_the_outputs_do_not_follow_them(yard: Yard, onnx_models: Any) -> None:
    """Its axis 0 is no batch, and its operator vouched for one."""
    path = onnx_models.save(
        "turned",
        [("Transpose", ["x"], ["y"], {"perm": [1, 0]})],
        [("x", 1, ["n", "w"])],
        [("y", 1, ["k", "n"])],
    )
    load = m.Load("net", 1, str(path), 16, None, False, BUCKETS, batch_axis={"x": 0, "y": 0}, trusted=True)
    model = ServedModel(load, recipe("cpu", 1))
    assert model.batchable
    result = yard.run(model, m.Item(ARENA, [yard.put(draw(5), 1)], []))
    assert result.frames == [draw(5).T.tobytes()]
    assert "output 'y' came out with shape [4, 16] for 16 rows" in model.disproved


# ---- the warm-up --------------------------------------------------------------------------------


def test_the_warm_up_runs_exactly_the_sizes_that_are_run(onnx_models: Any) -> None:
    path = onnx_models.unary("warm", "Neg", ["n", 4])
    assert list(serve(path, BUCKETS, warmup=True).warmup_ns) == BUCKETS
    assert list(serve(path, [16], warmup=True).warmup_ns) == [16]
    assert list(serve(path, warmup=True).warmup_ns) == [1, 2, 4, 8, 16]


def test_no_size_is_left_out_because_the_others_took_long(onnx_models: Any, monkeypatch: Any) -> None:
    """A size that has not been run may be slow, or fail, when a request meets it."""
    path = onnx_models.unary("warm", "Neg", ["n", 4])
    monkeypatch.setattr(warmup, "WARMUP_NS_MAX", 0)
    monkeypatch.setattr(warmup, "WARMUP_BYTES_MAX", 0)
    assert list(serve(path, BUCKETS, warmup=True).warmup_ns) == BUCKETS
    assert list(serve(path, warmup=True).warmup_ns) == [1]


@pytest.mark.parametrize("axes", [[3, 4], ["n", 4]], ids=["found out", "said"])
def test_a_model_that_runs_alone_has_no_sizes(yard: Yard, onnx_models: Any, axes: list[Any]) -> None:
    model = serve(
        onnx_models.unary("single", "Neg", axes),
        BUCKETS,
        warmup=True,
        batchable=False if axes[0] == "n" else None,
    )
    assert model.buckets == []
    item = m.Item(ARENA, [yard.put(draw(3), 1)], [])
    assert yard.run(model, item, rows=0).frames == [(-draw(3)).tobytes()]


def test_a_model_that_mixes_rows_loses_its_sizes(onnx_models: Any) -> None:
    path = onnx_models.save(
        "mixes", [("Softmax", ["x"], ["y"], {"axis": 0})], [("x", 1, ["n", 4])], [("y", 1, ["n", 4])]
    )
    model = serve(path, BUCKETS, warmup=True)
    assert not model.batchable
    assert model.buckets == []
