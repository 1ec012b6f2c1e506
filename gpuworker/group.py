"""The requests of one run and their layout, as gathering, spot checks and answers need them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..transport.messages import Item
from .forms import Form
from .handles import Columns
from .layout import Layout, is_neighbour
from .memory import MappedArena
from .padding import Padded


class Group:
    """Requests that are run together, or one that is run alone.

    `first` is the position of the first request in the batch. `counts` are the rows to run of each request,
    `wholes` the rows of the whole requests, and `size` the rows of the run, including a bucket's padding.
    `columns` are the offsets, if the requests are of one shape. `common` are the bytes of the shared inputs,
    whose numbers are `shared`.
    """

    __slots__ = (
        "alone", "arenas", "axes", "columns", "common", "counts", "first", "form", "items", "padded", "rows",
        "shared", "size", "wholes",
    )  # fmt: skip

    def __init__(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        first: int,
        counts: Sequence[int],
        wholes: Sequence[int],
        size: int,
        form: Form,
        axes: Sequence[int],
        alone: bool,
    ) -> None:
        self.items = items
        self.arenas = arenas
        self.first = first
        self.counts = counts
        self.wholes = wholes
        self.rows = sum(counts)
        self.size = size
        self.form = form
        self.axes = axes  # of inputs, then outputs
        self.alone = alone
        self.padded: Padded | None = None
        self.columns: Columns | None = None
        self.common: Sequence[bytes] = ()
        self.shared: Sequence[int] = ()

    def pieces(self) -> list[int]:
        """The rows of each request of a caller's: of packed items, one each."""
        pieces = []
        for item, count in zip(self.items, self.counts, strict=True):
            pieces += [1] * count if item.packed else [count]
        return pieces

    def side_by_side(self, index: int, layout: Layout) -> bool:
        """Whether an input of all requests is contiguous in memory, in the order of the run."""
        items = self.items
        if len(items) == 1:
            item = items[0]
            return layout.axis < 0 or layout.outer == 1 or not item.rows
        if layout.axis < 0 or layout.outer > 1:
            return False  # a shared input is copied: its client could change it during the run
        if self.columns is not None:
            return self.columns.inputs_touch(index, layout.nbytes(self.counts[0]))
        return all(map(follows, items, items[1:], [index] * len(items)))

    def slots_touch(self, index: int, layout: Layout) -> bool:
        """Whether an output of all requests can be written straight into their slots. A slot's size is its
        client's claim, so it is checked."""
        items = self.items
        if self.columns is not None:
            slots, nbytes = items[0].outputs, layout.nbytes(self.counts[0])
            return (
                layout.outer == 1
                and layout.axis >= 0
                and len(slots) > index
                and slots[index].nbytes == nbytes
                and self.columns.outputs_touch(index, nbytes)
            )
        for item, whole in zip(items, self.wholes, strict=True):
            if len(item.outputs) <= index or item.outputs[index].nbytes != layout.nbytes(whole):
                return False
        if len(items) == 1:
            item = items[0]
            return not item.rows or (layout.outer == 1 and layout.axis >= 0)
        if layout.outer > 1 or layout.axis < 0:
            return False
        for left, right in pairwise(items):
            slot = left.outputs[index]
            if left.arena != right.arena or left.rows or right.rows:
                return False
            if slot.offset + slot.nbytes != right.outputs[index].offset:
                return False
        return True


def follows(left: Item, right: Item, index: int = -1) -> bool:
    """Whether an input of `right` (by default every input) begins where that of `left` ends."""
    if left.arena != right.arena or left.rows or right.rows:
        return False
    if index >= 0:
        return is_neighbour(left.inputs[index], right.inputs[index])
    return all(map(is_neighbour, left.inputs, right.inputs))
