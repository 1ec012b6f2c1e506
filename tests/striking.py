"""An exception at each of the places where Python calls a signal's handler."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import batchyard

CLIENT = tuple(str(Path(batchyard.__file__).parent / name) for name in ("client", "transport"))
LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD")  # behind these instructions, Python looks for signals


class CutOff(Exception):
    """What a handler raises."""


def struck(call: Callable[[], object], instruction: int, within: tuple[str, ...] = ("",)) -> bool:
    """Call, and raise when Python has looked for signals so often, in files below the folders `within`. Whether
    it has."""
    left = instruction
    last: dict[int, str] = {}  # by the frame's id: a frame would keep what it holds

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(within):
            return trace
        frame.f_trace_opcodes = True
        if event == "call":
            last.pop(id(frame), None)
        if event == "opcode":
            before = last.get(id(frame), "RESUME")
            last[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before.startswith(LOOKS):
                left -= 1
                if left == 0:
                    raise CutOff
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # else 3.12 traces no opcode before the second call of settrace
    sys.settrace(trace)
    try:
        call()
    except (CutOff, RuntimeError, TimeoutError):
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def same(one: Any, other: Any) -> bool:
    """As numpy's array_equal, which takes an exception that a signal's handler raises in it for an answer: False."""
    return one.shape == other.shape and bool((one == other).all())
