"""Checks some batches at run time: each request is run by itself as well, and the answers compared.

Inputs that are invented at load may miss a threshold that real inputs reach. So the first batches of each
kind are checked, every batch of more rows than were checked before, and later ones as long as that takes
little of the time, or now and then. A request that is larger than a run is split: the first ones of each kind
are also run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..evidence.judge import difference, tolerance_of
from ..transport.tensors import TensorSpec
from .answers import NotRows
from .group import Group
from .layout import Array, Buffer, Layout
from .values import comparable

FIRST = 2  # batches of several requests, of each kind
KINDS_MAX = 64  # the number of kinds has no bound of its own
NEW = 4096  # so many batches of a model are checked more often
SHARE = 100  # as long as checks take less than this part of the time since its first one
EVERY = 1024  # afterwards one batch in so many
SPLIT_RUNS = 4  # of a split request, the rows of so many runs
SPLIT_BYTES_MAX = 64 << 20  # of their inputs, to be copied


class SpotChecks:
    """Counts the batches of one model by kind: their shapes and the bytes of their shared inputs. `spent_ns`:
    what checks have taken, kept by their caller."""

    def __init__(self) -> None:
        self._seen: dict[Any, int] = {}
        self._batches = 0
        self._rows_checked = 0  # of the largest batch
        self._began_ns = 0
        self.spent_ns = 0

    def wants(self, kind: Any, rows: int, now_ns: int) -> bool:
        """Whether this batch is to be checked."""
        self._batches += 1
        is_first = self._is_first(kind)
        if not is_first and rows <= self._rows_checked and not self._is_due(now_ns):
            return False
        self._began_ns = self._began_ns or now_ns
        self._rows_checked = max(self._rows_checked, rows)
        return True

    def _is_due(self, now_ns: int) -> bool:
        if self._batches <= NEW:
            return self.spent_ns * SHARE < now_ns - self._began_ns
        return self._batches % EVERY == 0

    def wants_whole(self, kind: Any) -> bool:
        """Whether a request that is split is to be run whole as well."""
        return self._is_first(("split", kind))

    def _is_first(self, kind: Any) -> bool:
        seen = self._seen.get(kind, 0)
        if seen >= FIRST or (not seen and len(self._seen) >= KINDS_MAX):
            return False
        self._seen[kind] = seen + 1
        return True


def rows_to_check(rows: int, rows_max: int, row_nbytes: int) -> int:
    """How many rows of a request that is split are run whole; 0: none, because more than one run's do not
    fit."""
    count = min(rows, SPLIT_RUNS * rows_max, SPLIT_BYTES_MAX // max(1, row_nbytes))
    return count if count > rows_max else 0


def check_split(
    arrays: Sequence[Array],
    axes: Sequence[int],
    specs: Sequence[TensorSpec],
    rows_max: int,
    run: Callable[[Sequence[Array]], Sequence[Array]],
) -> None:
    """Run a request whole, and in parts of `rows_max` rows. `axes`: of each input, then of each output;
    `specs` are the outputs. Raises NotRows if the parts' answers are not the whole one's."""
    takes, gives = axes[: len(arrays)], axes[len(arrays) :]
    total = next(array.shape[axis] for array, axis in zip(arrays, takes, strict=True) if axis >= 0)
    whole = run(arrays)
    for axis, answer, spec in zip(gives, whole, specs, strict=True):
        if answer.ndim <= axis or answer.shape[axis] != total:
            raise NotRows(f"output {spec.name!r} came out with shape {list(answer.shape)} for {total} rows")
    for start in range(0, total, rows_max):
        rows = range(start, min(start + rows_max, total))
        part = [
            array if axis < 0 else np.ascontiguousarray(array.take(rows, axis))
            for array, axis in zip(arrays, takes, strict=True)
        ]
        for spec, axis, mine, answer in zip(specs, gives, run(part), whole, strict=True):
            theirs = answer.take(rows, axis)
            off = difference(mine, theirs, answer) if mine.shape == theirs.shape else 1.0
            if not off <= tolerance_of(spec):
                raise NotRows(
                    f"rows of a request of {total} rows, run whole and {len(rows)} of them by themselves, "
                    f"differ by {off:.2g} of the largest value of output {spec.name!r}"
                )


def check_pieces(
    group: Group,
    specs: Sequence[TensorSpec],
    addresses: Sequence[int],
    together: Sequence[Any],
    run: Callable[[int, Sequence[int]], Sequence[Any]],
) -> None:
    """Run the rows of each request by themselves, on the gathered bytes. `specs` are the outputs;
    `run(rows, places)` runs the inputs at these places. Raises NotRows if a request's answer differs from
    its rows in the batch."""
    form, total = group.form, group.rows
    axes = group.axes[len(form.inputs) :]
    whole = [comparable(value, spec) for value, spec in zip(together, specs, strict=True)]
    for axis, answer, spec in zip(axes, whole, specs, strict=True):
        if answer.ndim <= axis or answer.shape[axis] != total:
            raise NotRows(f"output {spec.name!r} came out with shape {list(answer.shape)} for {total} rows")
    at = 0
    pieces = [Buffer() for _ in form.inputs]
    requests = group.pieces()
    for count in requests:
        places = [
            _piece(layout, buffer, piece, address, at, count, total)
            for layout, buffer, piece, address in zip(
                form.inputs, form.buffers, pieces, addresses, strict=False
            )
        ]
        for spec, axis, value, answer in zip(specs, axes, run(count, places), whole, strict=True):
            mine = comparable(value, spec)
            theirs = answer.take(range(at, at + count), axis)
            off = difference(mine, theirs, answer) if mine.shape == theirs.shape else 1.0
            if not off <= tolerance_of(spec):
                raise NotRows(
                    f"rows of {len(requests)} requests, run together and by themselves, differ by "
                    f"{off:.2g} of the largest value of output {spec.name!r}"
                )
        at += count


def _piece(
    layout: Layout | None, buffer: Buffer, piece: Buffer, address: int, at: int, count: int, total: int
) -> int:
    """The address of rows `at` to `at + count` of a gathered input; of a copy if they are not contiguous."""
    if layout is None or layout.axis < 0:
        return address
    if layout.outer == 1:
        return address + at * layout.inner
    piece.hold(layout.nbytes(count), 0)
    blocks = layout.blocks(buffer.view[: layout.nbytes(total)], total)
    layout.blocks(piece.view[: layout.nbytes(count)], count)[:] = blocks[:, at : at + count]
    return piece.address
