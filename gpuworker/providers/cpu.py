"""The CPU provider's recipe: few threads, no spinning, one graph at a time."""

from __future__ import annotations

import onnxruntime

from . import Recipe


def recipe(intra_op_threads: int) -> Recipe:
    """Threads that spin while they wait steal the cores that broker and clients need: on 2 cores
    two workers with spinning pairs of threads run 74 inferences/s, with one thread each 120."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return Recipe("cpu", options, ["CPUExecutionProvider"])
