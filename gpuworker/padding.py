"""Requests of different sizes in one run: the size that they are padded to, and how outputs are cut back.

At load, padding was shown to change no answer (evidence/padding.py). Sizes are those of the padded axes, one
for each name, in the configuration's order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..evidence.padding import NONE, PadVerdict, Sizes
from ..transport import dtypes
from ..transport.messages import Item, Pad
from ..transport.tensors import ABSENT, TensorSpec
from .layout import Array, Layout, tail_of
from .memory import MappedArena


class NotCut(Exception):
    """An output does not have the padded size, so it can't be cut back."""


class Pads:
    """How one model's batches are padded: with `whole` to a size of the configuration, else to the longest of
    their requests."""

    def __init__(
        self,
        pads: Mapping[str, Pad],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        verdict: PadVerdict,
        fills: Sequence[Array],
        whole: bool,
    ) -> None:
        self._to = [pad.to for pad in pads.values()]
        self.inputs = verdict.inputs or [[NONE] * len(self._to)] * len(inputs)
        self.outputs = verdict.outputs
        self.output_names = [spec.name for spec in outputs]
        self.fills = fills
        self._whole = whole
        # For each name, the inputs that have it.
        self._having = [
            [(index, axes[number]) for index, axes in enumerate(self.inputs) if axes[number] != NONE]
            for number in range(len(self._to))
        ]
        self._untried = [
            index
            for index, spec in enumerate(inputs)
            if spec.optional and any(map(_is_axis, self.inputs[index]))
        ]
        self.stopped = verdict.inputs is None  # then only rows of one size share a run

    def sizes_of(self, item: Item) -> Sizes | None:
        """None: it is not padded, because its inputs disagree, or because padding was not tried with one of
        them."""
        inputs = item.inputs
        if self.stopped or any(inputs[index].dtype != ABSENT for index in self._untried):
            return None
        sizes: list[int] = []
        for having in self._having:
            found = {inputs[index].shape[axis] for index, axis in having if inputs[index].dtype != ABSENT}
            if len(found) != 1 or 0 in found:
                return None
            sizes += found
        return tuple(sizes)

    def of(self, items: Sequence[Item]) -> Padded | None:
        """How these requests are padded to run together; None: they are of one size and need no padding."""
        owns = [self.sizes_of(item) for item in items]
        known = [own for own in owns if own is not None]
        if len(known) < len(owns):
            return None
        sizes = self.target(known)
        return None if all(own == sizes for own in known) else Padded(self, sizes, known)

    def target(self, owns: Sequence[Sizes]) -> Sizes:
        """The size that a batch of these sizes is padded to."""
        longest = tuple(map(max, zip(*owns, strict=True)))
        if not self._whole:
            return longest
        return tuple(_rounded(to, size) for to, size in zip(self._to, longest, strict=True))


class Padded:
    """One run that is padded to `sizes`; `owns` are the sizes of its requests."""

    def __init__(self, pads: Pads, sizes: Sizes, owns: Sequence[Sizes]) -> None:
        self._pads = pads
        self.sizes = sizes
        self.owns = owns

    def padding(self, counts: Sequence[int]) -> int:
        """Elements of padding along the padded axes, for so many rows of each request."""
        whole = prod(self.sizes)
        return sum((whole - prod(own)) * count for own, count in zip(self.owns, counts, strict=True))

    def has(self, index: int) -> bool:
        """Whether an input has a padded axis."""
        return any(map(_is_axis, self._pads.inputs[index]))

    @property
    def cuts_outputs(self) -> bool:
        return any(self._pads.outputs)

    def shapes(self, item: Item) -> list[list[int]]:
        """The padded shapes of an item's inputs."""
        shapes = []
        for tensor, axes in zip(item.inputs, self._pads.inputs, strict=True):
            shape = list(tensor.shape)
            for axis, size in zip(axes, self.sizes, strict=True):
                if axis != NONE and tensor.dtype != ABSENT:
                    shape[axis] = size
            shapes.append(shape)
        return shapes

    def gather(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        index: int,
        layout: Layout,
        view: memoryview,
        counts: Sequence[int],
        size: int,
    ) -> None:
        """Copy an input of all items together, each padded; repeat the last row up to `size`."""
        rows = _array(layout, view, size)
        rows[...] = self._pads.fills[index]
        axis = layout.axis
        at = 0
        for item, arena, count in zip(items, arenas, counts, strict=True):
            tensor = item.inputs[index]
            data = arena.view[tensor.offset : tensor.offset + tensor.nbytes]
            source: Array = np.frombuffer(data, rows.dtype).reshape(tensor.shape)
            place = _slices(tensor.shape, axis, at, count)
            rows[place] = (
                np.take(source, range(item.start, item.start + count), axis) if item.rows else source
            )
            at += count
        if at < size:
            rows[_along(axis, at, size)] = rows[_along(axis, at - 1, at)]

    def own_bytes(
        self, item: Item, index: int, layout: Layout, view: memoryview, at: int, count: int, size: int
    ) -> bytes:
        """The bytes that `gather` copied from an item: `count` rows from row `at` on, without padding."""
        place = _slices(item.inputs[index].shape, layout.axis, at, count)
        return _array(layout, view, size)[place].tobytes()

    def check(self, index: int, shape: Sequence[int]) -> None:
        """Raises NotCut for an output that does not have the padded sizes where it had them at load."""
        for axis, number in self._pads.outputs[index].items():
            if axis >= len(shape) or shape[axis] != self.sizes[number]:
                name = self._pads.output_names[index]
                raise NotCut(
                    f"output {name!r} came out with shape {list(shape)}, padded to {list(self.sizes)}"
                )

    def cut(
        self, number: int, index: int, layout: Layout, data: Any, at: int, count: int, size: int
    ) -> tuple[Layout, Any, int, int]:
        """The rows of item `number` in an output, `count` of them from row `at` on: (layout, bytes, the first
        of its rows there, rows there)."""
        cuts = self._pads.outputs[index]
        if not cuts:
            return layout, data, at, size
        rows = _array(layout, data, size)
        place = list(_along(layout.axis, at, at + count))
        place += [slice(None)] * (rows.ndim - len(place))
        for axis, name in cuts.items():
            place[axis] = slice(0, self.owns[number][name])
        found = rows[tuple(place)]
        tail = tail_of(found.shape, layout.axis)
        return Layout(layout.dtype, tail, layout.axis), memoryview(found.tobytes()), 0, count


def _array(layout: Layout, data: Any, size: int) -> Array:
    dtype = dtypes.BY_CODE[layout.dtype].numpy
    return np.frombuffer(data[: layout.nbytes(size)], dtype).reshape(layout.shape(size))


def _slices(shape: Sequence[int], axis: int, at: int, count: int) -> tuple[slice, ...]:
    """`count` rows from `at` on; of the other axes, as much as this shape has."""
    return tuple(slice(at, at + count) if index == axis else slice(0, n) for index, n in enumerate(shape))


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))


def _rounded(to: Sequence[int], size: int) -> int:
    at = bisect_left(to, size)
    return to[at] if at < len(to) else size


def _is_axis(axis: int) -> bool:
    return axis != NONE
