"""A model's inputs and outputs, as the runtime describes them, as TensorSpecs."""

from __future__ import annotations

from typing import Any

from ..transport import dtypes
from ..transport.tensors import RANK_MAX, TensorSpec
from .axes import UNNAMED

_OTHER_NAMES = {"float": "float32", "double": "float64"}  # onnxruntime's names of NumPy's types
ZIPMAP = " (a classifier of scikit-learn's: convert it with options={'zipmap': False})"


def spec_of(value: Any, optional: bool = False) -> TensorSpec:
    """An onnxruntime NodeArg as a TensorSpec. Raises ValueError with a sentence for types that no client can
    hold: sequences, maps, optional types, sparse tensors."""
    kind = str(value.type)
    name = kind[len("tensor(") : -1] if kind.startswith("tensor(") else ""
    entry = dtypes.BY_NAME.get(_OTHER_NAMES.get(name, name))
    if entry is None:
        raise ValueError(
            f"{value.name!r} is of type {kind}; batchyard carries tensors of {', '.join(dtypes.BY_NAME)}"
            + (ZIPMAP if kind.startswith("seq(map(") else "")
        )
    if len(value.shape) > RANK_MAX:
        raise ValueError(f"{value.name!r} has {len(value.shape)} axes; arrays have {RANK_MAX} at most")
    # A free axis is a name, None, or (of files that say so) a negative size.
    shape = [
        axis if isinstance(axis, int) and axis >= 0 else axis if isinstance(axis, str) and axis else UNNAMED
        for axis in value.shape
    ]
    # onnxruntime describes a scalar and an unknown rank alike.
    return TensorSpec(value.name, entry.code, shape or None, optional)


def specs_of(session: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """(inputs, outputs) of a session; inputs with a default value come last. Raises ValueError."""
    inputs = [spec_of(value) for value in session.get_inputs()]
    inputs += [spec_of(value, optional=True) for value in session.get_overridable_initializers()]
    return inputs, [spec_of(value) for value in session.get_outputs()]
