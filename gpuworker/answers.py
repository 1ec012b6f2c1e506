"""The outputs of a run: written straight into the clients' slots, or copied there, or sent back in frames.

A request gets a frame if it has no slots, or slots of another size than its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..transport.lent import LENT_MIN_BYTES, LentMemory
from ..transport.messages import INLINE_BYTES_MAX, ItemOutputs
from ..transport.tensors import RANK_MAX, Tensor, TensorSpec
from ..transport.wire import ALONG_MAX
from .group import Group
from .layout import Layout, tail_of
from .memory import MappedArena
from .values import bytes_of

ALIGN = 64  # of tensors in a frame
IN_PLACE_MIN_BYTES = 128 * 1024  # above it, a new binding is cheaper than the copy that it saves

Output = tuple[Layout, Any]  # and the bytes, all rows of the run
Source = tuple[Layout, Any, int, int]  # and the bytes; the first row there, and how many rows there are


class NotRows(Exception):
    """An output of a batch does not have the batch's rows: it can't be divided among the requests."""


class Result:
    """The times of a batch, and the outputs that did not go into slots."""

    __slots__ = (
        "_lent", "changed", "compute_ns", "copied_bytes", "frames", "gather_ns", "inline_outputs", "padding",
        "scatter_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.gather_ns = 0
        self.compute_ns = 0
        self.scatter_ns = 0
        self.copied_bytes = 0
        self.padding = 0  # elements of padding along padded axes
        self.inline_outputs: list[ItemOutputs] = []
        self.changed: list[int] = []  # items whose inputs do not match their digest
        self.frames: list[Any] = []
        self._lent = 0

    def may_lend(self, arena: MappedArena) -> bool:
        """Whether one more frame of this batch may be lent; it is counted."""
        self._lent += arena.lends
        return arena.lends and self._lent <= ALONG_MAX


def place_outputs(
    group: Group, inputs_count: int, written: Sequence[bool] | None, max_batch: int
) -> list[int]:
    """The address that each output of the run is bound to; 0: the runtime chooses. `written`: the outputs
    that a run writes into bound memory."""
    form, size = group.form, group.size
    places = []
    for index, layout in enumerate(form.outputs):
        if layout is None or written is None or not written[index]:
            places.append(0)
            continue
        nbytes = layout.nbytes(size)
        is_big = nbytes >= IN_PLACE_MIN_BYTES
        if is_big and size == group.rows and group.slots_touch(index, layout):
            item = group.items[0]
            at = item.outputs[index].offset + item.start * layout.inner * (layout.axis >= 0)
            places.append(group.arenas[0].address + at)
            continue
        if is_big and not all(item.outputs for item in group.items[: 1 if group.columns else None]):
            places.append(0)  # it goes into a frame: one copy less
            continue
        buffer = form.buffers[inputs_count + index]
        buffer.hold(nbytes, layout.nbytes(max_batch))
        places.append(buffer.address)
    return places


def deliver(
    group: Group, specs: Sequence[TensorSpec], places: Sequence[int], values: Sequence[Any], result: Result
) -> None:
    """Copy outputs into slots; into a frame for an item without slots of these sizes."""
    form, padded = group.form, group.padded
    outputs = _outputs(group, specs, places, values)
    is_cut = padded is not None and padded.cuts_outputs
    as_declared = not is_cut and all(
        declared is None or output is None or output[0].tail == declared.tail
        for declared, output in zip(form.outputs, outputs, strict=True)
    )
    # A client may predict the size of an output whose shape the model does not declare.
    layouts = [
        output[0] if declared is None and output is not None else declared
        for declared, output in zip(form.outputs, outputs, strict=True)
    ]
    if group.columns is not None and not is_cut and None not in outputs:
        whole = [output for output in outputs if output is not None]
        if as_declared and _fits_slots(group, layouts, 0):
            for index, (layout, data) in enumerate(whole):
                group.columns.write(index, _by_request(group, layout, data))
                result.copied_bytes += layout.nbytes(group.rows)
            return
        if sum(layout.nbytes(group.counts[0]) for layout, _ in whole) < LENT_MIN_BYTES:
            _into_frames(group, whole, result)
            return
    at = 0
    for number, count in enumerate(group.counts):
        if as_declared and _fits_slots(group, layouts, number):
            for index, output in enumerate(outputs):
                if output is not None:
                    result.copied_bytes += _into_slot(group, number, index, output, at)
        else:
            sources: list[Source | None] = []
            for index, output in enumerate(outputs):
                if output is None:
                    sources.append(None)
                elif is_cut and padded is not None:
                    sources.append(padded.cut(number, index, *output, at, count, group.size))
                else:
                    sources.append((*output, at, group.size))
            _into_frame(group, number, sources, result)
        at += count


def _outputs(
    group: Group, specs: Sequence[TensorSpec], places: Sequence[int], values: Sequence[Any]
) -> list[Output | None]:
    """The outputs of the run; None for one that was written straight into the slots. Raises NotRows."""
    form, inputs_count = group.form, len(group.form.inputs)
    outputs: list[Output | None] = []
    for index, spec in enumerate(specs):
        value, layout, axis = values[index], form.outputs[index], group.axes[inputs_count + index]
        if value is None:
            assert layout is not None
            buffer = form.buffers[inputs_count + index]
            outputs.append((layout, buffer.view) if places[index] == buffer.address else None)
            continue
        shape, flat = bytes_of(value, spec)
        if len(shape) > RANK_MAX:
            raise ValueError(f"output {spec.name!r} has {len(shape)} axes; arrays have {RANK_MAX} at most")
        if axis >= 0 and (axis >= len(shape) or shape[axis] != group.size):
            raise NotRows(f"output {spec.name!r} came out with shape {shape} for {group.size} rows")
        if group.padded is not None:
            group.padded.check(index, shape)
        outputs.append((Layout(spec.dtype, tail_of(shape, axis), axis), flat.data))
    return outputs


def _fits_slots(group: Group, layouts: Sequence[Layout | None], number: int) -> bool:
    """Whether the item has a slot of the right size for each output. A request that is run in parts needs
    declared sizes."""
    item = group.items[number]
    slots = item.outputs
    if len(slots) != len(layouts) or (item.rows and None in group.form.outputs):
        return False
    rows = group.wholes[number]
    for slot, layout in zip(slots, layouts, strict=True):
        if layout is None or slot.nbytes != layout.nbytes(rows):
            return False
        if slot.shape is not None and slot.shape != layout.shape(rows):
            return False
    return True


def _by_request(group: Group, layout: Layout, data: Any) -> Any:
    """An output as [requests, outer, bytes]: each request has as many rows as the others."""
    blocks = layout.blocks(data[: layout.nbytes(group.size)], group.size)[:, : group.rows]
    requests = len(group.items)
    return blocks.reshape(layout.outer, requests, layout.inner * group.counts[0]).transpose(1, 0, 2)


def _into_frames(group: Group, outputs: Sequence[Output], result: Result) -> None:
    """`_into_frame` for all requests of one shape at once. Their frames are slices of one buffer."""
    count = group.counts[0]
    sizes = [layout.nbytes(count) for layout, _ in outputs]
    offsets, total = offsets_of(sizes)
    check_answer(total, group.arenas[0])
    requests = len(group.items)
    room = np.zeros((requests, total), np.uint8)
    shapes = []
    for offset, nbytes, (layout, data) in zip(offsets, sizes, outputs, strict=True):
        rows = _by_request(group, layout, data)
        room[:, offset : offset + nbytes].reshape(rows.shape)[...] = rows
        shapes.append((layout.dtype, layout.shape(count), offset))
    view = room.reshape(-1).data
    for number in range(requests):
        result.frames.append(view[number * total : (number + 1) * total])
        frame = len(result.frames)
        tensors = [Tensor(dtype, shape, offset, frame) for dtype, shape, offset in shapes]
        result.inline_outputs.append(ItemOutputs(group.first + number, tensors))
    result.copied_bytes += requests * sum(sizes)


def _into_slot(group: Group, number: int, index: int, output: Output, at: int) -> int:
    """Copy a request's rows, from row `at` on, into its slot. Returns the bytes copied."""
    layout, data = output
    item, arena, count = group.items[number], group.arenas[number], group.counts[number]
    slot = item.outputs[index]
    inner = layout.inner
    nbytes = inner * count * layout.outer if layout.axis >= 0 else inner
    if layout.outer == 1:
        start, offset = (
            (at * inner, slot.offset + item.start * inner) if layout.axis >= 0 else (0, slot.offset)
        )
        arena.view[offset : offset + nbytes] = data[start : start + nbytes]
        return nbytes
    have = slot.nbytes // max(1, layout.row_nbytes)
    blocks = layout.blocks(arena.view[slot.offset : slot.offset + slot.nbytes], have)
    source = layout.blocks(data[: layout.nbytes(group.size)], group.size)
    blocks[:, item.start : item.start + count] = source[:, at : at + count]
    return nbytes


def _into_frame(group: Group, number: int, outputs: Sequence[Source | None], result: Result) -> None:
    """Copy a request's rows into one frame, one output after the other."""
    item, arena, count = group.items[number], group.arenas[number], group.counts[number]
    sources: list[Source] = []
    for index, output in enumerate(outputs):
        if output is not None:
            sources.append(output)
            continue
        slot, written = item.outputs[index], group.form.outputs[index]  # it was written in place
        assert written is not None
        have = slot.nbytes // max(1, written.row_nbytes)
        sources.append((written, arena.view[slot.offset : slot.offset + slot.nbytes], item.start, have))
    sizes = [layout.nbytes(count) for layout, _, _, _ in sources]
    offsets, total = offsets_of(sizes)
    check_answer(total, arena)
    frame: Any = None
    if total >= LENT_MIN_BYTES and result.may_lend(arena):
        try:
            lent = LentMemory(total)
            for offset, rows in zip(offsets, _rows(sources, sizes, count), strict=True):
                lent.write(offset, rows)
            frame = lent.seal()
        except OSError:
            pass  # no descriptor, or no such memory: it can be sent
    if frame is None:
        frame = bytearray(total)
        for offset, nbytes, rows in zip(offsets, sizes, _rows(sources, sizes, count), strict=True):
            frame[offset : offset + nbytes] = rows
    result.frames.append(frame)
    tensors = [
        Tensor(layout.dtype, layout.shape(count), offset, len(result.frames))
        for offset, (layout, _, _, _) in zip(offsets, sources, strict=True)
    ]
    result.copied_bytes += sum(sizes)
    result.inline_outputs.append(ItemOutputs(group.first + number, tensors))


def _rows(sources: Sequence[Source], sizes: Sequence[int], count: int) -> Iterator[Any]:
    """The bytes of a request's rows in each output."""
    for nbytes, (layout, data, row, have) in zip(sizes, sources, strict=True):
        if layout.outer == 1:
            start = row * layout.inner if layout.axis >= 0 else 0
            yield data[start : start + nbytes]
        elif nbytes:
            yield layout.blocks(data[: layout.nbytes(have)], have)[:, row : row + count].tobytes()
        else:
            yield b""


def check_answer(nbytes: int, arena: MappedArena) -> None:
    """Raises ValueError for outputs that are larger than the client's arena."""
    allowed = max(INLINE_BYTES_MAX, arena.nbytes)
    if nbytes > allowed:
        raise ValueError(
            f"its outputs have {nbytes:,} bytes, and the client's memory {allowed:,}: ask for less, or "
            "give the client more arena_bytes"
        )


def offsets_of(sizes: Sequence[int]) -> tuple[list[int], int]:
    """The offsets of tensors of these sizes in one frame, and the frame's size."""
    offsets = []
    stop = 0
    for nbytes in sizes:
        offsets.append(-(-stop // ALIGN) * ALIGN)
        stop = offsets[-1] + nbytes
    return offsets, stop
