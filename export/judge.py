"""Measures files against a model's test cases: differences, times, and every reason against a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..transport.errors import InvalidRequest, ModelFailed
from . import axes, gate, kinds, naming, runtime, timing, validation
from .report import BASES, Variant
from .specs import BATCH, Array, Feeds, InputSpec, sample

BATCHES_TIMED = (1, 8)
UNSURE_MAX = 1.25  # a little slower than allowed is measured again, AGAIN times as long
AGAIN = 3
ROWS_VARIED = 2  # of the cases with other sizes of free axes


class Judge:
    """Holds a model's cases and its plain session, and measures files against them."""

    def __init__(
        self,
        specs: tuple[InputSpec, ...],
        reference: Callable[[Mapping[str, Array]], list[Array]],
        given: Feeds | None,
        free: axes.FreeAxes,
        batch_max: int,
        where: runtime.Target,
        measure_s: float,
        quiet: Callable[[], AbstractContextManager[None]],
        task: str,
        is_fixed: bool,
    ) -> None:
        self._where = where
        self._measure_s = measure_s
        self._quiet = quiet
        self._task = task
        self._kinds: tuple[str, ...] = ()
        self._reference = reference
        has_batch = any(spec.batch_axis is not None for spec in specs)
        own = axes.own_sizes(specs)
        # Noise is no fair judge of a variant that was calibrated for real rows: its ranges end there.
        self.cases = self._judged(specs, reference, given, min(validation.ROWS_AT_ONCE, batch_max), has_batch)
        batch_sizes = [size for size in validation.BATCHES if size <= batch_max] if has_batch else []
        self.cases_all = [
            *validation.random_cases(specs, reference, batch_sizes),
            *([] if has_batch else [validation.sized_case(specs, reference, {})]),
        ]
        varied, self.checked, refused = validation.varied_cases(
            specs, reference, own, free.bounds, min(ROWS_VARIED, batch_max)
        )
        self._refuse_unvaried(refused, free)
        self.cases_all += varied + self.cases
        self.nan_share = validation.nan_share(self.cases_all)
        self._timed = (
            {
                rows: sample(specs, {BATCH: rows}, validation.SEED)
                for rows in BATCHES_TIMED
                if rows <= batch_max
            }
            if has_batch
            else {specs[0].shape[0] if is_fixed else 1: sample(specs, {}, validation.SEED)}
        )
        self.base: Variant
        self._session: Any = None

    def _judged(
        self,
        specs: tuple[InputSpec, ...],
        reference: Callable[[Mapping[str, Array]], list[Array]],
        given: Feeds | None,
        at_once: int,
        has_batch: bool,
    ) -> list[validation.Case]:
        if given is not None:
            return validation.given_cases(given, specs, reference, at_once)
        if has_batch:
            rows = sample(specs, {BATCH: validation.ROWS_JUDGED}, validation.SEED)
            return validation.given_cases(rows, specs, reference, at_once)
        pieces = max(1, validation.ROWS_JUDGED // specs[0].shape[0])
        return [
            validation.sized_case(specs, reference, {}, validation.SEED + piece) for piece in range(pieces)
        ]

    def _refuse_unvaried(self, refused: Mapping[str, str], free: axes.FreeAxes) -> None:
        wanted = {name for names in free.names.values() for name in names.values()}
        for name, text in refused.items():
            if name in wanted:
                raise InvalidRequest(
                    f"{name} cannot be free: PyTorch took no other size of it than "
                    f"{self.checked[name][0]} (bounds: --dynamic INPUT:AXIS={name}:MIN-MAX). {text}"
                )

    def plain(self, proto: Any, name: str, precision: str, doubtful: Sequence[naming.Fixed]) -> None:
        """Take `proto` for what variants are compared with. Raises ModelFailed unless it is as PyTorch, and
        InvalidRequest where an axis that its tracer had fixed (`doubtful`) cannot be free."""
        if self.nan_share == 1:
            raise ModelFailed(f"{name}: its own answers to random inputs are all NaN: nothing to compare")
        content = proto.SerializeToString()
        self._session = runtime.session(content, self._where)
        self._kinds = kinds.kinds(proto, self.cases_all[0].wanted, self._task)
        refusal: str | None
        try:
            difference = validation.compare(self.cases_all, self._answer(self._session), self._kinds)
            refusal = gate.refusal(difference, precision)
        except ModelFailed as error:
            if not doubtful:
                raise
            refusal = f"does not run: {error}"
        if refusal and self._is_random(precision):
            raise ModelFailed(
                f"{name} answers the same inputs differently each time (it draws random numbers), so no file "
                "can be compared with it"
            )
        if refusal and doubtful:
            raise InvalidRequest(
                f"{name}: {doubtful[0]}, so it cannot be free as {doubtful[0].name}: "
                f"with other sizes the file {refusal}. A Python loop over an axis is written for one size: "
                "use nn.RNN, nn.GRU or nn.LSTM (float32), or leave out --dynamic for it"
            )
        if refusal:
            raise ModelFailed(f"{name} {refusal}")
        # Against itself: its times, and a ratio that shows how noisy this machine is.
        times = self._times(self._session, self._measure_s)
        self.base = Variant(BASES[precision], len(content), 1.0, times, difference)

    def _is_random(self, precision: str) -> bool:
        again = validation.compare(self.cases_all[:1], self._reference, self._kinds)
        return gate.refusal(again, precision) is not None

    def variant(self, name: str, proto: Any, tolerance: gate.Tolerance) -> Variant:
        """Figures, and every reason against it."""
        content = proto.SerializeToString()
        session = runtime.session(content, self._where)
        ratio = len(content) / self.base.nbytes
        difference = validation.compare(self.cases, self._answer(session), self._kinds)
        timings = self._times(session, self._measure_s)
        if gate.SLOWER_MAX < max(timing.ratio for timing in timings) < UNSURE_MAX:
            timings = self._times(session, AGAIN * self._measure_s)  # a neighbour's noise refuses nobody
        reasons = gate.refusals(ratio, timings, difference, tolerance)
        return Variant(name, len(content), ratio, timings, difference, tuple(reasons))

    @staticmethod
    def _answer(session: Any) -> Callable[[Feeds], list[Array]]:
        return lambda feeds: runtime.run(session, feeds)

    def _times(self, session: Any, budget_s: float) -> tuple[timing.Timing, ...]:
        with self._quiet():
            return tuple(
                timing.interleaved(
                    lambda feeds=feeds: runtime.run(self._session, feeds),  # type: ignore[misc]
                    lambda feeds=feeds: runtime.run(session, feeds),  # type: ignore[misc]
                    rows,
                    self._where.provider,
                    budget_s=budget_s,
                )
                for rows, feeds in self._timed.items()
            )
