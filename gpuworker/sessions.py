"""The sessions of one model by its provider's recipe, and on what its nodes were placed.

One session for every batch size, or one for each bucket with its batch axis fixed. They are made when
they are first needed, which is in the warm-up.
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

OTHER_OPERATORS_MAX = 6  # named of those that are not on the device
ANY_SIZE = 0
UNNAMED = "?"  # axis of a TensorSpec

_turns = Turns()  # of the process: its sessions share the device
T = TypeVar("T")


class Sessions:
    """Sessions of the model at `path`. Raises whatever onnxruntime raises, and DeviceLost."""

    def __init__(self, recipe: Recipe, path: str) -> None:
        self._recipe = recipe
        self._path = path
        self._by_rows: dict[int, Any] = {}
        self._batch_axes: list[str] = []
        self._profile: tempfile.TemporaryDirectory[str] | None = None  # of a device's first session
        self.placement = ""  # the providers, in words; after `note_placement` with the nodes of each

    def fix(self, inputs: Sequence[TensorSpec], batchable: bool) -> None:
        """From now on each batch size has a session of its own, if the recipe wants that and the model
        can be fixed. An axis without a name, or that also counts something else, stays free."""
        axes: list[str] = []
        if self._recipe.session_per_bucket and batchable:
            first = {value.shape[0] for value in inputs}
            others = {axis for value in inputs for axis in value.shape[1:]}
            if all(isinstance(axis, str) for axis in first) and not first & {*others, UNNAMED}:
                axes = sorted(map(str, first))
        if axes != self._batch_axes:
            self._by_rows.clear()
            self._batch_axes = axes

    def get(self, rows: int) -> Any:
        """The session that runs a batch of so many rows."""
        key = rows if self._batch_axes else ANY_SIZE
        session = self._by_rows.get(key)
        return self.do(lambda: self._made(key)) if session is None else session

    def do(self, work: Callable[[], T]) -> T:
        """Do something with a session, when it is this thread's turn on the device."""
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
        """In this thread's turn: a batch and a canary may want the same one."""
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
        """A device's first session has run once: read from its profile which provider ran which nodes.

        Its own list of assignments is no use: with WebGPU (1.27) it holds 2 of 8 nodes, those that came
        with the last change of layout.
        """
        if self._profile is None:
            return
        session = next(iter(self._by_rows.values()))
        try:
            self.placement = describe(json.loads(Path(session.end_profiling()).read_text())) or self.placement
        except (OSError, ValueError):  # what runs must not fail for what is only shown
            pass
        self._profile.cleanup()
        self._profile = None


def describe(events: Any) -> str:
    """A profile's nodes by provider, the device's first: `WebGpuExecutionProvider 8 nodes,
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
