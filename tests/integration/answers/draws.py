"""A model and what draws its requests; the draws that several kinds of models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

Rng = np.random.Generator
Draw = Callable[[int, Rng], dict[str, Any]]


class Mixing(NamedTuple):
    model: ModelProto
    draw: Draw  # (rows, rng) -> inputs


def floats(name: str, *tail: int) -> Draw:
    return lambda rows, rng: {name: rng.standard_normal((rows, *tail)).astype(np.float32)}


def wave(rows: int, rng: Rng) -> dict[str, Any]:
    return {"x": rng.standard_normal(rows).astype(np.float32)}


def graph_of(rows: int, rng: Rng, edges: int) -> dict[str, Any]:
    return {
        "x": rng.standard_normal((rows, 4)).astype(np.float32),
        "edges": rng.integers(0, rows, (edges, 2)),
    }


def pieces(rows: int, rng: Rng) -> dict[str, Any]:
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    return {"x": x, "piece": np.sort(rng.integers(0, 3, rows))}


def pair(left: str, right: str, extra: int) -> Draw:
    """Two inputs with leading axes of their own; of one size where `extra` is 0."""
    return lambda rows, rng: {
        left: rng.standard_normal((rows, 8)).astype(np.float32),
        right: rng.standard_normal((rows + extra, 8)).astype(np.float32),
    }


def boxes(rows: int, rng: Rng) -> dict[str, Any]:
    corners = rng.random((rows, 2)).astype(np.float32) * 4
    return {"boxes": np.concatenate([corners, corners + 1], 1), "scores": rng.random(rows).astype(np.float32)}


ZERO, ONE = np.array([0]), np.array([1])
