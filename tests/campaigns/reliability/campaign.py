"""What a campaign is: a demand (counts and durations), a quick version of it, and what runs either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .verdict import Figure

Say = Callable[[str], None]


def demand(default: Any, meaning: str) -> Any:
    """A field of a campaign's demand: its full value, and what the command line says about it."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class Campaign:
    """`full` and `quick` are of one frozen dataclass, made with `demand`; `run` takes either.

    `run` returns the figures in the order in which they are shown. What it raises ends it: a campaign
    that could not be run has kept no promise.
    """

    name: str
    promise: str  # one line, as the command line shows it
    full: Any
    quick: Any
    run: Callable[[Any, Say], list[Figure]]
