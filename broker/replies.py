"""The reply of a request whose outputs lie elsewhere than in the slots that it reserved."""

from __future__ import annotations

from typing import Any

from ..transport import messages as m
from ..transport.tensors import Tensor
from .lanes import Request


def answer(request: Request, queue_ns: int, receipt: m.BatchReceipt) -> tuple[m.Answer, list[Any]] | None:
    """(the message, its frames), parts in the order of their rows and frames numbered anew.

    None when a worker named a frame that it did not send.
    """
    parts: list[list[Tensor]] = []
    frames: list[Any] = []
    for _, outputs, behind in sorted(request.parts or (), key=lambda entry: entry[0]):
        tensors = []
        for tensor in outputs:
            if not 1 <= tensor.frame <= len(behind):
                return None
            frames.append(behind[tensor.frame - 1])
            tensors.append(Tensor(tensor.dtype, tensor.shape, 0, len(frames)))
        parts.append(tensors)
    return m.Answer(request.id, queue_ns, receipt, parts), frames
