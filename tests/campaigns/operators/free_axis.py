"""A backend test with axis 0 made free, and requests for it of 1 to 40 rows.

The axis gets one symbolic name, the same in every input and output, as exporters write a batch: whether it
is one, the name does not say. Requests are drawn from the test's own inputs, so that indices stay inside
what they index and lengths fit; onnxruntime judges each request alone, and what it refuses is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

Array = np.ndarray[Any, Any]
NAME = "n"
ROWS_MAX = 40
BYTES_MAX = 4 << 20  # of a request: a long row has fewer rows beside it
SPREAD = 0.25  # of drawn values around the test's own, as a share of their standard deviation


def free(model: ModelProto) -> ModelProto | None:
    """The model with axis 0 free in every input and output that has one; None where no input has."""
    changed = ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]  # sizes of inner values that hold no more
    constants = {tensor.name for tensor in changed.graph.initializer}
    inputs = [info for info in changed.graph.input if info.name not in constants]
    freed = [_free(info) for info in inputs]
    for info in changed.graph.output:
        _free(info)
    return changed if any(freed) else None


def _free(info: Any) -> bool:
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape") or not kind.shape.dim:
        return False
    kind.shape.dim[0].Clear()
    kind.shape.dim[0].dim_param = NAME
    return True


class Drawer:
    """Draws requests from a test's inputs. Three ways, because "rows" mean different things:

    together: every input with an axis 0 gets the same number of rows;
    some: only inputs that are as long as the first one do, the others keep theirs (weights, scales);
    kept: every input keeps its length, and only the values are others.
    """

    WAYS = ("together", "some", "kept")

    def __init__(self, inputs: Mapping[str, Any], rng: np.random.Generator) -> None:
        self.inputs = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
        self._rng = rng
        nbytes = [
            value.nbytes // value.shape[0] for value in self.inputs.values() if value.ndim and value.size
        ]
        self._row_nbytes = max(nbytes, default=0)

    def request(self, way: str, rows: int) -> dict[str, Array]:
        """One request."""
        rows = min(rows, max(1, BYTES_MAX // max(1, self._row_nbytes)))
        lengths = [value.shape[0] for value in self.inputs.values() if value.ndim]
        first = lengths[0] if lengths else 0
        drawn = {}
        for name, value in self.inputs.items():
            moves = way == "together" or (way == "some" and value.ndim and value.shape[0] == first)
            if not value.ndim or not value.shape[0]:
                drawn[name] = value
            elif moves:
                drawn[name] = self._other_values(value[self._rng.integers(0, value.shape[0], rows)])
            else:
                drawn[name] = self._other_values(value) if way == "kept" else value
        return drawn

    def _other_values(self, value: Array) -> Array:
        """Values near the test's own for numbers with a fraction; else the test's own, in another order
        within a row: what was legal stays legal."""
        rng = self._rng
        if value.dtype.kind in "fc" or value.dtype.name == "bfloat16":
            wide = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
            finite = wide[np.isfinite(wide)]
            spread = float(finite.std()) if finite.size else 0.0
            noise = rng.standard_normal(value.shape) * SPREAD * (spread or 1.0)
            with np.errstate(all="ignore"):
                moved = (wide + noise).astype(value.dtype)
            keep = rng.random(value.shape) < 0.2  # values that a test chose on purpose stay among them
            return np.where(keep, value, moved)
        if value.ndim < 2 or value.size == value.shape[0]:
            return value[rng.permutation(value.shape[0])] if value.ndim == 1 else value
        return value
