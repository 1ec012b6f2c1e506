"""How long a batch takes by its elements along padded axes: a time of its own, and a time for each element.

Learned per model, worker and size, from the warm-up on. Sizes within a factor of two share what is known, so
whatever clients send, a table stays small. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .timing import FASTER_WEIGHT, SLOWER_WEIGHT, TimeModel

MEMORY = 0.97  # the weight of a run after the next one: some thirty runs are remembered
PRIOR_SPREAD = 0.25  # runs as like each other as that, relative to their mean, say less than the warm-up did
OUTLIER = 2.0  # a run counts as at most so many times the line's prediction, for the line
FLAT_MAX = 32  # a run's own time is no more than so many times that of its elements
ROWS_UNKNOWN = 0.5  # where nothing is known: a run's own time is worth so many rows of elements


class Line:
    """time = own + element * elements, fitted to the latest runs. `worth`: how many elements take as
    long as a run's own time, to begin with."""

    __slots__ = ("_sum", "_x", "_xx", "_xy", "_y", "element_ns", "own_ns", "prior", "ratio")

    def __init__(self, worth: float, element_ns: float = 0.0) -> None:
        self.prior = worth
        self.element_ns = element_ns
        self.own_ns = worth * element_ns
        self.ratio = 1.0  # of the latest times to the line's predictions; slower is believed quickly
        self._sum = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def is_measured(self) -> bool:
        return self._sum > 0

    @property
    def worth(self) -> float:
        """The number of elements that take as long as a run's fixed time."""
        return self.own_ns / self.element_ns if self.element_ns else self.prior

    def predict_ns(self, elements: int) -> int:
        return int((self.own_ns + self.element_ns * elements) * self.ratio)

    def learn(self, elements: int, took_ns: int) -> None:
        """A run with this many elements took this long."""
        if self._sum:
            off = took_ns / max(1.0, self.own_ns + self.element_ns * elements)
            weight = SLOWER_WEIGHT if off > self.ratio else FASTER_WEIGHT
            self.ratio = min(8.0, max(1.0, self.ratio + (off - self.ratio) * weight))
            # A machine that was busy with something else says nothing of the two times.
            off = max(1 / OUTLIER, min(OUTLIER, off))
            took_ns = int(off * (self.own_ns + self.element_ns * elements))
        x, y = float(elements), float(took_ns)
        self._sum = self._sum * MEMORY + 1
        self._x = self._x * MEMORY + x
        self._y = self._y * MEMORY + y
        self._xx = self._xx * MEMORY + x * x
        self._xy = self._xy * MEMORY + x * y
        mean_x, mean_y = self._x / self._sum, self._y / self._sum
        spread = max(0.0, self._xx / self._sum - mean_x * mean_x)
        both = self._xy / self._sum - mean_x * mean_y
        # Runs of nearly one size say nothing about the slope: earlier knowledge weighs in.
        prior_ns = mean_y / (mean_x + self.prior)
        weight = (PRIOR_SPREAD * mean_x) ** 2
        slope_ns = (both + prior_ns * weight) / (spread + weight)
        most_ns = mean_y / mean_x
        self.element_ns = min(most_ns, max(most_ns / (1 + FLAT_MAX), slope_ns))
        self.own_ns = mean_y - self.element_ns * mean_x


class ElementTimes:
    """The times of one model on one worker. `seed`: elements of a row -> rows -> ns, of the warm-up;
    `buckets`: the only numbers of rows that are run; `whole`: batches are padded to a size of the
    configuration, else to the longest of their requests."""

    def __init__(
        self, seed: Mapping[int, Mapping[int, int]], buckets: Sequence[int] = (), whole: bool = False
    ) -> None:
        self.buckets = buckets
        self.whole = whole
        self._lines: dict[int, Line] = {}  # by the size's number of bits
        for size in sorted(seed):
            times = sorted(seed[size].items())
            if not times:
                continue
            near = self._near(size)
            line = Line(
                _worth(size, times) if len(times) > 1 else near.worth if near else size * ROWS_UNKNOWN
            )
            for rows, took_ns in times:
                line.learn(rows * size, took_ns)
            self._lines[size.bit_length()] = line

    def _near(self, size: int) -> Line | None:
        """The line for the nearest size."""
        bits = size.bit_length()
        return self._lines[min(self._lines, key=lambda other: abs(other - bits))] if self._lines else None

    def line(self, size: int) -> Line:
        """The line for rows with this many elements."""
        line = self._lines.get(size.bit_length())
        if line is None:
            near = self._near(size)
            line = Line(near.worth, near.element_ns) if near else Line(size * ROWS_UNKNOWN)
        return line

    def learn(self, size: int, rows: int, elements: int, took_ns: int) -> None:
        """A batch with this many rows, in a lane of this size, took this long."""
        line = self._lines[size.bit_length()] = self.line(size)
        if elements:
            line.learn(_run_as(elements, rows, self.buckets), took_ns)

    def of(self, size: int, known: TimeModel, rows_max: int) -> LaneTimes:
        """For a lane of rows of this size, as policy.py asks for it. `known`: of all the model's batches, by
        rows."""
        return LaneTimes(self, size, known, rows_max)


class LaneTimes(TimeModel):
    """A TimeModel of one lane, whose rows are taken to be as long as they may be in it."""

    __slots__ = ("_line", "_size", "whole", "worth")

    def __init__(self, times: ElementTimes, size: int, known: TimeModel, rows_max: int) -> None:
        self.buckets = times.buckets
        self.whole = times.whole
        self._line = times.line(size)
        self.worth = self._line.worth
        self._size = size
        self._doubts = {}
        self.longest_ns = max(known.longest_ns, self.predict_ns(rows_max))

    @property
    def is_measured(self) -> bool:
        return self._line.is_measured

    @property
    def has_claims(self) -> bool:
        return False

    def predict_ns(self, rows: int) -> int:
        return self.run_ns(rows, rows * self._size)

    def run_ns(self, rows: int, elements: int) -> int:
        return self._line.predict_ns(_run_as(elements, rows, self.buckets))

    def _is_worth_a_try(self, half: int, evenly_ns: float) -> bool:
        return False  # runs of every size correct the line


def _run_as(elements: int, rows: int, buckets: Sequence[int]) -> int:
    """The elements of a batch, including the rows that fill its bucket."""
    if not buckets or not rows:
        return elements
    size = next((size for size in buckets if size >= rows), rows)
    return elements * size // rows


def _worth(size: int, times: Sequence[tuple[int, int]]) -> float:
    """The elements that take as long as a run's own time, by the first and the last of these."""
    (few, short_ns), (many, long_ns) = times[0], times[-1]
    element_ns = max((long_ns - short_ns) / ((many - few) * size), short_ns / (few * size * (1 + FLAT_MAX)))
    return max(0.0, short_ns / element_ns - few * size)
