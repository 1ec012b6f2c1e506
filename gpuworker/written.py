"""Finds the outputs that a run writes into the memory that is bound for them.

onnxruntime does not write an output that is also an input of the graph: the buffer would keep an earlier
request's answer. One run into marked memory shows this for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..transport.tensors import TensorSpec
from .device import DeviceLost
from .values import bytes_of

MARK = 0xA5


def written_outputs(
    session: Any,
    take_turn: Callable[[Callable[[], None]], None],
    bind_inputs: Callable[[Any], None],
    outputs: Sequence[TensorSpec],
    answers: Sequence[Any],
) -> list[bool]:
    """For each output, whether a run writes it into bound memory.

    `answers` are the values of an earlier run on the same inputs. `take_turn(work)` calls `work` in this
    thread's turn on the device, because binding an input copies it there.
    """
    places = []

    def work() -> None:
        binding = session.io_binding()
        bind_inputs(binding)
        for spec, value in zip(outputs, answers, strict=True):
            shape, flat = bytes_of(value, spec)
            place = np.full(max(1, flat.nbytes), MARK, np.uint8)
            binding.bind_output(spec.name, "cpu", 0, spec.dtype, shape, int(place.ctypes.data))
            places.append((place, flat.nbytes))
        session.run_with_iobinding(binding)

    try:
        take_turn(work)
    except DeviceLost:
        raise
    except Exception:  # it accepts no bound outputs
        return [False] * len(outputs)
    return [not nbytes or bool((place != MARK).any()) for place, nbytes in places]
