"""The simulated models: what they take, an answer that tells whose it is, and a session to run them.

A row of the first input is (request, row, what it does, salt). Every number of an output row is made
of these, so a result that belongs to another request, or rows in another order, are seen. The
session works on addresses like onnxruntime's, and the real Runner gathers and scatters around it.

    net, pair          rows on axis 0; pair's inputs may disagree in size: then it mixes them, and runs alone
    free               one size of it is anybody's; what it gives has its rows on axis 1
    alone              no rows
    turned             rows on axis 1, of what it takes and what it gives
    common             its second input is one for all rows of a batch
    texts              sizes of it share runs, padded
    filter             drops rows that are ODD, so its rows are none after all: seen when one comes
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from batchyard.evidence.padding import PadVerdict
from batchyard.gpuworker.answers import Result
from batchyard.gpuworker.padding import Pads
from batchyard.gpuworker.runner import Runner
from batchyard.transport.messages import LentBatch, Load, Pad, Padding
from batchyard.transport.tensors import TensorSpec

INT64 = 7  # ONNX's code
COLUMNS = 4  # of the first input, at least
FINE, POISON, KILLER, ODD = 0, 1, 2, 3
ALONE_ROWS = 3

INPUTS = {
    "net": [TensorSpec("x", INT64, ["n", COLUMNS])],
    "pair": [TensorSpec("a", INT64, ["n", COLUMNS]), TensorSpec("b", INT64, ["n", 2])],
    "free": [TensorSpec("x", INT64, ["n", "t"])],
    "alone": [TensorSpec("x", INT64, [ALONE_ROWS, COLUMNS])],
    "turned": [TensorSpec("x", INT64, [COLUMNS, "n"])],
    "common": [TensorSpec("x", INT64, ["n", COLUMNS]), TensorSpec("rate", INT64, [2])],
    "filter": [TensorSpec("x", INT64, ["n", COLUMNS])],
    "texts": [TensorSpec("x", INT64, ["n", "t"])],
}
OUTPUTS = {
    "net": [TensorSpec("y", INT64, ["n", 2])],
    "pair": [TensorSpec("y", INT64, ["n", 2]), TensorSpec("z", INT64, ["n", 3])],
    "free": [TensorSpec("y", INT64, ["t", "n"])],
    "alone": [TensorSpec("y", INT64, [ALONE_ROWS, 2])],
    "turned": [TensorSpec("y", INT64, [2, "n"]), TensorSpec("z", INT64, ["n"])],
    "common": [TensorSpec("y", INT64, ["n", 2])],
    "filter": [TensorSpec("y", INT64, ["n", 2])],
    "texts": [TensorSpec("y", INT64, ["n", "t"]), TensorSpec("z", INT64, ["n", 2])],
}
MAX_BATCH = {"net": 8, "pair": 4, "free": 3, "alone": 5, "turned": 6, "common": 4, "filter": 5, "texts": 6}
BATCH_AXES = {
    "net": [0, 0], "pair": [0, 0, 0, 0], "free": [0, 1], "alone": None,
    "turned": [1, 1, 0], "common": [0, -1, 0], "filter": [0, 0], "texts": [0, 0, 0],
}  # fmt: skip
RATES = (8_000, 16_000)  # few: that requests share a batch
PADS = {"texts": {"t": Pad([5, 8])}}
WIDTHS = {"texts": (4, 5, 6, 7, 8, 11)}  # of what is asked for; of the others: (4, 6)
FREE = ("free", "texts")  # their inputs have a free axis

CLAIMS = {1: 1, 2: 10**13}  # a file that lies, both ways

Array = np.ndarray[Any, Any]


class Killed(BaseException):
    """The process that ran this is dead."""


def make_inputs(model: str, number: int, rows: int, does: int, salt: int, width: int) -> list[Array]:
    """The inputs of one request; `does` is asked of its last row."""
    first = np.zeros((rows, width if model in FREE else COLUMNS), np.int64)
    first[:, 0] = number
    first[:, 1] = np.arange(rows)
    first[-1, 2] = does
    first[:, 3] = salt
    if model == "turned":
        return [np.ascontiguousarray(first.T)]
    if model == "common":
        return [first, np.array([RATES[salt % len(RATES)], 1])]
    if model != "pair":
        return [first]
    second = first[:, :2] + 1
    if salt % 7 == 0:  # other sizes: it runs alone
        second = np.concatenate([second, second[:1] + salt])
    return [first, second]


def rows_of(model: str, inputs: list[Array]) -> Array:
    """The first input as rows."""
    return inputs[0].T if model == "turned" else inputs[0]


def answers(model: str, inputs: list[Array]) -> list[Array]:
    """What the model makes of them."""
    first = rows_of(model, inputs)
    if model == "filter":
        first = first[first[:, 2] != ODD]
    column = first[:, 0] * 1_000_003 + first[:, 1] * 101 + first[:, 3] * 7 + len(model)
    if model == "pair" and len(inputs[1]) != len(first):
        column = column + inputs[1].sum()
    if model == "common":
        column = column + inputs[1].sum() * 13
    if model == "turned":
        return [np.stack([column, column + 1]), column + 10]
    if model == "free":
        return [np.ascontiguousarray(column + np.arange(first.shape[1])[:, None])]
    return [
        column[:, None] + np.arange(index * 10, index * 10 + width)
        for index, width in enumerate(_widths(model, first.shape[1]))
    ]


def _widths(model: str, width: int) -> list[int]:
    shapes = [spec.shape or [] for spec in OUTPUTS[model]]
    return [width if shape[1] == "t" else int(shape[1]) for shape in shapes]


class _Value:
    """An output that the session has allocated."""

    def __init__(self, array: Array) -> None:
        self._array = np.ascontiguousarray(array)

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)


class _Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, tuple[list[int], int]] = {}
        self.outputs: dict[str, tuple[list[int], int] | None] = {}
        self.values: list[_Value] = []

    def bind_input(self, name: str, device: str, index: int, dtype: int, shape: list[int], at: int) -> None:
        self.inputs[name] = (list(shape), at)

    def bind_output(
        self, name: str, device: str, index: int = 0, dtype: int = 0, shape: Any = None, at: int = 0
    ) -> None:
        self.outputs[name] = (list(shape), at) if shape is not None else None

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()

    def get_outputs(self) -> list[_Value]:
        return self.values


class SimSession:
    """What Runner uses of a model's sessions, and of the one that all batch sizes have."""

    checks_outputs = False

    def __init__(self, model: str) -> None:
        self._model = model

    def get(self, rows: int) -> SimSession:
        return self

    def do(self, work: Callable[[], Any]) -> Any:
        return work()

    def io_binding(self) -> _Binding:
        return _Binding()

    def run_with_iobinding(self, binding: _Binding) -> None:
        model = self._model
        inputs = [_at(*binding.inputs[spec.name]) for spec in INPUTS[model]]
        first = rows_of(model, inputs)
        if (first[:, 2] == KILLER).any():
            raise Killed
        if (first[:, 2] == POISON).any():
            raise RuntimeError("poison")
        if (first[:, 0] == 0).any():
            raise RuntimeError("a row of nobody: padding is the last row again")
        if model == "pair" and len(first) != len(inputs[1]):
            if len(set(first[:, 0])) > 1:
                raise RuntimeError("requests share a run that can't")
        elif model == "pair" and not (first[:, :2] + 1 == inputs[1]).all():
            raise RuntimeError("the rows of the two inputs do not belong together")
        outputs = answers(model, inputs)
        binding.values = []
        for spec, array in zip(OUTPUTS[model], outputs, strict=True):
            place = binding.outputs[spec.name]
            if place is None:
                binding.values.append(_Value(array))
            elif list(array.shape) != place[0]:
                raise RuntimeError(f"{spec.name} is {array.shape}, and was to be {place[0]}")
            else:
                binding.values.append(_Value(array))  # which nobody reads
                _at(*place)[...] = array


def _at(shape: list[int], address: int) -> Array:
    count = prod(shape)
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address)).reshape(shape)


class _Recipe:
    name = "sim"


class SimModel:
    """What the worker's Session uses of a ServedModel. `took_ns` is what the next run will have taken;
    `sizes`: how many of its buckets the device is quick enough for, -1: all."""

    def __init__(self, load: Load, warmup_ns: dict[int, int], sizes: int = -1) -> None:
        self.name = load.model
        self.recipe = _Recipe()
        self.inputs = INPUTS[load.model]
        self.outputs = OUTPUTS[load.model]
        self.batch_axes = BATCH_AXES[load.model]
        self.batchable = self.batch_axes is not None
        self.evidence = ""
        self.has_learned = False
        self.max_batch = load.max_batch if self.batchable else 1
        self.buckets = list(load.buckets) if self.batchable else []
        if sizes > 0 and len(self.buckets) > sizes:
            self.buckets = self.buckets[:sizes]
            self.max_batch = self.buckets[-1]
        self.placement = "sim"
        self.warmup_ns = warmup_ns
        self.origin = None
        self.claimed_ns = CLAIMS
        self.took_ns = 0
        self.streams = False
        self.padding: Padding | None = None
        pads: Pads | None = None
        if load.pad:
            whole = sizes > 0  # a device that wants few shapes
            verdict = PadVerdict([[1]], [{1: 0}, {}], "seen")
            pads = Pads(load.pad, self.inputs, self.outputs, verdict, [np.zeros((), np.int64)], whole)
            self.padding = Padding([[1]], "seen", whole)
        self._runner = Runner(
            self.name, SimSession(self.name), self.inputs, self.outputs, self.batch_axes, self.max_batch, True,
            self.buckets, pads=pads,
        )

    @property
    def disproved(self) -> str:
        return self._runner.alone_reason

    @property
    def alone_reason(self) -> str:
        return "" if self.batchable else self.disproved or "its axis 0 is fixed"

    def run(self, batch: LentBatch, memory: Any) -> Result:
        result = self._runner.run(batch, memory)
        result.gather_ns, result.compute_ns, result.scatter_ns = 1_000, self.took_ns, 1_000
        return result

    def forget_bindings(self) -> None:
        self._runner.forget_bindings()
