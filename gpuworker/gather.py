"""The inputs of a run: bound where they lie in the clients' arenas, or copied together.

Big tensors are bound in place; neighbours that lie side by side are bound as one. Small ones are copied into
buffers that stay bound (measured: a pre-bound run of a tiny model 2.5 us, binding anew 17 us, copying 12 kB
0.2 us).
"""

from __future__ import annotations

from typing import Any

from ..transport.digests import digest
from .answers import IN_PLACE_MIN_BYTES, Result
from .group import Group
from .layout import Buffer, Layout


def place_inputs(group: Group, result: Result, in_place: bool, private: bool, max_batch: int) -> list[int]:
    """The address of each input of the run; 0 for one that is left out. `private`: read no memory that a
    client could change meanwhile."""
    form, size, padded = group.form, group.size, group.padded
    # Inputs with a digest are copied first: a client could change them between digest and run.
    compared = any(item.digest for item in group.items) if group.columns is None else False
    private = private or compared
    addresses = []
    for index, layout in enumerate(form.inputs):
        if layout is None:
            addresses.append(0)
            continue
        nbytes = layout.nbytes(group.rows)
        is_padded = padded is not None and padded.has(index)
        if (
            nbytes >= IN_PLACE_MIN_BYTES
            and not is_padded
            and in_place
            and not private
            and (size == group.rows or layout.axis < 0)
            and group.side_by_side(index, layout)
        ):
            item = group.items[0]
            start = item.start * layout.inner if layout.axis >= 0 else 0
            addresses.append(group.arenas[0].address + item.inputs[index].offset + start)
            continue
        buffer = form.buffers[index]
        buffer.hold(layout.nbytes(size), layout.nbytes(max_batch))
        if is_padded:
            assert padded is not None
            padded.gather(group.items, group.arenas, index, layout, buffer.view, group.counts, size)
        else:
            _gather(group, index, layout, buffer)
        result.copied_bytes += nbytes
        addresses.append(buffer.address)
    if compared:
        _compare(group, result)
    return addresses


def _gather(group: Group, index: int, layout: Layout, buffer: Buffer) -> None:
    """Copy an input of all items together. Up to `size` the last row is repeated: a model may fail on zeros,
    or on the bytes of an earlier batch."""
    view = buffer.view
    items, size, rows = group.items, group.size, group.rows
    if layout.axis < 0:
        if len(items) > 1:
            view[: layout.row_nbytes] = group.common[group.shared.index(index)]
            return
        offset = items[0].inputs[index].offset
        view[: layout.row_nbytes] = group.arenas[0].view[offset : offset + layout.row_nbytes]
        return
    if group.columns is not None:
        count = group.counts[0]
        blocks = layout.blocks(view[: layout.nbytes(size)], size)
        taken = group.columns.read(index, layout, count).transpose(1, 0, 2)
        blocks[:, :rows].reshape(taken.shape)[...] = taken
        if size > rows:
            blocks[:, rows:] = blocks[:, rows - 1 : rows]
        return
    at = 0
    if layout.outer == 1:
        inner = layout.inner
        for item, arena, count in zip(items, group.arenas, group.counts, strict=True):
            offset = item.inputs[index].offset + item.start * inner
            nbytes = inner * count
            view[at : at + nbytes] = arena.view[offset : offset + nbytes]
            at += nbytes
        for end in range(at, size * inner, inner or 1):
            view[end : end + inner] = view[at - inner : at]
        return
    blocks = layout.blocks(view[: layout.nbytes(size)], size)
    for item, arena, count in zip(items, group.arenas, group.counts, strict=True):
        tensor = item.inputs[index]
        have = tensor.shape[layout.axis]
        source = layout.blocks(arena.view[tensor.offset : tensor.offset + layout.nbytes(have)], have)
        blocks[:, at : at + count] = source[:, item.start : item.start + count]
        at += count
    blocks[:, at:] = blocks[:, at - 1 : at]


def _compare(group: Group, result: Result) -> None:
    """Note the items whose gathered inputs do not match their digest."""
    form, size, padded = group.form, group.size, group.padded
    at = 0
    for number, (item, count) in enumerate(zip(group.items, group.counts, strict=True)):
        if item.digest:
            parts: list[Any] = []
            for index, (layout, buffer) in enumerate(zip(form.inputs, form.buffers, strict=False)):
                if layout is None:
                    continue
                if padded is not None and padded.has(index):
                    parts.append(padded.own_bytes(item, index, layout, buffer.view, at, count, size))
                elif layout.axis < 0:
                    parts.append(buffer.view[: layout.row_nbytes])
                elif layout.outer == 1:
                    parts.append(buffer.view[at * layout.inner : (at + count) * layout.inner])
                else:
                    blocks = layout.blocks(buffer.view[: layout.nbytes(size)], size)
                    parts.append(blocks[:, at : at + count].tobytes())
            if digest(parts) != item.digest:
                result.changed.append(group.first + number)
        at += count
