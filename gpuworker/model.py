"""One loaded model: its session, its pre-bound buffers, and how a batch becomes a run.

Big tensors are bound where they lie in the clients' arenas, so nothing is copied; neighbours that
lie side by side are bound as one. Small ones are gathered into buffers that stay bound (measured: a
pre-bound run of a tiny model 2.5 us, binding anew 17 us, copying 12 kB 0.2 us). Outputs likewise:
bound in place, or scattered from a buffer, or sent back when no slot was reserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from ..transport import dtypes
from ..transport.errors import InvalidRequest
from ..transport.messages import Item, ItemOutputs, LentBatch, Load
from ..transport.tensors import Tensor, TensorSpec, nbytes_of
from .memory import MappedArena, Memory
from .providers import Recipe

IN_PLACE_MIN_BYTES = 128 * 1024  # above it a new binding is cheaper than the copy that it saves
BINDINGS_MAX = 512  # cached; one is a few kB
KNOWN_BYTES_MAX = 256  # of one item's handles, to be remembered
WARMUP_BYTES_MAX = 64 << 20  # of inputs, in one warm-up run
WARMUP_NS_MAX = 2_000_000_000
FREE_AXIS = 1  # what a free axis other than the batch is warmed with

_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("float16", "bfloat16", "bool", "complex64", "complex128")},
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"tensor({name})": name for name in dtypes.BY_NAME if name.startswith("float8")},
}


_decode_items = msgspec.msgpack.Decoder(list[Item]).decode


class CannotServe(Exception):
    """The file is no model that batchyard can serve; the text says why."""


class Result:
    """What a batch's run took, and the outputs that did not go into slots."""

    __slots__ = ("compute_ns", "copied_bytes", "elsewhere", "frames", "gather_ns", "scatter_ns")

    def __init__(self) -> None:
        self.gather_ns = 0
        self.compute_ns = 0
        self.scatter_ns = 0
        self.copied_bytes = 0
        self.elsewhere: list[ItemOutputs] = []
        self.frames: list[Any] = []


class _Buffer:
    """A host buffer of the model's own for one input or output, of up to `rows` rows."""

    __slots__ = ("address", "array", "row_nbytes", "view")

    def __init__(self, row_nbytes: int, rows: int) -> None:
        self.row_nbytes = row_nbytes
        self.array = np.zeros(max(1, row_nbytes * rows), np.uint8)
        self.address = int(self.array.ctypes.data)
        self.view = memoryview(self.array.data)


class ServedModel:
    """A session and what surrounds it. Raises CannotServe when the file can't be served."""

    def __init__(self, load: Load, recipe: Recipe) -> None:
        self.name = load.model
        self.revision = load.revision
        self.recipe = recipe
        try:
            self.session = onnxruntime.InferenceSession(
                load.path, recipe.options, providers=recipe.providers, enable_fallback=0
            )
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and others
            raise CannotServe(_first_line(error)) from None
        self.inputs = [_spec(value) for value in self.session.get_inputs()]
        self.outputs = [_spec(value) for value in self.session.get_outputs()]
        self.alone_reason = self._why_alone() if load.batchable is None else ""
        if load.batchable is False:
            self.alone_reason = "batchyard.toml says batchable = false"
        self.batchable = not self.alone_reason
        self.max_batch = load.max_batch if self.batchable else 1
        self.warmup_ns: dict[int, int] = {}
        self._skip = 1 if self.batchable else 0
        self._bindings: dict[Any, Any] = {}
        self._known: dict[bytes, Any] = {}  # handles of one item -> binding; None: seen once
        self._buffers: dict[Any, list[_Buffer]] = {}
        if load.warmup:
            self._warm_up()

    @property
    def placement(self) -> str:
        """The providers that the session runs on."""
        return ", ".join(self.session.get_providers())

    def _why_alone(self) -> str:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs:
                if not spec.shape:
                    return f"{kind} {spec.name!r} has no axes, so no batch axis"
                if isinstance(spec.shape[0], int):
                    return (
                        f"axis 0 of {kind} {spec.name!r} is fixed at {spec.shape[0]}, not a free batch axis"
                    )
        return ""

    # ---- warm-up ------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Run every power of two up to max_batch once or more, and time it. Checks what it sees."""
        free = any(not isinstance(axis, int) for spec in self.inputs for axis in spec.shape[self._skip :])
        started_ns = perf_counter_ns()
        rows = 1
        while rows <= self.max_batch:
            feeds = {spec.name: self._zeros(spec, rows) for spec in self.inputs}
            if rows > 1 and sum(value.tensor_size_in_bytes() for value in feeds.values()) > WARMUP_BYTES_MAX:
                break
            try:
                answers, self.warmup_ns[rows] = self._timed_run(feeds)
            except Exception as error:
                if free:
                    return  # a size of 1 for a free axis was our guess, not a request
                raise CannotServe(f"its first run failed: {_first_line(error)}") from None
            if self.batchable and not self._check_rows(answers, rows):
                return
            if perf_counter_ns() - started_ns > WARMUP_NS_MAX:
                break
            rows = min(rows * 2, self.max_batch) if rows < self.max_batch else rows + 1

    def _timed_run(self, feeds: dict[str, Any]) -> tuple[list[Any], int]:
        """(outputs, the better of two times): the first run of a size also allocates."""
        times = []
        for _ in range(2):
            before_ns = perf_counter_ns()
            answers = self.session.run_with_ort_values(None, feeds)
            times.append(perf_counter_ns() - before_ns)
        return answers, min(times)

    def _zeros(self, spec: TensorSpec, rows: int) -> Any:
        shape = [axis if isinstance(axis, int) else FREE_AXIS for axis in spec.shape]
        if self.batchable:
            shape[0] = rows
        buffer = np.zeros(max(1, nbytes_of(spec.dtype, shape)), np.uint8)
        entry = dtypes.BY_CODE[spec.dtype]
        array = buffer[: prod(shape) * entry.itemsize].view(entry.numpy).reshape(shape)
        return _OrtZeros.make(array, spec.dtype)

    def _check_rows(self, answers: Sequence[Any], rows: int) -> bool:
        for spec, answer in zip(self.outputs, answers, strict=True):
            shape = list(answer.shape())
            if not shape or shape[0] != rows:
                self.batchable = False
                self.max_batch = 1
                self._skip = 0
                self.alone_reason = f"output {spec.name!r} has shape {shape} for {rows} rows"
                self.warmup_ns.clear()
                return False
        return True

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
            self.session.run_with_iobinding(binding)
            result.compute_ns = perf_counter_ns() - started_ns
            return result
        try:
            items: list[Item] = _decode_items(handles)
        except msgspec.MsgspecError as error:
            raise ItemRefused(-1, f"not the items of a batch: {error}") from None
        result = self._run_items(batch, items, memory)
        if len(items) == 1 and self.recipe.in_place and items[0].outputs and len(handles) < KNOWN_BYTES_MAX:
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
        places = [tensor.offset for tensor in item.inputs] + [slot.offset for slot in item.outputs]
        known[handles] = self._binding(rows, shapes, tuple(address + offset for offset in places), True)

    def _run_items(self, batch: LentBatch, items: list[Item], memory: Memory) -> Result:
        arenas = [self._check(index, item, memory) for index, item in enumerate(items)]
        result = Result()
        if len(items) == 1 or batch.rows == 0:
            self._run_group(items, arenas, 0, result)
            return result
        # Many big tensors that are not neighbours: several runs in place beat copying them together.
        big = self.recipe.in_place and _nbytes(items[0]) >= IN_PLACE_MIN_BYTES * 8
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
        shapes = tuple(tuple(tensor.shape[self._skip :]) for tensor in items[0].inputs)
        buffers = self._buffers_for(shapes, rows)
        adjacent = self.recipe.in_place and all(map(_adjacent, items, items[1:]))
        bound = []
        for index in range(len(self.inputs)):
            buffer = buffers[index]
            nbytes = buffer.row_nbytes * rows
            if adjacent and nbytes >= IN_PLACE_MIN_BYTES:
                bound.append(arenas[0].address + items[0].inputs[index].offset)
            else:
                bound.append(buffer.address)
                self._gather(items, arenas, index, buffer)
                result.copied_bytes += nbytes
        outputs = buffers[len(self.inputs) :]
        slotted = all(item.outputs for item in items)
        for index, buffer in enumerate(outputs):
            in_place = adjacent and slotted and buffer.row_nbytes * rows >= IN_PLACE_MIN_BYTES
            bound.append(arenas[0].address + items[0].outputs[index].offset if in_place else buffer.address)
        binding = self._binding(rows, shapes, tuple(bound), bool(outputs))
        computing_ns = perf_counter_ns()
        self.session.run_with_iobinding(binding)
        computed_ns = perf_counter_ns()
        if outputs:
            self._scatter(items, arenas, bound[len(self.inputs) :], outputs, first, result)
        else:
            self._send_back(items, binding.get_outputs(), first, result)
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

    def _send_back(self, items: Sequence[Item], values: Sequence[Any], first: int, result: Result) -> None:
        """Outputs whose sizes nobody knew before the run go back as frames."""
        arrays = [_bytes_of(value, spec) for value, spec in zip(values, self.outputs, strict=True)]
        at = 0
        for number, item in enumerate(items):
            rows = item.inputs[0].shape[0] if self.batchable else 1
            tensors = []
            for spec, (shape, flat) in zip(self.outputs, arrays, strict=True):
                part, part_shape = flat, shape
                if self.batchable:
                    stride = flat.nbytes // max(1, shape[0])
                    part = flat[at * stride : (at + rows) * stride]
                    part_shape = [rows, *shape[1:]]
                result.frames.append(part.tobytes())
                result.copied_bytes += part.nbytes
                tensors.append(Tensor(spec.dtype, part_shape, 0, len(result.frames)))
            result.elsewhere.append(ItemOutputs(first + number, tensors))
            at += rows

    # ---- bindings -----------------------------------------------------------------------------

    def _buffers_for(self, shapes: tuple[tuple[int, ...], ...], rows: int) -> list[_Buffer]:
        """Buffers of every input, then of every output unless some output's size is unknown."""
        found = self._buffers.get(shapes)
        if found is not None and len(found[0].array) >= found[0].row_nbytes * rows:
            return found
        if found is None and len(self._buffers) >= 16:
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
            return binding
        if len(self._bindings) >= BINDINGS_MAX:
            del self._bindings[next(iter(self._bindings))]
        binding = self.session.io_binding()
        lead = [rows] if self.batchable else []
        for spec, shape, address in zip(self.inputs, shapes, addresses, strict=False):
            binding.bind_input(spec.name, "cpu", 0, spec.dtype, [*lead, *shape], address)
        for index, spec in enumerate(self.outputs):
            if outputs_known:
                shape_out = [*lead, *(int(axis) for axis in spec.shape[self._skip :])]
                address = addresses[len(self.inputs) + index]
                binding.bind_output(spec.name, "cpu", 0, spec.dtype, shape_out, address)
            else:
                binding.bind_output(spec.name, "cpu")
        self._bindings[key] = binding
        return binding


class ItemRefused(Exception):
    """One item's handles are wrong; `item` is its place in the batch."""

    def __init__(self, item: int, text: str) -> None:
        super().__init__(text)
        self.item = item


class _OrtZeros:
    """Values for the warm-up, of any element type: numpy has no name for some of them."""

    @staticmethod
    def make(array: Any, dtype: int) -> Any:
        entry = dtypes.BY_CODE[dtype]
        if entry.numpy.kind in "fiubc":
            return onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, dtype)


def _spec(value: Any) -> TensorSpec:
    name = _ORT_TYPES.get(value.type)
    if name is None:
        raise CannotServe(f"{value.name!r} is a {value.type}, which cannot travel as a fixed-width tensor")
    shape = [axis if isinstance(axis, int) else str(axis or "?") for axis in value.shape]
    return TensorSpec(value.name, dtypes.BY_NAME[name].code, shape)


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


def _bytes_of(value: Any, spec: TensorSpec) -> tuple[list[int], Any]:
    shape = [int(axis) for axis in value.shape()]
    array = np.ascontiguousarray(value.numpy())
    return shape, array.reshape(-1).view(np.uint8)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:500]
