"""Requests of different sizes in one lane: which sizes share it. neighbours.py says which share a batch.

A lane has the sizes between two that the configuration names.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..transport.errors import InvalidRequest
from ..transport.messages import Pad, Padding
from ..transport.tensors import ABSENT, Tensor, TensorSpec
from .lanes import Lane
from .requests import Part

NONE = -1  # in place of an axis

Sizes = tuple[int, ...]


class Ragged:
    """The padded axes of one revision of a model. Raises InvalidRequest for impossible findings."""

    def __init__(
        self, pads: Mapping[str, Pad], padding: Padding, inputs: Sequence[TensorSpec], elements_max: int
    ) -> None:
        self.names = list(pads)
        self.elements_max = elements_max  # of a batch; 0: rows are the only bound
        self._to = [pad.to for pad in pads.values()]
        if len(padding.axes) != len(inputs) or any(len(axes) != len(pads) for axes in padding.axes):
            raise InvalidRequest("padded axes that are not those of its inputs")
        for spec, axes in zip(inputs, padding.axes, strict=True):
            if any(axis != NONE and axis >= len(spec.shape or ()) for axis in axes):
                raise InvalidRequest(f"{spec} has no such axis to pad")
        self.axes = padding.axes
        self._having = [
            [(index, axes[number]) for index, axes in enumerate(self.axes) if axes[number] != NONE]
            for number in range(len(self._to))
        ]
        if not all(self._having):
            raise InvalidRequest("a padded axis that no input has")
        self._untried = [
            index
            for index, spec in enumerate(inputs)
            if spec.optional and any(axis != NONE for axis in self.axes[index])
        ]

    def sizes(self, inputs: Sequence[Tensor]) -> Sizes | None:
        """A request's sizes; () where it is not padded, having an input that was not there when padding was
        tried; None where its inputs disagree, or are empty: it runs alone."""
        if any(inputs[index].dtype != ABSENT for index in self._untried):
            return ()
        sizes: list[int] = []
        for having in self._having:
            size = NONE
            for index, axis in having:
                if inputs[index].dtype != ABSENT:
                    shape = inputs[index].shape
                    have = shape[axis] if axis < len(shape) else 0
                    if have != size != NONE or not have:
                        return None
                    size = have
            if size == NONE:
                return ()
            sizes.append(size)
        return tuple(sizes)

    def bucket(self, sizes: Sizes) -> Sizes:
        """The sizes of the lane. A size beyond the largest has a lane of its own."""
        bucket = []
        for to, size in zip(self._to, sizes, strict=True):
            at = bisect_left(to, size)
            bucket.append(to[at] if at < len(to) else size)
        return tuple(bucket)

    def shape(self, index: int, tensor: Tensor, sizes: Sizes) -> list[int]:
        """The shape of an input, padded to these sizes."""
        shape = list(tensor.shape)
        for axis, size in zip(self.axes[index], sizes, strict=True):
            if axis != NONE and tensor.dtype != ABSENT:
                shape[axis] = size
        return shape


class RaggedLane(Lane):
    """Parts whose requests are no longer than `bucket`."""

    __slots__ = ("bucket", "ragged", "size")

    def __init__(
        self, model_name: str, waiting_rows: list[int], signature: Any, ragged: Ragged, bucket: Sizes
    ) -> None:
        super().__init__(model_name, waiting_rows, signature)
        self.ragged = ragged
        self.bucket = bucket
        self.size = prod(bucket)

    is_ragged = True

    def sizes_of(self, inputs: Sequence[Tensor]) -> Sizes:
        return self.ragged.sizes(inputs) or self.bucket

    def elements(self, parts: Sequence[Part]) -> int:
        return sum(prod(part.request.sizes) * (part.stop - part.start) for part in parts)

    def padded_elements(self, parts: Sequence[Part], whole: bool) -> int:
        """The elements of these rows, with padding."""
        rows = sum(part.stop - part.start for part in parts)
        sizes = zip(*(part.request.sizes for part in parts), strict=True)
        return rows * (self.size if whole else prod(map(max, sizes)))
