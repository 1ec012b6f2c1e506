"""`python -m batchyard.tests.integration.providers.figures FILE.onnx ...`: what a worker's answers are off the CPU's.

A yard of its own for each file, with one worker on the best provider that works here; requests of every
number of rows up to --max-batch, compared with the CPU provider's answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from batchyard import BatchyardError, serve

PATIENCE_S = 300.0
HEADER = f"{'model':28} {'provider':8} {'ready':>8} {'greatest':>9} {'difference':>10} {'top-1':>7}  placement"


def draw(value: Any, rows: int, below: int, rng: np.random.Generator) -> Any:
    """An input of the model: noise, or whole numbers from 0 to `below`."""
    shape = (rows, *value.shape[1:])
    return rng.integers(0, below, shape) if "int" in value.type else rng.standard_normal(shape).astype(np.float32)


def line(path: Path, max_batch: int, below: int) -> str:
    """What is found of one model. Raises BatchyardError for one that is not served."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    cpu = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = cpu.get_inputs()
    rng = np.random.default_rng(0)
    greatest = difference = 0.0
    agreed = rows = 0
    started_s = time.monotonic()
    with serve({"model": path}, max_batch=max_batch, timeout=PATIENCE_S) as yard, yard.client() as client:
        ready_s = time.monotonic() - started_s
        for size in range(1, max_batch + 1):
            feeds = {value.name: draw(value, size, below, rng) for value in inputs}
            expected = cpu.run(None, feeds)[0]
            answer = client.request("model", feeds, timeout=PATIENCE_S).arrays[0]
            difference = max(difference, float(np.abs(answer - expected).max()))
            greatest = max(greatest, float(np.abs(expected).max()))
            agreed += int((answer.argmax(-1) == expected.argmax(-1)).sum())
            rows += int(np.prod(expected.shape[:-1]))
        (worker,) = client.models()[0].workers
    figures = f"{ready_s:6.1f} s {greatest:9.3g} {difference:10.1e} {agreed:3}/{rows:3}"
    return f"{path.stem:28} {worker.provider:8} {figures}  {worker.placement}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--max-batch", type=int, default=4, metavar="ROWS", help="(%(default)s)")
    parser.add_argument("--below", type=int, default=1000, metavar="N", help="of whole numbers (%(default)s)")
    arguments = parser.parse_args()
    print(HEADER)
    failed = 0
    for path in arguments.files:
        try:
            print(line(path, arguments.max_batch, arguments.below), flush=True)
        except BatchyardError as error:
            failed += 1
            print(f"{path.stem:28} {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
