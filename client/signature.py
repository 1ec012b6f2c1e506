"""A model as its caller must meet it: names, dtypes, shapes; and the errors that say how to mend a call.

Pure. The broker checks everything again; here the point is a readable error at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np

from ..transport import dtypes
from ..transport.errors import InvalidRequest, ModelFailed, shown
from ..transport.messages import ModelInfo, ModelState
from ..transport.tensors import ABSENT, Tensor, TensorSpec, nbytes_of
from .encoding import plain

Array = np.ndarray[Any, Any]
K = TypeVar("K")
T = TypeVar("T")
MISSES_MAX = 3  # of sizes that were learned: then they vary
ROWS_KEPT_MAX = 64  # numbers of rows whose outputs' sizes are remembered
_WITHOUT_NUMPY = [name for name in dtypes.BY_NAME if name.startswith(("bfloat", "float8", "int4", "uint4"))]


class _Input:
    """One declared input, in the form that is quickest to compare with an array. `axis` counts its rows;
    -1: it has none. `tail`: the other axes, None for a free one; None in all: any."""

    __slots__ = ("accepts", "axis", "code", "dtype", "fixed", "is_plain", "is_text", "rank", "spec", "tail")

    def __init__(self, spec: TensorSpec, axis: int) -> None:
        entry = dtypes.BY_CODE[spec.dtype]
        self.spec = spec
        self.code = spec.dtype
        self.axis = axis
        self.dtype = entry.numpy
        self.is_text = entry.kind == "s"
        self.is_plain = bool(entry.itemsize)  # its bytes are its array's: no text, no two elements to a byte
        # Types that numpy lacks may also be handed over as their raw bits.
        raw = (
            f"{'i' if entry.kind == 'i' else 'u'}{entry.itemsize or 1}"
            if entry.name in _WITHOUT_NUMPY
            else None
        )
        self.accepts = (self.dtype, np.dtype(raw)) if raw else (self.dtype,)
        self.rank = -1 if spec.shape is None else len(spec.shape)
        tail = without(spec.shape or (), axis)
        self.tail = None if spec.shape is None else tuple(n if isinstance(n, int) else None for n in tail)
        self.fixed = self.tail is not None and None not in self.tail


class Kind:
    """Requests whose inputs have the same shapes; what was found out for the first serves the others.

    shapes: of the inputs; None: left out. rows: 0: it runs alone.
    signature, output_nbytes, expected: set by `Signature.foresee`. What the outputs' slots are for.
    """

    __slots__ = ("expected", "output_nbytes", "rows", "shapes", "signature")

    def __init__(self, shapes: tuple[tuple[int, ...] | None, ...], rows: int) -> None:
        self.shapes = [None if shape is None else list(shape) for shape in shapes]
        self.rows = rows
        self.signature: Signature | None = None
        self.output_nbytes: list[int] = []
        self.expected: list[list[int]] | None = None


class Signature:
    """A loaded model's inputs and outputs. Raises ModelFailed for one that could not be loaded.
    `known`: where it is kept under its name, to be asked for once."""

    def __init__(self, info: ModelInfo, known: dict[str, Signature] | None = None) -> None:
        if info.state is not ModelState.READY:
            reason = info.reason or "it is still loading"
            raise ModelFailed(f"{info.name!r} cannot be served: {reason}")
        self._told = _told(info)
        self.name = info.name
        self.batchable = info.batchable
        self.idempotent = info.idempotent
        self.streams = info.streams  # it answers several times
        count = len(info.inputs)
        axes = list(info.batch_axes) or [0] * (count + len(info.outputs))
        if not info.batchable:
            axes = [-1] * len(axes)
        self.inputs = [_Input(spec, axis) for spec, axis in zip(info.inputs, axes, strict=False)]
        self.outputs = info.outputs
        self.output_axes = axes[count:]
        self.output_names = [spec.name for spec in info.outputs]
        self.output_dtypes = [dtypes.BY_CODE[spec.dtype].numpy for spec in info.outputs]
        tails = [
            without(spec.shape or (), axis) for spec, axis in zip(info.outputs, self.output_axes, strict=True)
        ]
        self.output_tails: list[tuple[int, ...]] | None = None  # None: sizes are not known before the run
        self._output_row_nbytes: list[int] = []
        if not info.streams and all(
            spec.shape is not None and dtypes.BY_CODE[spec.dtype].itemsize for spec in info.outputs
        ) and all(isinstance(size, int) for tail in tails for size in tail):
            self.output_tails = [tuple(int(size) for size in tail) for tail in tails]
            self._output_row_nbytes = [
                nbytes_of(spec.dtype, tail)
                for spec, tail in zip(info.outputs, self.output_tails, strict=True)
            ]
        self.is_uniform = not any(entry.is_text for entry in self.inputs)  # shapes say how many bytes
        self.has_one_shape = self.is_uniform and all(  # but for the rows
            entry.fixed and not entry.spec.optional for entry in self.inputs
        )
        self._expecting: dict[tuple[tuple[int, ...], ...], Expecting] = {}
        self._nbytes_by_rows: dict[int, list[int]] = {}
        self._shapes_by_rows: dict[int, list[tuple[int, ...]]] = {}
        self._only = self.inputs[0] if count == 1 else None
        self._kinds: dict[Any, Kind] = {}  # by the inputs' shapes
        self._named = [(entry.spec.name, entry.dtype) for entry in self.inputs]
        self._names = {entry.spec.name for entry in self.inputs}
        self._needed = {entry.spec.name for entry in self.inputs if not entry.spec.optional}
        self._known = known
        self._max_batch = info.max_batch
        sized = all(dtypes.BY_CODE[spec.dtype].itemsize for spec in info.outputs)
        self._learns = sized and self.output_tails is None
        # Where they are not declared: outputs' shapes without rows, by the inputs', and how often they
        # were wrong.
        self._learned: dict[Any, tuple[list[tuple[int, ...]], int]] = {}

    def still_holds(self, info: ModelInfo) -> bool:
        """Whether a newer description says the same, so that what was learned is kept."""
        return self._told == _told(info)

    def doubt(self) -> None:
        """A request was refused: another model may have been loaded under the name. Ask anew next time."""
        if self._known is not None and self._known.get(self.name) is self:
            del self._known[self.name]

    def arrays(self, inputs: Any) -> tuple[list[Array | None], int]:
        """`sorted_out`, with only the rows of its kind."""
        arrays, kind = self.sorted_out(inputs)
        return arrays, kind.rows

    def sorted_out(self, inputs: Any) -> tuple[list[Array | None], Kind]:
        """(arrays in the model's order, their kind) of what the caller passed: one array, or a mapping; None
        for an optional input that is left out. Its rows are 0 when it runs alone, because the model has no
        batch axis, or because its inputs differ on it.

        Raises InvalidRequest that shows what is expected and what to write instead.
        """
        arrays: list[Array | None] = []
        only = self._only
        if only is not None and type(inputs) is np.ndarray:
            if inputs.dtype is only.dtype:
                kind = self._kinds.get((inputs.shape,))
                if kind is not None:
                    return [inputs], kind
            arrays.append(self._check(only, inputs))
        else:
            if type(inputs) is dict and len(inputs) == len(self._named):
                shapes = []
                for name, dtype in self._named:
                    given = inputs.get(name)
                    if type(given) is not np.ndarray or given.dtype is not dtype:
                        break
                    arrays.append(given)
                    shapes.append(given.shape)
                kind = self._kinds.get(tuple(shapes)) if len(shapes) == len(self._named) else None
                if kind is not None:
                    return arrays, kind
            arrays = [self._check(want, given) for want, given in self._pairs(inputs)]
        key = tuple(None if array is None else array.shape for array in arrays)
        kind = self._kinds.get(key)
        if kind is None:
            counts = {
                array.shape[want.axis]
                for want, array in zip(self.inputs, arrays, strict=True)
                if want.axis >= 0 and array is not None
            }
            kind = Kind(key, counts.pop() if len(counts) == 1 else 0)
            _keep(self._kinds, key, kind)
        return arrays, kind

    def foresee(self, kind: Kind, nbytes_max: int) -> Signature:
        """The signature for requests of this kind, which may foresee outputs up to so many bytes."""
        rows, found = kind.rows, self
        if self.output_tails is None:
            shapes = self.foreseen(kind.shapes, rows)
            expecting = None if shapes is None else self.giving(shapes)
            if expecting is not None and sum(expecting.output_nbytes(rows)) <= nbytes_max:
                found = expecting
        kind.output_nbytes = found.output_nbytes(rows)
        kind.expected = None if found.expected is None else list(map(list, found.expected))
        kind.signature = found
        return found

    def output_nbytes(self, rows: int) -> list[int]:
        """Bytes of every output for so many rows (0: it runs alone); empty when not known before the run."""
        if not self.batchable:
            return self._output_row_nbytes
        known = self._nbytes_by_rows.get(rows)
        if known is None:
            known = [nbytes * rows for nbytes in self._output_row_nbytes] if rows else []
            _keep(self._nbytes_by_rows, rows, known)
        return known

    @property
    def expected(self) -> Sequence[tuple[int, ...]] | None:
        """The only shapes that this request's slots are for; None: the declared ones."""
        return None

    def output_shapes(self, rows: int) -> list[tuple[int, ...]]:
        """The shape of every output for so many rows, where that is known before the run."""
        known = self._shapes_by_rows.get(rows)
        if known is None:
            assert self.output_tails is not None
            known = [
                tail if axis < 0 else (*tail[:axis], rows, *tail[axis:])
                for tail, axis in zip(self.output_tails, self.output_axes, strict=True)
            ]
            _keep(self._shapes_by_rows, rows, known)
        return known

    # ---- outputs whose sizes are not declared -----------------------------------------------------

    def learn(self, inputs: Sequence[Tensor], outputs: Sequence[Array], rows: int, missed: bool) -> None:
        """A request with these inputs was answered in frames. `missed`: it had slots of other sizes."""
        if not self._learns or (self.batchable and rows > self._max_batch):
            return
        key = self._shapes_key([None if tensor.dtype == ABSENT else tensor.shape for tensor in inputs], rows)
        _, misses = self._learned.get(key, ((), 0))
        if len(self._learned) >= ROWS_KEPT_MAX:
            self._learned.clear()
        tails = [
            without(array.shape, axis if rows else -1)
            for array, axis in zip(outputs, self.output_axes, strict=True)
        ]
        if self._learned.get(key) != (learned := (tails, misses + missed)):
            self._learned[key] = learned
            self._kinds.clear()

    def giving(self, shapes: Sequence[tuple[int, ...]]) -> Expecting:
        """The signature of requests whose outputs are expected to have these shapes: one and the same for all
        of them, so that they can go in columns."""
        key = tuple(shapes)
        found = self._expecting.get(key)
        if found is None:
            found = Expecting(self, shapes)
            _keep(self._expecting, key, found)
        return found

    def foreseen(self, shapes: Sequence[Sequence[int] | None], rows: int) -> list[tuple[int, ...]] | None:
        """The shapes of the outputs, as they were for inputs of these; None: not known, or they vary."""
        found = self._learned.get(self._shapes_key(shapes, rows)) if self._learned else None
        if found is None or found[1] >= MISSES_MAX or (self.batchable and rows > self._max_batch):
            return None
        return [
            tail if axis < 0 or not rows else (*tail[:axis], rows, *tail[axis:])
            for tail, axis in zip(found[0], self.output_axes, strict=True)
        ]

    def _shapes_key(self, shapes: Sequence[Sequence[int] | None], rows: int) -> Any:
        return bool(rows), tuple(
            None if shape is None else without(shape, want.axis if rows else -1)
            for shape, want in zip(shapes, self.inputs, strict=True)
        )

    def _pairs(self, inputs: Any) -> list[tuple[_Input, Any]]:
        names = [name for name, _ in self._named]
        if inputs is None and not self._needed:
            inputs = {}
        if isinstance(inputs, Mapping):
            if not self._needed <= inputs.keys() <= self._names:
                raise InvalidRequest(
                    f"{self.name!r} has {_list('input', names)}; the request has {_list('input', inputs)}"
                )
            return [(entry, inputs.get(entry.spec.name)) for entry in self.inputs]
        if self._only is None:
            raise InvalidRequest(
                f"{self.name!r} has several inputs: pass a mapping of {', '.join(names)} to arrays"
            )
        return [(self._only, inputs)]

    def _check(self, want: _Input, given: Any) -> Array | None:
        if given is None:
            if want.spec.optional:
                return None
            raise InvalidRequest(f"input {want.spec} of {self.name!r} was given None, and is not optional")
        array: Array = given if type(given) is np.ndarray else self._as_array(want, given)
        if want.is_text and array.dtype.kind == "U":
            array = array.astype(object)
        shape = array.shape
        if array.dtype != want.dtype and array.dtype not in want.accepts:
            raise InvalidRequest(f"input {want.spec} of {self.name!r} {_other_type(want, given, array)}")
        if want.tail is None:
            return array
        if len(shape) == want.rank:
            tail = shape[1:] if want.axis == 0 else without(shape, want.axis)
            if tail == want.tail:
                return array
            if not want.fixed and all(
                size is None or have == size for have, size in zip(tail, want.tail, strict=True)
            ):
                return array
        raise InvalidRequest(self._shape_error(want, shape))

    def _as_array(self, want: _Input, given: Any) -> Array:
        """Python's numbers and lists have no type of their own and get the model's; anything else says
        what it is, and is not converted."""
        if want.is_text and not isinstance(given, np.ndarray):
            return np.asarray(given, object)
        try:
            return plain(given, want.dtype)
        except InvalidRequest as error:
            raise InvalidRequest(f"input {want.spec} of {self.name!r}: {error}") from None

    def _shape_error(self, want: _Input, shape: Sequence[int]) -> str:
        text = f"input {want.spec} of {self.name!r} was given the shape {tuple(shape)}"
        if want.axis == 0 and len(shape) == want.rank - 1:
            return text + "; axis 0 is the batch: pass x[None] for one row"
        if len(shape) != want.rank:
            return f"{text}; it needs {want.rank} axes, not {len(shape)}"
        sizes = zip(want.spec.shape or (), shape, strict=True)
        wrong = [
            f"axis {axis} must be {size}"
            for axis, (size, has) in enumerate(sizes)
            if isinstance(size, int) and size != has and axis != want.axis
        ]
        return f"{text}; {', '.join(wrong)}"


def _other_type(want: _Input, given: Any, array: Array) -> str:
    """The error text for an array of another type than the model's."""
    if array.dtype.kind in "OUS" and not isinstance(given, np.ndarray | list | tuple | str | bytes):
        return f"was given {shown(given)}, which is no array of numbers"
    if array.dtype.kind == "O":
        return f"was given Python objects; convert it explicitly to an array of {want.dtype.name}"
    if array.dtype.kind == "S" and want.is_text:
        return f"was given bytes ({array.dtype}), and takes text: pass np.char.decode(x)"
    if array.dtype.kind in "US":
        return f"was given text ({array.dtype}); convert it explicitly to an array of {want.dtype.name}"
    if want.is_text:
        return f"was given {array.dtype}, and takes text: a list of str, or an array of dtype object"
    return f"was given {array.dtype}; convert it explicitly: x.astype(np.{want.dtype.name})"


class Expecting(Signature):
    """A model's signature for requests whose outputs' shapes are foreseen: so there are slots for them. A
    worker uses a slot only for an output of its shape; else the outputs come as frames, as those do whose
    sizes nobody foresaw."""

    def __init__(self, base: Signature, shapes: Sequence[tuple[int, ...]]) -> None:
        self.__dict__.update(copy.copy(base.__dict__))
        self._base = base
        self._shapes = list(shapes)
        self.output_tails = [()] * len(shapes)  # known
        self._kinds = {}

    def doubt(self) -> None:
        self._base.doubt()

    def learn(self, inputs: Sequence[Tensor], outputs: Sequence[Array], rows: int, missed: bool) -> None:
        self._base.learn(inputs, outputs, rows, missed)

    @property
    def expected(self) -> Sequence[tuple[int, ...]]:
        return self._shapes

    def output_nbytes(self, rows: int) -> list[int]:
        pairs = zip(self._shapes, self.output_dtypes, strict=True)
        return [prod(shape) * dtype.itemsize for shape, dtype in pairs]

    def output_shapes(self, rows: int) -> list[tuple[int, ...]]:
        return self._shapes


def _told(info: ModelInfo) -> tuple[Any, ...]:
    """What a signature is made of."""
    return (
        info.state, info.revision, info.inputs, info.outputs, info.batchable, list(info.batch_axes),
        info.max_batch, info.idempotent, info.streams,
    )  # fmt: skip


def _keep(known: dict[K, T], key: K, value: T) -> None:
    """Remember a result for a key that will come again, such as a number of rows."""
    if len(known) >= ROWS_KEPT_MAX:
        known.clear()
    known[key] = value


def without(shape: Sequence[Any], axis: int) -> tuple[Any, ...]:
    """A shape without its batch axis; -1: it has none."""
    return (*shape[:axis], *shape[axis + 1 :]) if axis >= 0 else tuple(shape)


def rows_of(axis: int, start: int, stop: int) -> Any:
    """The index of these rows of an array."""
    return (*(slice(None),) * axis, slice(start, stop))


def _list(what: str, names: Any) -> str:
    names = list(map(str, names))
    return f"the {what}{'s' * (len(names) > 1)} {', '.join(names)}" if names else f"no {what}s"
