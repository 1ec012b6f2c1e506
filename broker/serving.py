"""Workers as the core knows them, and the batches that they have been lent.

Owns what a worker serves, how long its runs take, and its leases. Pure: no clock, no sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..transport import messages as m
from .elements import ElementTimes
from .ragged import RaggedLane
from .timing import TimeModel

if TYPE_CHECKING:
    from .lanes import Lane
    from .models import Model
    from .requests import Part

HOST = ("cpu", "python")  # providers without a device


class Worker:
    """A registered worker. `overdue_passed_over` is the policy's."""

    __slots__ = (
        "busy_until_ns", "element_times", "fallback_reason", "id", "leases", "leaving", "loading", "models",
        "overdue_ns", "overdue_passed_over", "pid", "rows_max", "served", "stopped", "timings",
    )  # fmt: skip

    def __init__(self, worker: int, pid: int, fallback_reason: str = "") -> None:
        self.id = worker
        self.pid = pid
        self.fallback_reason = fallback_reason  # why it is on no better provider, where it might be
        self.leaving = False  # it runs nothing any more, and its process is about to end
        self.stopped = False  # it was killed for the time that a batch took
        self.loading: set[tuple[str, int]] = set()  # names and revisions that it is to load and hasn't yet
        self.models: dict[str, m.WorkerInfo] = {}
        self.served: frozenset[str] = frozenset()  # their names
        self.leases: dict[int, Batch] = {}  # in the order they were sent; at most CREDIT
        self.timings: dict[str, TimeModel] = {}  # by model
        self.element_times: dict[str, ElementTimes] = {}  # by model, of those whose batches it pads
        self.rows_max: dict[str, int] = {}  # by model, of one batch; another device may take more, or less
        self.busy_until_ns = 0  # when its batches are expected to be done
        self.overdue_passed_over = 0  # batches in a row that went before overdue work
        self.overdue_ns = 0  # when it may count as hung, and is looked at; 0: it runs nothing

    @property
    def loads_on_device(self) -> bool:
        """Whether it loads a model on a device that its batches have to share; a host runs both at once."""
        return bool(self.loading) and any(info.provider not in HOST for info in self.models.values())

    def serve(self, model: Model, message: m.Loaded) -> None:
        """It has loaded the model. Raises InvalidRequest, and nothing has changed, for metadata that
        no model can have."""
        self.models[model.name] = model.loaded(self.id, self.pid, message, self.fallback_reason)
        self.timings[model.name] = TimeModel(message.warmup_ns, message.buckets, message.claimed_ns)
        self.rows_max[model.name] = model.rows_max(message)
        self.served = frozenset(self.models)
        self.element_times.pop(model.name, None)
        if message.padding is not None and message.padding.axes:
            padding = message.padding
            self.element_times[model.name] = ElementTimes(padding.run_ns, message.buckets, padding.whole)

    def forget(self, name: str) -> None:
        self.models.pop(name, None)
        self.served = frozenset(self.models)
        self.timings.pop(name, None)
        self.element_times.pop(name, None)

    def timing(self, lane: Lane) -> TimeModel | None:
        """How long this lane's batches take; None: it does not serve the lane's model."""
        name = lane.model_name
        timing = self.timings.get(name)
        if isinstance(lane, RaggedLane) and timing is not None and name in self.element_times:
            return self.element_times[name].of(lane.size, timing, self.rows_max[name])
        return timing

    def learn(self, batch: Batch, took_ns: int, padding: int) -> None:
        """A batch has run, with this many elements of padding."""
        name = batch.model.name
        self.timings[name].learn(batch.rows, took_ns)
        lane = batch.lane
        if isinstance(lane, RaggedLane) and name in self.element_times:
            self.element_times[name].learn(lane.size, batch.rows, batch.elements + padding, took_ns)


class Batch:
    """Parts that are leased to a worker as one run."""

    __slots__ = (
        "began_ns", "elements", "id", "lane", "lease_ns", "model", "parts", "predicted_ns", "revision",
        "rows", "sent_ns", "worker",
    )  # fmt: skip

    def __init__(
        self, batch: int, model: Model, lane: Lane, parts: list[Part], rows: int, worker: Worker, sent_ns: int
    ) -> None:
        self.id = batch
        self.model = model
        self.lane = lane
        self.revision = model.revision
        self.parts = parts
        self.rows = rows
        self.worker = worker
        self.sent_ns = sent_ns
        self.began_ns = 0  # when its worker had nothing before it
        self.lease_ns = 0  # after which its worker's own watch ends it; 0: never
        self.elements = 0  # along padded axes, without padding
        timing = worker.timing(lane)
        assert timing is not None, "a worker is lent a model that it does not serve"
        padded = 0
        if isinstance(lane, RaggedLane):
            self.elements = lane.elements(parts)
            padded = lane.padded_elements(parts, timing.whole)
        # A file's claims never bound how long a batch may be kept; 0: not known.
        self.predicted_ns = timing.run_ns(rows, padded) if timing.is_measured else 0

    @property
    def is_of_one(self) -> bool:
        """Whether it consists of one request."""
        request = self.parts[0].request
        return all(part.request is request for part in self.parts)

    def receipt(self, message: m.Done, now_ns: int) -> m.BatchReceipt:
        """The run, as its requests' clients see it."""
        return m.BatchReceipt(
            self.rows,
            message.gather_ns,
            message.compute_ns,
            message.scatter_ns,
            message.copied_bytes,
            self.worker.id,
            self.worker.models[self.model.name].provider,
            self.revision,
            self.id,
            now_ns - self.sent_ns,
            message.padding / (message.padding + self.elements) if self.elements else 0.0,
        )
