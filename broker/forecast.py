"""When a request that comes now would be done: after the requests before it, at its class's pace.

What is left depends on what higher classes will ask for, which is taken to be what they have asked for
and been given lately (both: a burst that waits is counted as waiting, and is no habit yet). And a
forecast that was wrong makes the next ones more careful, class by class.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .models import Model
from .policy import OVERDUE_SHARE
from .serving import Worker

LATELY_NS = 100_000_000
UPDATE_NS = 20_000_000
# By class, how many times the computed wait is expected. Every deadline that is missed raises it, every
# one that is met lowers it, so that about one in 200 is missed. LOW looks the furthest ahead, and is shed
# first: it is promised least.
CAUTION_MIN = (1.0, 1.0, 1.0, 2.0)
CAUTION_MAX = 4.0
OVERHEAD_WEIGHT = 0.05
OVERHEAD_MAX = 4.0
MISSED_FACTOR = 1.02
MET_FACTOR = 0.9999


class Forecast:
    """Learns from the batches that run and the deadlines that are met. Admitted work is added to `asked_ns`,
    by class."""

    def __init__(self, models: Mapping[str, Model], workers: Mapping[int, Worker]) -> None:
        self._models = models
        self._workers = workers
        self._caution = list(CAUTION_MIN)
        self.is_careful = False  # some deadline was missed, and that is not forgotten yet
        self._overhead = 1.0  # how many times its own time a batch keeps its worker from the next one
        # By class, since the last update: the time of the rows admitted, and of the rows run.
        self.asked_ns = [0.0] * len(CAUTION_MIN)
        self._served_ns = [0.0] * len(CAUTION_MIN)
        self._updated_ns = 0
        # By class, lately: the parts of the workers' time.
        self._asked = [0.0] * len(CAUTION_MIN)
        self._served = [0.0] * len(CAUTION_MIN)

    # ---- learning ----------------------------------------------------------------------------

    def ran(self, rows: Sequence[int], row_ns: float, took_ns: int, held_ns: int, now_ns: int) -> None:
        """A batch has run, of so many rows of each class. It took so long, and kept its worker for so
        long, as seen from here."""
        if now_ns - self._updated_ns > UPDATE_NS:
            self._look_back(now_ns)  # often, or a burst and its run would fall together
        for priority, count in enumerate(rows):
            if count:
                self._served_ns[priority] += count * row_ns
        if took_ns > 0:
            ratio = min(OVERHEAD_MAX, max(1.0, held_ns / took_ns))
            self._overhead += (ratio - self._overhead) * OVERHEAD_WEIGHT

    def ended(self, priority: int, in_time: bool) -> None:
        """A request with a deadline has ended: in time, or late."""
        caution = self._caution[priority]
        if not in_time:
            self._caution[priority] = min(CAUTION_MAX, caution * MISSED_FACTOR)
            self.is_careful = True
        elif caution > CAUTION_MIN[priority]:
            self._caution[priority] = max(CAUTION_MIN[priority], caution * MET_FACTOR)
            self.is_careful = tuple(self._caution) != CAUTION_MIN

    # ---- predicting --------------------------------------------------------------------------

    def finish_ns(self, model: Model, rows: int, priority: int, now_ns: int) -> int:
        """When so many more rows of a class would be done: after the leases, and after the queue of
        its class and above, in full batches. `now_ns` when nothing is known.

        It takes every worker of this model for a worker of the others.
        """
        serving = [self._workers[number] for number in model.workers]
        if not serving or not model.row_ns:
            return now_ns
        ahead_ns = rows * model.row_ns
        below = 0  # rows
        for other in self._models.values():
            ahead_ns += sum(other.waiting[: priority + 1]) * other.row_ns
            below += sum(other.waiting[priority + 1 :])
        free_ns = min(max(worker.busy_until_ns, now_ns) for worker in serving)
        own_ns = min(
            worker.timings[model.name].predict_ns(min(rows, worker.rows_max[model.name]))
            for worker in serving
        )
        least = 1 / OVERDUE_SHARE
        share = max(least, 1 - self._load_above(priority, now_ns) - (least if below else 0.0))
        wait_ns = ahead_ns / len(serving) / share * self._overhead * self._caution[priority]
        return free_ns + max(own_ns, int(wait_ns))

    def _load_above(self, priority: int, now_ns: int) -> float:
        """The share of the workers' time that higher classes will take."""
        self._look_back(now_ns)
        pairs = zip(self._asked[:priority], self._served[:priority], strict=True)
        return sum(min(asked, served) for asked, served in pairs)

    def _look_back(self, now_ns: int) -> None:
        """Update the latest shares."""
        passed_ns = now_ns - self._updated_ns
        if passed_ns <= UPDATE_NS:
            return
        self._updated_ns = now_ns
        all_ns = passed_ns * max(1, len(self._workers))
        weight = min(1.0, passed_ns / LATELY_NS)
        for index in range(len(CAUTION_MIN)):
            # Bounded: a burst says little about the next moments.
            asked = min(1.0, self.asked_ns[index] / all_ns)
            self._asked[index] += (asked - self._asked[index]) * weight
            self._served[index] += (self._served_ns[index] / all_ns - self._served[index]) * weight
            self.asked_ns[index] = self._served_ns[index] = 0.0
