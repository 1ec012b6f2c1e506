"""A Python function as a session: what Runner and ServedModel use of onnxruntime's, which calls the user's
code instead.

It hands arrays over and takes them back, and judges both: what a function is given it cannot write to, and
must not keep; what it returns must be what it declared.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..evidence.axes import SHARED
from ..transport import dtypes
from ..transport.python_models import OUTPUT, FunctionSignature
from ..transport.tensors import TensorSpec, nbytes_of
from . import imports
from .imports import Call, UserError

PROBES = ((2, 3), (3, 4))  # (rows, size of other free axes) of the calls that find out undeclared outputs
LOG_AGAIN_S = 5.0
NOTHING = "{} yielded nothing for zeros: declare its outputs, and set warmup = false"
_ONE = [object()]
REFERENCES = sys.getrefcount(_ONE[0])  # to what a list alone holds

Array = np.ndarray[Any, Any]
Take = Callable[[list[Array]], Any]  # of a generator's answers: whether there is to be another
View = Callable[[], Callable[[int, int], memoryview] | None]  # a WeakMethod


class _Binding:
    """Where one run's tensors lie. Output None: its size is known when the function has returned."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.inputs: dict[str, tuple[memoryview, list[int]]] = {}
        self.outputs: dict[str, Array | None] = {}
        self.values: list[FunctionValue] = []

    def bind_input(self, name: str, device: str, index: int, dtype: int, shape: list[int], at: int) -> None:
        view = self._view()
        assert view is not None
        self.inputs[name] = (view(at, nbytes_of(dtype, shape)).toreadonly(), list(shape))

    def bind_output(
        self, name: str, device: str, index: int = 0, dtype: int = 0, shape: Any = None, at: int = 0
    ) -> None:
        self.outputs[name] = _at(at, dtype, shape) if shape is not None else None

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()
        self.values = []

    def get_outputs(self) -> list[FunctionValue]:
        return self.values


class FunctionValue:
    """What Runner and ServedModel use of an OrtValue."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def numpy(self) -> Array:
        return self._array


class FunctionSession:
    """What Runner and ServedModel use of an onnxruntime session. `view()(address, nbytes)` finds the bytes
    that a run is bound to. Runs of one session never overlap: user code need not bear that."""

    def __init__(self, call: Call, place: str, signature: FunctionSignature, view: View) -> None:
        self._call = call
        self._place = place
        self._bare = signature.bare
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._view = view
        self._lock = threading.Lock()  # a canary runs on the loader's thread
        self._logged = ("", 0.0)
        self._streams = imports.streams(call)
        self.batch_axes: list[int] | None = None  # where the rows are, inputs then outputs
        self.copied_bytes = 0

    def io_binding(self) -> _Binding:
        return _Binding(self._view)

    def run_with_iobinding(self, binding: _Binding) -> None:
        inputs = [binding.inputs[spec.name] for spec in self.inputs]
        places = [binding.outputs[spec.name] for spec in self.outputs]
        binding.values = []

        def take(outputs: list[Array]) -> None:
            for place, output in zip(places, outputs, strict=True):
                self.copied_bytes += output.nbytes
                if place is None:
                    binding.values.append(FunctionValue(np.array(output, order="C")))
                else:
                    place[...] = output

        self._run(inputs, take)

    def run_with_ort_values(
        self, names: None, feeds: Mapping[str, Any], options: Any = None
    ) -> list[FunctionValue]:
        """A run beside the batches, for warm-up and canary."""
        arrays = [feeds[spec.name].numpy() for spec in self.inputs]
        inputs = [(memoryview(array.tobytes()), list(array.shape)) for array in arrays]
        values: list[FunctionValue] = []
        self._run(
            inputs, lambda outputs: values.extend(FunctionValue(np.array(o, order="C")) for o in outputs)
        )
        if not values:
            raise UserError(NOTHING.format(self._place))
        return values

    def stream(self, inputs: Sequence[tuple[memoryview, list[int]]], take: Take) -> None:
        """Every answer of a generator, until `take` says that no other is wanted. Raises UserError."""
        self._run(inputs, take)

    def found_outputs(self) -> list[TensorSpec]:
        """The outputs of a function that does not declare them: what two calls with zeros have in common.
        Raises UserError."""
        seen: list[dict[str, Array]] = []

        def take(answer: Any) -> None:  # it may be a view of what it was given
            seen.append({name: np.array(array) for name, array in self._named(answer).items()})

        for rows, free in PROBES:
            zeros = []
            for spec in self.inputs:
                axes = enumerate(spec.shape or ())
                shape = [size if isinstance(size, int) else free if axis else rows for axis, size in axes]
                zeros.append((memoryview(bytes(nbytes_of(spec.dtype, shape))), shape))
            self._call_with(zeros, take)
        if len(seen) != len(PROBES):
            raise UserError(NOTHING.format(self._place))
        first, second = seen
        if not first or first.keys() != second.keys():
            raise UserError(f"{self._place} returned {_list(first)} first, and then {_list(second)}")
        return [self._spec(name, first[name], second[name]) for name in first]

    def _spec(self, name: str, first: Array, second: Array) -> TensorSpec:
        code = dtypes.CODE_BY_NUMPY.get(first.dtype)
        if code is None or first.dtype != second.dtype or first.ndim != second.ndim:
            raise UserError(f"{self._place}: output {name!r} is a {first.dtype}, which no tensor can be")
        rows = (self.inputs[0].shape or [""])[0]  # an output that has as many rows as the inputs says so
        axes: list[int | str] = [
            a if a == b else rows if not index and (a, b) == (PROBES[0][0], PROBES[1][0]) else f"axis{index}"
            for index, (a, b) in enumerate(zip(first.shape, second.shape, strict=True))
        ]
        return TensorSpec(name, code, axes)

    # ---- a call -------------------------------------------------------------------------------

    def _run(self, inputs: Sequence[tuple[memoryview, list[int]]], take: Take) -> None:
        rows = self._rows(inputs)
        self._call_with(inputs, lambda answer: take(self._checked(answer, rows)))

    def _rows(self, inputs: Sequence[tuple[memoryview, list[int]]]) -> int | None:
        """The rows of this run; None where its inputs have none, or disagree: it runs alone then."""
        axes = self.batch_axes or ()
        counts = {shape[axis] for (_, shape), axis in zip(inputs, axes, strict=False) if axis >= 0}
        return counts.pop() if len(counts) == 1 else None

    def _call_with(self, inputs: Sequence[tuple[memoryview, list[int]]], take: Callable[[Any], Any]) -> None:
        """Call the function with read-only arrays over these bytes, and let `take` read what it returns
        while nobody else can run it. Raises UserError."""
        roots = [
            np.frombuffer(view, dtypes.BY_CODE[spec.dtype].numpy) if len(view) else None
            for spec, (view, _) in zip(self.inputs, inputs, strict=True)
        ]
        with self._lock:
            self._call_once(roots, [shape for _, shape in inputs], take)
            kept = self._kept(roots)
            if kept:  # by a cycle, perhaps, which only a collection ends
                gc.collect()
                kept = self._kept(roots)
        if kept:
            raise UserError(
                f"{self._place} has kept its input {kept!r}, or a view of it, and the memory is another's "
                "after the call: keep x.copy()"
            )

    def _call_once(
        self, roots: Sequence[Array | None], shapes: list[list[int]], take: Callable[[Any], Any]
    ) -> None:
        """A method of its own: when it has returned, nothing of ours holds the arrays."""
        feeds = {
            spec.name: _empty(spec, shape) if root is None else root.reshape(shape)
            for spec, root, shape in zip(self.inputs, roots, shapes, strict=True)
        }
        try:
            answer = self._call(feeds[self.inputs[0].name] if self._bare else feeds)
            if self._streams:
                _take_each(answer, take)
            else:
                take(answer)
        except UserError:
            raise
        except BaseException as error:  # asyncio.CancelledError and the like are no Exception
            self._log(error)
            raise UserError(f"{self._place} raised {imports.described(error)}") from None

    def _kept(self, roots: Sequence[Array | None]) -> str:
        """The first input that somebody else still holds: every view of it holds its root."""
        for index, spec in enumerate(self.inputs):
            if roots[index] is not None and sys.getrefcount(roots[index]) > REFERENCES:
                return spec.name
        return ""

    def _log(self, error: BaseException) -> None:
        """Log an error once: a failing batch is halved, and fails again."""
        text, now_s = imports.described(error), time.monotonic()
        before, logged_s = self._logged
        if text != before or now_s - logged_s > LOG_AGAIN_S:
            self._logged = text, now_s
            imports.log_traceback(f"{self._place} failed", error)

    # ---- what it returned ---------------------------------------------------------------------

    def _named(self, answer: Any) -> dict[str, Array]:
        """The outputs by name, of one array or a dict. Raises UserError."""
        if answer is None:
            names = ", ".join(spec.name for spec in self.outputs)
            raise UserError(f"{self._place} returned None: it must return {names or 'its output'}")
        if not isinstance(answer, Mapping):
            only = self.outputs[0].name if len(self.outputs) == 1 else "" if self.outputs else OUTPUT
            if not only:
                raise UserError(
                    f"{self._place} returned a {type(answer).__name__}, and has several outputs: it must "
                    f"return a dict of {', '.join(spec.name for spec in self.outputs)}"
                )
            answer = {only: answer}
        named = {}
        for name, value in answer.items():
            if not isinstance(name, str) or not name.isprintable():
                raise UserError(f"{self._place}: an output is called by a text, not {name!r}")
            if not isinstance(value, np.ndarray | np.generic):
                raise UserError(
                    f"{self._place}: output {name!r} is a {type(value).__name__}, not a numpy array"
                )
            named[name] = np.asarray(value)  # NumPy makes scalars of what it computes of arrays without axes
        return named

    def _checked(self, answer: Any, rows: int | None) -> list[Array]:
        """What it returned in the order of its outputs, each as declared. Raises UserError."""
        named = self._named(answer)
        if named.keys() != {spec.name for spec in self.outputs}:
            wanted = ", ".join(spec.name for spec in self.outputs)
            raise UserError(f"{self._place} returned {_list(named)}; its outputs are {wanted}")
        axes = (self.batch_axes or [])[len(self.inputs) :] or [SHARED] * len(self.outputs)
        return [
            self._check(spec, named[spec.name], rows, axis)
            for spec, axis in zip(self.outputs, axes, strict=True)
        ]

    def _check(self, spec: TensorSpec, array: Array, rows: int | None, batch_axis: int) -> Array:
        entry = dtypes.BY_CODE[spec.dtype]
        if array.dtype != entry.numpy:
            raise UserError(
                f"{self._place}: output {spec} was returned as {array.dtype}; "
                f"convert it explicitly: y.astype(np.{entry.numpy.name})"
            )
        want = [axis if isinstance(axis, int) else None for axis in spec.shape or ()]
        have = list(array.shape)
        if len(have) != len(want) or any(w is not None and h != w for h, w in zip(have, want, strict=True)):
            raise UserError(f"{self._place}: output {spec} was returned with shape {have}")
        if rows is not None and batch_axis >= 0 and have[batch_axis] != rows:
            raise UserError(
                f"{self._place}: output {spec} was returned with {have[batch_axis]} rows for {rows}"
            )
        return array


def _take_each(answers: Any, take: Callable[[Any], Any]) -> None:
    """Beside the batches, where nobody asks for another, the first answer is enough."""
    try:
        for answer in answers:
            if not take(answer):
                break
    finally:
        answers.close()


def _at(address: int, dtype: int, shape: Sequence[int]) -> Array:
    """The tensor at an address; the memory is the caller's."""
    if not prod(shape):
        return np.empty(shape, dtypes.BY_CODE[dtype].numpy)
    raw = (ctypes.c_uint8 * nbytes_of(dtype, shape)).from_address(address)
    return np.frombuffer(memoryview(raw), dtypes.BY_CODE[dtype].numpy).reshape(shape)


def _empty(spec: TensorSpec, shape: Sequence[int]) -> Array:
    return np.empty(shape, dtypes.BY_CODE[spec.dtype].numpy)


def _list(named: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, named)) or "nothing"
