"""Decides whether rows are independent: alone, together, and in another order they must answer the same.

The figure is the greatest difference of a value, in parts of its output's greatest magnitude. Measured on
some 800 models with independent rows and on 13 kinds of models without (tests/campaigns): rounding stays far
below the tolerance, mixed rows are far above it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.tensors import TensorSpec
from . import drawing as drawings
from . import unusual
from .axes import SHARED, Proposal
from .drawing import Array, Drawing, Run
from .words import first_line

# Allowed rounding, in parts of the output's greatest magnitude (real models: 1e-6). 8-bit arithmetic whose
# scale depends on the whole batch is off by 0.01; that is not rounding.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "complex64": 1e-4, "complex128": 1e-4, "float16": 4e-3}
COARSE = 0.02  # bfloat16, compared as float32, has 8 bits
BYTE = 0.004  # one unit of a byte: rounding may go either way
ROWS_MAX = 32
VALUES_MAX = 16 << 20  # elements that are drawn for one comparison: of large rows, fewer are compared
UNUSUAL_NS = 100_000_000  # for ordinary rows beside unusual ones
MANY_NS = 60_000_000  # for a run of many rows and a run of their halves together
# By the time of one row: (up to so many ns, rows run together, drawings). Slow models are run less.
EFFORTS = ((5_000_000, 5, 2), (30_000_000, 3, 1), (1 << 62, 2, 1))

RANDOM = "it answers the same inputs differently each time, so its rows never share a run"

Ways = Callable[[Sequence[TensorSpec], Sequence[int], int], Iterable[Drawing]]


def tolerance_of(spec: TensorSpec) -> float:
    """The allowed difference of two answers of this output, in parts of its largest value."""
    entry = dtypes.BY_CODE[spec.dtype]
    if entry.kind in "iub":
        return BYTE
    return TOLERANCES.get(entry.name, COARSE)


@dataclass
class Verdict:
    """`axes`: the batch axis of each input, then of each output; None: requests run alone. `reason`: why,
    with the figure. `drawing`: draws inputs that the model runs on; None: there is none."""

    axes: list[int] | None
    reason: str
    drawing: Drawing | None = None
    figure: float = field(default=0.0)
    undecided: bool = False  # nothing that was drawn shows anything, so requests may


class _Disagree(Exception):
    """Rows depend on each other; the text says how that was seen."""


class _Fails(Exception):
    """The model does not run on the drawn inputs, or they show nothing."""


def judge(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    run: Run,
    proposals: Sequence[Proposal],
    ways: Ways = drawings.ways,
    rows_max: int = ROWS_MAX,
    run_unusual: Run | None = None,
) -> Verdict:
    """The first proposal that holds, or why none does. `run` takes arrays by input name and returns one
    array for each output; an error on invented inputs is no fault of the model. `ways`: the drawings to try,
    from a caller that knows the model's inputs. `rows_max`: the most rows that will share a run.
    `run_unusual`: likewise for values that might keep a loop going for ever; it ends such a run by an error.
    """
    refusal = ""
    disagreed = False
    last: Drawing | None = None
    until_ns = time.perf_counter_ns() + drawings.TRY_NS_MAX
    for proposal in proposals:
        for drawing in ways(inputs, proposal.inputs, until_ns):
            try:
                trial = _Trial(outputs, run, proposal, drawing, rows_max)
                trial.run_unusual = run_unusual or run
                trial.begin()
            except _Fails:
                continue
            except drawings.TooLarge as error:
                return Verdict(None, f"{error}, so its rows never share a run")
            last = last or drawing
            try:
                trial.compare()
            except _Fails as error:  # perhaps another drawing runs
                refusal = refusal or f"{proposal.why}, but {error}"
                continue
            except _Disagree as error:
                if trial.is_random():
                    return Verdict(None, RANDOM, drawing)
                refusal = f"{proposal.why}, but {error}"
                disagreed = True
                break
            text = (
                f"{proposal.why}; {trial.compared} rows run alone, together and in another order differ by "
                f"{trial.figure:.1g} of the largest value"
            )
            return Verdict([*proposal.inputs, *trial.axes], text, drawing, trial.figure)
    if last is None:
        refusal = "no inputs could be invented on which it runs, so its rows never share a run"
    return Verdict(None, refusal, last, undecided=not disagreed)


class _Trial:
    """One proposal, tried on one drawing. `figure`: the greatest relative difference so far."""

    def __init__(
        self,
        outputs: Sequence[TensorSpec],
        run: Run,
        proposal: Proposal,
        drawing: Drawing,
        rows_max: int,
    ) -> None:
        self._outputs = outputs
        self._run = self.run_unusual = run
        self._drawing = drawing
        self._rng = np.random.default_rng(drawings.SEED)
        self._drawn_max = max(EFFORTS[-1][1], VALUES_MAX // max(1, drawing.row_values()))  # rows
        self._rows_max = min(rows_max, self._drawn_max)
        self._feeds = drawing.feeds(min(EFFORTS[0][1], self._drawn_max), self._rng)
        self._first: Sequence[Array] = ()
        self._row_ns = 0
        self.axes: Sequence[int] = proposal.outputs or ()
        self.figure = 0.0
        self.compared = 0

    def begin(self) -> None:
        """Run one row. Raises _Fails."""
        started_ns = time.perf_counter_ns()
        self._first = self._ran([0])
        self._row_ns = time.perf_counter_ns() - started_ns

    def compare(self) -> None:
        """Draw, run and compare; a fast model more than once. Raises _Fails if some rows do not run, and
        _Disagree if rows depend on each other."""
        if not _rows_differ(self._feeds, self._drawing):
            raise _Fails("no inputs could be invented whose rows differ")
        _, count, rounds = next(effort for effort in EFFORTS if self._row_ns <= effort[0])
        count = min(count, self._drawn_max)
        for round_ in range(rounds):
            try:
                self._compare_round(count, is_other=round_ > 0)
            except _Fails:
                if not round_:
                    raise
                break  # these values are not for this model: the first ones have to do
        self._compare_many(count)
        self._compare_unusual()

    def is_random(self) -> bool:
        """Whether a second run of the same rows gives other answers. After a comparison that failed."""
        try:
            runs = [self._ran([0, 1]) for _ in range(2)]
        except _Fails:
            return False
        return any(
            one.shape != other.shape or not difference(one, other, other) <= tolerance_of(spec)
            for spec, one, other in zip(self._outputs, *runs, strict=True)
        )

    def _compare_round(self, count: int, is_other: bool) -> None:
        """So many rows alone, together, and in another order; `is_other`: with other values."""
        everyone = list(range(count))
        if is_other:
            self._feeds = self._drawing.other_values().feeds(count, self._rng)
            self._first = self._ran([0])
        together = self._ran(everyone)
        # A size of 1 may be broadcast, so sizes of 2 and more are compared as well.
        head = self._ran([0, 1]) if count > 2 else together
        runs = ((self._first, 1), (head, 2), (together, count))
        self.axes = self.axes or _axes_seen(self._outputs, runs)
        for answers, rows in runs:
            self._check_sizes(answers, rows)
        self._same(self._first, [0], together, [0], "alone")
        self._same(self._ran([count - 1]), [0], together, [count - 1], "alone")
        if count > 2:
            self._same(head, [0, 1], together, [0, 1], "by twos")
            order = everyone[::-1]
            self._same(self._ran(order), everyone, together, order, "in another order")
        if count > 3:
            rest = everyone[2:]
            self._same(self._ran(rest), everyone[: len(rest)], together, rest, "by themselves")
        self.compared += count

    def _compare_many(self, compared: int) -> None:
        """As many rows as may share a run, or as time allows, and the same in halves: some models look only
        at distant rows."""
        rows = min(self._rows_max, MANY_NS // (2 * max(1, self._row_ns)))
        if rows <= compared:
            return
        self._feeds = self._drawing.feeds(rows, self._rng)
        together = self._ran(list(range(rows)))
        self._check_sizes(together, rows)
        middle = rows // 2
        for start, stop in ((0, middle), (middle, rows)):
            part = list(range(start, stop))
            self._same(self._ran(part), list(range(stop - start)), together, part, "in halves")
        self._same(self._ran([rows - 1]), [0], together, [rows - 1], "alone")
        self.compared += rows

    def _compare_unusual(self) -> None:
        """Ordinary rows beside unusual ones, as far as time allows."""
        until_ns = time.perf_counter_ns() + UNUSUAL_NS
        self._run = self.run_unusual
        drawing = self._drawing
        drawn = drawing.feeds(min(unusual.ROWS, self._drawn_max), self._rng)
        for feeds in unusual.batches(drawn, drawing.specs, drawing.axes, self._rng):
            left_ns = until_ns - time.perf_counter_ns()
            self._feeds = feeds
            try:
                if left_ns >= 2 * unusual.ROWS * self._row_ns:
                    self._compare_beside()
                elif left_ns >= (len(unusual.TELLING) + 1) * self._row_ns:
                    self._compare_telling()
                else:
                    return
            except _Fails:  # these values are not for this model
                continue

    def _compare_beside(self) -> None:
        ordinary = list(range(unusual.ORDINARY))
        together = self._ran(list(range(unusual.ROWS)))
        self._check_sizes(together, unusual.ROWS)
        apart = self._ran(ordinary)
        self._same(apart, ordinary, together, ordinary, "beside unusual values", apart)
        for row in range(unusual.ORDINARY, unusual.ROWS):
            alone = self._ran([row])
            if all(answer.dtype.kind not in "fc" or np.isfinite(answer).all() for answer in alone):
                wholes = [np.append(*both) for both in zip(alone, apart, strict=True)]
                self._same(alone, [0], together, [row], "alone", wholes)
        self.compared += unusual.ROWS

    def _compare_telling(self) -> None:
        """Of a slow model: its first row, and the same row again, beside the most telling ones."""
        rows = unusual.TELLING
        together = self._ran(list(rows))
        self._check_sizes(together, len(rows))
        alone = self._ran([0])
        for place in (0, 1):
            self._same(alone, [0], together, [place], "beside unusual values", alone)
        self.compared += len(rows)

    def _ran(self, rows: list[int]) -> Sequence[Array]:
        try:
            return self._run(_pick(self._feeds, self._drawing, rows))
        except Exception as error:
            many = f"{len(rows)} row{'s' * (len(rows) > 1)}"
            raise _Fails(f"it does not run on {many}: {first_line(error)[:200]}") from None

    def _check_sizes(self, answers: Sequence[Array], rows: int) -> None:
        for spec, axis, answer in zip(self._outputs, self.axes, answers, strict=True):
            if answer.ndim <= axis or answer.shape[axis] != rows:
                raise _Disagree(f"output {spec.name!r} has shape {list(answer.shape)} for {rows} rows")

    def _same(
        self,
        mine: Sequence[Array],
        at: list[int],
        others: Sequence[Array],
        there: list[int],
        how: str,
        wholes: Sequence[Array] | None = None,
    ) -> None:
        """Rows `at` of one run must equal rows `there` of another. `wholes`: the values whose greatest is the
        measure of differences, if not `others`."""
        answers = zip(self._outputs, self.axes, mine, others, wholes or others, strict=True)
        for spec, axis, one, other, whole in answers:
            a, b = np.take(one, at, axis), np.take(other, there, axis)
            if a.shape != b.shape:
                raise _Disagree(
                    f"a row of output {spec.name!r} has shape {list(a.shape)} {how}, {list(b.shape)} together"
                )
            off = difference(a, b, whole)
            allowed = tolerance_of(spec)
            if not off <= allowed:
                raise _Disagree(
                    f"rows run {how} and together differ by {off:.2g} of the largest value of output "
                    f"{spec.name!r} (allowed: {allowed:g})"
                )
            self.figure = max(self.figure, off)


def _axes_seen(outputs: Sequence[TensorSpec], runs: Sequence[tuple[Sequence[Array], int]]) -> list[int]:
    """The axis of each output whose size is the number of rows, in every run. Raises _Disagree."""
    axes = []
    for index, spec in enumerate(outputs):
        shapes = [(answers[index].shape, rows) for answers, rows in runs]
        rank = len(shapes[0][0])
        found = [
            axis
            for axis in range(rank)
            if all(len(shape) == rank and shape[axis] == rows for shape, rows in shapes)
        ]
        if len(found) != 1:
            shape, rows = shapes[-1]
            raise _Disagree(f"output {spec.name!r} has shape {list(shape)} for {rows} rows")
        axes.append(found[0])
    return axes


def difference(a: Array, b: Array, whole: Array) -> float:
    """The greatest difference, in parts of the greatest finite magnitude of `whole`. Integers wider than a
    byte are indices and counts: if they are not equal, the difference is 1."""
    if a.dtype.kind not in "fciu" or a.dtype.name in ("object",) or (a.dtype.kind in "iu" and a.itemsize > 1):
        return 0.0 if np.array_equal(a, b) else 1.0
    is_byte = a.dtype.kind in "iu"
    wide: Any = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b, whole = a.astype(wide), b.astype(wide), whole.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return 1.0
    largest = float(np.abs(whole[np.isfinite(whole)]).max(initial=0.0))
    if is_byte:
        largest = 255.0
    off = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return off / max(largest, 1e-6)


def _pick(feeds: dict[str, Array], drawing: Drawing, rows: list[int]) -> dict[str, Array]:
    return {
        name: array if axis == SHARED else np.ascontiguousarray(np.take(array, rows, axis))
        for (name, array), axis in zip(feeds.items(), drawing.axes, strict=True)
    }


def _rows_differ(feeds: dict[str, Array], drawing: Drawing) -> bool:
    for (_, array), axis in zip(feeds.items(), drawing.axes, strict=True):
        if axis != SHARED and array.size and array.shape[axis] > 1:
            first, second = np.take(array, 0, axis), np.take(array, 1, axis)
            if not np.array_equal(first, second):
                return True
    return False
