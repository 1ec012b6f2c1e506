"""Forms: layouts and buffers of runs whose tensors have the same shapes, except for the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..transport.tensors import ABSENT, TensorSpec
from .layout import Buffer, Layout, tail_of

FORMS_MAX = 16  # shapes whose buffers are kept
BUFFERS_BYTES_MAX = 512 << 20  # of all of them, unless one shape alone takes more


class Form:
    """Layouts and buffers of runs with the same shapes, except for the number of rows."""

    __slots__ = ("buffers", "inputs", "key", "outputs")

    def __init__(self, key: Any, inputs: list[Layout | None], outputs: list[Layout | None]) -> None:
        self.key = key
        self.inputs = inputs  # None: the input is left out
        self.outputs = outputs  # None: its size is not known before the run
        self.buffers = [Buffer() for _ in (*inputs, *outputs)]

    @property
    def nbytes(self) -> int:
        return sum(len(buffer.array) for buffer in self.buffers)


class Forms:
    """The forms of one model; the oldest is dropped when there are too many."""

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self._outputs = outputs
        self._kept: dict[Any, Form] = {}

    def clear(self) -> None:
        self._kept.clear()

    def of(
        self, types: Sequence[int], shapes: Sequence[Sequence[int]], axes: Sequence[int], alone: bool
    ) -> Form:
        """The form of a run whose inputs have these types and shapes. `axes`: the batch axis of each input,
        then of each output; `alone`: the run is one request, whatever its rows are."""
        key = (
            alone,
            tuple(
                dtype and tail_of(shape, axis)
                for dtype, shape, axis in zip(types, shapes, axes, strict=False)
            ),
        )
        form = self._kept.get(key)
        if form is not None:
            return form
        while self._kept and (
            len(self._kept) >= FORMS_MAX
            or sum(kept.nbytes for kept in self._kept.values()) > BUFFERS_BYTES_MAX
        ):
            del self._kept[next(iter(self._kept))]
        inputs = [
            Layout(dtype, tail_of(shape, axis), axis) if dtype != ABSENT else None
            for dtype, shape, axis in zip(types, shapes, axes, strict=False)
        ]
        outputs = [
            _output_layout(spec, axis) for spec, axis in zip(self._outputs, axes[len(types) :], strict=True)
        ]
        form = self._kept[key] = Form(key, inputs, outputs)
        return form

    def view(self, address: int, nbytes: int) -> memoryview | None:
        """The first bytes of the buffer at this address; None: there is none."""
        for form in self._kept.values():
            for buffer in form.buffers:
                if buffer.address == address:
                    return buffer.view[:nbytes]
        return None


def _output_layout(spec: TensorSpec, axis: int) -> Layout | None:
    """None: its size is unknown before the run."""
    if spec.shape is None:
        return None
    tail = [*spec.shape[:axis], *spec.shape[axis + 1 :]] if axis >= 0 else spec.shape
    fixed = [size for size in tail if isinstance(size, int)]
    return Layout(spec.dtype, fixed, axis) if len(fixed) == len(tail) else None
