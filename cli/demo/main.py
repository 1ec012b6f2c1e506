"""`batchyard demo`: a yard with a real model, clients of every priority, and every answer checked.

Owns the sequence of steps. The clients are processes of their own (`client`), so what they send goes through
shared memory as any program's would.
"""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np

from ...client import Yard, serve
from ...transport import extras
from ...transport.errors import InvalidRequest
from ..arguments import parser
from ..text import GAP, plural
from . import programs
from .next_steps import after_demo
from .programs import Load, Scans
from .report import figures, findings, step, tell, verdict

MAX_BATCH = 32  # rows
MODEL = "digits"
EXAMPLES = """examples:
  batchyard demo
  batchyard demo --seconds 3 --clients 2
  python3 run demo --train                 # in a checkout: search, train, export and serve a model"""


def main(argv: list[str]) -> int:
    """Return 0 if every answer equals the direct run's, 1 if one does not; raises if it cannot run."""
    if "--train" in argv:
        raise InvalidRequest("training is not installed; in a checkout: python3 run demo --train")
    purpose = "Serve a real model on this machine and send it requests of all four priorities."
    arguments = parser("demo", purpose, EXAMPLES)
    Load.add_options(arguments)
    load = Load.of(arguments, arguments.parse_args(argv))
    extras.require("the demo", "onnxruntime")
    with resources.as_file(resources.files("batchyard.examples")) as examples, programs.logged() as log:
        return show(examples, load, log)


def show(examples: Path, load: Load, log: IO[bytes]) -> int:
    """Run the demo; the processes' output goes to `log`."""
    tell(f"batchyard demo: about {load.seconds + 2:.0f} seconds\n")
    step("model", f"{MODEL}: a scan of a handwritten digit in, a score for each of 0..9 out")
    model = examples / f"{MODEL}.onnx"
    with np.load(examples / f"{MODEL}_test.npz", allow_pickle=False) as data:
        scans = Scans.answered(model, data["images"], data["labels"])
    count = len(scans.images)
    step("direct", f"onnxruntime alone has answered {count} test scans: every answer is compared to these")
    began_s = time.monotonic()
    with serve(model, workers=1, max_batch=MAX_BATCH, log=log) as yard:
        ready_s = time.monotonic() - began_s
        step(
            "yard",
            f"a broker and a worker ({provider(yard)}), ready after {ready_s:.1f} s; "
            f"a batch has up to {MAX_BATCH} scans",
        )
        clients = plural(load.clients, "program")
        step("clients", f"{clients}, each with requests of all four priorities at once\n")
        total = programs.run(yard, MODEL, scans, load, log)
        counters = yard.snapshot()
    tell("\n" + "\n".join(figures(total)) + "\n")
    tell("\n".join(findings(total, counters["rows"] / max(1, counters["batches"]))) + "\n")
    tell(verdict(total))
    if total.passed:
        tell("Next:\n" + "\n".join(GAP + line for line in after_demo()))
    return 0 if total.passed else 1


def provider(yard: Yard) -> str:
    """What the yard's worker runs on: `cpu`, `webgpu`, ..."""
    with yard.client(segment="frames") as client:
        (model,) = client.models()
    return ", ".join(sorted({worker.provider for worker in model.workers}))
