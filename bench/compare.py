"""Comparisons that survive a noisy machine: short alternating slices, in rounds, reported as ratios.

Owns the order in which contenders run and how their figures become a ratio. Knows nothing of what a
contender does in its slice.

On a small machine the same relay has been seen at a p50 of 40 us and of 90 us, in different runs,
from where the scheduler put its processes. Two figures taken a minute apart therefore compare
placements and not programs. So every round opens each contender afresh, alternates short slices of
all of them, in an order that rotates, and yields one ratio; the median of the rounds' ratios is the
result, and their lowest and highest say how much to believe it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from .statistics import Measured, Spread, Summary, quotient, spread, summary_of

SLICES_PER_ROUND = 4

Slice = Callable[[float], Measured]  # runs for that many seconds


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison: `open()` is entered once a round and gives the function that runs a slice."""

    name: str
    open: Callable[[], AbstractContextManager[Slice]]


@dataclass(slots=True)
class Comparison:
    """What each contender did: pooled over all rounds, and one Measured for each round."""

    pooled: dict[str, Measured] = field(default_factory=dict)
    rounds: list[dict[str, Measured]] = field(default_factory=list)

    def summary(self, name: str) -> Summary:
        return summary_of(self.pooled[name])

    def ratio(self, name: str, to: str, figure: Callable[[Measured], float]) -> Spread:
        """`figure` of `name` divided by that of `to`, per round: its median and its extremes."""
        return spread(quotient(figure(by_name[name]), figure(by_name[to])) for by_name in self.rounds)


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    seconds: float,
    *,
    slices: int = SLICES_PER_ROUND,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run `rounds` rounds in which each contender gets `seconds`, in `slices` alternating slices.

    A contender that raises ends the comparison: a baseline that doesn't work is no result. Requests
    that fail are the contender's own to count, in the Measured of its slice.
    """
    comparison = Comparison({contender.name: Measured() for contender in contenders})
    for index in range(rounds):
        with ExitStack() as open_contenders:
            run = {one.name: open_contenders.enter_context(one.open()) for one in contenders}
            round_ = {one.name: Measured() for one in contenders}
            for turn in range(slices):
                first = (index + turn) % len(contenders)  # nobody is always first, or always after the same
                for contender in [*contenders[first:], *contenders[:first]]:
                    round_[contender.name].add(run[contender.name](seconds / slices))
        comparison.rounds.append(round_)
        for name, measured in round_.items():
            comparison.pooled[name].add(measured)
        say(f"round {index + 1} of {rounds}")
    return comparison
