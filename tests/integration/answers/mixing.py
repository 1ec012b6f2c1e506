"""Models whose axis 0 is free and no batch: points, nodes, tokens, samples, time. What one row of the
answer says hangs on the others, on its place, or on how many there are.

Each draws a request of so many rows as its users would send it.
"""

from __future__ import annotations

from . import mixing_by_others, mixing_by_place, mixing_hidden

KINDS = mixing_by_place.KINDS | mixing_by_others.KINDS | mixing_hidden.KINDS

# Inputs of one request have rows of different things, as many as they like, or a switch: two requests' cannot
# be put together.
APART = (
    "a graph's messages along other edges",
    "images by other texts, and their embeddings",
    "mixed when it is told to",
    "mixed when it is told not to keep apart",
    "summed along the axis that the request names",
    "mixed above a rate that nobody would draw",
    "five queries look at nine keys",
    "in groups of four",  # whole groups could be put together, and no row
)
