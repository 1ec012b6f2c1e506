"""A worker on a device that breaks: `python breaking_device.py worker FOLDER ...`, arguments as for a worker.

Supervisor, probe and child are the real ones, each in its process; only WebGPU's recipe is replaced, by one
whose sessions run on the CPU and lose their device at the RUNS_PER_LIFE-th batch of a process, for as long
as there is no file FOLDER/healed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

RUNS_PER_LIFE = 5
QUARANTINE_NS = 2 * 10**9
LOST = "WebGPU device lost (1): a valid external Instance reference no longer exists."


class BreakingSession:
    """A session whose batches end at some time; the warm-up's runs are another method, and don't count."""

    runs = count(1)

    def __init__(self, session: Any, is_healed: Callable[[], bool]) -> None:
        self._session = session
        self._is_healed = is_healed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        if next(self.runs) >= RUNS_PER_LIFE and not self._is_healed():
            raise RuntimeError(LOST)
        self._session.run_with_iobinding(binding)


def break_webgpu(folder: Path) -> None:
    """Replace what this process knows of WebGPU."""
    from batchyard.gpuworker.providers import Recipe, base_options, cpu, webgpu

    @dataclass(frozen=True)
    class BreakingRecipe(Recipe):
        def session(self, *arguments: Any) -> Any:
            return BreakingSession(super().session(*arguments), (folder / "healed").exists)

    def recipe(threads: int, device: int, whole: bool) -> Recipe:
        here: list[Any] = ["CPUExecutionProvider"]
        made = {"reference": cpu.recipe(threads), "static_shapes": True, "one_at_a_time": True}
        return BreakingRecipe("webgpu", base_options, here, **made)  # type: ignore[arg-type]

    webgpu.found = lambda: True  # type: ignore[assignment]
    webgpu.recipe = recipe  # type: ignore[assignment]


def main() -> int:
    process, folder, *arguments = sys.argv[1:]
    from batchyard.gpuworker import __main__ as worker
    from batchyard.gpuworker import child, ladder, probe, providers, supervisor

    if process == "worker":
        me = [sys.executable, __file__]
        probe.COMMAND = [*me, "probe", folder]
        supervisor.COMMAND = [*me, "child", folder]
        providers.installed = lambda: ["webgpu", "cpu"]  # type: ignore[assignment]
        worker.Ladder = partial(ladder.Ladder, quarantine_ns=QUARANTINE_NS)  # type: ignore[assignment, misc]
        return worker.main(arguments)
    break_webgpu(Path(folder))
    if process == "probe":
        probe.look = lambda provider, *_: probe.Probed(True, text="a device that breaks later")  # type: ignore[assignment]
        return probe.main(arguments)
    return child.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
