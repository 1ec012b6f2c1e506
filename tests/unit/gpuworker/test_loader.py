"""The loader's thread: one model after the other, and a descriptor that says when something is finished."""

from __future__ import annotations

import gc
import select
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from batchyard.gpuworker.faults import CannotServe
from batchyard.gpuworker.loader import Loader
from batchyard.transport import messages as m
from batchyard.transport.tensors import TensorSpec

PATIENCE_S = 20.0


class Model:
    """What the loader and the canary use of a ServedModel. Answers with one number."""

    def __init__(self, answer: float = 0.0) -> None:
        self.inputs = self.outputs = [TensorSpec("y", 1, [1])]
        self.max_batch = 1
        self.buckets: list[int] = []
        self.answer = answer

    def canary(self, rows: int) -> dict[str, Any]:
        return {}

    def answers(self, feeds: dict[str, Any], rows: int) -> list[Any]:
        return [np.full(1, self.answer, np.float32)]


def load(name: str = "net", tolerance: float | None = None) -> m.Load:
    return m.Load(name, 1, "/net.onnx", 4, None, True, [], 0, tolerance)


def finished(loader: Loader, number: int = 1) -> list[tuple[Any, Any]]:
    """So many results, waited for by the descriptor alone."""
    found: list[tuple[Any, Any]] = []
    while len(found) < number:
        ready, _, _ = select.select([loader], [], [], PATIENCE_S)
        assert ready, "the descriptor says nothing"
        found += loader.finished()
    return found


def test_nothing_is_finished_before_something_was_started() -> None:
    loader = Loader(lambda load: Model())  # type: ignore[arg-type,return-value]
    assert select.select([loader], [], [], 0) == ([], [], [])
    assert loader.finished() == []
    assert loader.under_way == 0


def test_a_model_is_made_on_another_thread_and_told_by_its_key() -> None:
    made: list[tuple[str, int]] = []

    def make(load: m.Load) -> Any:
        made.append((load.model, threading.get_ident()))
        return Model()

    loader = Loader(make)
    loader.start("key", load(), None)
    assert loader.under_way == 1
    ((key, (model, difference)),) = finished(loader)
    assert (key, type(model), difference) == ("key", Model, None)
    assert made[0][1] != threading.get_ident()
    assert loader.under_way == 0
    assert select.select([loader], [], [], 0) == ([], [], []), "said once"


def test_models_are_made_one_after_the_other_in_order() -> None:
    gate = threading.Event()
    running: list[str] = []

    def make(load: m.Load) -> Any:
        running.append(load.model)
        gate.wait(PATIENCE_S)
        return Model()

    loader = Loader(make)
    for name in "abc":
        loader.start(name, load(name), None)
    assert loader.under_way == 3
    gate.set()
    assert [key for key, _ in finished(loader, 3)] == running == ["a", "b", "c"]


def test_a_model_beside_another_is_compared_with_it() -> None:
    loader = Loader(lambda load: Model(3.0))  # type: ignore[arg-type,return-value]
    loader.start(1, load(), Model(1.0))  # type: ignore[arg-type]
    loader.start(2, load(tolerance=1.5), Model(1.0))  # type: ignore[arg-type]
    (_, (_, difference)), (_, refused) = finished(loader, 2)
    assert difference == 2.0
    assert refused == "its answers to a canary differ by up to 2, and 1.5 is allowed"


def test_whatever_goes_wrong_is_told_and_the_next_one_is_made() -> None:
    wrong: Iterator[BaseException] = iter(
        [CannotServe("it is no ONNX"), OSError("no such \udce4"), MemoryError("x" * 9000), KeyboardInterrupt()]
    )

    def make(load: m.Load) -> Any:
        error = next(wrong, None)
        if error is not None:
            raise error
        return Model()

    loader = Loader(make)
    for number in range(5):
        loader.start(number, load(), None)
    *reasons, last = [outcome for _, outcome in finished(loader, 5)]
    assert reasons[:2] == ["it is no ONNX", "no such ?"], "as a message can carry it"
    assert len(reasons[2]) == 4000, "a message has bounds"
    assert type(last[0]) is Model


def test_the_thread_holds_no_model_while_it_waits() -> None:
    loader = Loader(lambda load: Model(1.0))  # type: ignore[arg-type,return-value]
    old = Model()
    gone = weakref.ref(old)
    loader.start(1, load(), old)  # type: ignore[arg-type]
    results = finished(loader)
    new = weakref.ref(results[0][1][0])
    del old, results
    gc.collect()
    assert (gone(), new()) == (None, None)
