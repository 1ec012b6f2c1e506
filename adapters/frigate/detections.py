"""A detector's outputs as Frigate's 20 rows, per kind of model. Pure NumPy.

A row is class, score, y1, x1, y2, x2, with the box as a share of the image. Scores at or below SCORE_MIN
are left out, and boxes that overlap a more certain one by more than OVERLAP_MAX, whatever their class:
Frigate's own detectors do the same with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...transport.errors import InvalidRequest
from .messages import COLUMNS, ROWS

SCORE_MIN = 0.4
OVERLAP_MAX = 0.4  # intersection over union
CANDIDATES_MAX = 1000  # boxes that are compared, the most certain ones
BLOCK = 64  # of them are compared at once, each with each: a row of the comparison is one 64-bit integer
OVERLAP_SHARE = np.float32(OVERLAP_MAX / (1 + OVERLAP_MAX))  # the same, of the sum of both boxes' areas
END_TO_END_COLUMNS = 6  # of models that remove overlaps themselves (YOLOv10, YOLO26)

Array = NDArray[Any]
Convert = Callable[[Sequence[Array], int, int], Array]


def yolo(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[1, 4 + classes, boxes], centres and sizes in pixels (YOLOv8, v9, v11), or the same with the
    axes the other way round; or float32[1, boxes, 6] of corners, score, and class (YOLOv10, YOLO26)."""
    table = _table(outputs[0], "[1, 4 + classes, boxes]")
    if table.shape[1] == END_TO_END_COLUMNS < table.shape[0]:
        order = _certain(table[:, 4])
        sides = _sides(table[order, :4]) / _pixels(width, height)
        return rows(table[order, 4], sides, lambda kept: table[order[kept], 5])
    if table.shape[0] > table.shape[1]:
        table = table.T
    best = table[4:].max(axis=0)
    order = _certain(best)
    if not len(order):
        return np.zeros((ROWS, COLUMNS), np.float32)  # as of most frames
    sides = _around(table[:4].take(order, axis=1)) / _pixels(width, height)
    return rows(best[order], sides, lambda kept: table[4:, order[kept]].argmax(axis=0))


def yolonas(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[boxes, 7]: image, x1, y1, x2, y2 in pixels, score, class (exported with the flat format)."""
    table = _table(outputs[0], "[boxes, 7] (export it with the flat format)", columns=7)
    table = table[_certain(table[:, 5])]
    return rows(table[:, 5], _sides(table[:, 1:5]) / _pixels(width, height), lambda kept: table[kept, 6])


def rfdetr(outputs: Sequence[Array], width: int, height: int) -> Array:
    """float32[1, queries, 4] of centres and sizes as shares, float32[1, queries, 1 + classes] of logits;
    class 0 is the background."""
    boxes = _table(_nth(outputs, 0, "rfdetr", 2), "[1, queries, 4]", columns=4)
    logits = _table(outputs[1], "[1, queries, 1 + classes]")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = shares[:, 1:].max(axis=1) / shares.sum(axis=1)
    order = _certain(scores)
    return rows(
        scores[order], _around(boxes[order].T), lambda kept: shares[order[kept], 1:].argmax(axis=1)
    )


def dfine(outputs: Sequence[Array], width: int, height: int) -> Array:
    """int64[1, queries] of classes, float32[1, queries, 4] of corners in pixels, float32[1, queries] of
    scores."""
    classes, scores = _nth(outputs, 0, "dfine", 3).reshape(-1), outputs[2].reshape(-1)
    boxes = _table(outputs[1], "[1, queries, 4]", columns=4)
    order = _certain(scores)
    sides = _sides(boxes[order]) / _pixels(width, height)
    return rows(scores[order], sides, lambda kept: classes[order[kept]])


# What Frigate calls `model_type`, as `messages.normalized_type` writes it.
KINDS: dict[str, Convert] = {"yologeneric": yolo, "yolonas": yolonas, "rfdetr": rfdetr, "dfine": dfine}


def rows(scores: Array, sides: Array, classes_of: Callable[[Array], Array]) -> Array:
    """float32[20, 6] of those boxes that no more certain one overlaps. The boxes are sorted, the most certain
    first. `sides`: [4, boxes] of y1, x1, y2, x2 as shares. `classes_of`: of the boxes at these places."""
    found = np.zeros((ROWS, COLUMNS), np.float32)
    kept = np.array(_apart(sides), np.intp)
    if len(kept):
        found[: len(kept), 0] = classes_of(kept)
        found[: len(kept), 1] = scores[kept]
        found[: len(kept), 2:] = sides[:, kept].T
    return found


def _certain(scores: Array) -> Array:
    """Places of the scores that count, the most certain first; at most CANDIDATES_MAX."""
    places = np.flatnonzero(scores > SCORE_MIN)
    return places[np.argsort(-scores[places], kind="stable")[:CANDIDATES_MAX]]


def _apart(sides: Array) -> list[int]:
    """Places of boxes that no earlier kept one overlaps; at most ROWS."""
    extent = sides[2:] - sides[:2]
    areas = extent[0] * extent[1] * OVERLAP_SHARE
    rest = np.arange(sides.shape[1])
    kept: list[int] = []
    while len(rest):
        block, rest = rest[:BLOCK], rest[BLOCK:]
        boxes, shares = sides.take(block, axis=1), areas[block]  # in C order, which sides[:, block] is not
        chosen = block[_first_apart(_overlap(boxes, shares, boxes, shares), ROWS - len(kept))]
        kept += chosen.tolist()
        if len(kept) == ROWS or not len(rest):
            break
        boxes, shares = sides.take(chosen, axis=1), areas[chosen]
        rest = rest[~_overlap(boxes, shares, sides.take(rest, axis=1), areas[rest]).any(axis=0)]
    return kept


def _first_apart(overlaps: Array, count_max: int) -> list[int]:
    """Of a block's boxes those that no earlier one of them overlaps. overlaps: bool[boxes, boxes].

    The loop is over integers, a bit for each box: over arrays it took as long as the comparison itself.
    """
    size = len(overlaps)
    whole = np.zeros((size, BLOCK), bool)
    whole[:, :size] = overlaps
    rows_bits = np.packbits(whole, axis=1, bitorder="little").view("<u8")[:, 0].tolist()
    free = (1 << size) - 1
    chosen: list[int] = []
    while free and len(chosen) < count_max:
        lowest = free & -free
        place = lowest.bit_length() - 1
        chosen.append(place)
        free &= ~(rows_bits[place] | lowest)
    return chosen


def _overlap(one: Array, shares: Array, other: Array, other_shares: Array) -> Array:
    """bool[boxes of one, boxes of the other]: whether they overlap by more than OVERLAP_MAX. `shares`: their
    areas times OVERLAP_SHARE."""
    common = np.minimum(one[2:, :, None], other[2:, None])
    common -= np.maximum(one[:2, :, None], other[:2, None])
    np.maximum(common, 0, out=common)
    inside: Array = common[0]
    inside *= common[1]
    overlap: Array = inside > shares[:, None] + other_shares
    return overlap


@lru_cache(maxsize=16)
def _pixels(width: int, height: int) -> Array:
    """What turns pixels into shares."""
    return np.array([[height], [width], [height], [width]], np.float32)


def _around(boxes: Array) -> Array:
    """[4, boxes] of centres and sizes (x, y, width, height) as y1, x1, y2, x2."""
    centres, halves = boxes[1::-1], boxes[:1:-1] / 2  # y before x, height before width
    sides = np.empty_like(boxes)
    np.subtract(centres, halves, out=sides[:2])
    np.add(centres, halves, out=sides[2:])
    return sides


def _sides(corners: Array) -> Array:
    """[boxes, 4] of x1, y1, x2, y2 as [4, boxes] of y1, x1, y2, x2."""
    return corners.T[[1, 0, 3, 2]]


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
