"""A canary: the same inputs through the model that serves and through the one that shall replace it.

Two models that were trained differently answer differently, so how much is allowed is the operator's
to say. What is never allowed: other shapes, and answers that are no numbers where there were some.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .model import CannotServe, ServedModel

ROWS = 2
SEED = 20_261_122


def compare(old: ServedModel, new: ServedModel, tolerance: float | None) -> float | None:
    """The greatest difference of any value of any output; None when no canary can be made for the old
    model. Raises CannotServe when the new model fails where the old one answers, or is further off
    than `tolerance`."""
    for drawn in (True, False):  # some models take only what their users would send: then zeros
        feeds = old.canary(min(ROWS, old.max_batch), np.random.default_rng(SEED) if drawn else None)
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
        raise CannotServe(f"it fails on a canary that the served model answers: {error}") from None
    greatest = 0.0
    for name, before, after in zip((spec.name for spec in old.outputs), expected, answers, strict=True):
        greatest = max(greatest, _difference(name, before, after))
    if tolerance is not None and not greatest <= tolerance:  # a tolerance of NaN allows nothing
        raise CannotServe(
            f"its answers to a canary differ by up to {greatest:.3g}, and {tolerance:g} is allowed"
        )
    return greatest


def _difference(name: str, before: Any, after: Any) -> float:
    """The greatest difference of two arrays. Raises CannotServe."""
    if before.shape != after.shape:
        raise CannotServe(f"its output {name!r} has shape {after.shape} where there was {before.shape}")
    if not before.size:
        return 0.0
    if before.dtype.kind not in "fiub":
        return float(np.any(before != after))
    before, after = before.astype(np.float64), after.astype(np.float64)
    if np.any(np.isfinite(before) & ~np.isfinite(after)):
        raise CannotServe(f"its output {name!r} is not finite on a canary where the served model's is")
    with np.errstate(invalid="ignore"):  # infinities of both
        return float(np.max(np.nan_to_num(np.abs(before - after), nan=0.0, posinf=0.0)))
