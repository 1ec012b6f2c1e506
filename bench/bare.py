"""The bare runtime: onnxruntime in this process, pre-bound, nothing between us and the model.

Owns one session and its binding. This is the floor of any server: what a request costs when nobody
serves it. No spinning, and as many threads as one worker has, so that it measures one worker's work.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .loops import WARM_UP_S
from .statistics import Measured


class Bare:
    """A session whose input is bound onto `x` itself and whose output is bound onto one kept array.

    `x` is C-contiguous, on the CPU, and must live as long as this object: the runtime reads its bytes
    where they lie. `output` is written anew by every run.
    """

    def __init__(self, path: Path, x: np.ndarray[Any, Any], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (input_,), (output_,) = self._session.get_inputs(), self._session.get_outputs()
        self._x = x
        self.rows = x.shape[0]
        self.output: np.ndarray[Any, Any] = np.ascontiguousarray(self._session.run(None, {input_.name: x})[0])
        self._binding = self._session.io_binding()
        self._binding.bind_input(input_.name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        self._binding.bind_output(
            output_.name, "cpu", 0, self.output.dtype, self.output.shape, self.output.ctypes.data
        )

    def run(self) -> np.ndarray[Any, Any]:
        """Run the model once, on what lies in `x` now."""
        self._session.run_with_iobinding(self._binding)
        return self.output

    def slice(self, duration_s: float, *, warm_up_s: float = WARM_UP_S) -> Measured:
        """Run for `duration_s`, one latency per run."""
        measured = Measured(rows=self.rows)
        record = measured.latencies_ns.append
        run, binding, now_ns = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        warm_until_ns = now_ns() + int(warm_up_s * 1e9)
        while now_ns() < warm_until_ns:
            run(binding)
        first_ns = ended_ns = now_ns()
        until_ns = first_ns + int(duration_s * 1e9)
        while ended_ns < until_ns:
            started_ns = now_ns()
            run(binding)
            ended_ns = now_ns()
            record(ended_ns - started_ns)
        measured.elapsed_ns = ended_ns - first_ns
        return measured
