"""How many rows a batch has here, and what is in them."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_BATCH = 8
WIDE = 40_000  # floats: 160 kB a row, enough to be run where it lies


def rows(count: int, width: int = 16, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
