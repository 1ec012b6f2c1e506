"""One loaded model: its sessions, what it takes and gives, which of its rows may share a run, its times.

What a batch's run looks like is runner.py's business; whether rows are independent, evidence/'s.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...evidence import axes as batch
from ...evidence import drawing as drawings
from ...evidence import padding
from ...evidence.drawing import SEED, Drawing
from ...evidence.drawing import find as find_drawing
from ...evidence.judge import Verdict, Ways, judge
from ...evidence.observed import Requests
from ...evidence.specs import specs_of
from ...evidence.words import first_line
from ...transport import dtypes
from ...transport.messages import LentBatch, Load, Padding, Provenance
from ...transport.tensors import Tensor, TensorSpec
from .. import provenance
from ..answers import Result
from ..comparison import Agreement
from ..faults import CannotServe, explain
from ..handles import decode, request_of
from ..memory import Memory
from ..padding import Pads
from ..providers import TOLERANCE, Recipe
from ..runner import Runner
from ..sessions import ANY_SIZE, Sessions
from ..spotchecks import SpotChecks
from ..values import Array, comparable, quiet, value_of
from ..warmup import WarmUp, doubling, is_string

LESSONS_MAX = 3  # how often the first requests may show nothing
UNUSUAL_S = 1.0  # for a run on values that might keep a loop going for ever

log = logging.getLogger("batchyard.gpuworker")


class ServedModel:
    """Sessions and what surrounds them. Raises CannotServe when the file can't be served, and DeviceLost.

    tolerance: how far the answers of a device may be off the CPU's; see `Agreement`.
    """

    apart = True  # as for Runner
    written: Sequence[bool] | None = None  # likewise
    streams = False  # it answers a request several times, by `stream`

    def __init__(self, load: Load, recipe: Recipe, tolerance: float = TOLERANCE) -> None:
        self.name = load.model
        self.recipe = recipe
        self._agreement: Agreement | None = None
        self.origin: Provenance | None = None
        self.claimed_ns: dict[int, int] = {}
        self._sessions, self.inputs, self.outputs = self._open(load, tolerance)
        self._rows_wanted = load.max_batch
        self._is_trusted = load.trusted
        self.batch_axes, reason = self._decide(load)
        self.batchable = self.batch_axes is not None
        self._why = reason
        self.max_batch = load.max_batch if self.batchable else 1
        self.buckets = self._choose_buckets(load, recipe)
        if self.buckets:
            self.max_batch = self.buckets[-1]
        self._sessions.fix(self.inputs, self.batch_axes)
        self._pads, self.padding = self._decide_padding(load)
        self.warmup_ns = self._warm_up(load)
        self._agreement = None  # and its session
        self._runner = self._make_runner()
        self.has_learned = False  # whether rows may share a run, which nobody has been told yet
        can_learn = self._undecided and recipe.in_place and not recipe.static_shapes and not load.buckets
        self._lessons = LESSONS_MAX if can_learn and load.function is None and not load.pad else 0
        self._first = Requests()  # of its requests
        self._learning: list[Verdict | None] = []  # while a lesson is under way; [None]: it has not ended

    def _make_runner(self) -> Runner:
        return Runner(
            self.name,
            self._sessions,
            self.inputs,
            self.outputs,
            self.batch_axes,
            self.max_batch,
            self.recipe.in_place,
            self.buckets,
            self.apart,
            self.written,
            self._pads,
            self._spot_checks(),
        )

    def _warm_up(self, load: Load) -> dict[int, int]:
        """The time of each batch size. A size that fails, or takes too long, is not used."""
        warm = WarmUp(
            self.name,
            self.recipe,
            self._sessions,
            self.inputs,
            self.outputs,
            self._drawing,
            self._fed,
            self._agreement,
            self._first_run_failed,
        )
        warm.written, warm.buckets, warm.max_batch = self.written, self.buckets, self.max_batch
        warm.padding, warm.pads = self.padding, self._pads
        if load.warmup or self._agreement is not None:
            warm.run(load.warmup)
        if load.warmup and warm.padding is not None and warm.padding.axes:
            warm.run_padded(load.pad or {})
        self.written, self.buckets, self.max_batch = warm.written, warm.buckets, warm.max_batch
        self.padding = warm.padding
        return warm.times_ns

    def _first_run_failed(self, error: Exception) -> None:
        """The first run failed. On a device, that is the device's fault: the CPU has run the same."""
        if self._agreement is not None:
            raise CannotServe(f"its first run failed: {first_line(error)}")
        log.warning("%s: it does not run on invented inputs: %s", self.name, first_line(error))

    def _spot_checks(self) -> SpotChecks | None:
        return SpotChecks() if self.batchable and not self._is_trusted else None

    def _open(self, load: Load, tolerance: float) -> tuple[Sessions, list[TensorSpec], list[TensorSpec]]:
        """(sessions, inputs, outputs). Raises CannotServe."""
        sessions = self._described = Sessions(self.recipe, load.path)
        if self.recipe.reference is not None:
            self._described = Sessions(self.recipe.reference, load.path)
            self._agreement = Agreement(self._described, tolerance)
        try:
            session = self._described.get(ANY_SIZE)
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and others
            raise CannotServe(explain(error, load.path)) from None
        self.origin, self.claimed_ns = provenance.read(session, load.path, self.recipe.name)
        try:
            inputs, outputs = specs_of(session)
        except ValueError as error:
            raise CannotServe(str(error)) from None
        return sessions, inputs, outputs

    def run(self, batch: LentBatch, memory: Memory) -> Result:
        """Run a batch. Raises ItemRefused for an item whose handles are wrong; anything else that
        the runtime raises is the model's failure."""
        result = self._runner.run(batch, memory)
        if self._lessons:
            self._learn_from(batch, memory)
        return result

    # ---- a model that runs on no invented input learns from its first requests -----------------

    def _learn_from(self, batch: LentBatch, memory: Memory) -> None:
        """Keep its requests until there are some, and then try their rows as invented ones are tried: on a
        thread of its own, beside the batches."""
        if not self._learning:
            for item in decode(bytes(batch.items)):
                request = request_of(item, self.inputs, memory)
                if request is not None:
                    self._first.keep(request)
            if self._first.is_full:
                self._learning = [None]
                threading.Thread(target=self._judge_requests, name="batchyard-learn", daemon=True).start()
            return
        verdict = self._learning[0]
        if verdict is None:
            return
        self._learning = []
        self._first = Requests()
        self._lessons -= 1
        if verdict.axes is not None:
            self._lessons = 0
            self.batch_axes, self._why = verdict.axes, f"{verdict.reason} (on its first requests)"
            self.batchable = self.has_learned = True
            self.max_batch = self._rows_wanted
            self._runner = self._make_runner()
        elif not verdict.undecided:
            self._lessons = 0
            self._why = verdict.reason
            self.has_learned = True

    def _judge_requests(self) -> None:
        try:
            self._learning = [self._judge(self._proposed, self._first.ways)]
        except Exception as error:  # it runs alone, as before
            log.warning("%s: it has learned nothing from its first requests: %s", self.name, error)
            self._learning = [Verdict(None, "")]

    def stream(self, batch: LentBatch, memory: Memory, emit: Callable[[list[Tensor], Any], bool]) -> Result:
        """As `run`, of a model that answers several times: `emit` sends each answer, and says whether another
        is wanted."""
        raise TypeError(f"{self.name!r} answers once: run it")

    def forget_bindings(self) -> None:
        """Drop every binding: some arena is about to be unmapped."""
        self._runner.forget_bindings()

    @property
    def alone_reason(self) -> str:
        """Why requests run alone; "" where rows may share a run."""
        return "" if self.batchable else self.disproved or self._why

    @property
    def evidence(self) -> str:
        """Why rows may share a run, with the figure."""
        return self._why if self.batchable else ""

    @property
    def disproved(self) -> str:
        """Why requests run alone from now on, where a run has shown that their rows can't share one."""
        return self._runner.alone_reason

    @property
    def placement(self) -> str:
        """The providers that the sessions run on; of a device's, how many nodes each runs."""
        return self._sessions.placement

    # ---- which rows may share a run -----------------------------------------------------------

    def _decide(self, load: Load) -> tuple[list[int] | None, str]:
        """(where the rows are, or None; why)."""
        self._drawing: Drawing | None = None
        self._looked = False  # for inputs of one that runs alone
        self._undecided = False  # requests may show what no invented input does
        self._proposed: list[batch.Proposal] = []
        refusal = self._refusal(load)
        proposals: list[batch.Proposal] = []
        if not refusal:
            try:
                proposals, refusal = self._proposals(load)
            except ValueError as error:
                raise CannotServe(str(error)) from None
        trusted = next((p for p in proposals if p.outputs is not None), None) if load.trusted else None
        if trusted is not None:
            self._drawing = find_drawing(self.inputs, trusted.inputs, self._run_described)
            axes = [*trusted.inputs, *(trusted.outputs or ())]
            return axes, f"{trusted.why}; its configuration vouches for it (trusted)"
        if proposals:
            verdict = self._judge(proposals)
            self._undecided, self._proposed = verdict.undecided, proposals
            self._drawing = verdict.drawing
            if verdict.axes is not None:
                return verdict.axes, verdict.reason
            refusal = verdict.reason
        if load.warmup:
            self._find_drawing()
        return None, refusal

    def _find_drawing(self) -> None:
        """Find inputs for a model that runs alone."""
        if self._drawing is None and not self._looked:
            self._looked = True
            self._drawing = find_drawing(self.inputs, [batch.SHARED] * len(self.inputs), self._run_described)

    def _refusal(self, load: Load) -> str:
        """Why no axis need be looked for; "": it may have one."""
        if load.batchable is False:
            return "its configuration says batchable = false"
        for spec in (*self.inputs, *self.outputs):
            if not dtypes.BY_CODE[spec.dtype].itemsize:
                return f"{spec} is of a type whose rows can't be cut"
        return ""

    def _proposals(self, load: Load) -> tuple[list[batch.Proposal], str]:
        if load.batch_axis is not None:
            return [batch.by_position(self.inputs, self.outputs, load.batch_axis)], ""
        proposals, reason = batch.propose(self.inputs, self.outputs)
        if load.batchable and not proposals:
            raise ValueError(f"its configuration says batchable = true, but {reason}")
        return proposals, reason

    def _judge(self, proposals: list[batch.Proposal], ways: Ways = drawings.ways) -> Verdict:
        return judge(
            self.inputs,
            self.outputs,
            self._run_described,
            proposals,
            ways,
            rows_max=self._rows_wanted,
            run_unusual=self._run_bounded,
        )

    def _decide_padding(self, load: Load) -> tuple[Pads | None, Padding | None]:
        """How requests of different sizes share a run, and what the broker is told of it."""
        if not load.pad:
            return None, None
        if load.function is not None:
            raise CannotServe("pad: this is for ONNX files; a Python function pads by itself")
        axes = self.batch_axes
        try:
            found = padding.axes_of(self.inputs, axes, list(load.pad))
            fills = padding.fills_of(self.inputs, load.pad, found)
            if axes is None:
                verdict = padding.PadVerdict(None, [], f"its requests run alone: {self._why}")
            else:
                verdict = padding.judge(
                    self.inputs, self.outputs, self._run_described, self._drawing, axes, load.pad
                )
        except ValueError as error:
            raise CannotServe(f"pad: {error}") from None
        if verdict.inputs is None:
            log.warning("%s: no padding, though the configuration asks for it: %s", self.name, verdict.reason)
        whole = self.recipe.static_shapes
        pads = Pads(load.pad, self.inputs, self.outputs, verdict, fills, whole)
        return pads, Padding(verdict.inputs or [], verdict.reason, whole)

    def _run_bounded(self, feeds: dict[str, Array]) -> list[Array]:
        """The same of a model that takes milliseconds. One that does not end is ended by an error."""
        options = quiet()
        timer = threading.Timer(UNUSUAL_S, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._run_described(feeds, options)
        finally:
            timer.cancel()

    def _run_described(self, feeds: dict[str, Array], options: Any = None) -> list[Array]:
        """Run on the CPU if a device is compared with it, else on the model's sessions."""
        session = self._described.get(ANY_SIZE)
        options = options or quiet()
        if any(map(is_string, self.inputs)):
            answers: list[Array] = session.run(None, feeds, options)
            return answers
        values = self._described.do(lambda: session.run_with_ort_values(None, self._fed(feeds), options))
        return [comparable(value, spec) for value, spec in zip(values, self.outputs, strict=True)]

    def _choose_buckets(self, load: Load, recipe: Recipe) -> list[int]:
        """The batch sizes that are run, rising; empty: any."""
        if not self.batchable or not (load.buckets or recipe.static_shapes):
            return []
        return load.buckets or doubling(min(self.max_batch, recipe.rows_max))

    def canary(self, rows: int) -> dict[str, Array] | None:
        """Inputs that the model runs on, drawn from a fixed seed, for `answers`; None: none are known."""
        self._find_drawing()
        if self._drawing is None:
            return None
        return self._drawing.feeds(rows, np.random.default_rng(SEED))

    def answers(self, feeds: dict[str, Array], rows: int) -> list[Array]:
        """Run once, beside whatever else runs; an array for each output."""
        session = self._sessions.get(rows if self.batchable else 1)
        if any(map(is_string, self.inputs)):
            answers: list[Array] = self._sessions.do(lambda: session.run(None, feeds))
            return answers
        values = self._sessions.do(lambda: session.run_with_ort_values(None, self._fed(feeds)))
        return [comparable(value, spec) for value, spec in zip(values, self.outputs, strict=True)]

    def _fed(self, feeds: dict[str, Array]) -> dict[str, Any]:
        specs = {spec.name: spec for spec in self.inputs}
        return {name: value_of(array, specs[name]) for name, array in feeds.items()}


def serves(load: Load) -> bool:
    """Whether a model is of this kind: every one that no other backend serves."""
    return True


def make(load: Load, recipe: Recipe, tolerance: float) -> ServedModel:
    return ServedModel(load, recipe, tolerance)
