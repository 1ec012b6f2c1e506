"""How long a batch takes, by its rows: learned per model and worker, from the warm-up on.

A table of (rows, time) that every batch corrects. In between it interpolates; beyond its largest
size it goes on with the last slope. Slower than predicted is believed quickly, faster slowly: an
error to the slow side costs a smaller batch, an error to the fast side costs somebody's deadline.

A model's file may claim times, too. They stand where nothing has been measured yet, and nothing else
believes them: no lease, no refusal. From the first measurement on they say only how the time grows with
the rows, within bounds, at sizes outside of what has been measured.

Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

SLOWER_WEIGHT = 0.5
FASTER_WEIGHT = 0.125
POINTS_MAX = 64  # sizes that are remembered; a model's maximum may be 1024
CLAIM_NS_MAX = 1_000_000_000  # a file that claims more is taken to claim this
CLAIM_BENT_MAX = 2  # times as much as in proportion to the rows: no claim makes a size look dearer than that
CLAIM_FLAT_MAX = 8  # nor, so many times cheaper: a batch may be kept for 20 times its expected time

# Two batches instead of one: what the second costs beside its run, and how much longer both may take.
OWN_COST_NS = 100_000
HALVES_SHARE = 1.15
HALVED_ROW_NS_MAX = 250_000  # beside a longer one, what clients do between two requests counts for little
TRIED_AFTER = 16  # batches that were not halved: then a half that was slow is tried once, and measured anew
TRIED_AFTER_MAX = 1024  # twice as many each time, as long as it is slow

# A run is a surprise when it took longer than so many times its expected time, and so long at all.
SURPRISE_FACTOR = 4
SURPRISE_MIN_NS = 250_000_000
STEADY_RUNS = 16  # without a surprise, before a model counts as steady
SURPRISE_RUNS = 1_000  # the same, after a surprise


class Steadiness:
    """Whether a model's runs have taken their expected times, on all its workers together."""

    __slots__ = ("_runs_left", "is_steady")

    def __init__(self) -> None:
        self._runs_left = STEADY_RUNS
        self.is_steady = False

    def ran(self, expected_ns: int, took_ns: int) -> None:
        """A run has ended whose time had been predicted from measurements."""
        if took_ns > SURPRISE_MIN_NS and took_ns > SURPRISE_FACTOR * expected_ns:
            self._runs_left = SURPRISE_RUNS
            self.is_steady = False
        elif self._runs_left:
            self._runs_left -= 1
            self.is_steady = not self._runs_left


class TimeModel:
    """Predicts the time of a batch. `seed`: {rows: ns} of the warm-up sweep; may be empty. `buckets`:
    the only sizes that are run, rising; smaller batches are padded. Empty: any size. `claims`: {rows: ns}
    that the model's file says of itself."""

    __slots__ = ("_claims", "_doubts", "_measured", "_ns", "_rows", "buckets", "longest_ns")

    worth: float = 0.0  # elements of padding that cost no more than a run of one's own; see elements.py
    whole: bool = False  # whether batches are padded to sizes of the configuration

    def __init__(
        self,
        seed: Mapping[int, int] | None = None,
        buckets: Sequence[int] = (),
        claims: Mapping[int, int] | None = None,
    ) -> None:
        self.buckets = buckets
        self._ns: dict[int, float] = {rows: float(ns) for rows, ns in (seed or {}).items() if rows > 0}
        self._measured = set(self._ns)
        self._rows = sorted(self._ns)
        self.longest_ns = int(max(self._ns.values(), default=0))  # that was ever seen, or claimed
        # Halves that were measured as slow: batches that were not halved since, and after how many to try.
        self._doubts: dict[int, tuple[int, int]] = {}
        usable = {rows: min(ns, CLAIM_NS_MAX) for rows, ns in (claims or {}).items() if ns > 0}
        self._claims = TimeModel(usable) if usable else None
        self._heed_claims()

    @property
    def is_measured(self) -> bool:
        """Whether anything has been measured. Otherwise predictions are the file's claims, or 0."""
        return bool(self._measured)

    @property
    def has_claims(self) -> bool:
        return self._claims is not None

    def _heed_claims(self) -> None:
        """Enter the claims for sizes outside the measured range."""
        if self._claims is None:
            return
        measured = sorted(self._measured)
        self._ns = {rows: self._ns[rows] for rows in measured}
        for rows in self._claims._rows:
            if not measured:
                self._ns[rows] = float(self._claims.predict_ns(rows))
            elif not measured[0] <= rows <= measured[-1]:
                near = measured[0] if rows < measured[0] else measured[-1]
                self._ns[rows] = self._scaled(rows, near, self._claims)
        self._rows = sorted(self._ns)
        self.longest_ns = max(self.longest_ns, int(max(self._ns.values(), default=0)))

    def _scaled(self, rows: int, near: int, claims: TimeModel) -> float:
        """The time of so many rows, from that of the nearest measured size and the claims' curve. A batch
        of more rows takes no less time, and not much more than in proportion."""
        known = self._ns[near]
        guess = known * claims.predict_ns(rows) / claims.predict_ns(near)
        in_proportion = known * rows / near
        if rows > near:
            least = max(known, in_proportion / CLAIM_FLAT_MAX)
            return min(max(guess, least), max(known, in_proportion * CLAIM_BENT_MAX))
        return max(min(guess, known), in_proportion / CLAIM_BENT_MAX)

    def predict_ns(self, rows: int) -> int:
        """The expected time of a batch of this many rows; 0: unknown."""
        if self.buckets:
            rows = self._padded(rows)
        known = self._rows
        time_ns = self._ns.get(rows)
        if time_ns is not None:
            return int(time_ns)
        if not known:
            return 0
        index = bisect_left(known, rows)
        if index == 0:
            return int(self._ns[known[0]])  # a smaller batch takes no longer than the smallest known
        if index < len(known):
            return int(self._between(known[index - 1], known[index], rows))
        if len(known) == 1:
            return int(self._ns[known[0]] * rows / known[0])
        return int(self._between(known[-2], known[-1], rows))

    def run_ns(self, rows: int, elements: int) -> int:
        """The same for rows that have this many elements along padded axes in all."""
        return self.predict_ns(rows)

    def _between(self, left: int, right: int, rows: int) -> float:
        low, high = self._ns[left], self._ns[right]
        # Never falling: noise must not make a larger batch look cheaper without end.
        return max(low, low + (high - low) * (rows - left) / (right - left))

    def learn(self, rows: int, took_ns: int) -> None:
        if took_ns > self.longest_ns:
            self.longest_ns = took_ns
        if self.buckets:
            rows = self._padded(rows)
        if rows not in self._measured:
            if len(self._measured) >= POINTS_MAX:
                return  # the neighbours say it well enough
            self._measured.add(rows)
            if rows not in self._ns:
                insort(self._rows, rows)
            self._ns[rows] = float(took_ns)
            self._heed_claims()
            return
        known = self._ns[rows]
        weight = SLOWER_WEIGHT if took_ns > known else FASTER_WEIGHT
        self._ns[rows] = known + (took_ns - known) * weight

    def _padded(self, rows: int) -> int:
        """The size at which a batch of this many rows is run."""
        buckets = self.buckets
        return buckets[min(bisect_left(buckets, rows), len(buckets) - 1)]

    def worth_taking(self, rows: int) -> int:
        """Of so many rows that wait, how many to run now: all of them, padded, or a full smaller bucket
        and the rest later, whichever is expected to take less time."""
        if not self.buckets:
            return rows
        return self._cheapest(rows)[1]

    def worth_halving(self, rows: int) -> int:
        """Of so many rows that wait for an idle worker, how many to run first: half of them, where two runs
        take hardly longer than one. Their answers come in half the time, and while their clients make the
        next requests, the worker runs the other half."""
        whole_ns = self.predict_ns(rows)
        if self.buckets or whole_ns > rows * HALVED_ROW_NS_MAX:
            return rows
        half = (rows + 1) // 2
        half_ns_max = (HALVES_SHARE * whole_ns - OWN_COST_NS) / 2
        if self.predict_ns(half) <= half_ns_max:
            self._doubts.pop(half, None)
            return half
        evenly_ns = (whole_ns + self.predict_ns(1)) / 2
        return half if evenly_ns <= half_ns_max and self._is_worth_a_try(half, evenly_ns) else rows

    def _is_worth_a_try(self, half: int, evenly_ns: float) -> bool:
        """Against what was measured, perhaps at a bad moment: nothing else would correct it. `evenly_ns`: its
        time, if that grows evenly with the rows."""
        unhalved, tried_after = self._doubts.get(half, (0, TRIED_AFTER))
        if len(self._doubts) > POINTS_MAX:
            self._doubts.clear()
        if not self._measured or unhalved + 1 < tried_after:
            self._doubts[half] = unhalved + 1, tried_after
            return False
        self._doubts[half] = 0, min(2 * tried_after, TRIED_AFTER_MAX)
        self.learn(half, int(evenly_ns))  # enters the size
        if half in self._measured:
            self._ns[half] = evenly_ns
        return True

    def _cheapest(self, rows: int) -> tuple[int, int]:
        """(time for all these rows, how many of them to run first)."""
        padded_ns = self.predict_ns(rows)
        below = bisect_left(self.buckets, rows) - 1
        if below < 0 or rows in self.buckets:
            return padded_ns, rows
        full = self.buckets[below]
        runs = (rows - 1) // full  # up to a rest that is no larger: in between, padding costs the same
        split_ns = runs * self.predict_ns(full) + self._cheapest(rows - runs * full)[0]
        return (split_ns, full) if split_ns < padded_ns else (padded_ns, rows)

    def rows_within(self, rows_max: int, budget_ns: int) -> int:
        """The most rows, up to `rows_max`, whose batch is expected to take no longer than the
        budget; at least 1, because one row is the least that can be run."""
        if self.predict_ns(rows_max) <= budget_ns:
            return rows_max
        low, high = 1, rows_max  # predict(high) is over the budget
        while high - low > 1:
            middle = (low + high) // 2
            if self.predict_ns(middle) <= budget_ns:
                low = middle
            else:
                high = middle
        return low
