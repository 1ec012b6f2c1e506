"""Ranks candidates by Pareto fronts: those that none beats in everything. Pure.

Sorted as NSGA-II does (Deb et al., 2002): front 0 is the Pareto front; without it, the next one is front 1;
and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

Costs = tuple[float, ...]  # less is better, each of them; NaN: not known


def beats(one: Costs, other: Costs) -> bool:
    """Whether `one` is nowhere worse and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def fronts(costs: Sequence[Costs]) -> list[int | None]:
    """The front of each; None where some cost is not known."""
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
