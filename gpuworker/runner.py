"""Turns a batch into runs of a session.

A batch is one run, or several: one for each value of the shared inputs, one for each size if requests can't
be padded, one for each request if rows can't share a run. gather.py places the inputs of a run, answers.py
its outputs.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from ..transport import dtypes
from ..transport.messages import Item, LentBatch
from ..transport.tensors import TensorSpec
from .answers import NotRows, Result, deliver, place_outputs
from .bindings import BINDINGS_MAX, Bindings
from .device import DeviceLost
from .forms import Form, Forms
from .gather import place_inputs
from .group import Group, follows
from .handles import Columns, ItemRefused, check, columns_of, decode
from .layout import Array, Layout, tail_of
from .memory import MappedArena, Memory
from .padding import NotCut, Padded, Pads
from .sessions import Sessions
from .spotchecks import SpotChecks, check_pieces, check_split, rows_to_check
from .texts import run_texts
from .values import comparable, quiet, value_of
from .written import written_outputs

APART_MIN_BYTES = 1 << 20  # an item above it is run by itself rather than copied next to another
KNOWN_BYTES_MAX = 256  # of one item's handles, to be remembered
TRIED_NS_MAX = 100_000_000  # a run that takes longer is not repeated to save a copy of its outputs

log = logging.getLogger("batchyard.gpuworker")


class Runner:
    """Runs batches on a model's sessions.

    `batch_axes`: the axis that counts rows of each input, then of each output, -1 for an input that all
    rows share; None: every request runs alone. `in_place`: a run may read and write the arenas' own
    memory, and there is one session. `buckets`: the only batch sizes to run, rising; empty: any size.
    `apart`: big items that are not contiguous are run one by one instead of being copied together.
    `written`: the outputs that a run writes into bound memory; None: not known yet. `pads`: how requests of
    different sizes share a run; None: a batch has one size. `spot_checks`: the batches whose requests are
    run by themselves as well.
    """

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch_axes: Sequence[int] | None,
        max_batch: int,
        in_place: bool,
        buckets: Sequence[int] = (),
        apart: bool = True,
        written: Sequence[bool] | None = None,
        pads: Pads | None = None,
        spot_checks: SpotChecks | None = None,
    ) -> None:
        self.name = name
        self._sessions = sessions
        self._host: Any = sessions.get(1) if in_place else None  # an attribute, because a tiny run takes 3 us
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch = max_batch
        self.alone_reason = ""  # why requests run alone, once a run has shown that rows depend on each other
        self._in_place = in_place
        self._buckets = buckets
        self._apart = apart and in_place
        self._written = written
        self._pads = pads
        # With buckets, the pieces of a batch would be of other sizes than the provider runs.
        self._spots = spot_checks if in_place and not buckets else None
        self._none = (-1,) * (len(inputs) + len(outputs))
        self._declared = batch_axes
        self._axes = batch_axes  # None once a run has shown that rows can't share one
        self._counted = next((i for i, axis in enumerate(batch_axes or ()) if axis >= 0), 0)
        self._shared = [i for i in range(len(inputs)) if batch_axes is not None and batch_axes[i] < 0]
        self._by_value = any(spec.dtype == dtypes.STRING for spec in (*inputs, *outputs))
        self._bindings = Bindings(sessions, self._host, inputs, outputs)
        self._known: dict[bytes, Any] = {}  # handles of one item -> its binding; None: seen once
        self._forms = Forms(outputs)

    # ---- a batch ------------------------------------------------------------------------------

    def forget_bindings(self) -> None:
        """Drop every binding: an arena is about to be unmapped."""
        self._bindings.clear()
        self._known.clear()

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """Run a batch. Raises ItemRefused for an item whose handles are wrong; any other error is the model's
        failure.

        A client that sends one request after another reuses its slots, so the same handles come again. They
        have been checked by then, and stay bound, however small they are.
        """
        handles = bytes(batch.items)
        binding = self._known.get(handles)
        if binding is not None:
            result = Result()
            started_ns = perf_counter_ns()
            try:
                self._host.run_with_iobinding(binding)
            except Exception:  # perhaps another shape came out; run it as any other batch
                self._known.clear()
            else:
                result.compute_ns = perf_counter_ns() - started_ns
                return result
        items = decode(handles)
        columns = columns_of(items, memory, len(self.inputs)) if len(items) > 1 else None
        if columns is not None:
            arenas = [columns.arena] * len(items)
        else:
            arenas = [self._check(index, item, memory) for index, item in enumerate(items)]
        result = Result()
        alone = batch.rows == 0 or self._axes is None
        if alone:
            for index, item in enumerate(items):
                self._run_alone(item, arenas[index], index, result)
        else:
            self._run_rows(items, arenas, 0, result, columns)
        if len(items) == 1 and len(handles) < KNOWN_BYTES_MAX and not result.inline_outputs:
            self._remember(handles, items[0], arenas[0], alone)
        return result

    def _remember(self, handles: bytes, item: Item, arena: MappedArena, alone: bool) -> None:
        """Bind handles in place when they come for the second time."""
        if not self._in_place or not item.outputs or item.digest or item.rows or self._written is None:
            return
        if item.packed:
            return  # its rows are checked now and then
        known = self._known
        if len(known) >= BINDINGS_MAX:
            del known[next(iter(known))]
        if handles not in known:
            known[handles] = None
            return
        rows = 1 if alone else self._rows(item)
        if (not alone and self._size(rows) != rows) or not all(self._written):
            return  # a padded run is not in place
        form = self._form(item, alone)
        if None in form.outputs:
            foreseen = None if self._pads is not None else self._foreseen(form, item, alone)
            if foreseen is None:
                return
            form = foreseen
        places = [tensor.offset for tensor in item.inputs] + [slot.offset for slot in item.outputs]
        binding = self._bindings.of(form, rows, tuple(arena.address + offset for offset in places))
        known[handles] = binding

    def _foreseen(self, form: Form, item: Item, alone: bool) -> Form | None:
        """The form with the sizes that the client has foreseen where none are declared: the outputs came out
        so just now. When they come out otherwise, onnxruntime refuses the bound memory."""
        axes = self._none if alone or self._axes is None else self._axes
        outputs: list[Layout | None] = []
        shapes = []
        for spec, slot, axis in zip(self.outputs, item.outputs, axes[len(self.inputs) :], strict=True):
            if slot.shape is None:
                return None
            shapes.append(tuple(slot.shape))
            outputs.append(Layout(spec.dtype, tail_of(slot.shape, axis), axis))
        return Form((form.key, tuple(shapes)), form.inputs, outputs)

    def _run_rows(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        first: int,
        result: Result,
        columns: Columns | None = None,
    ) -> None:
        """Run a batch's items together, or in groups: by the bytes of their shared inputs; by size if they
        can't be padded; one by one if they are big and not contiguous, which beats copying them."""
        big = self._apart and sum(tensor.nbytes for tensor in items[0].inputs) >= APART_MIN_BYTES
        if len(items) == 1 or not (big or self._shared or self._pads):
            self._run_group(items, arenas, first, result, (), columns)
            return
        if columns is not None and not big and self._pads is None:
            common = self._shared_by_all(items[0], columns)
            if common is not None:
                self._run_group(items, arenas, first, result, common, columns)
                return
        start = 0
        kind = self._kind(items[0], arenas[0], big)
        for stop in range(1, len(items) + 1):
            following = None if stop == len(items) else self._kind(items[stop], arenas[stop], big)
            if stop == len(items) or following != kind or (big and not follows(items[stop - 1], items[stop])):
                assert kind is not None
                self._run_group(items[start:stop], arenas[start:stop], first + start, result, kind[0])
                start, kind = stop, following

    def _kind(self, item: Item, arena: MappedArena, big: bool) -> tuple[list[bytes], Any] | None:
        """The properties that all items of a run share: shared inputs, and shapes unless they are padded."""
        shared = self._shared_bytes(item, arena)
        if self._pads is None or (not big and self._pads.sizes_of(item) is not None):
            return shared, None
        axes = self._axes or self._none
        tails = [t.dtype and tail_of(t.shape, axis) for t, axis in zip(item.inputs, axes, strict=False)]
        return shared, tails

    def _shared_bytes(self, item: Item, arena: MappedArena) -> list[bytes]:
        """A copy of the item's shared inputs: its client could change them during the run."""
        parts = [item.inputs[index] for index in self._shared]
        return [bytes(arena.view[t.offset : t.offset + t.nbytes]) if t.dtype else b"" for t in parts]

    def _shared_by_all(self, item: Item, columns: Columns) -> list[bytes] | None:
        """The shared inputs of requests of one shape; None if their bytes differ."""
        common = []
        for index in self._shared:
            value = columns.shared(index, item.inputs[index].nbytes)
            if value is None:
                return None
            common.append(value)
        return common

    def _check(self, index: int, item: Item, memory: Memory) -> MappedArena:
        arena = check(index, item, memory, self.name, len(self.inputs))
        if self._declared is None:
            return arena  # a part was cut for the revision before: the broker runs its request whole again
        if item.rows and not 0 <= item.start <= self._all_rows(item) - item.rows:
            text = f"rows {item.start} to {item.start + item.rows} are not in the request"
            raise ItemRefused(index, text)
        return arena

    def _all_rows(self, item: Item) -> int:
        """Rows of the whole request."""
        axes = self._declared
        return item.inputs[self._counted].shape[axes[self._counted]] if axes is not None else 1

    def _whole(self, items: Sequence[Item], counts: Sequence[int]) -> list[int]:
        """The rows of the items' whole requests; `counts` of them are run."""
        return [
            self._all_rows(item) if item.rows else count for item, count in zip(items, counts, strict=True)
        ]

    def _rows(self, item: Item) -> int:
        """The rows of the item to run."""
        return item.rows or self._all_rows(item)

    def _form(self, item: Item, alone: bool, padded: Padded | None = None) -> Form:
        """The form of a run of this item, or of others with it."""
        axes = self._none if alone or self._axes is None else self._axes
        shapes = [t.shape for t in item.inputs] if padded is None else padded.shapes(item)
        return self._forms.of([t.dtype for t in item.inputs], shapes, axes, alone)

    # ---- runs ---------------------------------------------------------------------------------

    def _run_group(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        first: int,
        result: Result,
        common: Sequence[bytes],
        columns: Columns | None = None,
    ) -> None:
        """Run these items as one. If the outputs show that rows depend on each other, run them one by one."""
        if self._axes is not None:
            try:
                counted, axis = self._counted, self._axes[self._counted]
                if columns is not None:
                    counts = [items[0].inputs[counted].shape[axis]] * len(items)
                else:
                    counts = [item.rows or item.inputs[counted].shape[axis] for item in items]
                self._run_together(items, arenas, first, result, counts, common, columns)
                return
            except NotCut as error:
                assert self._pads is not None
                log.warning("%s: no more padding: %s", self.name, error)
                self._pads.stopped = True
                self._run_rows(list(items), list(arenas), first, result)
                return
            except NotRows as error:
                self.alone_reason = str(error)
                self._axes = None
                self._forms.clear()
                self._known.clear()
        for number, (item, arena) in enumerate(zip(items, arenas, strict=True)):
            self._run_alone(item, arena, first + number, result)

    def _run_alone(self, item: Item, arena: MappedArena, number: int, result: Result) -> None:
        if item.packed:
            reason = f": {self.alone_reason}" if self.alone_reason else ""
            raise ItemRefused(number, f"packed requests of {self.name!r} may not share a run{reason}")
        if self._by_value:
            run_texts(self._sessions, self.inputs, self.outputs, item, arena, number, result)
        else:
            self._run_together([item], [arena], number, result, None)

    def _group(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        first: int,
        counts: Sequence[int] | None,
        columns: Columns | None,
    ) -> Group:
        alone = counts is None
        counts = counts or (1,)
        rows = sum(counts)
        padded = self._pads.of(items) if self._pads is not None and not alone else None
        form = self._form(items[0], alone, padded)
        axes = self._none if alone or self._axes is None else self._axes
        size = rows if alone else self._size(rows)
        wholes = counts if columns is not None else self._whole(items, counts)
        group = Group(items, arenas, first, counts, wholes, size, form, axes, alone)
        group.columns = columns
        group.padded = padded
        group.shared = self._shared
        return group

    def _run_together(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        first: int,
        result: Result,
        counts: Sequence[int] | None,
        common: Sequence[bytes] = (),
        columns: Columns | None = None,
    ) -> None:
        """One run. `counts`: the rows of each item; None: one request, alone. `common`: the bytes of the
        shared inputs."""
        started_ns = perf_counter_ns()
        group = self._group(items, arenas, first, counts, columns)
        group.common = common
        form, size = group.form, group.size
        # Inputs that are run twice must not change meanwhile, or rows would seem to depend on each other.
        is_checked = (
            self._spots is not None
            and (len(items) > 1 or (items[0].packed and group.rows > 1))
            and group.padded is None
            and self._spots.wants((form.key, *common), group.rows, started_ns)
        )
        if items[0].rows and not items[0].start and not items[0].packed:
            self._check_split(items[0], arenas[0], group)
        addresses = place_inputs(group, result, self._in_place, is_checked, self.max_batch)
        places = [0] * len(self.outputs)
        if not is_checked:
            places = place_outputs(group, len(self.inputs), self._written, self.max_batch)
        computing_ns = perf_counter_ns()
        values = self._compute(form, size, addresses, places)
        computed_ns = delivering_ns = perf_counter_ns()
        if is_checked:
            self._check_pieces(group, addresses, values)
            delivering_ns = perf_counter_ns()  # not counted: later batches do not take this time
            assert self._spots is not None
            self._spots.spent_ns += delivering_ns - computed_ns
        deliver(group, self.outputs, places, values, result)
        if group.padded is not None:
            result.padding += group.padded.padding(group.counts)
        result.gather_ns += computing_ns - started_ns
        result.compute_ns += computed_ns - computing_ns
        result.scatter_ns += perf_counter_ns() - delivering_ns
        if self._written is None and computed_ns - computing_ns < TRIED_NS_MAX:
            self._written = self._find_written(form, size, addresses, values)

    def _check_pieces(self, group: Group, addresses: Sequence[int], values: Sequence[Any]) -> None:
        """Raises NotRows if a request by itself answers otherwise than in the batch."""
        unplaced = [0] * len(self.outputs)
        try:
            check_pieces(
                group,
                self.outputs,
                addresses,
                values,
                lambda rows, places: self._bindings.run(group.form, rows, places, unplaced),
            )
        finally:
            self._bindings.clear()  # some are bound to pieces, which end with this call

    def _check_split(self, item: Item, arena: MappedArena, group: Group) -> None:
        """Of the first requests that are split: raises NotRows if their parts answer otherwise than they do
        whole. On copies: a client may write to its own memory meanwhile."""
        axes, spots = self._axes, self._spots
        if axes is None or spots is None or self._pads is not None or not spots.wants_whole(group.form.key):
            return
        given = [index for index, tensor in enumerate(item.inputs) if tensor.dtype]
        row_nbytes = sum(layout.row_nbytes for layout in group.form.inputs if layout is not None)
        rows = rows_to_check(self._all_rows(item), self.max_batch, row_nbytes)
        if not rows:
            return
        arrays = []
        for index in given:
            tensor, axis = item.inputs[index], axes[index]
            shape, dtype = tensor.shape, dtypes.BY_CODE[tensor.dtype].numpy
            data = np.frombuffer(arena.view[tensor.offset : tensor.offset + tensor.nbytes], dtype)
            array = data.reshape(shape)
            arrays.append(array.copy() if axis < 0 else array.take(range(rows), axis))
        specs = [self.inputs[index] for index in given]

        def run(feeds: Sequence[Array]) -> list[Array]:
            named = {spec.name: value_of(array, spec) for spec, array in zip(specs, feeds, strict=True)}
            values = self._sessions.do(lambda: self._host.run_with_ort_values(None, named, quiet()))
            return [comparable(value, spec) for value, spec in zip(values, self.outputs, strict=True)]

        try:
            chosen = [axes[index] for index in given] + list(axes[len(self.inputs) :])
            check_split(arrays, chosen, self.outputs, self.max_batch, run)
        except (DeviceLost, NotRows):
            raise
        except Exception as error:  # so many rows may be too much for it
            log.info("%s: a request was not run whole: %s", self.name, error)

    def _compute(self, form: Form, size: int, addresses: Sequence[int], places: Sequence[int]) -> list[Any]:
        """Run. Returns a value for each output that the runtime allocated, else None."""
        try:
            return self._bindings.run(form, size, addresses, places)
        except DeviceLost:
            raise
        except Exception:
            if not any(places) or self._sessions.checks_outputs:
                raise
        # onnxruntime refuses a bound output whose shape is not the declared one. Declared shapes are claims:
        # let it allocate the outputs, and see their shapes.
        values = self._bindings.run(form, size, addresses, [0] * len(places))
        for index, (layout, value) in enumerate(zip(form.outputs, values, strict=True)):
            if layout is not None and list(value.shape()) != layout.shape(size):
                self._written = [kept and at != index for at, kept in enumerate(self._written or ())]
                self._known.clear()
        return values

    def _find_written(
        self, form: Form, size: int, addresses: Sequence[int], values: Sequence[Any]
    ) -> list[bool]:
        """By a second run of the first batch, because the warm-up had no inputs."""
        return written_outputs(
            self._sessions.get(size),
            self._sessions.do,
            lambda binding: self._bindings.bind_inputs(binding, form, size, addresses),
            self.outputs,
            values,
        )

    def _size(self, rows: int) -> int:
        """The batch size of a run of so many rows."""
        buckets = self._buckets
        return buckets[bisect_left(buckets, rows)] if buckets else rows

    def view(self, address: int, nbytes: int) -> memoryview | None:
        """The first bytes of the buffer at this address; None: there is none."""
        return self._forms.view(address, nbytes)
