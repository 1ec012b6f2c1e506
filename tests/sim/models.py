"""The simulated models: what they take, an answer that tells whose it is, and a session to run them.

A row of the first input is (request, row, what it does, salt). Every number of an output row is made
of these, so a result that belongs to another request, or rows in another order, are seen. The
session works on addresses like onnxruntime's, and the real Runner gathers and scatters around it.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

import numpy as np
from batchyard.gpuworker.runner import Result, Runner
from batchyard.transport.messages import LentBatch, Load
from batchyard.transport.tensors import TensorSpec

INT64 = 7  # ONNX's code
COLUMNS = 4  # of the first input, at least
FINE, POISON, KILLER = 0, 1, 2
ALONE_ROWS = 3

INPUTS = {
    "net": [TensorSpec("x", INT64, ["n", COLUMNS])],
    "pair": [TensorSpec("a", INT64, ["n", COLUMNS]), TensorSpec("b", INT64, ["n", 2])],
    "free": [TensorSpec("x", INT64, ["n", "t"])],
    "alone": [TensorSpec("x", INT64, [ALONE_ROWS, COLUMNS])],
}
OUTPUTS = {
    "net": [TensorSpec("y", INT64, ["n", 2])],
    "pair": [TensorSpec("y", INT64, ["n", 2]), TensorSpec("z", INT64, ["n", 3])],
    "free": [TensorSpec("y", INT64, ["n", "t"])],
    "alone": [TensorSpec("y", INT64, [ALONE_ROWS, 2])],
}
MAX_BATCH = {"net": 8, "pair": 4, "free": 3, "alone": 5}
BATCHABLE = {"net": True, "pair": True, "free": True, "alone": False}

CLAIMS = {1: 1, 2: 10**13}  # a file that lies, both ways

Array = np.ndarray[Any, Any]


class Killed(BaseException):
    """The process that ran this is dead."""


def make_inputs(model: str, number: int, rows: int, does: int, salt: int, width: int) -> list[Array]:
    """The inputs of one request; `does` is asked of its last row."""
    first = np.zeros((rows, width if model == "free" else COLUMNS), np.int64)
    first[:, 0] = number
    first[:, 1] = np.arange(rows)
    first[-1, 2] = does
    first[:, 3] = salt
    if model != "pair":
        return [first]
    return [first, first[:, :2] + 1]


def answers(model: str, inputs: list[Array]) -> list[Array]:
    """What the model makes of them."""
    first = inputs[0]
    column = first[:, 0] * 1_000_003 + first[:, 1] * 101 + first[:, 3] * 7 + len(model)
    return [
        column[:, None] + np.arange(index * 10, index * 10 + width)
        for index, width in enumerate(_widths(model, first.shape[1]))
    ]


def _widths(model: str, width: int) -> list[int]:
    return [width] if model == "free" else [int(spec.shape[1]) for spec in OUTPUTS[model]]


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

    def __init__(self, model: str) -> None:
        self._model = model

    def get(self, rows: int) -> SimSession:
        return self

    def io_binding(self) -> _Binding:
        return _Binding()

    def run_with_iobinding(self, binding: _Binding) -> None:
        model = self._model
        inputs = [_at(*binding.inputs[spec.name]) for spec in INPUTS[model]]
        does = inputs[0][:, 2]
        if (does == KILLER).any():
            raise Killed
        if (does == POISON).any():
            raise RuntimeError("poison")
        asked = inputs[0][:, 0] != 0  # the others are padding
        if model == "pair" and not (inputs[0][asked, :2] + 1 == inputs[1][asked]).all():
            raise RuntimeError("the rows of the two inputs do not belong together")
        outputs = answers(model, inputs)
        binding.values = []
        for spec, array in zip(OUTPUTS[model], outputs, strict=True):
            place = binding.outputs[spec.name]
            if place is None:
                binding.values.append(_Value(array))
            else:
                _at(*place)[:] = array


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
        self.batchable = BATCHABLE[load.model]
        self.alone_reason = "" if self.batchable else "its axis 0 is fixed"
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
        self._runner = Runner(
            self.name, SimSession(self.name), self.inputs, self.outputs, self.batchable, self.max_batch, True,
            self.buckets,
        )

    def run(self, batch: LentBatch, memory: Any) -> Result:
        result = self._runner.run(batch, memory)
        result.gather_ns, result.compute_ns, result.scatter_ns = 1_000, self.took_ns, 1_000
        return result

    def forget_bindings(self) -> None:
        self._runner.forget_bindings()
