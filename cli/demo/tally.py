"""What the demo's clients count: latencies by priority, and the comparison of every answer.

Pure except for `save` and `load`: a client program writes its tally to a file, and the demo reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..arguments import PRIORITIES

Array = npt.NDArray[Any]

# Of an image's largest logit. Another batch size may round a sum differently, and another provider adds
# in an order of its own: one step of a float32 is 6e-8 of its value, and 8e-7 was seen of WebGPU.
TOLERANCE = 1e-5


class Tally:
    """Answers compared with `expected` (float32[images, classes]) and `labels` (int64[images])."""

    def __init__(self, expected: Array, labels: Array) -> None:
        self.expected = expected
        self.labels = labels
        self.latencies_ns: list[list[int]] = [[] for _ in PRIORITIES]
        self.rows = [0 for _ in PRIORITIES]
        self.refused = [0 for _ in PRIORITIES]  # times that a request was Overloaded, and came again
        self.late = [0 for _ in PRIORITIES]  # requests that were taken, and dropped at their deadline
        self.identical = 0  # rows, bit for bit
        self.unequal = 0  # rows outside TOLERANCE
        self.right = 0  # rows whose largest logit is the label's
        self.difference = 0.0  # largest, of the image's largest logit
        self.seen = np.zeros(len(expected), bool)  # images that were answered at least once
        self.began_s = float("inf")
        self.ended_s = 0.0

    def add(self, priority: int, start: int, logits: Array, latency_ns: int) -> None:
        """The answer to a request with the images from `start` on."""
        end = start + len(logits)
        expected = self.expected[start:end]
        self.latencies_ns[priority].append(latency_ns)
        self.rows[priority] += len(logits)
        self.seen[start:end] = True
        self.right += int((logits.argmax(1) == self.labels[start:end]).sum())
        if logits.tobytes() == expected.tobytes():
            self.identical += len(logits)
            return
        self.identical += int((logits == expected).all(1).sum())
        differences = np.abs(logits - expected).max(1) / np.maximum(np.abs(expected).max(1), 1.0)
        self.unequal += int((~(differences <= TOLERANCE)).sum())  # so that NaN counts
        self.difference = max(self.difference, float(np.nan_to_num(differences, nan=np.inf).max()))

    def merge(self, other: Tally) -> None:
        for mine, its in zip(self.latencies_ns, other.latencies_ns, strict=True):
            mine += its
        self.rows = _sums(self.rows, other.rows)
        self.refused = _sums(self.refused, other.refused)
        self.late = _sums(self.late, other.late)
        self.identical += other.identical
        self.unequal += other.unequal
        self.right += other.right
        self.difference = max(self.difference, other.difference)
        self.seen |= other.seen
        self.began_s = min(self.began_s, other.began_s)
        self.ended_s = max(self.ended_s, other.ended_s)

    @property
    def rows_total(self) -> int:
        return sum(self.rows)

    @property
    def requests(self) -> int:
        return sum(len(latencies) for latencies in self.latencies_ns)

    @property
    def passed(self) -> bool:
        """Every answer equals the direct run's, and every image has one that the yard had time for."""
        return self.unequal == 0 and (bool(self.seen.all()) or (self.was_full and bool(self.seen.any())))

    @property
    def was_full(self) -> bool:
        """The clients sent more than the yard could handle."""
        return any(self.refused) or any(self.late)

    def save(self, path: Path) -> None:
        counts = [*self.rows, *self.refused, *self.late, self.identical, self.unequal, self.right]
        latencies = {f"latencies_{p}": np.array(each, np.int64) for p, each in enumerate(self.latencies_ns)}
        times = np.array([self.began_s, self.ended_s, self.difference])
        np.savez(path, seen=self.seen, counts=np.array(counts, np.int64), times=times, **latencies)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, expected: Array, labels: Array) -> Self:
        tally = cls(expected, labels)
        with np.load(path, allow_pickle=False) as found:
            tally.latencies_ns = [found[f"latencies_{p}"].tolist() for p in range(len(PRIORITIES))]
            *each, tally.identical, tally.unequal, tally.right = found["counts"].tolist()
            tally.rows, tally.refused, tally.late = np.reshape(each, (3, len(PRIORITIES))).tolist()
            tally.began_s, tally.ended_s, tally.difference = found["times"].tolist()
            tally.seen = found["seen"]
        return tally


def _sums(mine: list[int], its: list[int]) -> list[int]:
    return [one + other for one, other in zip(mine, its, strict=True)]
