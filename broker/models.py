"""Models: their configuration, their lanes, and their workers.

signature.py has the tensors of a model, and the check of a request against them; serving.py the workers.

Pure: no clock, no sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ..transport.errors import UnknownModel
from ..transport.messages import Loaded, ModelInfo, ModelState, Provenance, WorkerInfo
from ..transport.tensors import Tensor
from .config import ModelConfig
from .lanes import Lane
from .ragged import RaggedLane
from .sharing import Sharing
from .signature import ModelSignature
from .timing import Steadiness

BATCH_TENSORS_MAX = 100_000  # descriptors in one batch: 3 of the 4 MB that a message may have
ALONE: Any = ("alone",)  # signature of the lane of requests that share no run


class Model(ModelSignature):
    """A model that is served, its lanes, and its workers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.sharing = Sharing(config)
        self.leaving = False  # it takes no more requests
        self.max_batch = config.max_batch
        self.elements = 0  # along padded axes, of all its batches
        self.padding = 0  # of these, padding
        self.origin: Provenance | None = None
        self.workers: dict[int, WorkerInfo] = {}
        self.failures: dict[int, str] = {}  # worker -> why it could not load it
        self.lanes: dict[Any, Lane] = {}  # by signature
        self.users = 0  # requests whose slots have not been released
        self.waiting = [0, 0, 0, 0]  # rows in its lanes, by priority
        self.steadiness = Steadiness()
        self.row_ns = 0.0  # time of one row in a full batch, by the worker heard of last; 0: not known
        self.learned: dict[int, Loaded] = {}  # by workers that have learned that rows may share a run
        self._alone: Lane | None = None  # of requests that share no run

    # ---- its workers --------------------------------------------------------------------------

    @property
    def state(self) -> ModelState:
        if self.workers or (self.outputs and not self.failures):
            return ModelState.READY
        return ModelState.FAILED if self.failures else ModelState.LOADING

    def providers(self) -> dict[str, int]:
        """How many workers serve it by each provider."""
        counts: dict[str, int] = {}
        for info in self.workers.values():
            counts[info.provider] = counts.get(info.provider, 0) + 1
        return counts

    def become(self, config: ModelConfig, revision: int) -> None:
        """Another revision takes the place of this one; its workers are registered next."""
        self.config = config
        self.revision = revision
        self.workers.clear()
        self.failures.clear()
        self.disproved = ""
        self.learned.clear()
        self.steadiness = Steadiness()
        self.sharing.become(config)

    def rows_max(self, message: Loaded) -> int:
        """The most rows of one batch for a worker, by its Loaded."""
        if not message.batchable or self.disproved:
            return 1
        # A batch is one message, which a worker reads whole or not at all.
        most = max(1, BATCH_TENSORS_MAX // (len(message.inputs) + len(message.outputs)))
        return min(self.config.max_batch, message.max_batch, most)

    def loaded(self, worker: int, pid: int, message: Loaded, fallback_reason: str = "") -> WorkerInfo:
        """A worker serves it. Raises InvalidRequest, and nothing has changed, for metadata that no model can
        have."""
        self.describe(message)
        info = WorkerInfo(
            worker, pid, message.provider, message.placement, message.warmup_ns, fallback_reason
        )
        # The most that any of them takes; a larger request is cut when a worker is lent it.
        self.max_batch = max(self.max_batch if self.workers else 1, self.rows_max(message))
        self.workers[worker] = info
        self.failures.pop(worker, None)
        self.origin = message.origin
        return info

    def padded(self, elements: int, padding: int) -> None:
        """A batch with this many elements, some of them padding, has run."""
        self.elements += elements
        self.padding += padding

    def disprove(self, reason: str) -> None:
        """A run has shown that rows can't share one: this revision runs every request alone."""
        self.runs_alone(reason)
        self.max_batch = 1
        self.set_apart()

    def set_apart(self) -> None:
        """Each waiting request runs alone."""
        # Waiting requests stay in lanes that no later request joins, whatever is loaded next.
        waiting = [lane for lane in self.lanes.values() if lane.users]
        self.lanes = {}
        for number, lane in enumerate(waiting):
            if lane is not self._alone:
                lane.is_alone = True
                lane.signature = (*ALONE, number)
            self.lanes[lane.signature] = lane

    def info(self) -> ModelInfo:
        """The model as its users see it."""
        return ModelInfo(
            self.name,
            self.state,
            "; ".join(sorted(set(self.failures.values()))),
            self.revision,
            self.inputs,
            self.outputs,
            self.batchable,
            self.alone_reason,
            self.max_batch,
            list(self.workers.values()),
            self.config.idempotent,
            self.origin,
            self.batch_axes,
            self.evidence,
            self.ragged.names if self.ragged is not None else [],
            self.pad_reason,
            self.elements,
            self.padding,
            self.streams,
            self.packs,
        )

    @property
    def packs(self) -> bool:
        """Whether requests may go as rows of one. Of identical ones each must be seen, and of different sizes
        each is padded by itself; what may not run twice could not be sent again, each by itself."""
        return (
            self.batchable
            and self.config.idempotent
            and not (self.streams or self.sharing.shares or self.ragged)
            and min(self.batch_axes[len(self.inputs) :], default=0) >= 0
        )

    def brief(self) -> ModelInfo:
        """As `info`, without the other entries of the file's metadata."""
        info = self.info()
        if info.origin is None or not info.origin.metadata:
            return info
        return replace(info, origin=replace(info.origin, metadata={}))

    # ---- lanes --------------------------------------------------------------------------------

    def lane(self, inputs: Sequence[Tensor], shared: bytes = b"") -> Lane:
        """The lane of requests that may share a batch with these inputs. `shared`: a digest of the inputs
        that all rows of a batch have in common."""
        if not self.rows(inputs):
            lane = self._alone
            if lane is None or not lane.is_alone:
                lane = self._alone = Lane(self.name, self.waiting, ALONE, is_alone=True)
            self.lanes[ALONE] = lane
            return lane
        ragged = self.ragged
        if ragged is not None and (sizes := ragged.sizes(inputs)):
            bucket = ragged.bucket(sizes)
            signature = self.ragged_signature(ragged, inputs, bucket, shared)
            lane = self.lanes.get(signature)
            if lane is None:
                lane = RaggedLane(self.name, self.waiting, signature, ragged, bucket)
                self.lanes[signature] = lane
            return lane
        signature = self.lane_signature(inputs, shared)
        lane = self.lanes.get(signature)
        if lane is None:
            lane = self.lanes[signature] = Lane(self.name, self.waiting, signature)
        return lane

    def drop_lane(self, lane: Lane) -> None:
        """The lane is unused. Shapes come from clients, so empty lanes must not pile up."""
        if lane.signature and self.lanes.get(lane.signature) is lane:
            del self.lanes[lane.signature]


def served(models: Mapping[str, Model], name: str) -> Model:
    """The model of that name. Raises UnknownModel."""
    model = models.get(name)
    if model is None or model.leaving:
        raise UnknownModel(unknown(models, name))
    return model


def unknown(models: Mapping[str, Model], name: str) -> str:
    """The error text for an unknown name."""
    known = ", ".join(sorted(model.name for model in models.values() if not model.leaving)) or "none"
    return f"no model is called {name!r}; this yard has: {known}"
