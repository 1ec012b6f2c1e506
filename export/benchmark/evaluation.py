"""Evaluates a candidate's answers, by labelled rows or by the user's function.

labelled.npz        arrays by input name, or one array of any name, and `labels`: int[rows]. The result is the
                    share of rows whose largest output is the label (top-1 accuracy)
module:function     called with a function from {input: array} to {output: array}; returns one number, the
                    larger the better
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...transport.errors import InvalidRequest, ModelFailed
from .. import runtime
from ..calibration import LABELS, is_named, resolved, rows_of
from ..metadata import own_sizes_in
from ..sources import first_line
from ..specs import Array, InputSpec, size_of

ROWS_AT_ONCE = 64

Answer = Callable[[Mapping[str, Array]], dict[str, Array]]
Evaluation = Callable[[Any], float]  # of a session


def evaluation(text: str) -> Evaluation:
    """The evaluation that `--evaluate` names. Raises InvalidRequest if it does not exist."""
    if is_named(text):
        function = resolved(text)
        return lambda session: _called(text, function, session)
    path = Path(text)
    labels = _labels(path)
    return lambda session: _accuracy(path, labels, session)


def _called(text: str, function: Callable[..., Any], session: Any) -> float:
    names = [value.name for value in session.get_outputs()]

    def answer(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, runtime.run(session, dict(feeds)), strict=True))

    try:
        found = float(function(answer))
    except Exception as error:  # somebody else's code
        raise ModelFailed(f"{text} raised {type(error).__name__}: {first_line(error)}") from error
    if not math.isfinite(found):
        raise ModelFailed(f"{text} returned {found}, which is no figure to rank by")
    return found


def _labels(path: Path) -> Array:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels: Array = arrays[LABELS]
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {str(path)!r}") from None
    except Exception as error:  # numpy's, zipfile's, and of an .npy, which has no names
        raise InvalidRequest(f"{path} is no .npz with inputs and labels: {first_line(error)}") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise InvalidRequest(f"{path}'s labels are {labels.dtype}{list(labels.shape)}, and not int[rows]")
    return labels


def _accuracy(path: Path, labels: Array, session: Any) -> float:
    """Top-1 accuracy. If the batch size is fixed, only whole batches count."""
    feeds = rows_of(path, specs_of_session(session), len(labels))
    rows = len(next(iter(feeds.values())))
    if rows != len(labels):
        raise InvalidRequest(f"{path} has {rows} rows and {len(labels)} labels")
    fixed = fixed_rows(session)
    step = fixed or ROWS_AT_ONCE
    right = counted = 0
    for start in range(0, rows - (step - 1 if fixed else 0), step):
        part = {name: array[start : start + step] for name, array in feeds.items()}
        scores = runtime.run(session, part)[0]
        if scores.ndim != 2 or len(scores) != len(labels[start : start + step]):
            raise ModelFailed(f"its first output is {list(scores.shape)}, and labels need [rows, classes]")
        right += int((scores.argmax(1) == labels[start : start + step]).sum())
        counted += len(scores)
    if not counted:
        raise InvalidRequest(f"{path} has fewer rows than the model's fixed batch of {fixed}")
    return right / counted


def specs_of_session(session: Any) -> tuple[InputSpec, ...]:
    """A session's inputs. Free axes have the sizes of the export, if the file records them, else 1."""
    kinds = {"float": "float32", "double": "float64"}
    sizes = own_sizes_in(session.get_modelmeta().custom_metadata_map)
    found = []
    for value in session.get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        axes = tuple("" if isinstance(axis, int) else str(axis or "") for axis in value.shape)
        shape = tuple(
            axis if isinstance(axis, int) else size_of(name, sizes) or 1
            for axis, name in zip(value.shape, axes, strict=True)
        )
        found.append(InputSpec(value.name, shape, kinds.get(kind, kind), axes=axes))
    return tuple(found)


def fixed_rows(session: Any) -> int | None:
    """The number of rows that a session requires; None if its batch axis is free."""
    specs = specs_of_session(session)
    return None if any(spec.batch_axis is not None for spec in specs) else specs[0].shape[0]
