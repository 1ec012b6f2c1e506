"""The warm-up of a model: every batch size that will be run is run once, timed, and on a device compared with
the CPU. Its times seed the broker's predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from time import perf_counter_ns
from typing import Any

import numpy as np

from ..evidence.drawing import SEED, Drawing
from ..evidence.words import first_line
from ..transport import dtypes
from ..transport.messages import Pad, Padding
from ..transport.tensors import TensorSpec
from .comparison import Agreement
from .device import DeviceLost
from .padding import Pads
from .providers import Recipe
from .sessions import Sessions
from .values import Array
from .written import written_outputs

WARMUP_BYTES_MAX = 64 << 20  # of inputs, in one warm-up run
WARMUP_NS_MAX = 2_000_000_000
PADDED_TIMES_MAX = 16  # batch sizes of one padded size
PADDED_ROWS_MAX = 4  # of warm-up runs of padded sizes: what a run costs beside its elements shows in few

log = logging.getLogger("batchyard.gpuworker")


class WarmUp:
    """Runs a model on inputs drawn from `drawing`; None: there are none. `fed` makes of arrays what a session
    takes. `agreement`: the CPU's answers, of a model on a device. `first_run_failed(error)` decides what
    becomes of a model that does not run at all.

    Afterwards `times_ns` has the time of each size, `written` the outputs that a run writes where it is told
    to (None: not found out); `buckets`, `max_batch` and `padding` are what is left of them.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        sessions: Sessions,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        drawing: Drawing | None,
        fed: Callable[[dict[str, Array]], dict[str, Any]],
        agreement: Agreement | None,
        first_run_failed: Callable[[Exception], None],
    ) -> None:
        self._name = name
        self._recipe = recipe
        self._sessions = sessions
        self._inputs = inputs
        self._outputs = outputs
        self._drawing = drawing
        self._fed = fed
        self._agreement = agreement
        self._first_run_failed = first_run_failed
        self.times_ns: dict[int, int] = {}
        self.written: Sequence[bool] | None = None
        self.buckets: list[int] = []
        self.max_batch = 1
        self.padding: Padding | None = None
        self.pads: Pads | None = None

    def run(self, every_size: bool) -> None:
        """Run every bucket, or every power of two up to max_batch, and time it; else the smallest alone.
        On a device, check that it answers as the CPU does.

        It is no examination: a model that does not run on what is invented here is served all the same,
        and its times are learned from its first requests. A size that fails where a smaller one ran is
        not used.
        """
        if self._drawing is None or any(map(is_string, self._inputs)):
            if self._agreement is not None:
                log.warning("%s: no inputs could be invented to compare the device with the CPU", self._name)
            return
        started_ns = perf_counter_ns()
        must = set(self.buckets)  # a size that has not been run may be slow, or fail
        sizes = self.buckets or doubling(self.max_batch)
        for rows in sizes if every_size else sizes[:1]:
            arrays = self._drawing.feeds(rows, np.random.default_rng(SEED))
            feeds = self._fed(arrays)
            nbytes = sum(array.nbytes for array in arrays.values())
            if rows > 1 and nbytes > WARMUP_BYTES_MAX and rows not in must:
                break
            expected = self._agreement.expected(feeds) if self._agreement is not None else None
            try:
                answers, self.times_ns[rows] = self._timed_run(feeds, rows)
            except DeviceLost:
                raise
            except Exception as error:
                if rows == sizes[0]:
                    self._first_run_failed(error)
                else:
                    self._limit(max(self.times_ns), f"{rows} rows fail: {first_line(error)}")
                return
            if self._agreement is not None and expected is not None:
                self._agreement.check(self._outputs, expected, answers)
            if rows == sizes[0]:
                self._sessions.note_placement()
                if self.written is None and not any(map(is_string, self._outputs)):
                    self.written = self._find_written(feeds, answers, rows)
            if perf_counter_ns() - started_ns > WARMUP_NS_MAX and not must:
                break
            if self._too_long_beyond(rows):
                break

    def run_padded(self, pads: Mapping[str, Pad]) -> None:
        """Time runs of each padded size, of one row and of more, as far as the time for it goes; on a device
        each once, because the first run of a shape may take long."""
        assert self.padding is not None
        assert self._drawing is not None
        times = self.padding.run_ns
        until_ns = perf_counter_ns() + WARMUP_NS_MAX
        for number in range(max(len(pad.to) for pad in pads.values())):
            sizes = {name: pad.to[min(number, len(pad.to) - 1)] for name, pad in pads.items()}
            for rows in self.buckets[:PADDED_TIMES_MAX] or doubling(min(self.max_batch, PADDED_ROWS_MAX)):
                if perf_counter_ns() > until_ns and not (self.padding.whole and rows == 1):
                    break
                feeds = self._drawing.feeds(rows, np.random.default_rng(SEED), sizes)
                try:
                    _, took_ns = self._timed_run(self._fed(feeds), rows)
                except DeviceLost:
                    raise
                except Exception as error:
                    self._padded_run_failed(f"padded to {sizes} it fails: {first_line(error)}")
                    return
                times.setdefault(prod(sizes.values()), {})[rows] = took_ns

    def _padded_run_failed(self, text: str) -> None:
        """Where batches are padded to the longest of their requests, no request is made longer than that."""
        log.warning("%s: %s", self._name, text)
        if self.padding is not None and self.padding.whole and self.pads is not None:
            self.pads.stopped = True
            self.padding = Padding([], text)

    def _limit(self, rows: int, why: str) -> None:
        """No larger batches than this."""
        log.warning("%s: no more than %d rows in a batch: %s", self._name, rows, why)
        self.buckets = [size for size in self.buckets if size <= rows]
        self.max_batch = min(self.max_batch, rows)

    def _too_long_beyond(self, rows: int) -> bool:
        """Whether the next bucket's run would take longer than the device allows; then it is not used."""
        larger = [size for size in self.buckets if size > rows]
        limit_ns = self._recipe.run_ns_max
        if not larger or not limit_ns or self.times_ns[rows] * larger[0] <= limit_ns * rows:
            return False
        took_ms = self.times_ns[rows] / 1e6
        self._limit(rows, f"they take {took_ms:.0f} ms, and larger ones would hold the device for too long")
        return True

    def _timed_run(self, feeds: dict[str, Any], rows: int) -> tuple[list[Any], int]:
        """(outputs, the better of two times): the first run of a size also allocates."""
        session = self._sessions.get(rows)
        times = []
        for _ in range(2):
            before_ns = perf_counter_ns()
            answers = self._sessions.do(lambda: session.run_with_ort_values(None, feeds))
            times.append(perf_counter_ns() - before_ns)
        return answers, min(times)

    def _find_written(self, feeds: dict[str, Any], answers: Sequence[Any], rows: int) -> list[bool]:
        def bind_inputs(binding: Any) -> None:
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, value)

        session = self._sessions.get(rows)
        return written_outputs(session, self._sessions.do, bind_inputs, self._outputs, answers)


def is_string(spec: TensorSpec) -> bool:
    return spec.dtype == dtypes.STRING


def doubling(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(sizes[-1] * 2, most))
    return sizes
