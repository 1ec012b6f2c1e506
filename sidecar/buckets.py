"""Prometheus' classic histograms out of the broker's, exactly. Pure.

A broker's bucket holds the whole numbers from one bound up to, and without, the next; Prometheus'
`le` includes its bound. Times and rows are whole numbers (of ns, of rows), so `le` is the last number
of a bucket: one below the next one's first. No observation is split or guessed.

For times every second bucket of the broker is a bound here, 2 to a factor of two: 0.000004095 (2**12 - 1
ns), 0.000006143 (3 * 2**11 - 1 ns), ... up to 68.7 s. For rows: each number up to 7, then 11, 15, 23, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..transport.histograms import BUCKETS_PER_OCTAVE, bucket_of, bucket_upper

NS = 1_000_000_000
_TIME_OCTAVES = range(12, 37)  # 2**12 ns = 4.1 us to 2**36 ns = 69 s
_ROW_OCTAVES = range(3, 11)  # 8 to 1024 rows


class Bounds:
    """The buckets of the broker that end where one of ours does, and the `le` of each."""

    def __init__(self, buckets: Sequence[int], unit: int) -> None:
        self.buckets = tuple(buckets)
        self.unit = unit
        self.labels = tuple(repr((bucket_upper(bucket) - 1) / unit) for bucket in buckets)

    def rebin(self, counts: Mapping[int, int]) -> list[tuple[str, float]]:
        """(le, how many up to there), with +Inf last."""
        found = []
        below = 0
        waiting = sorted(counts.items(), reverse=True)
        for bucket, label in zip(self.buckets, self.labels, strict=True):
            while waiting and waiting[-1][0] <= bucket:
                below += waiting.pop()[1]
            found.append((label, float(below)))
        found.append(("+Inf", float(below + sum(count for _, count in waiting))))
        return found


def _halves(octaves: range) -> list[int]:
    """The buckets that end just below 2**k and 1.5 * 2**k, for every k but the last, which ends it all."""
    ends = [bucket_of(1 << octave) - 1 for octave in octaves]
    return sorted([*ends, *(end + BUCKETS_PER_OCTAVE // 2 for end in ends[:-1])])


TIME = Bounds(_halves(_TIME_OCTAVES), NS)
ROWS = Bounds([*range(1, 7), *_halves(_ROW_OCTAVES)], 1)
