"""Whether a device answers as the CPU does: a model serves on it only if it does.

A GPU's kernel may be wrong for one shape on one driver, and says nothing. The CPU provider, which every
onnxruntime has, answers the same canaries; its session is given up when the model is warm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.tensors import TensorSpec
from .canary import CannotServe, difference
from .runner import bytes_of
from .sessions import ANY_SIZE, Sessions


class Agreement:
    """The answers of the CPU's session to compare with.

    tolerance: the greatest difference of any value of an output, in parts of that output's greatest
    magnitude, or of 1 where that is less. infinity: any, but finite where the CPU's is.
    """

    def __init__(self, reference: Sessions, tolerance: float) -> None:
        self._reference = reference
        self._tolerance = tolerance

    def expected(self, feeds: dict[str, Any]) -> list[Any]:
        """The CPU's answers, as onnxruntime's values. Raises whatever onnxruntime raises."""
        values: list[Any] = self._reference.get(ANY_SIZE).run_with_ort_values(None, feeds)
        return values

    def check(self, outputs: Sequence[TensorSpec], expected: Sequence[Any], answers: Sequence[Any]) -> None:
        """Raises CannotServe, with the figure, for answers that are not the CPU's."""
        for spec, wanted, got in zip(outputs, expected, answers, strict=True):
            right, mine = _array(wanted, spec), _array(got, spec)
            off = difference(spec.name, right, mine, "the CPU's")
            allowed = self._tolerance * max(1.0, float(np.abs(right[np.isfinite(right)]).max(initial=0)))
            if not off <= allowed:
                raise CannotServe(
                    f"the device's answers are not the CPU's: its output {spec.name!r} differs by up to "
                    f"{off:.3g}, and {allowed:.3g} is allowed (--tolerance {self._tolerance:g})"
                )


def _array(value: Any, spec: TensorSpec) -> Any:
    """A value as numpy can compare it: of what numpy has no name for, bfloat16 is the upper half of a
    float32; the others, of 8 bits, are too coarse to compare."""
    shape, flat = bytes_of(value, spec)
    entry = dtypes.BY_CODE[spec.dtype]
    if entry.name == "bfloat16":
        bits = flat.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if entry.name.startswith("float8"):
        return np.zeros(shape, np.float32)
    array = flat.view(entry.numpy).reshape(shape)
    return array if entry.numpy.kind == "c" else array.astype(np.float64)
