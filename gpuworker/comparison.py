"""Compares two models' answers to the same inputs: a served model and its replacement (the canary), a device
and the CPU.

Models that were trained differently answer differently, so the operator decides how much is allowed. Other
shapes are never allowed, nor NaN or infinity in place of finite numbers.

A GPU's kernel may be wrong for one shape on one driver without an error. The CPU provider, which every
onnxruntime has, runs the same inputs; its session is dropped after the warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evidence.words import first_line
from ..transport import dtypes
from ..transport.tensors import TensorSpec
from .faults import CannotServe
from .sessions import ANY_SIZE, Sessions
from .values import comparable

if TYPE_CHECKING:
    from .backends.onnx import ServedModel

ROWS = 2


class Agreement:
    """The CPU's answers, to compare a device's with.

    tolerance: the greatest allowed difference of a value, in parts of its output's greatest magnitude (or of
    1 if that is less). Infinity allows any difference, but no NaN or infinity where the CPU has a number.
    """

    def __init__(self, reference: Sessions, tolerance: float) -> None:
        self._reference = reference
        self._tolerance = tolerance

    def expected(self, feeds: dict[str, Any]) -> list[Any]:
        """The CPU's answers, as OrtValues. Raises onnxruntime's errors."""
        values: list[Any] = self._reference.get(ANY_SIZE).run_with_ort_values(None, feeds)
        return values

    def check(self, outputs: Sequence[TensorSpec], expected: Sequence[Any], answers: Sequence[Any]) -> None:
        """Raises CannotServe, with the figure, if the answers differ from the CPU's."""
        for spec, value, answer in zip(outputs, expected, answers, strict=True):
            if dtypes.BY_CODE[spec.dtype].name.startswith("float8"):
                continue  # too coarse to compare
            right, mine = comparable(value, spec), comparable(answer, spec)
            off = difference(spec.name, right, mine, "the CPU's")
            allowed = self._tolerance * max(1.0, float(np.abs(right[np.isfinite(right)]).max(initial=0)))
            if not off <= allowed:
                raise CannotServe(
                    f"the device's answers are not the CPU's: its output {spec.name!r} differs by up to "
                    f"{off:.3g}, and {allowed:.3g} is allowed (--tolerance {self._tolerance:g})"
                )


def compare(old: ServedModel, new: ServedModel, tolerance: float | None) -> float | None:
    """The greatest difference of a value of any output. None if no inputs can be invented for the old model,
    or if the new one has other inputs or outputs, which the broker judges. Raises CannotServe if the new
    model fails where the old one answers, or differs by more than `tolerance`."""
    if _tensors(old) != _tensors(new):
        return None
    rows = _rows(old, new)
    feeds = old.canary(rows)
    if feeds is None:
        return None
    try:
        expected = old.answers(feeds, rows)
    except Exception:
        return None
    try:
        answers = new.answers(feeds, rows)
    except Exception as error:
        text = f"it fails on a canary that the served model answers: {first_line(error)}"
        raise CannotServe(text) from None
    greatest = 0.0
    for name, before, after in zip((spec.name for spec in old.outputs), expected, answers, strict=True):
        greatest = max(greatest, difference(name, before, after, "the served model's"))
    if tolerance is not None and not greatest <= tolerance:  # a tolerance of NaN allows nothing
        raise CannotServe(
            f"its answers to a canary differ by up to {greatest:.3g}, and {tolerance:g} is allowed"
        )
    return greatest


def _rows(old: ServedModel, new: ServedModel) -> int:
    """ROWS, or the nearest batch size that both run: any other would have to be compiled."""
    sizes = set(old.buckets or range(1, old.max_batch + 1)) & set(new.buckets or range(1, new.max_batch + 1))
    return min((size for size in sizes if size >= ROWS), default=1)


def _tensors(model: ServedModel) -> list[tuple[Any, ...]]:
    """Its inputs and outputs, without the names of free axes."""
    return [
        (spec.name, spec.dtype, *(axis if isinstance(axis, int) else None for axis in spec.shape or ()))
        for specs in (model.inputs, model.outputs)
        for spec in specs
    ]


def difference(name: str, before: Any, after: Any, whose: str) -> float:
    """The greatest difference between two answers to the same inputs; `whose` names the first. Raises
    CannotServe for another shape, and for NaN or infinity where the first has a number."""
    if before.shape != after.shape:
        raise CannotServe(f"its output {name!r} has shape {after.shape} where {whose} has {before.shape}")
    if before.dtype.kind not in "fiubc":  # strings
        return float(not np.array_equal(before, after))
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    before, after = before.astype(wide), after.astype(wide)
    finite = np.isfinite(before)
    if np.any(finite & ~np.isfinite(after)):
        raise CannotServe(f"its output {name!r} is not finite on a canary where {whose} is")
    with np.errstate(over="ignore"):  # huge numbers of opposite sign
        return float(np.max(np.abs(before[finite] - after[finite]), initial=0.0))
