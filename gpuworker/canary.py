"""A canary: the same inputs through the model that serves and through the one that shall replace it.

Two models that were trained differently answer differently, so how much is allowed is the operator's
to say. What is never allowed: other shapes, and answers that are no numbers where there were some.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .model import ServedModel

ROWS = 2
SEED = 20_261_122
SOURCE_PLACE = re.compile(r"^/\S+:\d+ .* was false\. ")


class CannotServe(Exception):
    """The file is no model that batchyard can serve; the text says why."""


def said(error: BaseException) -> str:
    """An error's text, as a message can carry it: the error may be of a user's own code, and then neither
    its `__str__` nor its characters can be relied on."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return text.encode(errors="replace").decode()


def first_line(error: BaseException) -> str:
    """What onnxruntime has to say, without the rest of it, and without where in its source it says so."""
    text = said(error).strip().splitlines()
    return SOURCE_PLACE.sub("", text[0] if text else type(error).__name__)[:500]


def compare(old: ServedModel, new: ServedModel, tolerance: float | None) -> float | None:
    """The greatest difference of any value of any output; None when no canary can be made for the old
    model, or when the new one takes or gives other tensors, which the broker says more of. Raises
    CannotServe when the new model fails where the old one answers, or is further off than `tolerance`."""
    if _tensors(old) != _tensors(new):
        return None
    rows = _rows(old, new)
    for drawn in (True, False):  # some models take only what their users would send: then zeros
        feeds = old.canary(rows, np.random.default_rng(SEED) if drawn else None)
        try:
            expected = old.answers(feeds)
            break
        except Exception:
            continue
    else:
        return None
    try:
        answers = new.answers(feeds)
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
    """ROWS; or of the batch sizes that both run the one that comes nearest: another would be compiled."""
    sizes = set(old.buckets or range(1, old.max_batch + 1)) & set(new.buckets or range(1, new.max_batch + 1))
    return min((size for size in sizes if size >= ROWS), default=1)


def _tensors(model: ServedModel) -> list[tuple[Any, ...]]:
    """What it takes and gives, without the names of free axes."""
    return [
        (spec.name, spec.dtype, *(axis if isinstance(axis, int) else None for axis in spec.shape))
        for specs in (model.inputs, model.outputs)
        for spec in specs
    ]


def difference(name: str, before: Any, after: Any, whose: str) -> float:
    """The greatest difference of two arrays, the answers to one canary; `whose` are those before. Raises
    CannotServe for another shape, and for what is not finite where it was."""
    if before.shape != after.shape:
        raise CannotServe(f"its output {name!r} has shape {after.shape} where {whose} has {before.shape}")
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    before, after = before.astype(wide), after.astype(wide)
    finite = np.isfinite(before)
    if np.any(finite & ~np.isfinite(after)):
        raise CannotServe(f"its output {name!r} is not finite on a canary where {whose} is")
    with np.errstate(over="ignore"):  # of two numbers at the far ends
        return float(np.max(np.abs(before[finite] - after[finite]), initial=0.0))
