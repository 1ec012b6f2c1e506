"""The buckets of the broker's histograms: the meaning of a bucket's number in a snapshot.

Pure. Log-spaced, 4 buckets to a factor of two, so a quantile read from them is within 19 % of the
true value over the whole range from nanoseconds to hours.

    bucket   0  1  2  3  4  5  6  7  8     9       10      11      12      ...
    values   0  1  2  3  4  5  6  7  8, 9  10, 11  12, 13  14, 15  16..19  ...
"""

from __future__ import annotations

from collections.abc import Mapping

BUCKETS_PER_OCTAVE = 4


def bucket_of(value: int) -> int:
    """Index of the bucket that a value falls into; `bucket_upper` is its inverse."""
    if value < BUCKETS_PER_OCTAVE:
        return max(value, 0)
    octave = value.bit_length() - 1
    return (octave - 1) * BUCKETS_PER_OCTAVE + (value >> (octave - 2)) - BUCKETS_PER_OCTAVE


def bucket_upper(bucket: int) -> int:
    """The least value that is above the bucket."""
    value = bucket + 1
    if value <= BUCKETS_PER_OCTAVE:
        return value
    octave, step = divmod(value, BUCKETS_PER_OCTAVE)
    return (BUCKETS_PER_OCTAVE + step) << (octave - 1)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """The value that a share (0 to 1) of all counted values does not exceed, interpolated within its bucket;
    None when nothing was counted."""
    left = share * sum(counts.values())
    for bucket, count in sorted(counts.items()):
        if count and left <= count:
            first, last = bucket_upper(bucket - 1) if bucket else 0, bucket_upper(bucket) - 1
            return first + (last - first) * left / count
        left -= count
    return None
