"""A detector's outputs as Frigate's 20 rows, per kind of model. Pure NumPy.

A row is class, score, y1, x1, y2, x2, with the box as a share of the image. Scores at or below SCORE_MIN
are left out, and boxes that overlap a more certain one by more than OVERLAP_MAX, whatever their class:
Frigate's own detectors do the same with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...transport.errors import InvalidRequest
from .messages import COLUMNS, ROWS

SCORE_MIN = 0.4
OVERLAP_MAX = 0.4  # intersection over union
CANDIDATES_MAX = 1000  # boxes that are compared, the most certain ones
END_TO_END_COLUMNS = 6  # of models that remove overlaps themselves (YOLOv10, YOLO26)

Array = NDArray[Any]
Convert = Callable[[Sequence[Array], int, int], Array]


def yolo(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[1, 4 + classes, boxes], centres and sizes in pixels (YOLOv8, v9, v11), or the same with the
    axes the other way round; or float32[1, boxes, 6] of corners, score, and class (YOLOv10, YOLO26)."""
    table = _table(outputs[0], "[1, 4 + classes, boxes]")
    scale = np.array([width, height, width, height], np.float32)
    if table.shape[1] == END_TO_END_COLUMNS < table.shape[0]:
        return rows(table[:, 5], table[:, 4], table[:, :4] / scale)
    if table.shape[0] > table.shape[1]:
        table = table.T
    best = table[4:].max(axis=0)
    chosen = np.flatnonzero(best > SCORE_MIN)
    table = table[:, chosen]
    return rows(table[4:].argmax(axis=0), best[chosen], _corners(table[:4].T) / scale)


def yolonas(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[boxes, 7]: image, x1, y1, x2, y2 in pixels, score, class (exported with the flat format)."""
    table = _table(outputs[0], "[boxes, 7] (export it with the flat format)", columns=7)
    scale = np.array([width, height, width, height], np.float32)
    return rows(table[:, 6], table[:, 5], table[:, 1:5] / scale)


def rfdetr(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[1, queries, 4] of centres and sizes as shares, float32[1, queries, 1 + classes] of logits;
    class 0 is the background."""
    boxes = _table(_nth(outputs, 0, "rfdetr", 2), "[1, queries, 4]", columns=4)
    logits = _table(outputs[1], "[1, queries, 1 + classes]")
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = scores[:, 1:] / scores.sum(axis=1, keepdims=True)
    return rows(scores.argmax(axis=1), scores.max(axis=1), _corners(boxes))


def dfine(outputs: Sequence[Array], width: int, height: int) -> Array:
    """int64[1, queries] of classes, float32[1, queries, 4] of corners in pixels, float32[1, queries] of
    scores."""
    classes, scores = _nth(outputs, 0, "dfine", 3).reshape(-1), outputs[2].reshape(-1)
    boxes = _table(outputs[1], "[1, queries, 4]", columns=4)
    return rows(classes, scores, boxes / np.array([width, height, width, height], np.float32))


# What Frigate calls `model_type`, as `messages.normalized_type` writes it.
KINDS: dict[str, Convert] = {"yologeneric": yolo, "yolonas": yolonas, "rfdetr": rfdetr, "dfine": dfine}


def rows(classes: Array, scores: Array, corners: Array) -> Array:
    """float32[20, 6] of the most certain boxes. `corners`: [boxes, 4] of x1, y1, x2, y2 as shares."""
    certain = np.flatnonzero(scores > SCORE_MIN)
    order = certain[np.argsort(-scores[certain], kind="stable")][:CANDIDATES_MAX]
    kept = order[_apart(corners[order])]
    found = np.zeros((ROWS, COLUMNS), np.float32)
    found[: len(kept), 0] = classes[kept]
    found[: len(kept), 1] = scores[kept]
    found[: len(kept), 2:] = corners[kept][:, [1, 0, 3, 2]]
    return found


def _apart(corners: Array) -> list[int]:
    """Places of boxes that no earlier kept one overlaps; at most ROWS."""
    low, high = corners[:, :2], corners[:, 2:]
    area = (high - low).prod(axis=1)
    free = np.ones(len(corners), bool)
    kept: list[int] = []
    for place in range(len(corners)):
        if not free[place]:
            continue
        kept.append(place)
        if len(kept) == ROWS:
            break
        sides = np.minimum(high[place], high) - np.maximum(low[place], low)
        common = sides.clip(0).prod(axis=1)
        free &= common <= OVERLAP_MAX * (area[place] + area - common)
    return kept


def _corners(boxes: Array) -> Array:
    """[boxes, 4] of centres and sizes as x1, y1, x2, y2."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _table(output: Array, expected: str, columns: int = 0) -> Array:
    """An output without its axes of one image. Raises InvalidRequest where it is no table."""
    table = output[0] if output.ndim == 3 and output.shape[0] == 1 else output
    if table.ndim != 2 or (columns and table.shape[1] != columns):
        raise InvalidRequest(f"the model's output has shape {list(output.shape)}, not {expected}")
    return table


def _nth(outputs: Sequence[Array], place: int, kind: str, count: int) -> Array:
    if len(outputs) != count:
        raise InvalidRequest(f"a model of type {kind} has {count} outputs, and this one {len(outputs)}")
    return outputs[place]
