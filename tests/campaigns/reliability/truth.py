"""What is asked and what is right: inputs from a seed, and the bare runtime's answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

MODEL = "cnn"  # compute worth a batch, and a different answer to every input
INPUTS = 32
TOLERANCE = 1e-4  # one row alone and one in a batch may take different kernels


class Truth:
    """`inputs` float32[INPUTS, rows, 3, 32, 32] and `expected` float32[INPUTS, rows, 10]."""

    def __init__(self, inputs: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
        self.inputs = inputs
        self.expected = expected

    @classmethod
    def of(cls, model: Path, rows: int, seed: int = 1) -> Self:
        """Asks the runtime, in this process, before any clock runs."""
        from batchyard.bench import models
        from batchyard.bench.bare import Bare

        x = models.sample(MODEL, INPUTS * rows, seed)
        expected = Bare(model, x).output.copy()
        return cls(x.reshape(INPUTS, rows, *x.shape[1:]), expected.reshape(INPUTS, rows, -1))

    def save(self, path: Path) -> None:
        """For the clients that are processes of their own."""
        np.savez(path, inputs=self.inputs, expected=self.expected)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as data:
            return cls(data["inputs"], data["expected"])

    def right(self, index: int, answer: np.ndarray[Any, Any]) -> bool:
        """Whether this is the answer to input `index`, and to no other."""
        expected = self.expected[index]
        return answer.shape == expected.shape and float(np.abs(answer - expected).max()) < TOLERANCE
