"""`python -m batchyard.gpuworker.probe`: finds out whether a provider works here, in a throw-away process.

A broken driver reports no error: it crashes, hangs, or computes nonsense. So this process serves a tiny model
as a worker would, with the recipe's sessions, in every bucket, and compares the answers with the CPU's. It
prints the result as JSON. `Probe` starts it and reads that.
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
TIMEOUT_S = 60.0  # WebGPU's first run on a software adapter takes 5 s; a driver's first start takes longer
COMMAND = module("batchyard.gpuworker.probe")


@dataclass(frozen=True)
class Probed:
    """A probe's result. `text`: the placement of the tiny model; if it does not work, the reason."""

    works: bool
    device: int = 0
    devices: int = 1
    text: str = ""


class Probe:
    """One probe of a provider. `device`: the number of its device; None: chosen by the worker's number."""

    def __init__(self, provider: str, device: int | None, worker: int, now_s: float) -> None:
        self.provider = provider
        self._give_up_s = now_s + TIMEOUT_S
        chosen = ["--worker", str(worker)] if device is None else ["--device", str(device)]
        # A file: a pipe that is not read fills up, and blocks the child.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [*COMMAND, "--provider", provider, *chosen]
        self._child = ChildProcess(command, name="probe", stdout=self._output, stderr=self._output)
        self._child.start()

    def poll(self, now_s: float) -> Probed | None:
        """The result, or None while the probe runs. With a result, the process has ended."""
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
        """End it without a result."""
        self._child.terminate(grace_s=0.0)
        self._output.close()


def outcome(status: int, lines: list[str]) -> Probed:
    """The result, from the probe's exit status and output."""
    if status == 0 and lines:
        try:
            return Probed(**json.loads(lines[-1]))
        except (ValueError, TypeError):
            pass
    last = f": {lines[-1]}" if lines else ""
    return Probed(False, text=f"its probe ended with status {status}{last}")


def look(provider: str, device: int | None, worker: int) -> Probed:
    """Serve the tiny model on a provider, in this process."""
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
    """Returns 0 and prints a line of JSON, whether the provider works or not. Any other end means that the
    provider has broken the process."""
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
    os._exit(main())  # without unloading the driver: a crash there would hide the result
