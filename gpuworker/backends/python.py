"""Models that are Python functions. Runner and ServedModel do with them what they do with any model: gather,
pad, scatter, warm up, compare. `calls.py` calls the function.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import msgspec

from ...evidence.axes import SHARED, Proposal
from ...evidence.drawing import Drawing, ways
from ...evidence.judge import Verdict, Ways
from ...evidence.words import first_line
from ...transport.messages import LentBatch, Load, Provenance
from ...transport.python_models import Function
from ...transport.tensors import TensorSpec
from .. import imports, provenance
from ..answers import Result
from ..calls import FunctionSession, FunctionValue
from ..faults import CannotServe
from ..imports import UserError
from ..memory import Memory
from ..providers import Recipe
from ..sessions import Sessions
from ..streams import Emit, run_stream
from .onnx import ServedModel


class FunctionModel(ServedModel):
    """A function, or an object of a class, that is served. Raises CannotServe when it can't be."""

    apart = False  # a function is called for a batch, not for each of its items

    def __init__(self, load: Load, function: Function) -> None:
        self._place = imports.place_of(function, load.path)
        self._function = function
        self._own = ""
        try:
            found, self._own = imports.find(function, load.path)
            weakref.finalize(self, imports.forget, self._own).atexit = False
            signature = imports.signature_of(found, function, self._place)
            self._call = imports.call_of(found, self._place)
        except UserError as error:
            raise CannotServe(str(error)) from None
        self._signature = signature
        self.streams = imports.streams(self._call)
        self._memory: Memory | None = None
        most = min(load.max_batch, signature.max_batch or load.max_batch)
        if load.buckets and load.buckets[-1] > most:
            raise CannotServe(f"{self._place} takes {most} rows at most, and its largest bucket is more")
        # What it returns is copied to where it belongs.
        super().__init__(msgspec.structs.replace(load, max_batch=most), Recipe("python", dict, None))

    @property
    def placement(self) -> str:
        return self._place

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """As for any model; and the copy of what the function returned counts as copied."""
        self._memory = memory
        self._session.copied_bytes = 0
        result = super().run(batch, memory)
        result.copied_bytes += self._session.copied_bytes
        return result

    def stream(self, batch: LentBatch, memory: Memory, emit: Emit) -> Result:
        return run_stream(self._session, self.name, batch, memory, emit)

    def _refusal(self, load: Load) -> str:
        if self.streams:
            return "it yields its answers one by one, so a request has it for itself"
        return super()._refusal(load)

    def _open(self, load: Load, tolerance: float) -> tuple[Sessions, list[TensorSpec], list[TensorSpec]]:
        view = weakref.WeakMethod(self._view)  # no cycle: a model that is dropped must go at once, because
        # the loader freezes what the collector knows of
        session = self._session = FunctionSession(self._call, self._place, self._signature, view)
        if not session.outputs:
            if not load.warmup:
                raise CannotServe(f"{self._place} declares no outputs, and warmup = false forbids to try it")
            try:
                session.outputs = session.found_outputs()
            except UserError as error:
                raise CannotServe(f"its first run failed: {error}") from None
        file = imports.file_of(self._function, load.path)
        if file:
            self.origin = Provenance(provenance.digest_of(file))
        self.written = [True] * len(session.outputs)  # what it returns is copied to where it belongs
        return _One(self.recipe, session), session.inputs, session.outputs

    def _judge(self, proposals: list[Proposal], ways: Ways = ways) -> Verdict:
        """Its declaration is believed: user code is not run on invented data to be tried."""
        axes = [SHARED] * len(self.inputs)
        if not proposals[0].is_named:
            reason = "its inputs and outputs call axis 0 by different names"
            return Verdict(None, reason, Drawing(self.inputs, axes, zeros=True))
        found = proposals[0]
        axes = [*found.inputs, *(found.outputs or ())]
        self._session.batch_axes = axes
        return Verdict(axes, f"{found.why}, as it declares", Drawing(self.inputs, found.inputs, zeros=True))

    def _decide(self, load: Load) -> tuple[list[int] | None, str]:
        axes, reason = super()._decide(load)
        if self._drawing is None:
            self._drawing = Drawing(self.inputs, [SHARED] * len(self.inputs), zeros=True)
        return axes, reason

    def _spot_checks(self) -> None:
        return None

    def _first_run_failed(self, error: Exception) -> None:
        raise CannotServe(f"its first run failed: {first_line(error)}")

    def _fed(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {name: FunctionValue(array) for name, array in feeds.items()}

    def _view(self, address: int, nbytes: int) -> memoryview:
        """The bytes that a batch's run is bound to."""
        assert self._memory is not None
        view = self._memory.view(address, nbytes)
        view = self._runner.view(address, nbytes) if view is None else view
        assert view is not None
        return view


class _One(Sessions):
    """The session of a function, which is the same for every batch size."""

    checks_outputs = True

    def __init__(self, recipe: Recipe, session: FunctionSession) -> None:
        super().__init__(recipe, "")
        self._only = session

    def _make(self, rows: int) -> FunctionSession:
        return self._only


def serves(load: Load) -> bool:
    """Whether a model is a Python function."""
    return load.function is not None


def make(load: Load, recipe: Recipe, tolerance: float) -> FunctionModel:
    assert load.function is not None
    return FunctionModel(load, load.function)
