"""How far a file's answers are from PyTorch's: figures, no judgement (that is the gate's)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .calibration import batches
from .specs import Array, Feeds, InputSpec, sample

BATCHES = (1, 2, 7, 64)  # alone, even, odd, many
ROWS_JUDGED = 256  # as many as it takes for a share of 98 % to mean something
ROWS_AT_ONCE = 32
SEED = 1


@dataclass(frozen=True)
class Case:
    """Inputs, and what PyTorch answered."""

    feeds: Feeds
    wanted: list[Array]


@dataclass(frozen=True)
class Difference:
    """Over all cases and outputs. NaN anywhere in an answer makes the figures NaN."""

    batch_sizes: tuple[int, ...]
    rows: int
    abs_max: float  # the largest |got - wanted|
    rel_max: float  # that, over the largest |wanted| of the same output
    scaled_max: float  # |got - wanted| over max(1, largest |wanted|): what the fp32 bound is about
    rms: float  # root of sum((got - wanted)^2) / sum(wanted^2)
    agreement: float | None  # share of rows whose largest class is the same; None without classes


def random_cases(
    specs: Sequence[InputSpec], reference: Callable[[Feeds], list[Array]], batch_sizes: Sequence[int]
) -> list[Case]:
    """Random inputs of every batch size."""
    fed = [sample(specs, rows, SEED + rows) for rows in batch_sizes]
    return [Case(feeds, reference(feeds)) for feeds in fed]


def given_cases(given: Feeds, reference: Callable[[Feeds], list[Array]], rows: int) -> list[Case]:
    """Up to ROWS_JUDGED of the given rows, in batches of `rows`."""
    fed = batches({name: array[:ROWS_JUDGED] for name, array in given.items()}, rows)
    return [Case(feeds, reference(feeds)) for feeds in fed]


def compare(cases: Sequence[Case], answer: Callable[[Feeds], list[Array]]) -> Difference:
    """Run `answer` on every case. An output of another shape or count is infinitely far away."""
    abs_max = rel_max = scaled_max = error = energy = 0.0
    agreed = classed = rows = 0
    sizes = []
    for case in cases:
        sizes.append(len(next(iter(case.feeds.values()))))
        rows += sizes[-1]
        got = answer(case.feeds)
        if [one.shape for one in got] != [one.shape for one in case.wanted]:
            abs_max = rel_max = scaled_max = error = energy = float("inf")
            break
        for mine, theirs in zip(got, case.wanted, strict=True):
            if not theirs.size:
                continue
            wanted = theirs.astype(np.float64)
            off = np.abs(mine.astype(np.float64) - wanted)
            worst, largest = float(off.max()), float(np.abs(wanted).max())
            # np.fmax would hide a NaN, and max() keeps whichever comes first.
            abs_max = float(np.maximum(abs_max, worst))
            rel_max = float(np.maximum(rel_max, worst / largest if largest else worst))
            scaled_max = float(np.maximum(scaled_max, worst / max(1.0, largest)))
            error += float((off**2).sum())
            energy += float((wanted**2).sum())
            if theirs.dtype.kind == "f" and theirs.ndim >= 2 and theirs.shape[-1] > 1:
                same = mine.argmax(-1) == theirs.argmax(-1)
                agreed += int(same.sum())
                classed += same.size
    rms = float(np.sqrt(error / energy)) if energy else float(np.sqrt(error))
    share = agreed / classed if classed else None
    return Difference(tuple(sorted(set(sizes))), rows, abs_max, rel_max, scaled_max, rms, share)
