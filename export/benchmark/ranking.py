"""Ranks candidates by Pareto fronts. Pure.

As NSGA-II does (Deb et al., 2002): front 0 is the Pareto front, front 1 is that of the remaining candidates,
and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

Costs = tuple[float, ...]  # less is better, each of them; NaN: not known


def beats(one: Costs, other: Costs) -> bool:
    """Whether `one` is worse in nothing and better in something."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def fronts(costs: Sequence[Costs]) -> list[int | None]:
    """The front of each candidate; None if one of its costs is unknown."""
    found: list[int | None] = [None] * len(costs)
    # Sorted, nothing is beaten by what comes after it.
    left = sorted((cost, index) for index, cost in enumerate(costs) if all(value == value for value in cost))
    front = 0
    while left:
        kept: list[Costs] = []
        later = []
        for cost, index in left:
            if any(beats(other, cost) for other in kept):
                later.append((cost, index))
            else:
                kept.append(cost)
                found[index] = front
        left = later
        front += 1
    return found
