"""Decides whether requests of different sizes may share a run by padding: padded in one batch, each must get
the answer that it gets unpadded and alone.

It needs NumPy and a function that runs the model; it knows no runtime. A run shows which axes of an output
are padded: those with the padded size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from time import perf_counter_ns

import numpy as np

from ..transport import dtypes
from ..transport.messages import Pad
from ..transport.tensors import TensorSpec
from . import drawing as drawings
from .axes import SHARED
from .drawing import Array, Drawing, Run
from .judge import difference, tolerance_of
from .words import first_line

ROWS = 3  # of different sizes, in one padded run
TRIED_MAX = 2  # sizes of `to` that are tried: the first always, more if that is fast
TRIED_NS_MAX = 150_000_000
LEAST_SIZE = 6  # of the first padding that is tried: its rows must differ in size
TOO_SMALL = "it does not run on"  # how a refusal begins that other sizes may not meet
NONE = -1  # in place of an axis: the tensor does not have that name

Sizes = tuple[int, ...]  # one for each padded name


@dataclass
class PadVerdict:
    """`inputs`: for each input, the axis of each name, or NONE; None: padding changes answers. `outputs`: for
    each output, {axis: number of the name whose size it has}. `reason`: why, with the figure."""

    inputs: list[list[int]] | None
    outputs: list[dict[int, int]]
    reason: str
    figure: float = field(default=0.0)


class _Refused(Exception):
    """Padding changes answers, or is not possible; the text says why."""


def axes_of(
    inputs: Sequence[TensorSpec], batch_axes: Sequence[int] | None, names: Sequence[str]
) -> list[list[int]]:
    """For each input, the axis of each name. `batch_axes` None: requests run alone. Raises ValueError with a
    sentence."""
    found = []
    for spec, batch_axis in zip(inputs, batch_axes or [SHARED] * len(inputs), strict=False):
        shape = spec.shape or []
        axes = [shape.index(name) if name in shape else NONE for name in names]
        for name, axis in zip(names, axes, strict=True):
            if shape.count(name) > 1:
                raise ValueError(f"input {spec} has the axis {name!r} more than once")
            if axis != NONE and axis == batch_axis:
                raise ValueError(f"the axis {name!r} counts rows")
        found.append(axes)
    for number, name in enumerate(names):
        if all(axes[number] == NONE for axes in found):
            known = dict.fromkeys(
                axis for spec in inputs for axis in spec.shape or [] if isinstance(axis, str)
            )
            raise ValueError(f"no input has an axis {name!r}; the free ones are {', '.join(known) or 'none'}")
    return found


def value_of(spec: TensorSpec, number: float) -> Array:
    """The fill value of an input, as one element of its type. Raises ValueError with a sentence."""
    entry = dtypes.BY_CODE[spec.dtype]
    if entry.name == "bfloat16":
        return (np.array(number, "<f4").view("<u4") >> 16).astype("<u2")
    if entry.kind in "f" and entry.numpy.kind != "f" and number:
        raise ValueError(f"fill: input {spec} can be filled with 0 only")
    with np.errstate(all="ignore"):
        value: Array = np.array(number).astype(entry.numpy)
    if entry.kind in "iub" and float(value) != number:
        raise ValueError(f"fill: {number:g} is no {entry.name}, as input {spec.name!r} wants it")
    return value


def fills_of(inputs: Sequence[TensorSpec], pads: Mapping[str, Pad], axes: list[list[int]]) -> list[Array]:
    """The fill value of each input. Raises ValueError with a sentence."""
    known = [spec.name for spec in inputs]
    numbers: dict[str, float] = {}
    for pad in pads.values():
        for name, number in pad.fill.items():
            if name not in known:
                raise ValueError(f"fill: no input is called {name!r}; the model has {', '.join(known)}")
            if numbers.setdefault(name, number) != number:
                raise ValueError(
                    f"fill: input {name!r} can't be filled with {numbers[name]:g} and {number:g}"
                )
    return [
        value_of(spec, numbers.get(spec.name, 0.0)) if any(axis != NONE for axis in of) else np.zeros(())
        for spec, of in zip(inputs, axes, strict=True)
    ]


def judge(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    run: Run,
    drawing: Drawing | None,
    batch_axes: Sequence[int],
    pads: Mapping[str, Pad],
) -> PadVerdict:
    """Whether padding changes answers, on the inputs of `drawing`. Raises ValueError for a configuration that
    does not fit the model."""
    axes = axes_of(inputs, batch_axes, list(pads))
    fills = fills_of(inputs, pads, axes)
    for spec, batch_axis, of in zip(inputs, batch_axes, axes, strict=False):
        if batch_axis == SHARED and any(axis != NONE for axis in of):
            return PadVerdict(None, [], f"all rows of a batch share input {spec}, which has a padded axis")
    if drawing is None:
        return PadVerdict(None, [], "no inputs could be invented on which it runs")
    refusal = ""
    # Two names may have different sizes, or be two names of one size.
    for apart in (True, False)[: len(pads)]:
        trial = _Trial(inputs, outputs, run, drawing, batch_axes, pads, axes, fills)
        try:
            trial.compare(apart)
            break
        except _Refused as error:
            refusal = str(error)
    else:
        return PadVerdict(None, [], refusal)
    reason = (
        f"rows of different {' and '.join(map(repr, pads))}, padded to run together and alone, differ by "
        f"{trial.figure:.1g} of the largest value"
    )
    return PadVerdict(axes, trial.cuts, reason, trial.figure)


class _Trial:
    """Rows of different sizes, alone and padded."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        run: Run,
        drawing: Drawing,
        batch_axes: Sequence[int],
        pads: Mapping[str, Pad],
        axes: list[list[int]],
        fills: list[Array],
    ) -> None:
        self._outputs = outputs
        self._run = run
        self._drawing = drawing
        self._row_axes = dict(zip((spec.name for spec in inputs), batch_axes, strict=False))
        self._output_axes = list(batch_axes[len(inputs) :])
        self._pads = pads
        self._axes = {spec.name: of for spec, of in zip(inputs, axes, strict=True)}
        self._fills = {spec.name: fill for spec, fill in zip(inputs, fills, strict=True)}
        self._rng = np.random.default_rng(drawings.SEED)
        self.cuts: list[dict[int, int]] = []
        self.figure = 0.0

    def compare(self, apart: bool) -> None:
        """Run and compare. `apart`: a row's sizes differ between names. Raises _Refused."""
        started_ns = perf_counter_ns()
        targets = _targets(self._pads, apart)
        for number, (target, owns) in enumerate(targets[:TRIED_MAX]):
            if number and perf_counter_ns() - started_ns > TRIED_NS_MAX:
                return
            feeds = [self._feeds(own) for own in owns]
            alone = [
                self._ran(each, f"a row of {_text_of(own)}") for each, own in zip(feeds, owns, strict=True)
            ]
            self._check_numbers(alone)
            together = self._ran(
                self._padded(feeds, target), f"{len(owns)} rows padded to {_text_of(target)}"
            )
            shortest = self._ran(self._padded(feeds[-1:], target), f"a row padded to {_text_of(target)}")
            if not self.cuts:
                self.cuts = self._seen(alone, owns, together, target)
            for row, (answers, own) in enumerate(zip(alone, owns, strict=True)):
                self._same(answers, own, together, row, target)
            self._same(alone[-1], owns[-1], shortest, 0, target)

    def _feeds(self, own: Sizes) -> dict[str, Array]:
        feeds = self._drawing.feeds(1, self._rng, dict(zip(self._pads, own, strict=True)))
        for name, array in feeds.items():
            # A mask marks the elements that count: the fill value means "does not count", so the rest counts.
            if drawings.is_mask(name) and any(axis != NONE for axis in self._axes[name]):
                array[...] = 0 if self._fills[name] else 1
        return feeds

    def _padded(self, feeds: Sequence[dict[str, Array]], target: Sizes) -> dict[str, Array]:
        found = {}
        for name, first in feeds[0].items():
            row_axis, axes = self._row_axes[name], self._axes[name]
            if row_axis == SHARED:
                found[name] = first
                continue
            rows = []
            for each in feeds:
                array = each[name]
                widths = [(0, 0)] * array.ndim
                for axis, size in zip(axes, target, strict=True):
                    if axis != NONE:
                        widths[axis] = (0, size - array.shape[axis])
                rows.append(np.pad(array, widths, constant_values=self._fills[name].item()))
            found[name] = np.concatenate(rows, row_axis)
        return found

    def _ran(self, feeds: dict[str, Array], what: str) -> Sequence[Array]:
        try:
            return self._run(feeds)
        except Exception as error:  # whatever the runtime says
            raise _Refused(f"{TOO_SMALL} {what}: {first_line(error)[:200]}") from None

    def _check_numbers(self, alone: Sequence[Sequence[Array]]) -> None:
        for answers in alone:
            for spec, answer in zip(self._outputs, answers, strict=True):
                if answer.dtype.kind in "fc" and answer.size and not np.isfinite(answer).any():
                    raise _Refused(f"output {spec.name!r} has no finite number on inputs that were invented")

    def _seen(
        self,
        alone: Sequence[Sequence[Array]],
        owns: Sequence[Sizes],
        together: Sequence[Array],
        target: Sizes,
    ) -> list[dict[int, int]]:
        """For each output, the axes that have the size of a padded name."""
        found = []
        for index, (spec, row_axis) in enumerate(zip(self._outputs, self._output_axes, strict=True)):
            cuts = {}
            for axis, size in enumerate(together[index].shape):
                sizes = [answers[index].shape[axis : axis + 1] for answers in alone]
                if axis == row_axis or all(own == (size,) for own in sizes):
                    continue
                names = [
                    number
                    for number in range(len(target))
                    if size == target[number]
                    and all(have == (own[number],) for have, own in zip(sizes, owns, strict=True))
                ]
                if not names:
                    shape, padded = list(alone[-1][index].shape), list(together[index].shape)
                    raise _Refused(
                        f"output {spec.name!r} has shape {shape} for {_text_of(owns[-1])} alone, and "
                        f"{padded} for {len(owns)} rows padded to {_text_of(target)}: it can't be cut back"
                    )
                cuts[axis] = names[0]
            found.append(cuts)
        return found

    def _same(
        self, answers: Sequence[Array], own: Sizes, padded: Sequence[Array], row: int, target: Sizes
    ) -> None:
        """A row of the padded run must be the answer of its request alone."""
        for index, (spec, axis) in enumerate(zip(self._outputs, self._output_axes, strict=True)):
            found = np.take(padded[index], [row], axis)
            for cut, number in self.cuts[index].items():
                found = np.take(found, range(own[number]), cut)
            if found.shape != answers[index].shape:
                raise _Refused(
                    f"a row of output {spec.name!r} has shape {list(answers[index].shape)} alone, and "
                    f"{list(found.shape)} padded to {_text_of(target)}"
                )
            off = difference(answers[index], found, answers[index])
            if not off <= tolerance_of(spec):
                raise _Refused(
                    f"a row of {_text_of(own)}, padded to {_text_of(target)} and alone, differs by {off:.2g} "
                    f"of the largest value of output {spec.name!r} (allowed: {tolerance_of(spec):g})"
                )
            self.figure = max(self.figure, off)


def _targets(pads: Mapping[str, Pad], apart: bool) -> list[tuple[Sizes, list[Sizes]]]:
    """(padded sizes, sizes of the rows), cheapest first. `apart`: a row that is long by one name is short by
    another."""
    found = []
    count = max(len(pad.to) for pad in pads.values())
    for number in range(count):
        target = tuple(pad.to[min(number, len(pad.to) - 1)] for pad in pads.values())
        if min(target) < LEAST_SIZE and number < count - 1:
            continue
        columns = []
        for index, size in enumerate(target):
            sizes = [size, max(1, size * 5 // 8), max(1, size // 3)]
            turn = index % ROWS if apart else 0
            columns.append(sizes[turn:] + sizes[:turn])
        rows = list(zip(*columns, strict=True))
        found.append((target, sorted(rows, key=prod, reverse=True)))
    return found


def _text_of(sizes: Sizes) -> str:
    return " x ".join(map(str, sizes))
