"""Models that are Python functions: a session like onnxruntime's, which calls the user's code instead.

Runner and ServedModel do the rest as they do for any model: gather, pad, scatter, warm up, compare.
This room hands arrays over and takes them back, and judges both: what a function is given it cannot
write to, and must not keep; what it returns must be what it declared.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np

from ..transport import dtypes
from ..transport.functions import OUTPUT, Function, Signature
from ..transport.messages import LentBatch, Load
from ..transport.tensors import TensorSpec, nbytes_of
from . import imports
from .canary import CannotServe
from .imports import Call, UserError
from .memory import Memory
from .model import ServedModel
from .providers import Recipe
from .runner import Result
from .sessions import Sessions

PROBES = ((2, 3), (3, 4))  # (rows, size of other free axes) of the calls that find out undeclared outputs
LOG_AGAIN_S = 5.0
_ONE = [object()]
REFERENCES = sys.getrefcount(_ONE[0])  # to what a list alone holds

Array = np.ndarray[Any, Any]
Take = Callable[[list[Array]], None]
View = Callable[[], Callable[[int, int], memoryview] | None]  # a WeakMethod


class FunctionModel(ServedModel):
    """A function, or an object of a class, that is served. Raises CannotServe when it can't be."""

    apart = False  # a function is called for a batch, not for each of its items

    def __init__(self, load: Load, function: Function) -> None:
        self._place = imports.place_of(function, load.path)
        self._own = ""
        try:
            found, self._own = imports.find(function, load.path)
            weakref.finalize(self, imports.forget, self._own).atexit = False
            signature = imports.signature_of(found, function, self._place)
            self._call = imports.made(found, self._place)
        except UserError as error:
            raise CannotServe(str(error)) from None
        self._signature = signature
        self._memory: Memory | None = None
        most = min(load.max_batch, signature.max_batch or load.max_batch)
        if load.buckets and load.buckets[-1] > most:
            raise CannotServe(f"{self._place} takes {most} rows at most, and its largest bucket is more")
        super().__init__(msgspec.structs.replace(load, max_batch=most), Recipe("python", dict, None))

    @property
    def placement(self) -> str:
        return self._place

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """As for any model; and the copy of what the function returned counts as copied."""
        self._memory = memory
        self._session.copied_bytes = 0
        result = super().run(batch, memory)
        result.copied_bytes += self._session.copied_bytes
        return result

    def _open(self, load: Load, tolerance: float) -> tuple[Sessions, list[TensorSpec], list[TensorSpec]]:
        view = weakref.WeakMethod(self._view)  # no cycle: a model that is dropped must go at once, because
        # the loader freezes what the collector knows of
        session = self._session = FunctionSession(self._call, self._place, self._signature, view)
        if not session.outputs:
            if not load.warmup:
                raise CannotServe(f"{self._place} declares no outputs, and warmup = false forbids to try it")
            try:
                session.outputs = session.found_outputs()
            except UserError as error:
                raise CannotServe(f"its first run failed: {error}") from None
        tensors = (*session.inputs, *session.outputs)
        named = all(spec.shape and not isinstance(spec.shape[0], int) for spec in tensors)
        session.counts_rows = named and load.batchable is not False
        return _One(self.recipe, session), session.inputs, session.outputs

    def _fed(self, array: Any, dtype: int) -> Any:
        return _Value(array)

    def _view(self, address: int, nbytes: int) -> memoryview:
        """The bytes that a batch's run is bound to."""
        assert self._memory is not None
        view = self._memory.view(address, nbytes)
        view = self._runner.view(address, nbytes) if view is None else view
        assert view is not None
        return view


class _One(Sessions):
    """The session of a function, which is the same for every batch size."""

    def __init__(self, recipe: Recipe, session: FunctionSession) -> None:
        super().__init__(recipe, "")
        self._only = session

    def _make(self, rows: int) -> FunctionSession:
        return self._only


class _Binding:
    """Where one run's tensors lie. Output None: its size is known when the function has returned."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.inputs: dict[str, tuple[memoryview, list[int]]] = {}
        self.outputs: dict[str, Array | None] = {}
        self.values: list[_Value] = []

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

    def get_outputs(self) -> list[_Value]:
        return self.values


class _Value:
    """What Runner and ServedModel use of an OrtValue."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def tensor_size_in_bytes(self) -> int:
        return self._array.nbytes

    def numpy(self) -> Array:
        return self._array


class FunctionSession:
    """What Runner and ServedModel use of an onnxruntime session. `view()(address, nbytes)` finds the bytes
    that a run is bound to. Runs of one session never overlap: user code need not bear that."""

    def __init__(self, call: Call, place: str, signature: Signature, view: View) -> None:
        self._call = call
        self._place = place
        self._bare = signature.bare
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._view = view
        self._lock = threading.Lock()  # a canary runs on the loader's thread
        self._logged = ("", 0.0)
        self.counts_rows = False  # axis 0 of every tensor is the batch
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
                    binding.values.append(_Value(np.array(output, order="C")))
                else:
                    place[...] = output

        self._run(inputs, take)

    def run_with_ort_values(self, names: None, feeds: Mapping[str, Any]) -> list[_Value]:
        """A run beside the batches, for warm-up and canary."""
        arrays = [feeds[spec.name].numpy() for spec in self.inputs]
        inputs = [(memoryview(array.tobytes()), list(array.shape)) for array in arrays]
        values: list[_Value] = []
        self._run(inputs, lambda outputs: values.extend(_Value(np.array(o, order="C")) for o in outputs))
        return values

    def found_outputs(self) -> list[TensorSpec]:
        """The outputs of a function that does not declare them: what two calls with zeros have in common.
        Raises UserError."""
        seen: list[dict[str, Array]] = []

        def take(answer: Any) -> None:  # it may be a view of what it was given
            seen.append({name: np.array(array) for name, array in self._named(answer).items()})

        for rows, free in PROBES:
            zeros = []
            for spec in self.inputs:
                axes = enumerate(spec.shape)
                shape = [size if isinstance(size, int) else free if axis else rows for axis, size in axes]
                zeros.append((memoryview(bytes(nbytes_of(spec.dtype, shape))), shape))
            self._call_with(zeros, take)
        first, second = seen
        if not first or first.keys() != second.keys():
            raise UserError(f"{self._place} returned {_list(first)} first, and then {_list(second)}")
        return [self._spec(name, first[name], second[name]) for name in first]

    def _spec(self, name: str, first: Array, second: Array) -> TensorSpec:
        code = dtypes.CODE_BY_NUMPY.get(first.dtype)
        if code is None or first.dtype != second.dtype or first.ndim != second.ndim:
            raise UserError(f"{self._place}: output {name!r} is a {first.dtype}, which no tensor can be")
        axes: list[int | str] = [
            a if a == b else "batch" if not index else f"axis{index}"
            for index, (a, b) in enumerate(zip(first.shape, second.shape, strict=True))
        ]
        return TensorSpec(name, code, axes)

    # ---- a call -------------------------------------------------------------------------------

    def _run(self, inputs: Sequence[tuple[memoryview, list[int]]], take: Take) -> None:
        rows = inputs[0][1][0] if inputs[0][1] else 0
        self._call_with(inputs, lambda answer: take(self._checked(answer, rows)))

    def _call_with(self, inputs: Sequence[tuple[memoryview, list[int]]], take: Callable[[Any], None]) -> None:
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
        self, roots: Sequence[Array | None], shapes: list[list[int]], take: Callable[[Any], None]
    ) -> None:
        """Apart, so that when it has returned nothing of ours holds the arrays."""
        feeds = {
            spec.name: _empty(spec, shape) if root is None else root.reshape(shape)
            for spec, root, shape in zip(self.inputs, roots, shapes, strict=True)
        }
        try:
            take(self._call(feeds[self.inputs[0].name] if self._bare else feeds))
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
        """A failing batch is halved and fails again: the same is told once."""
        text, now_s = imports.described(error), time.monotonic()
        before, logged_s = self._logged
        if text != before or now_s - logged_s > LOG_AGAIN_S:
            self._logged = text, now_s
            imports.log_traceback(f"{self._place} failed", error)

    # ---- what it returned ---------------------------------------------------------------------

    def _named(self, answer: Any) -> dict[str, Array]:
        """By name, whether it returned one array or a dict. Raises UserError."""
        if not isinstance(answer, Mapping):
            only = self.outputs[0].name if len(self.outputs) == 1 else "" if self.outputs else OUTPUT
            if not only:
                raise UserError(
                    f"{self._place} returned a {type(answer).__name__}, and has several outputs: it must "
                    f"return a dict of {', '.join(spec.name for spec in self.outputs)}"
                )
            answer = {only: answer}
        for name, value in answer.items():
            if not isinstance(name, str) or not name.isprintable():
                raise UserError(f"{self._place}: an output is called by a text, not {name!r}")
            if not isinstance(value, np.ndarray):
                raise UserError(
                    f"{self._place}: output {name!r} is a {type(value).__name__}, not a numpy array"
                )
        return dict(answer)

    def _checked(self, answer: Any, rows: int) -> list[Array]:
        """What it returned in the order of its outputs, each as declared. Raises UserError."""
        named = self._named(answer)
        if named.keys() != {spec.name for spec in self.outputs}:
            wanted = ", ".join(spec.name for spec in self.outputs)
            raise UserError(f"{self._place} returned {_list(named)}; its outputs are {wanted}")
        return [self._check(spec, named[spec.name], rows) for spec in self.outputs]

    def _check(self, spec: TensorSpec, array: Array, rows: int) -> Array:
        entry = dtypes.BY_CODE[spec.dtype]
        if array.dtype != entry.numpy:
            raise UserError(
                f"{self._place}: output {spec} was returned as {array.dtype}; "
                f"cast it, knowing what is lost: y.astype(np.{entry.numpy.name})"
            )
        want = [axis if isinstance(axis, int) else None for axis in spec.shape]
        have = list(array.shape)
        if len(have) != len(want) or any(w is not None and h != w for h, w in zip(have, want, strict=True)):
            raise UserError(f"{self._place}: output {spec} was returned with shape {have}")
        if self.counts_rows and have[0] != rows:
            raise UserError(f"{self._place}: output {spec} was returned with {have[0]} rows for {rows}")
        return array


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
