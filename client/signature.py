"""A model as its caller must meet it: names, dtypes, shapes; and the errors that say how to mend a call.

Pure. The broker checks everything again; here the point is a readable error at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.errors import InvalidRequest, ModelFailed
from ..transport.messages import ModelInfo, ModelState
from ..transport.tensors import TensorSpec

Array = np.ndarray[Any, Any]


class _Input:
    """One declared input, in the form that is quickest to compare with an array."""

    __slots__ = ("accepts", "code", "dtype", "fixed", "rank", "spec", "tail")

    def __init__(self, spec: TensorSpec, skip: int) -> None:
        self.spec = spec
        self.code = spec.dtype
        self.dtype = dtypes.BY_CODE[spec.dtype].numpy
        # Types that numpy lacks may also be handed over as their raw bits.
        name = dtypes.name_of(spec.dtype)
        raw = "<u2" if name == "bfloat16" else "u1" if name.startswith("float8") else None
        self.accepts = (self.dtype, np.dtype(raw)) if raw else (self.dtype,)
        self.rank = len(spec.shape)
        tail = spec.shape[skip:]
        self.tail = tuple(axis if isinstance(axis, int) else None for axis in tail)
        self.fixed = None not in self.tail


class Signature:
    """A loaded model's inputs and outputs. Raises ModelFailed for one that could not be loaded.
    `known`: where it is kept under its name, to be asked for once."""

    def __init__(self, info: ModelInfo, known: dict[str, Signature] | None = None) -> None:
        if info.state is not ModelState.READY:
            reason = info.reason or "it is still loading"
            raise ModelFailed(f"{info.name!r} cannot be served: {reason}")
        self.name = info.name
        self.batchable = info.batchable
        self.idempotent = info.idempotent
        self._skip = skip = 1 if info.batchable else 0
        self.inputs = [_Input(spec, skip) for spec in info.inputs]
        self.outputs = info.outputs
        self.output_names = [spec.name for spec in info.outputs]
        self.output_dtypes = [dtypes.BY_CODE[spec.dtype].numpy for spec in info.outputs]
        tails = [spec.shape[skip:] for spec in info.outputs]
        self.output_tails: list[tuple[int, ...]] | None = None  # None: sizes are not known before the run
        self.output_row_nbytes: list[int] = []
        if all(isinstance(axis, int) for tail in tails for axis in tail):
            self.output_tails = [tuple(int(axis) for axis in tail) for tail in tails]
            self.output_row_nbytes = [
                prod(tail) * dtype.itemsize
                for tail, dtype in zip(self.output_tails, self.output_dtypes, strict=True)
            ]
        self._only = self.inputs[0] if len(self.inputs) == 1 else None
        self._known = known

    def doubt(self) -> None:
        """A request was refused: another model may have been loaded under the name. Ask anew next time."""
        if self._known is not None and self._known.get(self.name) is self:
            del self._known[self.name]

    def arrays(self, inputs: Any) -> tuple[list[Array], int]:
        """(arrays in the model's order, rows) of what the caller passed: one array, or a mapping.

        Raises InvalidRequest that shows what is expected and what to write instead.
        """
        only = self._only
        if only is not None and type(inputs) is np.ndarray:
            return [self._check(only, inputs)], (inputs.shape[0] if self.batchable else 1)
        arrays = [self._check(want, given) for want, given in self._pairs(inputs)]
        if not self.batchable:
            return arrays, 1
        rows = {array.shape[0] for array in arrays}
        if len(rows) != 1:
            raise InvalidRequest(
                f"inputs of {self.name!r} must have the same number of rows, not {sorted(rows)}"
            )
        return arrays, rows.pop()

    def _pairs(self, inputs: Any) -> list[tuple[_Input, Any]]:
        names = [entry.spec.name for entry in self.inputs]
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise InvalidRequest(
                    f"{self.name!r} has the inputs {', '.join(names)}; "
                    f"the request has {', '.join(map(str, inputs))}"
                )
            return [(entry, inputs[entry.spec.name]) for entry in self.inputs]
        if self._only is None:
            raise InvalidRequest(
                f"{self.name!r} has several inputs: pass a mapping of {', '.join(names)} to arrays"
            )
        return [(self._only, inputs)]

    def _check(self, want: _Input, given: Any) -> Array:
        array: Array = given if isinstance(given, np.ndarray) else self._as_array(want, given)
        shape = array.shape
        if array.dtype != want.dtype and array.dtype not in want.accepts:
            raise InvalidRequest(
                f"input {want.spec} of {self.name!r} was given {array.dtype}; "
                f"cast it yourself, knowing what is lost: x.astype(np.{want.dtype.name})"
            )
        if len(shape) == want.rank and (not self.batchable or shape[0] > 0):
            tail = shape[self._skip :]
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
        untyped = isinstance(given, list | tuple | int | float | complex) and not isinstance(
            given, np.generic
        )
        try:
            return np.asarray(given, dtype=want.dtype if untyped else None)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"input {want.spec} of {self.name!r} is no array: {error}") from None

    def _shape_error(self, want: _Input, shape: Sequence[int]) -> str:
        text = f"input {want.spec} of {self.name!r} was given the shape {tuple(shape)}"
        if self.batchable and len(shape) == want.rank - 1:
            return text + "; axis 0 is the batch: pass x[None] for one row"
        if self.batchable and len(shape) == want.rank and shape[0] == 0:
            return text + "; send at least one row"
        return text
