"""The sessions of one model, made by its provider's recipe, and the placement of its nodes.

There is one session for all batch sizes, or one for each bucket with its batch axis fixed. A session is made
when it is first needed, in the warm-up.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ..transport.tensors import TensorSpec
from .device import DeviceLost, Turns, is_lost
from .providers import Recipe

OTHER_OPERATORS_MAX = 6  # at most so many are named
ANY_SIZE = 0
UNNAMED = "?"  # axis of a TensorSpec

_turns = Turns()  # of the process: its sessions share the device
T = TypeVar("T")


class Sessions:
    """Sessions of the model at `path`. Raises onnxruntime's errors, and DeviceLost."""

    checks_outputs = False  # whether a session itself refuses an output of another shape than declared

    def __init__(self, recipe: Recipe, path: str) -> None:
        self._recipe = recipe
        self._path = path
        self._by_rows: dict[int, Any] = {}
        self._batch_axes: list[str] = []
        self._profile: tempfile.TemporaryDirectory[str] | None = None  # of a device's first session
        self.placement = ""  # the providers, in words; with the number of nodes after `note_placement`

    def fix(self, inputs: Sequence[TensorSpec], batch_axes: Sequence[int] | None) -> None:
        """From now on each batch size has its own session, if the recipe wants that and the axis can be
        fixed. An axis stays free if it has no name, or if its name also counts something else."""
        axes: list[str] = []
        if self._recipe.session_per_bucket and batch_axes is not None:
            counting: set[int | str] = set()
            others: set[int | str] = {UNNAMED}
            for value, batch_axis in zip(inputs, batch_axes, strict=False):
                for index, axis in enumerate(value.shape or ()):
                    (counting if index == batch_axis else others).add(axis)
            if not counting & others:
                axes = sorted(map(str, counting))
        if axes != self._batch_axes:
            self._by_rows.clear()
            self._batch_axes = axes

    def get(self, rows: int) -> Any:
        """The session that runs a batch of so many rows."""
        key = rows if self._batch_axes else ANY_SIZE
        session = self._by_rows.get(key)
        return self.do(lambda: self._made(key)) if session is None else session

    def do(self, work: Callable[[], T]) -> T:
        """Call `work` when it is this thread's turn on the device."""
        try:
            with _turns if self._recipe.one_at_a_time else nullcontext():
                return work()
        except Exception as error:
            if self._recipe.reference is not None and is_lost(error):
                if self._profile is not None:
                    self._profile.cleanup()
                raise DeviceLost(str(error)) from None
            raise

    def _made(self, key: int) -> Any:
        """Called in this thread's turn: a batch and a canary may want the same session."""
        if key not in self._by_rows:
            self._by_rows[key] = self._make(key)
        return self._by_rows[key]

    def _make(self, rows: int) -> Any:
        prefix = ""
        first = not self.placement
        if first and self._recipe.reference is not None:
            self._profile = tempfile.TemporaryDirectory(prefix="batchyard-", ignore_cleanup_errors=True)
            prefix = str(Path(self._profile.name, "run"))
        session = self._recipe.session(self._path, dict.fromkeys(self._batch_axes, rows), prefix)
        if first:
            self.placement = ", ".join(session.get_providers())
        return session

    def note_placement(self) -> None:
        """After the first run of a device's first session: read from its profile which provider ran
        which nodes.

        The session's own list of assignments is incomplete: with WebGPU (1.27) it has 2 of 8 nodes, those of
        the last change of layout.
        """
        if self._profile is None:
            return
        session = next(iter(self._by_rows.values()))
        try:
            self.placement = describe(json.loads(Path(session.end_profiling()).read_text())) or self.placement
        except (OSError, ValueError):  # this is only shown; a model must not fail for it
            pass
        self._profile.cleanup()
        self._profile = None


def describe(events: Any) -> str:
    """The nodes of a profile by provider, the device's first: `WebGpuExecutionProvider 8 nodes,
    CPUExecutionProvider 1 node (NonZero)`. Empty for a profile without nodes."""
    nodes: dict[str, tuple[str, str]] = {}
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments:
            nodes[event["name"]] = arguments["provider"], arguments.get("op_name", "?")
    parts = []
    counts = Counter(provider for provider, _ in nodes.values())
    for provider in sorted(counts, key=lambda name: name == "CPUExecutionProvider"):
        text = f"{provider} {counts[provider]} node{'s' * (counts[provider] != 1)}"
        if provider == "CPUExecutionProvider" and len(counts) > 1:
            operators = sorted({operator for name, operator in nodes.values() if name == provider})
            more = ", ..." if len(operators) > OTHER_OPERATORS_MAX else ""
            text += f" ({', '.join(operators[:OTHER_OPERATORS_MAX])}{more})"
        parts.append(text)
    return ", ".join(parts)
