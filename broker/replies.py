"""The reply of a request whose outputs lie elsewhere than in the slots that it reserved."""

from __future__ import annotations

from typing import Any

from ..transport.tensors import Tensor
from .identical import Outputs
from .lanes import Request


def gathered(request: Request) -> tuple[Outputs, list[Any]] | None:
    """A request's outputs, parts in the order of their rows and frames numbered anew; and the frames.

    None when a worker sent none, or named a frame that it did not send.
    """
    if not request.parts:
        return None
    parts: list[list[Tensor]] = []
    frames: list[Any] = []
    for _, outputs, behind in sorted(request.parts, key=lambda entry: entry[0]):
        tensors = []
        for tensor in outputs:
            if not 1 <= tensor.frame <= len(behind):
                return None
            frames.append(behind[tensor.frame - 1])
            tensors.append(Tensor(tensor.dtype, tensor.shape, 0, len(frames)))
        parts.append(tensors)
    return parts, frames
