"""Measures how far a file's answers are from PyTorch's. The gate judges the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..transport.errors import ModelFailed
from .axes import Bounds, values
from .calibration import batches, rows_in
from .kinds import CLASSES, EMBEDDING
from .specs import BATCH, Array, Feeds, InputSpec, sample

BATCHES = (1, 2, 7, 64)  # alone, even, odd, many
ROWS_JUDGED = 256  # as many as it takes for a share of 98 % to mean something
ROWS_AT_ONCE = 32
SEED = 1


@dataclass(frozen=True)
class Case:
    """Inputs, what PyTorch answered, and how many rows that is."""

    feeds: Feeds
    wanted: list[Array]
    rows: int


@dataclass(frozen=True)
class Difference:
    """Over all cases and outputs. NaN where the other has a number makes the figures NaN."""

    batch_sizes: tuple[int, ...]
    rows: int
    abs_max: float  # the largest |got - wanted|
    rel_max: float  # that, over the largest |wanted| of the same output
    scaled_max: float  # |got - wanted| over max(1, largest |wanted|): what the fp32 bound is about
    rms: float  # root of sum((got - wanted)^2) / sum(wanted^2)
    agreement: float | None  # share of rows whose largest class is the same; None without classes
    cosine: float | None = None  # of the worst row; None without embeddings
    worst: str = ""  # the inputs of the largest scaled_max, and what is wrong with its shapes


def random_cases(
    specs: Sequence[InputSpec], reference: Callable[[Feeds], list[Array]], batch_sizes: Sequence[int]
) -> list[Case]:
    """Random inputs of every batch size."""
    return [sized_case(specs, reference, {BATCH: rows}) for rows in batch_sizes]


def sized_case(
    specs: Sequence[InputSpec],
    reference: Callable[[Feeds], list[Array]],
    sizes: Mapping[str, int],
    seed: int = SEED,
) -> Case:
    """Random inputs with these sizes of free axes. Raises ModelFailed where PyTorch does not take them."""
    feeds = sample(specs, sizes, seed + sum(sizes.values()))
    return Case(feeds, reference(feeds), rows_in(feeds, specs))


def varied_cases(
    specs: Sequence[InputSpec],
    reference: Callable[[Feeds], list[Array]],
    own: Mapping[str, int],
    bounds: Mapping[str, Bounds],
    rows: int,
) -> tuple[list[Case], dict[str, list[int]], dict[str, str]]:
    """Random inputs with other sizes of the free axes in `own`, one at a time, and then together.

    Also the sizes by name that PyTorch took, and, for names of which it took none, what it said.
    """
    cases: list[Case] = []
    taken: dict[str, list[int]] = {name: [size] for name, size in own.items()}
    refused: dict[str, str] = {}
    for name, size in own.items():
        for value in values(size, bounds.get(name, Bounds())):
            try:
                case = sized_case(specs, reference, {BATCH: rows, **own, name: value})
            except ModelFailed as error:  # a smaller picture than the network halves, a longer text: no fault
                refused.setdefault(name, str(error))
                continue
            if any(np.isnan(one.astype(np.float64)).any() for one in case.wanted):  # a deviation of one value
                refused.setdefault(name, f"With {name} {value} PyTorch's own answer is not a number.")
                continue
            cases.append(case)
            taken[name].append(value)
    refused = {name: text for name, text in refused.items() if len(taken[name]) == 1}
    if len(own) > 1:
        # The second that was taken of the first name, the third of the next: they should differ.
        together = {
            name: sizes[min(1 + index, len(sizes) - 1)] for index, (name, sizes) in enumerate(taken.items())
        }
        try:
            cases.append(sized_case(specs, reference, {BATCH: rows, **together}))
        except ModelFailed:  # such as a cache and a text that are too long together
            pass
    return cases, {name: sorted(sizes) for name, sizes in taken.items()}, refused


def given_cases(
    given: Feeds, specs: Sequence[InputSpec], reference: Callable[[Feeds], list[Array]], rows: int
) -> list[Case]:
    """Up to ROWS_JUDGED of the given rows, in batches of `rows`."""
    fed = batches(given, specs, rows, ROWS_JUDGED)
    return [Case(feeds, reference(feeds), rows_in(feeds, specs)) for feeds in fed]


def compare(
    cases: Sequence[Case], answer: Callable[[Feeds], list[Array]], kinds: Sequence[str]
) -> Difference:
    """Run `answer` on every case. An output of another shape or count is infinitely far away.

    kinds: what each output is, see kinds.py.
    """
    abs_max = rel_max = scaled_max = error = energy = 0.0
    agreed = classed = rows = 0
    cosine = None
    worst_case = ""
    sizes = []
    for case in cases:
        sizes.append(case.rows)
        rows += case.rows
        try:
            got = answer(case.feeds)
        except ModelFailed as failure:
            raise ModelFailed(f"{failure} (with {_shapes(case.feeds)})") from failure
        mine_shapes, their_shapes = ([list(one.shape) for one in each] for each in (got, case.wanted))
        if mine_shapes != their_shapes:
            abs_max = rel_max = scaled_max = error = energy = float("inf")
            worst_case = f"{_shapes(case.feeds)}: its answers are {mine_shapes} in place of {their_shapes}"
            break
        before = scaled_max
        for mine, theirs, kind in zip(got, case.wanted, kinds, strict=True):
            if not theirs.size:
                continue
            wanted, have = theirs.astype(np.float64), mine.astype(np.float64)
            off = _difference(have, wanted)
            worst, largest = float(off.max()), float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
            # np.fmax would hide a NaN, and max() keeps whichever comes first.
            abs_max = float(np.maximum(abs_max, worst))
            rel_max = float(np.maximum(rel_max, worst / largest if largest else worst))
            scaled_max = float(np.maximum(scaled_max, worst / max(1.0, largest)))
            error += float((off**2).sum())
            energy += float((wanted[np.isfinite(wanted)] ** 2).sum())
            if kind == CLASSES:
                same = have.argmax(-1) == wanted.argmax(-1)
                agreed += int(same.sum())
                classed += same.size
            if kind == EMBEDDING:
                worst_row = _cosine(have, wanted)
                cosine = worst_row if cosine is None else float(np.minimum(cosine, worst_row))
        if not scaled_max <= before:
            worst_case = _shapes(case.feeds)
    rms = float(np.sqrt(error / energy)) if energy else float(np.sqrt(error))
    share = agreed / classed if classed else None
    return Difference(
        tuple(sorted(set(sizes))), rows, abs_max, rel_max, scaled_max, rms, share, cosine, worst_case
    )


def _shapes(feeds: Feeds) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())


def _difference(have: Array, wanted: Array) -> Array:
    """|have - wanted|; 0 where both are the same infinity, or both NaN, as masks make them."""
    same = (have == wanted) | (np.isnan(have) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.abs(have - wanted))


def nan_share(cases: Sequence[Case]) -> float:
    """The share of NaN in PyTorch's own answers."""
    found = [np.isnan(one.astype(np.float64)) for case in cases for one in case.wanted]
    count = sum(one.size for one in found)
    return sum(int(one.sum()) for one in found) / count if count else 0.0


def _cosine(have: Array, wanted: Array) -> float:
    """The least cosine of two vectors of the last axis; two zeros agree."""
    lengths = np.linalg.norm(have, axis=-1) * np.linalg.norm(wanted, axis=-1)
    products = (have * wanted).sum(-1)
    equal = (have == wanted).all(-1)
    found = np.where(equal, 1.0, products / np.where(lengths == 0, 1.0, lengths))
    return float(found.min())
