"""One loaded model: its session, what it takes and gives, and the warm-up that proves it.

A model serves only after it has run. What a batch's run looks like is runner.py's business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from math import prod
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime

from ..transport import dtypes
from ..transport.messages import LentBatch, Load, Origin
from ..transport.tensors import TensorSpec, nbytes_of
from . import origin
from .agreement import Agreement
from .canary import SEED, CannotServe, first_line
from .memory import Memory
from .providers import TOLERANCE, Recipe
from .runner import Result, Runner
from .sessions import ANY_SIZE, Sessions

WARMUP_BYTES_MAX = 64 << 20  # of inputs, in one warm-up run
WARMUP_NS_MAX = 2_000_000_000
FREE_AXES = (3, 1)  # what free axes other than the batch are warmed with: 3 is no number of rows here,
# so an output whose axis 0 is not the batch is found out; 1 where the model can't take 3

log = logging.getLogger("batchyard.gpuworker")

_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "bfloat16", "bool", "complex64", "complex128")},
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"tensor({name})": name for name in dtypes.BY_NAME if name.startswith("float8")},
}


class ServedModel:
    """Sessions and what surrounds them. Raises CannotServe when the file can't be served, and DeviceLost.

    tolerance: how far the answers of a device may be off the CPU's; see `Agreement`.
    """

    apart = True  # as for Runner

    def __init__(self, load: Load, recipe: Recipe, tolerance: float = TOLERANCE) -> None:
        self.name = load.model
        self.recipe = recipe
        self._agreement: Agreement | None = None
        self.origin: Origin | None = None
        self.claimed_ns: dict[int, int] = {}
        self._sessions, self.inputs, self.outputs = self._open(load, tolerance)
        self.alone_reason = self._why_alone() if load.batchable is None else ""
        if load.batchable and not all(spec.shape for spec in (*self.inputs, *self.outputs)):
            raise CannotServe("batchyard.toml says batchable = true, and a tensor without axes has no rows")
        if load.batchable is False:
            self.alone_reason = "batchyard.toml says batchable = false"
        self.batchable = not self.alone_reason
        self.max_batch = load.max_batch if self.batchable else 1
        self.buckets = self._choose_buckets(load, recipe)
        if self.buckets:
            self.max_batch = self.buckets[-1]
        self._sessions.fix(self.inputs, self.batchable)
        self.warmup_ns: dict[int, int] = {}
        self._skip = 1 if self.batchable else 0
        self._free_axis = FREE_AXES[0]
        if load.warmup or self._agreement is not None:
            self._warm_up(load.warmup)
        self._agreement = None  # and its session
        self._runner = Runner(
            self.name,
            self._sessions,
            self.inputs,
            self.outputs,
            self.batchable,
            self.max_batch,
            recipe.in_place,
            self.buckets,
            self.apart,
        )

    def _open(self, load: Load, tolerance: float) -> tuple[Sessions, list[TensorSpec], list[TensorSpec]]:
        """(sessions, inputs, outputs). Raises CannotServe."""
        sessions = described = Sessions(self.recipe, load.path)
        if self.recipe.reference is not None:
            described = Sessions(self.recipe.reference, load.path)
            self._agreement = Agreement(described, tolerance)
        try:
            session = described.get(ANY_SIZE)
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and others
            folder = os.path.join(os.path.dirname(load.path), "")  # where files lie is no client's business
            raise CannotServe(first_line(error).replace(folder, "")) from None
        self.origin, self.claimed_ns = origin.read(session, load.path, self.recipe.name)
        return sessions, [_spec(v) for v in session.get_inputs()], [_spec(v) for v in session.get_outputs()]

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """Run a batch. Raises ItemRefused for an item whose handles are wrong; anything else that
        the runtime raises is the model's failure."""
        return self._runner.run(batch, memory)

    def forget_bindings(self) -> None:
        """Drop every binding: some arena is about to be unmapped."""
        self._runner.forget_bindings()

    @property
    def placement(self) -> str:
        """The providers that the sessions run on; of a device's, how many nodes each runs."""
        return self._sessions.placement

    def _why_alone(self) -> str:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs:
                if not spec.shape:
                    return f"{kind} {spec.name!r} has no axes, so no batch axis"
                if isinstance(spec.shape[0], int):
                    return (
                        f"axis 0 of {kind} {spec.name!r} is fixed at {spec.shape[0]}, not a free batch axis"
                    )
        return ""

    def _choose_buckets(self, load: Load, recipe: Recipe) -> list[int]:
        """The batch sizes that are run, rising; empty: any."""
        if not self.batchable or not (load.buckets or recipe.static_shapes):
            return []
        return load.buckets or _doubling(min(self.max_batch, recipe.rows_max))

    # ---- warm-up ------------------------------------------------------------------------------

    def _warm_up(self, every_size: bool) -> None:
        """Run every bucket, or every power of two up to max_batch, and time it; else the smallest alone.
        Checks what it sees, and on a device that it is what the CPU answers."""
        free = any(not isinstance(axis, int) for spec in self.inputs for axis in spec.shape[self._skip :])
        for self._free_axis in FREE_AXES if free else FREE_AXES[:1]:
            try:
                self._sweep(every_size)
                return
            except CannotServe:
                self.warmup_ns.clear()
                if not free:  # else the size was our guess, not a request
                    raise

    def _sweep(self, every_size: bool) -> None:
        started_ns = perf_counter_ns()
        must = set(self.buckets)  # a size that has not been run may be slow, or fail
        sizes = self.buckets or _doubling(self.max_batch)
        for rows in sizes if every_size else sizes[:1]:
            feeds, expected = self._drawn(rows)
            if self.batchable and expected is not None and not self._check_rows(expected, rows):
                self._sessions.fix([], batchable=False)
                self._sweep(every_size)  # as one whose requests run alone
                return
            nbytes = sum(value.tensor_size_in_bytes() for value in feeds.values())
            if rows > 1 and nbytes > WARMUP_BYTES_MAX and rows not in must:
                break
            try:
                answers, self.warmup_ns[rows] = self._timed_run(feeds, rows)
            except Exception as error:
                raise CannotServe(f"its first run failed: {first_line(error)}") from None
            if self._agreement is not None and expected is not None:
                self._agreement.check(self.outputs, expected, answers)
            if rows == sizes[0]:
                self._sessions.note_placement()
            if self.batchable and not self._check_rows(answers, rows):
                return
            if perf_counter_ns() - started_ns > WARMUP_NS_MAX and not must:
                break
            if self._too_long_beyond(rows):
                break

    def _drawn(self, rows: int) -> tuple[dict[str, Any], list[Any] | None]:
        """(inputs, the CPU's answers to them, to compare a device's with): zeros, and nothing, on the CPU
        itself. Some models take only what their users would send: then zeros for a device, too."""
        if self._agreement is None:
            return self.canary(rows), None
        feeds = self.canary(rows, np.random.default_rng(SEED))
        try:
            return feeds, self._agreement.expected(feeds)
        except Exception:
            feeds = self.canary(rows)
        try:
            return feeds, self._agreement.expected(feeds)
        except Exception as error:
            raise CannotServe(f"its first run failed: {first_line(error)}") from None

    def _too_long_beyond(self, rows: int) -> bool:
        """Whether the next bucket's run would take longer than the device allows; then it is not used."""
        larger = [size for size in self.buckets if size > rows]
        limit_ns = self.recipe.run_ns_max
        if not larger or not limit_ns or self.warmup_ns[rows] * larger[0] <= limit_ns * rows:
            return False
        log.warning(
            "%s: %d rows take %.0f ms; no larger batches, they would hold the device for too long",
            self.name,
            rows,
            self.warmup_ns[rows] / 1e6,
        )
        self.buckets = [size for size in self.buckets if size <= rows]
        self.max_batch = rows
        return True

    def _timed_run(self, feeds: dict[str, Any], rows: int) -> tuple[list[Any], int]:
        """(outputs, the better of two times): the first run of a size also allocates."""
        session = self._sessions.get(rows)
        times = []
        for _ in range(2):
            before_ns = perf_counter_ns()
            answers = self._sessions.do(lambda: session.run_with_ort_values(None, feeds))
            times.append(perf_counter_ns() - before_ns)
        return answers, min(times)

    def canary(self, rows: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Inputs that the model may take, by name: zeros, or drawn from `rng`; for `answers`."""
        return {spec.name: self._value(spec, rows, rng) for spec in self.inputs}

    def answers(self, feeds: dict[str, Any]) -> list[Any]:
        """Run once, beside whatever else runs; an array for each output."""
        session = self._sessions.get(next(iter(feeds.values())).shape()[0] if self.batchable else 1)
        values = self._sessions.do(lambda: session.run_with_ort_values(None, feeds))
        return [value.numpy() for value in values]

    def _value(self, spec: TensorSpec, rows: int, rng: np.random.Generator | None) -> Any:
        shape = [axis if isinstance(axis, int) else self._free_axis for axis in spec.shape]
        if self.batchable:
            shape[0] = rows
        buffer = np.zeros(max(1, nbytes_of(spec.dtype, shape)), np.uint8)
        entry = dtypes.BY_CODE[spec.dtype]
        array = buffer[: prod(shape) * entry.itemsize].view(entry.numpy).reshape(shape)
        if rng is not None and entry.numpy.kind == "f":
            array[...] = rng.standard_normal(shape)
        elif rng is not None:  # 0 and 1 are indices that most tables have
            array[...] = rng.integers(0, 2, shape)
        return self._fed(array, spec.dtype)

    def _fed(self, array: Any, dtype: int) -> Any:
        """An array as the session takes it."""
        return _OrtValues.make(array, dtype)

    def _check_rows(self, answers: Sequence[Any], rows: int) -> bool:
        for spec, answer in zip(self.outputs, answers, strict=True):
            shape = list(answer.shape())
            if not shape or shape[0] != rows:
                self.batchable = False
                self.max_batch = 1
                self._skip = 0
                self.alone_reason = f"output {spec.name!r} has shape {shape} for {rows} rows"
                self.buckets = []
                self.warmup_ns.clear()
                return False
        return True


def _doubling(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(sizes[-1] * 2, most))
    return sizes


class _OrtValues:
    """Values of any element type: numpy has no name for some of them."""

    @staticmethod
    def make(array: Any, dtype: int) -> Any:
        entry = dtypes.BY_CODE[dtype]
        if entry.name.startswith(("bfloat", "float8")):  # whatever carries their bits here
            bits = array.view(np.uint16 if entry.itemsize == 2 else np.uint8)
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, dtype)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _spec(value: Any) -> TensorSpec:
    name = _ORT_TYPES.get(value.type)
    if name is None:
        raise CannotServe(f"{value.name!r} is a {value.type}, which cannot travel as a fixed-width tensor")
    shape = [axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape]
    return TensorSpec(value.name, dtypes.BY_NAME[name].code, shape)
