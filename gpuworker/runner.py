"""How a batch becomes a run of a session: bindings, and the copies that cannot be avoided.

Big tensors are bound where they lie in the clients' arenas, so nothing is copied; neighbours that
lie side by side are bound as one. Small ones are gathered into buffers that stay bound (measured: a
pre-bound run of a tiny model 2.5 us, binding anew 17 us, copying 12 kB 0.2 us). Outputs likewise:
bound in place, or scattered from a buffer, or sent back when no slot was reserved.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np

from ..transport.digests import digest
from ..transport.errors import InvalidRequest
from ..transport.messages import Item, ItemOutputs, LentBatch
from ..transport.tensors import Tensor, TensorSpec, nbytes_of
from .memory import MappedArena, Memory
from .sessions import Sessions

IN_PLACE_MIN_BYTES = 128 * 1024  # above it a new binding is cheaper than the copy that it saves
APART_MIN_BYTES = 1 << 20  # an item above it is run by itself rather than copied next to another
BINDINGS_MAX = 512  # cached; one is a few kB
KNOWN_BYTES_MAX = 256  # of one item's handles, to be remembered
SHAPES_MAX = 16  # shape signatures whose buffers are kept

_decode_items = msgspec.msgpack.Decoder(list[Item]).decode


class ItemRefused(Exception):
    """One item's handles are wrong; `item` is its place in the batch."""

    def __init__(self, item: int, text: str) -> None:
        super().__init__(text)
        self.item = item


class Result:
    """What a batch's run took, and the outputs that did not go into slots."""

    __slots__ = ("changed", "compute_ns", "copied_bytes", "elsewhere", "frames", "gather_ns", "scatter_ns")

    def __init__(self) -> None:
        self.gather_ns = 0
        self.compute_ns = 0
        self.scatter_ns = 0
        self.copied_bytes = 0
        self.elsewhere: list[ItemOutputs] = []
        self.changed: list[int] = []  # items that are not what their digest says
        self.frames: list[Any] = []


class _Buffer:
    """A host buffer of the model's own for one input or output, of up to `rows` rows."""

    __slots__ = ("address", "array", "row_nbytes", "view")

    def __init__(self, row_nbytes: int, rows: int) -> None:
        self.row_nbytes = row_nbytes
        self.array = np.zeros(max(1, row_nbytes * rows), np.uint8)
        self.address = int(self.array.ctypes.data)
        self.view = memoryview(self.array.data)


class Runner:
    """Runs batches on a model's sessions.

    `batchable`: axis 0 of every input and output counts rows. `in_place`: a run may read and write
    the arenas' own memory, and there is one session. `buckets`: the only batch sizes to run, rising;
    empty: any. `apart`: whether big items that do not lie side by side are run by themselves rather than
    copied together.
    """

    def __init__(
        self,
        name: str,
        sessions: Sessions,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batchable: bool,
        max_batch: int,
        in_place: bool,
        buckets: Sequence[int] = (),
        apart: bool = True,
    ) -> None:
        self.name = name
        self._sessions = sessions
        self._host: Any = sessions.get(1) if in_place else None  # kept at hand: a tiny run takes 3 us
        self.inputs = inputs
        self.outputs = outputs
        self.batchable = batchable
        self.max_batch = max_batch
        self._in_place = in_place
        self._buckets = buckets
        self._apart = apart and in_place
        self._skip = 1 if batchable else 0
        self._bindings: dict[Any, Any] = {}
        self._known: dict[bytes, Any] = {}  # handles of one item -> binding; None: seen once
        self._buffers: dict[Any, list[_Buffer]] = {}

    # ---- a batch ------------------------------------------------------------------------------

    def forget_bindings(self) -> None:
        """Drop every binding: some arena is about to be unmapped."""
        self._bindings.clear()
        self._known.clear()

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """Run a batch. Raises ItemRefused for an item whose handles are wrong; anything else that
        the runtime raises is the model's failure.

        A client that sends one request after another reuses its slots, so the very same handles
        come again: then they have been checked, and can be bound for good, however small.
        """
        handles = bytes(batch.items)
        binding = self._known.get(handles)
        if binding is not None:
            result = Result()
            started_ns = perf_counter_ns()
            self._host.run_with_iobinding(binding)
            result.compute_ns = perf_counter_ns() - started_ns
            return result
        try:
            items: list[Item] = _decode_items(handles)
        except msgspec.MsgspecError as error:
            raise ItemRefused(-1, f"not the items of a batch: {error}") from None
        result = self._run_items(batch, items, memory)
        if len(items) == 1 and self._in_place and items[0].outputs and len(handles) < KNOWN_BYTES_MAX:
            self._remember(handles, items[0], memory)
        return result

    def _remember(self, handles: bytes, item: Item, memory: Memory) -> None:
        """Bind handles in place when they are seen for the second time."""
        known = self._known
        if len(known) >= BINDINGS_MAX:
            del known[next(iter(known))]
        if handles not in known:
            known[handles] = None
            return
        address = memory.range(item.arena, 0, 0).address
        shapes = tuple(tuple(tensor.shape[self._skip :]) for tensor in item.inputs)
        rows = item.inputs[0].shape[0] if self.batchable else 1
        if self._size(rows) != rows:
            return  # a padded run is not in place
        places = [tensor.offset for tensor in item.inputs] + [slot.offset for slot in item.outputs]
        known[handles] = self._binding(rows, shapes, tuple(address + offset for offset in places), True)

    def _run_items(self, batch: LentBatch, items: list[Item], memory: Memory) -> Result:
        arenas = [self._check(index, item, memory) for index, item in enumerate(items)]
        result = Result()
        if len(items) == 1 or batch.rows == 0:
            self._run_group(items, arenas, 0, result)
            return result
        # Many big tensors that are not neighbours: several runs in place beat copying them together.
        big = self._apart and _nbytes(items[0]) >= APART_MIN_BYTES
        start = 0
        for stop in range(1, len(items) + 1):
            if stop == len(items) or (big and not _adjacent(items[stop - 1], items[stop])):
                self._run_group(items[start:stop], arenas[start:stop], start, result)
                start = stop
        return result

    def _check(self, index: int, item: Item, memory: Memory) -> MappedArena:
        try:
            arena: MappedArena | None = None
            for tensor in item.inputs:
                arena = memory.range(item.arena, tensor.offset, nbytes_of(tensor.dtype, tensor.shape))
            for slot in item.outputs:
                memory.range(item.arena, slot.offset, slot.nbytes)
            if arena is None or len(item.inputs) != len(self.inputs):
                raise InvalidRequest(f"{self.name!r} has {len(self.inputs)} inputs")
            return arena
        except InvalidRequest as error:
            raise ItemRefused(index, str(error)) from None

    def _run_group(
        self, items: Sequence[Item], arenas: Sequence[MappedArena], first: int, result: Result
    ) -> None:
        started_ns = perf_counter_ns()
        rows = sum(item.inputs[0].shape[0] for item in items) if self.batchable else 1
        size = self._size(rows)
        shapes = tuple(tuple(tensor.shape[self._skip :]) for tensor in items[0].inputs)
        buffers = self._buffers_for(shapes, size)
        # What others want too is copied first: its client could change it between digest and run.
        private = any(item.digest for item in items)
        own = private or size != rows
        adjacent = self._in_place and not own and all(map(_adjacent, items, items[1:]))
        bound = []
        for index in range(len(self.inputs)):
            buffer = buffers[index]
            nbytes = buffer.row_nbytes * rows
            if adjacent and nbytes >= IN_PLACE_MIN_BYTES:
                bound.append(arenas[0].address + items[0].inputs[index].offset)
            else:
                bound.append(buffer.address)
                self._gather(items, arenas, index, buffer)
                # What an earlier batch left there may be what made it fail.
                buffer.array[nbytes : buffer.row_nbytes * size] = 0
                result.copied_bytes += nbytes
        if private:
            self._compare(items, buffers, first, result)
        outputs = buffers[len(self.inputs) :]
        slotted = all(item.outputs for item in items)
        for index, buffer in enumerate(outputs):
            in_place = adjacent and slotted and buffer.row_nbytes * rows >= IN_PLACE_MIN_BYTES
            bound.append(arenas[0].address + items[0].outputs[index].offset if in_place else buffer.address)
        binding = self._binding(size, shapes, tuple(bound), bool(outputs))
        computing_ns = perf_counter_ns()
        if self._host is not None:
            self._host.run_with_iobinding(binding)
        else:
            self._run_on_device(binding, size, shapes, bound)
        computed_ns = perf_counter_ns()
        if outputs:
            self._scatter(items, arenas, bound[len(self.inputs) :], outputs, first, result)
        else:
            self._send_back(items, binding.get_outputs(), size, first, result)
        result.gather_ns += computing_ns - started_ns
        result.compute_ns += computed_ns - computing_ns
        result.scatter_ns += perf_counter_ns() - computed_ns

    def _gather(
        self, items: Sequence[Item], arenas: Sequence[MappedArena], index: int, buffer: _Buffer
    ) -> None:
        view = buffer.view
        at = 0
        for item, arena in zip(items, arenas, strict=True):
            tensor = item.inputs[index]
            nbytes = buffer.row_nbytes * (tensor.shape[0] if self.batchable else 1)
            view[at : at + nbytes] = arena.view[tensor.offset : tensor.offset + nbytes]
            at += nbytes

    def _compare(self, items: Sequence[Item], buffers: Sequence[_Buffer], first: int, result: Result) -> None:
        """Note the items whose gathered inputs are not what their digest says."""
        at = 0
        for number, item in enumerate(items):
            rows = item.inputs[0].shape[0] if self.batchable else 1
            if item.digest:
                parts = [
                    buffer.view[at * buffer.row_nbytes : (at + rows) * buffer.row_nbytes]
                    for buffer in buffers[: len(self.inputs)]
                ]
                if digest(parts) != item.digest:
                    result.changed.append(first + number)
            at += rows

    def _scatter(
        self,
        items: Sequence[Item],
        arenas: Sequence[MappedArena],
        bound: Sequence[int],
        outputs: Sequence[_Buffer],
        first: int,
        result: Result,
    ) -> None:
        """Copy from the model's buffers into slots; into frames for items that have no slots."""
        rows_before = 0
        for number, (item, arena) in enumerate(zip(items, arenas, strict=True)):
            rows = item.inputs[0].shape[0] if self.batchable else 1
            tensors = []
            for index, buffer in enumerate(outputs):
                if bound[index] != buffer.address:
                    continue  # it was written in place
                nbytes = buffer.row_nbytes * rows
                at = buffer.row_nbytes * rows_before
                result.copied_bytes += nbytes
                if item.outputs:
                    offset = item.outputs[index].offset
                    arena.view[offset : offset + nbytes] = buffer.view[at : at + nbytes]
                else:
                    result.frames.append(bytes(buffer.view[at : at + nbytes]))
                    spec = self.outputs[index]
                    shape = [int(axis) for axis in spec.shape[self._skip :]]
                    lead = [rows] if self.batchable else []
                    tensors.append(Tensor(spec.dtype, lead + shape, 0, len(result.frames)))
            if tensors:
                result.elsewhere.append(ItemOutputs(first + number, tensors))
            rows_before += rows

    def _send_back(
        self, items: Sequence[Item], values: Sequence[Any], size: int, first: int, result: Result
    ) -> None:
        """Outputs whose sizes nobody knew before the run go back as frames."""
        arrays = [bytes_of(value, spec) for value, spec in zip(values, self.outputs, strict=True)]
        rows = sum(item.inputs[0].shape[0] for item in items) if self.batchable else 1
        cut = len(items) > 1 or rows != size
        if cut and any(not shape or shape[0] != size for shape, _ in arrays):
            # Cutting them would hand one client another's rows. Alone, each request is right.
            raise ValueError(
                f"the outputs of {self.name!r} have {[shape for shape, _ in arrays]} for {size} rows: its "
                "axis 0 is not the batch; set batchable = false for it"
            )
        at = 0
        for number, item in enumerate(items):
            rows = item.inputs[0].shape[0] if self.batchable else 1
            tensors = []
            for spec, (shape, flat) in zip(self.outputs, arrays, strict=True):
                part, part_shape = flat, shape
                if cut:
                    stride = flat.nbytes // max(1, shape[0])
                    part = flat[at * stride : (at + rows) * stride]
                    part_shape = [rows, *shape[1:]]
                result.frames.append(part.tobytes())
                result.copied_bytes += part.nbytes
                tensors.append(Tensor(spec.dtype, part_shape, 0, len(result.frames)))
            result.elsewhere.append(ItemOutputs(first + number, tensors))
            at += rows

    def _size(self, rows: int) -> int:
        """The batch size that so many rows are run as."""
        buckets = self._buckets
        return buckets[bisect_left(buckets, rows)] if buckets else rows

    def _run_on_device(
        self, binding: Any, size: int, shapes: tuple[tuple[int, ...], ...], addresses: Sequence[int]
    ) -> None:
        """A GPU provider copies an input when it is bound: bound once, it would be the old one for ever.
        The outputs' binding stays."""

        def work() -> None:
            self._bind_inputs(binding, size, shapes, addresses)
            self._sessions.get(size).run_with_iobinding(binding)

        self._sessions.do(work)

    # ---- bindings -----------------------------------------------------------------------------

    def view(self, address: int, nbytes: int) -> memoryview | None:
        """The bytes of a buffer by where it begins; None: no buffer begins there."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                if buffer.address == address:
                    return buffer.view[:nbytes]
        return None

    def _buffers_for(self, shapes: tuple[tuple[int, ...], ...], rows: int) -> list[_Buffer]:
        """Buffers of every input, then of every output unless some output's size is unknown."""
        found = self._buffers.get(shapes)
        if found is not None and len(found[0].array) >= found[0].row_nbytes * rows:
            return found
        if found is None and len(self._buffers) >= SHAPES_MAX:
            self._buffers.clear()
            self._bindings.clear()
        room = self.max_batch
        sizes = [nbytes_of(spec.dtype, shape) for spec, shape in zip(self.inputs, shapes, strict=True)]
        tails = [spec.shape[self._skip :] for spec in self.outputs]
        if all(isinstance(axis, int) for tail in tails for axis in tail):
            sizes += [
                nbytes_of(spec.dtype, [int(axis) for axis in tail])
                for spec, tail in zip(self.outputs, tails, strict=True)
            ]
        # A request larger than the maximum has been split by the broker; pages are touched on use.
        buffers = [_Buffer(size, max(room, rows)) for size in sizes]
        self._buffers[shapes] = buffers
        return buffers

    def _binding(
        self, rows: int, shapes: tuple[tuple[int, ...], ...], addresses: tuple[int, ...], outputs_known: bool
    ) -> Any:
        key = (rows, shapes, addresses)
        binding = self._bindings.get(key)
        if binding is not None:
            if not outputs_known:
                # It still holds the last run's outputs, and would insist on their shapes.
                binding.clear_binding_outputs()
                for spec in self.outputs:
                    binding.bind_output(spec.name, "cpu")
            return binding
        if len(self._bindings) >= BINDINGS_MAX:
            del self._bindings[next(iter(self._bindings))]
        binding = self._sessions.get(rows).io_binding()
        lead = [rows] if self.batchable else []
        if self._host is not None:
            self._bind_inputs(binding, rows, shapes, addresses)
        for index, spec in enumerate(self.outputs):
            if outputs_known:
                shape_out = [*lead, *(int(axis) for axis in spec.shape[self._skip :])]
                address = addresses[len(self.inputs) + index]
                binding.bind_output(spec.name, "cpu", 0, spec.dtype, shape_out, address)
            else:
                binding.bind_output(spec.name, "cpu")
        self._bindings[key] = binding
        return binding

    def _bind_inputs(
        self, binding: Any, rows: int, shapes: tuple[tuple[int, ...], ...], addresses: Sequence[int]
    ) -> None:
        lead = [rows] if self.batchable else []
        for spec, shape, address in zip(self.inputs, shapes, addresses, strict=False):
            binding.bind_input(spec.name, "cpu", 0, spec.dtype, [*lead, *shape], address)


def _nbytes(item: Item) -> int:
    return sum(nbytes_of(tensor.dtype, tensor.shape) for tensor in item.inputs)


def _adjacent(left: Item, right: Item) -> bool:
    """Whether every tensor and slot of `right` begins where `left`'s ends, in one arena."""
    if left.arena != right.arena or len(left.outputs) != len(right.outputs):
        return False
    for a, b in zip(left.inputs, right.inputs, strict=True):
        if a.offset + nbytes_of(a.dtype, a.shape) != b.offset:
            return False
    return all(a.offset + a.nbytes == b.offset for a, b in zip(left.outputs, right.outputs, strict=True))


def bytes_of(value: Any, spec: TensorSpec) -> tuple[list[int], Any]:
    """(shape, its bytes as an array that lives as long as `value`): numpy lacks some element types."""
    shape = [int(axis) for axis in value.shape()]
    nbytes = nbytes_of(spec.dtype, shape)
    if not nbytes:
        return shape, np.empty(0, np.uint8)
    return shape, np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(value.data_ptr()))
