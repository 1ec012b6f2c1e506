"""A request that is answered several times: a generator's answers, each sent as soon as it is there.

The request has the generator for itself. Its inputs stay where its client put them until the generator ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

from ..transport.messages import ItemOutputs, LentBatch
from ..transport.tensors import Tensor, TensorSpec
from .answers import Result, check_answer, offsets_of
from .calls import FunctionSession
from .handles import check, decode
from .layout import Array
from .memory import MappedArena, Memory

Emit = Callable[[list[Tensor], Any], bool]  # (outputs, their frame); whether another answer is wanted


def run_stream(session: FunctionSession, name: str, batch: LentBatch, memory: Memory, emit: Emit) -> Result:
    """Run a batch of one request. Raises ItemRefused, and UserError."""
    (item,) = decode(bytes(batch.items))
    arena = check(0, item, memory, name, len(session.inputs))
    inputs = [(arena.view[t.offset : t.offset + t.nbytes].toreadonly(), t.shape) for t in item.inputs]
    result = Result()
    started_ns = perf_counter_ns()

    def take(answers: list[Array]) -> bool:
        tensors, frame = _framed(session.outputs, answers, arena)
        result.copied_bytes += len(frame)
        return emit(tensors, frame)

    session.stream(inputs, take)
    result.compute_ns = perf_counter_ns() - started_ns
    result.inline_outputs.append(ItemOutputs(0, []))
    return result


def _framed(
    specs: Sequence[TensorSpec], answers: Sequence[Array], arena: MappedArena
) -> tuple[list[Tensor], bytearray]:
    """Outputs in one frame."""
    offsets, total = offsets_of([answer.nbytes for answer in answers])
    check_answer(total, arena)
    frame = bytearray(total)
    tensors = []
    for spec, answer, offset in zip(specs, answers, offsets, strict=True):
        frame[offset : offset + answer.nbytes] = answer.tobytes()
        tensors.append(Tensor(spec.dtype, list(answer.shape), offset, 1))
    return tensors, frame
