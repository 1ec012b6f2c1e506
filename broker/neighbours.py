"""Which requests of different sizes share a batch: the head, and its neighbours in size.

All are padded to the longest. So a request goes along as long as the padding that it adds costs less time
than a run of its own would. On a device that pads to the configuration's sizes anyhow, everything in the
lane goes along.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from ..transport.messages import Priority
from .lanes import Entry
from .ragged import RaggedLane, Sizes
from .requests import Part

if TYPE_CHECKING:
    from .timing import TimeModel

WINDOW = 64  # parts that are looked at for one batch, at least, in the order in which they would go
NO_DEADLINES_NS = -(1 << 62)  # in place of a batch's start: every part would be in time


class Neighbours:
    """One batch as it grows. `longest`: the sizes that it is padded to."""

    def __init__(
        self, lane: RaggedLane, rows_max: int, starts_ns: int, timing: TimeModel | None, lower_max: int
    ) -> None:
        self._lane = lane
        self._rows_max = rows_max
        self._starts_ns = starts_ns
        self._timing = timing
        self._lower_max = lower_max or rows_max
        self._worth = timing.worth if timing is not None else 0.0
        self._whole = timing.whole if timing is not None else False
        self._elements_max = lane.ragged.elements_max
        self._nearest_ns = 0  # of the deadlines of its parts; 0: none
        self._parts: list[Part] = []
        self._rows = 0
        self._longest: Sizes = lane.bucket

    def rows_of_head(self, part: Part) -> int:
        """How many rows of the first part the batch takes; the rest of it is to wait."""
        most = self._most(part)
        if self._elements_max:
            most = max(1, min(most, self._elements_max // prod(self._padded(part.request.sizes))))
        return min(most, part.stop - part.start)

    def of(self, entries: Sequence[Entry]) -> list[Part]:
        """The batch: the first part, and those of the others that are worth taking along, the nearest in size
        first, on either side."""
        head, *entries = entries
        self._add(head[2], self._padded(head[2].request.sizes))
        size = prod(self._parts[0].request.sizes)
        parts = sorted((prod(entry[2].request.sizes), number) for number, entry in enumerate(entries))
        right = bisect_left(parts, (size, -1))
        left = right - 1
        while self._rows < self._rows_max and (left >= 0 or right < len(parts)):
            shorter = entries[parts[left][1]][2] if left >= 0 else None
            longer = entries[parts[right][1]][2] if right < len(parts) else None
            costs = [(self._cost(part), part) for part in (longer, shorter) if part is not None]
            cost, part = min(costs, key=lambda each: each[0])
            if cost > 0 and cost >= self._worth:
                break  # parts further away cost more
            if part is shorter:
                left -= 1
            else:
                right += 1
            if self._fits(part):
                self._add(part, self._padded(part.request.sizes))
        return self._parts

    def _cost(self, part: Part) -> int:
        """The elements of padding that it would add to the batch."""
        rows = part.stop - part.start
        own = part.request.sizes
        all_ = (self._rows + rows) * prod(self._padded(own))
        alone = self._lane.size if self._whole else prod(own)
        return all_ - self._rows * prod(self._longest) - rows * alone

    def _fits(self, part: Part) -> bool:
        """Whether all of it fits, and every part would still be in time."""
        rows = self._rows + part.stop - part.start
        elements = rows * prod(self._padded(part.request.sizes))
        if rows > self._most(part) or 0 < self._elements_max < elements:
            return False
        deadline_ns = part.request.deadline_ns
        if self._timing is None or not (deadline_ns or self._nearest_ns):
            return True
        ends_ns = self._starts_ns + self._timing.run_ns(rows, elements)
        return not (0 < self._nearest_ns < ends_ns or 0 < deadline_ns < ends_ns)

    def _most(self, part: Part) -> int:
        return self._rows_max if part.request.priority == Priority.URGENT else self._lower_max

    def _padded(self, sizes: Sizes) -> Sizes:
        if self._whole:
            return self._lane.bucket
        return tuple(map(max, self._longest, sizes)) if self._parts else sizes

    def _add(self, part: Part, longest: Sizes) -> None:
        self._parts.append(part)
        self._rows += part.stop - part.start
        self._longest = longest
        deadline_ns = part.request.deadline_ns
        if deadline_ns and (not self._nearest_ns or deadline_ns < self._nearest_ns):
            self._nearest_ns = deadline_ns
