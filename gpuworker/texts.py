"""A request with strings, which no binding takes: arrays in, arrays out, alone, its answer in a frame."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns

import numpy as np

from ..transport import dtypes, strings
from ..transport.messages import Item, ItemOutputs
from ..transport.tensors import ABSENT, Tensor, TensorSpec
from .answers import Result, check_answer, offsets_of
from .layout import Array
from .memory import MappedArena
from .sessions import Sessions


def run_texts(
    sessions: Sessions,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    item: Item,
    arena: MappedArena,
    number: int,
    result: Result,
) -> None:
    """Run one request, the batch's item of this number."""
    started_ns = perf_counter_ns()
    feeds = {}
    for spec, tensor in zip(inputs, item.inputs, strict=True):
        if tensor.dtype != ABSENT:
            data = arena.view[tensor.offset : tensor.offset + tensor.nbytes]
            feeds[spec.name] = _array(spec, data, tensor.shape)
    computing_ns = perf_counter_ns()
    session = sessions.get(1)
    answers = sessions.do(lambda: session.run(None, feeds))
    computed_ns = perf_counter_ns()
    parts = []
    tensors = []
    for spec, answer in zip(outputs, answers, strict=True):
        is_text = spec.dtype == dtypes.STRING
        part = strings.encode(answer.ravel()) if is_text else answer.tobytes()
        nbytes = len(part) if is_text else 0
        tensors.append(Tensor(spec.dtype, list(answer.shape), 0, len(result.frames) + 1, nbytes))
        parts.append(part)
    offsets, total = offsets_of([len(part) for part in parts])
    check_answer(total, arena)
    frame = bytearray(total)
    for tensor, offset, part in zip(tensors, offsets, parts, strict=True):
        tensor.offset = offset
        frame[offset : offset + len(part)] = part
    result.frames.append(frame)
    result.inline_outputs.append(ItemOutputs(number, tensors))
    result.copied_bytes += total
    result.gather_ns += computing_ns - started_ns
    result.compute_ns += computed_ns - computing_ns
    result.scatter_ns += perf_counter_ns() - computed_ns


def _array(spec: TensorSpec, data: memoryview, shape: Sequence[int]) -> Array:
    if spec.dtype == dtypes.STRING:
        return strings.decode(data, shape)
    entry = dtypes.BY_CODE[spec.dtype]
    return np.frombuffer(data, entry.numpy).reshape(shape) if len(data) else np.empty(shape, entry.numpy)
