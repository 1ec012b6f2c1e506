"""A candidate by itself: one matrix, no hidden layer."""

from typing import Any

from batchyard.examples.architectures._digits import mlp

INPUT = "image=1,1,8,8"


def model() -> Any:
    """Softmax regression (its softmax is left to whoever wants probabilities)."""
    return mlp(width=0, depth=0)
