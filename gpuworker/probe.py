"""`python -m batchyard.gpuworker.probe`: does a provider work here? Asked in a process that may die of it.

A driver that is broken doesn't say so: it crashes, hangs, or computes nonsense. So a process that is
thrown away serves a tiny model as a worker would (the recipe's sessions, every bucket, the comparison with
the CPU's answers) and prints what came of it as JSON. `Probe` is the other side.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ..transport import lifeline
from ..transport.messages import Load
from ..transport.processes import ChildProcess, module

MODEL = Path(__file__).with_name("probe.onnx")  # a convolution, a pool and a Gemm; made by its unit test
ROWS = 2
TIMEOUT_S = 60.0  # the first run of WebGPU on a software adapter takes 5 s, a driver's first start longer
COMMAND = module("batchyard.gpuworker.probe")


@dataclass(frozen=True)
class Probed:
    """What a probe found. `text`: the placement of the tiny model where it works, else why it doesn't."""

    works: bool
    device: int = 0
    devices: int = 1
    text: str = ""


class Probe:
    """One probe of a provider. `device`: which of its devices; None: the worker's share, by its number."""

    def __init__(self, provider: str, device: int | None, worker: int, now_s: float) -> None:
        self.provider = provider
        self._give_up_s = now_s + TIMEOUT_S
        chosen = ["--worker", str(worker)] if device is None else ["--device", str(device)]
        # A file, because a pipe that nobody reads can fill up.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*COMMAND, "--provider", provider, *chosen]
        self._child = ChildProcess(command, name="probe", stdout=self._output, stderr=self._output)
        self._child.start()

    def poll(self, now_s: float) -> Probed | None:
        """What was found; None while it isn't known. Then the process is gone."""
        status = self._child.poll()
        if status is None and now_s < self._give_up_s:
            return None
        self._child.terminate(grace_s=0.0)
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        self._output.close()
        if status is None:
            return Probed(False, text=f"its probe hung, and was ended after {TIMEOUT_S:g} s")
        return outcome(status, lines)

    def close(self) -> None:
        """End it, whatever it would find."""
        self._child.terminate(grace_s=0.0)
        self._output.close()


def outcome(status: int, lines: list[str]) -> Probed:
    """What the exit status and the output of a probe mean."""
    if status == 0 and lines:
        try:
            return Probed(**json.loads(lines[-1]))
        except (ValueError, TypeError):
            pass
    last = f": {lines[-1]}" if lines else ""
    return Probed(False, text=f"its probe ended with status {status}{last}")


def look(provider: str, device: int | None, worker: int) -> Probed:
    """Serve the tiny model on a provider, here and now."""
    from . import providers
    from .backends.onnx import ServedModel
    from .device import DeviceLost
    from .faults import CannotServe

    try:
        devices = providers.PROVIDERS[provider].devices()
        chosen = (worker - 1) % devices if device is None else device
        recipe = providers.recipe(provider, 1, chosen)
        model = ServedModel(Load("probe", 1, str(MODEL), ROWS, None, True), recipe)
    except (CannotServe, DeviceLost, ValueError, ImportError, RuntimeError) as error:
        return Probed(False, text=str(error))
    if recipe.reference is not None and model.placement.startswith("CPU"):
        return Probed(False, chosen, devices, "the runtime put every node of a tiny model on the CPU")
    return Probed(True, chosen, devices, model.placement)


def main(argv: list[str] | None = None) -> int:
    """0 with a line of JSON, whether it works or not; another status, or none, for a provider that breaks
    the process."""
    parser = argparse.ArgumentParser(
        prog="python -m batchyard.gpuworker.probe",
        description="Whether a provider works on this machine, as a line of JSON.",
        epilog="example: python -m batchyard.gpuworker.probe --provider webgpu",
    )
    parser.add_argument("--provider", required=True)
    parser.add_argument("--device", type=int)
    parser.add_argument("--worker", type=int, default=1)
    arguments = parser.parse_args(argv)
    print(json.dumps(asdict(look(arguments.provider, arguments.device, arguments.worker))), flush=True)
    return 0


if __name__ == "__main__":
    lifeline.hold()
    os._exit(main())  # it is known by now; what a driver does while it is unloaded is no part of the answer
