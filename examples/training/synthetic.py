"""Digits that nobody wrote: strokes of a pen, drawn and scanned as the real ones were. No real image
plays a part, but that widths and angles were chosen by eye to look like the ones that are trained on.

The real scans (Alpaydin and Kaynak, 1998) are bitmaps of 32x32 pixels whose ink is counted in blocks of
4x4: 8x8 values of 0..16. So are these, from polylines that are turned, slanted, stretched, moved, bent
and drawn with pens of several widths.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from .datasets import GREY_MAX, Labelled

Floats = npt.NDArray[np.float64]

BITMAP = 32  # pixels a side
BLOCK = 4
STEPS = 12  # points that a curve is drawn with

# How much a hand differs, as standard deviations.
TURN_RAD = 0.12
SLANT = 0.18
STRETCH = 0.12
MOVE = 0.03  # of the bitmap
BEND = 0.025  # each point by itself, of the bitmap
PEN = (1.6, 3.2)  # half the stroke's width, least and most, in pixels


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Floats:
    """Points of an ellipse, angles in turns, clockwise from the right as y grows downwards."""
    angle = np.linspace(start, end, STEPS) * 2 * np.pi
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def _line(*points: tuple[float, float]) -> Floats:
    return np.array(points, np.float64)


# By digit, the ways in which people write it; each way is a list of strokes in a square of side 1.
STROKES: dict[int, list[list[Floats]]] = {
    0: [[_arc(0.5, 0.5, 0.26, 0.4, 0, 1)], [_arc(0.5, 0.5, 0.2, 0.4, 0, 1)]],
    1: [
        [_line((0.5, 0.1), (0.5, 0.9))],
        [_line((0.32, 0.28), (0.52, 0.1), (0.52, 0.9))],
        [_line((0.32, 0.28), (0.52, 0.1), (0.52, 0.9)), _line((0.3, 0.9), (0.74, 0.9))],
    ],
    2: [
        [
            _arc(0.5, 0.32, 0.24, 0.22, -0.5, 0.1),
            _line((0.69, 0.45), (0.26, 0.88)),
            _line((0.26, 0.88), (0.78, 0.88)),
        ],
        [
            _arc(0.5, 0.3, 0.22, 0.2, -0.45, 0.15),
            _line((0.63, 0.46), (0.3, 0.8)),
            _arc(0.36, 0.82, 0.1, 0.07, 0.1, 0.9),
            _line((0.4, 0.83), (0.8, 0.9)),
        ],
    ],
    3: [
        [_arc(0.46, 0.3, 0.22, 0.19, -0.4, 0.25), _arc(0.46, 0.69, 0.25, 0.2, -0.25, 0.4)],
        [_line((0.28, 0.12), (0.7, 0.12), (0.46, 0.45)), _arc(0.46, 0.67, 0.25, 0.22, -0.25, 0.4)],
    ],
    4: [
        [_line((0.58, 0.1), (0.22, 0.62), (0.82, 0.62)), _line((0.62, 0.4), (0.62, 0.92))],
        [_line((0.3, 0.12), (0.26, 0.52), (0.74, 0.52)), _line((0.7, 0.12), (0.66, 0.92))],
    ],
    5: [
        [_line((0.74, 0.12), (0.34, 0.12), (0.32, 0.46)), _arc(0.46, 0.65, 0.25, 0.23, -0.33, 0.4)],
        [_line((0.7, 0.14), (0.36, 0.14), (0.36, 0.48), (0.58, 0.48)), _arc(0.5, 0.68, 0.2, 0.2, -0.2, 0.4)],
    ],
    6: [
        [_line((0.62, 0.1), (0.42, 0.34), (0.3, 0.62)), _arc(0.5, 0.67, 0.21, 0.21, 0, 1)],
        [_arc(0.62, 0.55, 0.33, 0.44, 0.45, 0.75), _arc(0.5, 0.68, 0.2, 0.2, 0, 1)],
    ],
    7: [
        [_line((0.24, 0.14), (0.76, 0.14), (0.44, 0.9))],
        [_line((0.24, 0.14), (0.76, 0.14), (0.46, 0.9)), _line((0.36, 0.5), (0.74, 0.5))],
    ],
    8: [
        [_arc(0.5, 0.3, 0.19, 0.19, 0, 1), _arc(0.5, 0.69, 0.23, 0.21, 0, 1)],
        [
            _arc(0.5, 0.3, 0.2, 0.19, 0.25, 0.95),
            _arc(0.5, 0.69, 0.2, 0.2, -0.25, 0.55),
            _line((0.33, 0.66), (0.66, 0.3)),
        ],
    ],
    9: [
        [_arc(0.48, 0.33, 0.21, 0.21, 0, 1), _line((0.69, 0.33), (0.66, 0.62), (0.56, 0.9))],
        [_arc(0.48, 0.32, 0.2, 0.2, 0, 1), _arc(0.42, 0.5, 0.28, 0.4, -0.08, 0.32)],
    ],
}


def digits(rows: int, seed: int) -> Labelled:
    """`rows` drawn digits, as many of each, in random order: float32[rows, 1, 8, 8] in 0..1."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows, dtype=np.int64) % 10)
    images = np.stack([_scan(_draw(int(label), rng)) for label in labels]) if rows else np.empty((0, 8, 8))
    return Labelled(images[:, None].astype(np.float32), labels)


def _draw(digit: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A bitmap bool[32, 32] of one digit: True where the pen was."""
    ways = STROKES[digit]
    strokes = ways[rng.integers(len(ways))]
    turn, slant = rng.normal(0, TURN_RAD), rng.normal(0, SLANT)
    stretch = np.exp(rng.normal(0, STRETCH, 2))
    cosine, sine = np.cos(turn), np.sin(turn)
    shape = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, -slant], [0, 1]]) @ np.diag(stretch)
    bend = rng.normal(0, BEND, (3, 3, 2))  # a coarse grid of pushes, smooth between its points
    segments = []
    for stroke in strokes:
        points = _fine(stroke)
        pushed = points + _between(bend, points)
        placed = (pushed - 0.5) @ shape.T
        segments.append(np.stack([placed[:-1], placed[1:]], 1))
    ends = np.concatenate(segments)
    pen = rng.uniform(*PEN)
    return _inked(_fitted(ends, BITMAP - 2 * pen, rng), pen)


def _fitted(ends: Floats, height: float, rng: np.random.Generator) -> Floats:
    """The strokes in pixels, `height` high, as the real ones fill their bitmap; then moved a little."""
    low, high = ends.min((0, 1)), ends.max((0, 1))
    scale = height / float(np.max(high - low))
    fitted: Floats = (ends - (low + high) / 2) * scale + (0.5 + rng.normal(0, MOVE, 2)) * BITMAP
    return fitted


def _fine(stroke: Floats) -> Floats:
    """Lines with points between their ends, so that they bend, too."""
    if len(stroke) >= STEPS:
        return stroke
    parts = [np.linspace(a, b, 3, endpoint=False) for a, b in itertools.pairwise(stroke)]
    return np.concatenate([*parts, stroke[-1:]])


def _between(grid: Floats, points: Floats) -> Floats:
    """Bilinear: the pushes of a 3x3 grid over the unit square, at `points` float64[n, 2]."""
    place = np.clip(points, 0, 1) * 2
    cell = np.minimum(place.astype(int), 1)
    (fx, fy), (x, y) = (place - cell).T[:, :, None], cell.T
    above = grid[y, x] * (1 - fx) + grid[y, x + 1] * fx
    below = grid[y + 1, x] * (1 - fx) + grid[y + 1, x + 1] * fx
    pushed: Floats = above * (1 - fy) + below * fy
    return pushed


def _inked(ends: Floats, pen: float) -> npt.NDArray[np.bool_]:
    """Every pixel whose centre is no further than `pen` from a segment of `ends` float64[n, 2, 2]."""
    centre = np.arange(BITMAP) + 0.5
    pixels = np.stack(np.meshgrid(centre, centre), -1).reshape(-1, 1, 2)  # x, y
    start, way = ends[:, 0], ends[:, 1] - ends[:, 0]
    length2 = np.maximum((way**2).sum(1), 1e-9)
    along = np.clip(((pixels - start) * way).sum(2) / length2, 0, 1)
    away2 = ((pixels - start - along[..., None] * way) ** 2).sum(2)
    inked: npt.NDArray[np.bool_] = (away2.min(1) <= pen**2).reshape(BITMAP, BITMAP)
    return inked


def _scan(bitmap: npt.NDArray[np.bool_]) -> Floats:
    """Ink counted in blocks, float64[8, 8] in 0..1, in the real scans' steps of 1/16."""
    side = BITMAP // BLOCK
    counts = bitmap.reshape(side, BLOCK, side, BLOCK).sum((1, 3))
    scanned: Floats = counts / GREY_MAX
    return scanned
