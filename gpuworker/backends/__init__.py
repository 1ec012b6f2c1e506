"""backends/: one file per kind of model. A new kind is one file here and one line in `BACKENDS`.

A backend's module has `serves(load)`, whether the model is of its kind, and `make(load, recipe, tolerance)`,
the model itself: a ServedModel, or what does the same.
"""

from __future__ import annotations

from typing import Any

from ...transport.messages import Load
from ..providers import Recipe
from . import onnx, python
from .onnx import ServedModel

BACKENDS: list[Any] = [python, onnx]  # the first one that serves a Load makes its model


def make(load: Load, recipe: Recipe, tolerance: float) -> ServedModel:
    """The model that a Load names. Raises CannotServe, OSError, and DeviceLost."""
    backend = next(backend for backend in BACKENDS if backend.serves(load))
    model: ServedModel = backend.make(load, recipe, tolerance)
    return model
