"""Requests of different sizes in one run, with real models: every answer as plain onnxruntime gives it alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchyard.gpuworker.answers import Result
from batchyard.gpuworker.backends.onnx import ServedModel
from batchyard.gpuworker.backends.python import FunctionModel
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.providers import recipe
from batchyard.tests.attention import HIDDEN, POOLED, request, write
from batchyard.tests.unit.gpuworker.backends.test_onnx import ARENA, Array, Yard
from batchyard.transport import messages as m
from batchyard.transport.digests import digest
from batchyard.transport.python_models import Function
from batchyard.transport.tensors import Slot

PADS = {"sequence": m.Pad([8, 16, 32])}
I64, F32 = 7, 1


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


def serve(
    path: Path,
    pads: dict[str, m.Pad] = PADS,
    buckets: Sequence[int] = (),
    warmup: bool = False,
    whole: bool = False,
) -> ServedModel:
    load = m.Load("net", 1, str(path), 16, None, warmup, list(buckets), pad=pads)
    return ServedModel(load, replace(recipe("cpu", 1), static_shapes=whole))


def item(yard: Yard, inputs: dict[str, Array], width: int = 0, start: int = 0, rows: int = 0) -> m.Item:
    """With a slot for a pooled output of so many numbers a row."""
    nbytes = len(inputs["ids"]) * width * 4
    slots = [Slot(yard.room(nbytes), nbytes)] if width else []
    return m.Item(
        ARENA, [yard.put(inputs[name], I64, 8) for name in ("ids", "mask")], slots, b"", start, rows
    )


def framed(result: Result, number: int, output: int = 0) -> Array:
    """An output that came as a frame."""
    entry = next(entry for entry in result.inline_outputs if entry.item == number)
    tensor = entry.outputs[output]
    data = bytes(result.frames[tensor.frame - 1])[tensor.offset :]
    return np.frombuffer(data, np.float32, int(np.prod(tensor.shape))).reshape(tensor.shape)


def check(path: Path, reference: Any, inputs: dict[str, Array], *found: Array) -> None:
    for mine, plain in zip(found, reference(path, **inputs), strict=True):
        assert mine.shape == plain.shape
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True], ids=["to the longest", "to a size"])
@pytest.mark.parametrize("lengths", [(5, 8), (3, 8, 1, 6), (8, 8), (2,)], ids=str)
def test_every_row_of_a_padded_run_answers_as_it_does_alone(
    yard: Yard, tmp_path: Path, reference: Any, lengths: tuple[int, ...], whole: bool
) -> None:
    path = write(tmp_path / "net.onnx", (HIDDEN, POOLED))
    model = serve(path, whole=whole)
    for seed in range(3):
        texts = [request(1 + index % 2, length, seed) for index, length in enumerate(lengths)]
        result = yard.run(model, *(item(yard, text) for text in texts))
        for number, text in enumerate(texts):
            check(path, reference, text, framed(result, number), framed(result, number, 1))
        longest = 8 if whole else max(lengths)
        assert result.padding == sum((longest - text["ids"].shape[1]) * len(text["ids"]) for text in texts)


def test_outputs_without_the_axis_go_into_their_slots(yard: Yard, tmp_path: Path, reference: Any) -> None:
    path = write(tmp_path / "net.onnx", (POOLED,))
    model = serve(path)
    for seed in range(3):
        texts = [request(1, length, seed) for length in (3, 7, 5)]
        items = [item(yard, text, 8) for text in texts]
        result = yard.run(model, *items)
        assert result.inline_outputs == []
        for each, text in zip(items, texts, strict=True):
            check(path, reference, text, yard.read(each.outputs[0], np.float32, (1, 8)))


@pytest.mark.parametrize("pads", [PADS, {"sequence": m.Pad([8], {"ids": 199})}], ids=["zeros", "a word"])
def test_padding_is_not_what_an_earlier_batch_left_there(
    yard: Yard, tmp_path: Path, reference: Any, pads: dict[str, m.Pad]
) -> None:
    path = write(tmp_path / "net.onnx", (HIDDEN, POOLED))
    model = serve(path, pads)
    for lengths in ((2, 8), (8, 2), (8, 5), (5, 8)):
        texts = [request(1, length) for length in lengths]
        result = yard.run(model, *(item(yard, text) for text in texts))
        for number, text in enumerate(texts):
            check(path, reference, text, framed(result, number), framed(result, number, 1))


def test_rows_that_fill_up_a_batch_size_and_padding_go_together(
    yard: Yard, tmp_path: Path, reference: Any
) -> None:
    path = write(tmp_path / "net.onnx")
    model = serve(path, buckets=(1, 8, 16))
    texts = [request(2, 3), request(1, 7), request(3, 4)]
    result = yard.run(model, *(item(yard, text) for text in texts))
    for number, text in enumerate(texts):
        check(path, reference, text, framed(result, number))


def test_a_part_of_a_request_is_padded_beside_others(yard: Yard, tmp_path: Path, reference: Any) -> None:
    path = write(tmp_path / "net.onnx")
    model = serve(path)
    large, small = request(4, 5), request(1, 8)
    result = yard.run(model, item(yard, large, start=1, rows=2), item(yard, small), rows=3)
    check(path, reference, {name: array[1:3] for name, array in large.items()}, framed(result, 0))
    check(path, reference, small, framed(result, 1))
    assert result.padding == 2 * 3


def test_what_a_fill_says_stands_in_the_padding(yard: Yard, tmp_path: Path, reference: Any) -> None:
    """A word that does not exist would fail the run."""
    path = write(tmp_path / "net.onnx")
    model = serve(path, {"sequence": m.Pad([8], {"ids": 199})})
    texts = [request(1, 2), request(1, 8)]
    result = yard.run(model, *(item(yard, text) for text in texts))
    check(path, reference, texts[0], framed(result, 0))
    with pytest.raises(CannotServe, match=r"pad: fill: 0.5 is no int64"):
        serve(path, {"sequence": m.Pad([8], {"ids": 0.5})})


def test_a_request_that_disagrees_with_itself_is_run_by_itself(
    yard: Yard, tmp_path: Path, reference: Any
) -> None:
    """The broker sends none such; a worker is no less careful."""
    path = write(tmp_path / "net.onnx")
    model = serve(path)
    odd = request(1, 6) | {"mask": np.ones((1, 1), np.int64)}  # broadcast: onnxruntime runs it
    fine = request(1, 4)
    result = yard.run(model, item(yard, fine), item(yard, odd), item(yard, request(1, 7)))
    check(path, reference, fine, framed(result, 0))
    check(path, reference, odd, framed(result, 1))
    assert result.padding == 0


def test_contents_are_compared_without_their_padding(yard: Yard, tmp_path: Path) -> None:
    model = serve(write(tmp_path / "net.onnx"))
    texts = [request(1, 3), request(2, 8)]
    items = []
    for number, text in enumerate(texts):
        of = digest([text["ids"].tobytes(), text["mask"].tobytes()])
        each = item(yard, text)
        items.append(m.Item(ARENA, each.inputs, [], b"x" * 16 if number else of))
    assert yard.run(model, *items).changed == [1]


def test_where_padding_changes_answers_rows_of_one_size_share_a_run_and_no_others(
    yard: Yard, tmp_path: Path, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "net.onnx", (HIDDEN, POOLED), masked=False)
    with caplog.at_level(logging.WARNING):
        model = serve(path)
    assert model.batchable
    assert model.padding is not None
    assert model.padding.axes == []
    assert "padded to 8 and alone, differs by" in model.padding.reason
    assert "no padding, though the configuration asks for it" in caplog.text
    texts = [request(1, 4), request(2, 4), request(1, 7), request(1, 4)]
    result = yard.run(model, *(item(yard, text) for text in texts))
    for number, text in enumerate(texts):
        check(path, reference, text, framed(result, number), framed(result, number, 1))
    assert result.padding == 0


def test_an_output_that_stops_following_the_padding_ends_it_and_fails_nobody(
    yard: Yard, tmp_path: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "net.onnx")
    model = serve(path)
    pads = model._pads
    assert pads is not None
    monkeypatch.setattr(pads, "outputs", [{2: 0}])  # as if that had been seen
    texts = [request(1, 4), request(1, 7)]
    result = yard.run(model, *(item(yard, text) for text in texts))
    for number, text in enumerate(texts):
        check(path, reference, text, framed(result, number))
    assert pads.stopped


def test_warm_up_measures_each_size(tmp_path: Path) -> None:
    model = serve(write(tmp_path / "net.onnx"), warmup=True)
    assert model.padding is not None
    assert {size: set(times) for size, times in model.padding.run_ns.items()} == {
        8: {1, 2, 4},
        16: {1, 2, 4},
        32: {1, 2, 4},
    }


def test_a_size_that_fails_ends_padding_where_batches_are_padded_to_it_and_only_there(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "net.onnx", longest=20)
    shorter = serve(path, warmup=True)
    assert shorter.padding is not None
    assert shorter.padding.axes
    fixed = serve(path, warmup=True, whole=True)
    assert fixed.padding is not None
    assert fixed.padding.axes == []
    assert "padded to {'sequence': 32} it fails" in fixed.padding.reason


def test_a_model_whose_requests_run_alone_is_not_padded_and_says_so(tmp_path: Path) -> None:
    load = m.Load("net", 1, str(write(tmp_path / "net.onnx")), 16, False, False, pad=PADS)
    model = ServedModel(load, recipe("cpu", 1))
    assert model.padding is not None
    assert model.padding.axes == []
    assert model.padding.reason.startswith("its requests run alone: ")


def test_a_python_function_pads_by_itself(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import batchyard\n"
        "@batchyard.model(inputs={'x': 'float32[n, t]'}, outputs={'y': 'float32[n, t]'})\n"
        "def double(x): return {'y': 2 * x['x']}\n"
    )
    function = Function("double", "")
    load = m.Load(
        "net", 1, str(tmp_path / "own.py"), 8, None, False, function=function, pad={"t": m.Pad([8])}
    )
    with pytest.raises(CannotServe, match="a Python function pads by itself"):
        FunctionModel(load, function)
