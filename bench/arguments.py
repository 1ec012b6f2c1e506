"""How the benchmarks' command lines read numbers. Pure; each raises argparse's error with what is allowed."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, and is {text}")
    return value


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, and is {text}")
    return value


def positive_ints(text: str) -> tuple[int, ...]:
    """Several, with commas between them."""
    return tuple(positive_int(part) for part in text.split(","))
