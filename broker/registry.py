"""What the broker knows of models and workers, and the check of a request against its model.

Pure: no clock, no sockets. A model's inputs and outputs come from the workers that loaded it; the
broker opens no model file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..transport import dtypes
from ..transport.errors import InvalidRequest, Overloaded
from ..transport.messages import Loaded, ModelInfo, ModelState, Origin, Submit, WorkerInfo
from ..transport.tensors import Slot, Tensor, TensorSpec, check_range, nbytes_of
from .config import ModelConfig
from .identical import Identical
from .lanes import Lane, Request
from .timing import TimeModel

HOST = ("cpu", "python")  # providers without a device
LANES_MAX = 64  # shapes of one model that may wait at once; every turn looks at all of them
_NO_FREE_AXES: tuple[tuple[int, ...], ...] = ()


class _Expected:
    """What an input must be, in the form that is quickest to compare with a descriptor."""

    __slots__ = ("dtype", "rank", "row_nbytes", "spec", "tail")

    def __init__(self, spec: TensorSpec, skip: int) -> None:
        self.spec = spec
        self.dtype = spec.dtype
        self.rank = len(spec.shape)
        fixed = [axis for axis in spec.shape[skip:] if isinstance(axis, int)]
        nbytes_of(spec.dtype, fixed)  # refuses what cannot be
        self.tail = [axis if isinstance(axis, int) else None for axis in spec.shape[skip:]]
        self.row_nbytes: int | None = None  # None: some axis is free
        if None not in self.tail:
            self.row_nbytes = nbytes_of(spec.dtype, [int(axis) for axis in spec.shape[skip:]])


class Worker:
    """A registered worker: what it serves and what it has been lent."""

    __slots__ = (
        "busy_until_ns", "fallen", "id", "leases", "leaving", "loading", "models", "overdue_ns", "passed",
        "pid", "rows_max", "timings",
    )  # fmt: skip

    def __init__(self, worker: int, pid: int, fallen: str = "") -> None:
        self.id = worker
        self.pid = pid
        self.fallen = fallen  # why it is on no better provider, where it might be
        self.leaving = False  # it runs nothing any more, and its process is about to end
        self.loading: set[tuple[str, int]] = set()  # names and revisions that it is to load and hasn't yet
        self.models: dict[str, WorkerInfo] = {}
        self.leases: dict[int, Batch] = {}  # in the order they were sent; at most CREDIT
        self.timings: dict[str, TimeModel] = {}  # by model
        self.rows_max: dict[str, int] = {}  # by model, of one batch; another device may take more, or less
        self.busy_until_ns = 0  # when what it was lent is expected to be done
        self.passed = 0  # batches that went before what was overdue, one after the other
        self.overdue_ns = 0  # when it counts as hung; 0: it runs nothing

    @property
    def loads_on_device(self) -> bool:
        """Whether it loads a model on a device that its batches have to share; a host runs both at once."""
        return bool(self.loading) and any(info.provider not in HOST for info in self.models.values())

    def serve(self, model: Model, message: Loaded) -> None:
        """It has loaded the model. Raises InvalidRequest, and nothing has changed, for metadata that
        no model can have."""
        self.models[model.name] = model.loaded(self.id, self.pid, message, self.fallen)
        self.timings[model.name] = TimeModel(message.warmup_ns, message.buckets, message.claimed_ns)
        self.rows_max[model.name] = model.rows_max(message)

    def forget(self, name: str) -> None:
        """It serves the model no longer."""
        self.models.pop(name, None)
        self.timings.pop(name, None)


class Batch:
    """Parts leased to a worker as one run."""

    __slots__ = ("began_ns", "id", "lane", "parts", "predicted_ns", "revision", "rows", "sent_ns", "worker")

    def __init__(self, batch: int, lane: Lane, parts: list, rows: int, worker: Worker, sent_ns: int) -> None:  # type: ignore[type-arg]
        self.id = batch
        self.lane = lane
        self.revision = lane.model.revision
        self.parts = parts
        self.rows = rows
        self.worker = worker
        self.sent_ns = sent_ns
        self.began_ns = 0  # when its worker had nothing before it
        timing = worker.timings[lane.model.name]
        # What a file claims is no measure of how long a batch may be kept; 0: not known.
        self.predicted_ns = timing.predict_ns(rows) if timing.is_measured else 0


class Model:
    """A configured model, its lanes, and who serves it."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.name = config.name
        self.revision = 1
        self.identical = Identical(config)
        self.leaving = False  # it takes no more requests
        self.max_batch = config.max_batch
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self.batchable = False
        self.alone_reason = ""
        self.origin: Origin | None = None
        self.workers: dict[int, WorkerInfo] = {}
        self.failures: dict[int, str] = {}  # worker -> why it could not load it
        self.lanes: dict[tuple[tuple[int, ...], ...], Lane] = {}
        self.waiting = [0, 0, 0, 0]  # rows in its lanes, by priority
        self.row_ns = 0.0  # time of one row in a full batch, by the worker heard of last; 0: not known
        self._expected: list[_Expected] = []
        self._static = False  # every non-batch axis is fixed: one lane
        self._output_row_nbytes: list[int] | None = None  # None: some output's size is not known before

    @property
    def state(self) -> ModelState:
        if self.workers or (self.inputs and not self.failures):
            return ModelState.READY
        return ModelState.FAILED if self.failures else ModelState.LOADING

    @property
    def users(self) -> int:
        """Requests whose slots have not been released."""
        return sum(lane.users for lane in self.lanes.values())

    def providers(self) -> dict[str, int]:
        """How many workers serve it by each provider."""
        found: dict[str, int] = {}
        for info in self.workers.values():
            found[info.provider] = found.get(info.provider, 0) + 1
        return found

    def become(self, config: ModelConfig, revision: int) -> None:
        """Another revision takes its place; the workers that serve that are told next."""
        self.config = config
        self.revision = revision
        self.workers.clear()
        self.failures.clear()
        self.identical.forget()

    def differs(self, message: Loaded) -> str:
        """Why what a worker has loaded can't take this model's place under its callers; "": it can."""
        if message.batchable != self.batchable:
            return "one batches and the other does not: " + (message.alone_reason or self.alone_reason)
        for kind, have, want in (
            ("input", message.inputs, self.inputs),
            ("output", message.outputs, self.outputs),
        ):
            if len(have) != len(want):
                return f"it has {len(have)} {kind}s, and the one that serves has {len(want)}"
            for new, old in zip(have, want, strict=True):
                if (new.name, new.dtype, _axes(new)) != (old.name, old.dtype, _axes(old)):
                    return f"its {kind} is {new}, and that of the one that serves is {old}"
        return ""

    def rows_max(self, message: Loaded) -> int:
        """The most rows of one batch for the worker that says this."""
        return min(self.config.max_batch, message.max_batch) if message.batchable else 1

    def loaded(self, worker: int, pid: int, message: Loaded, fallen: str = "") -> WorkerInfo:
        """A worker serves it. The first one's metadata is everyone's; all load the same file.

        Raises InvalidRequest, and nothing has changed, for metadata that no model can have.
        """
        skip = 1 if message.batchable else 0
        if skip and not all(spec.shape for spec in (*message.inputs, *message.outputs)):
            raise InvalidRequest("a tensor without axes has no rows to batch")
        expected = [_Expected(spec, skip) for spec in message.inputs]
        output_row_nbytes = _row_nbytes(message.outputs, skip)
        info = WorkerInfo(worker, pid, message.provider, message.placement, message.warmup_ns, fallen)
        # The most that any of them takes; what is larger than a worker takes is cut when that is lent it.
        self.max_batch = max(self.max_batch if self.workers else 1, self.rows_max(message))
        self.workers[worker] = info
        self.failures.pop(worker, None)
        self.inputs = message.inputs
        self.outputs = message.outputs
        self.batchable = message.batchable
        self.alone_reason = message.alone_reason
        self.origin = message.origin
        self._expected = expected
        self._static = all(expected.row_nbytes is not None for expected in self._expected)
        self._output_row_nbytes = output_row_nbytes
        return info

    def info(self) -> ModelInfo:
        """As its users see it."""
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
        )

    def check(self, message: Submit, arena_nbytes: int) -> tuple[int, int]:
        """(rows, bytes) of a request that this model can run; raises InvalidRequest otherwise."""
        inputs = message.inputs
        expected = self._expected
        if len(inputs) != len(expected):
            raise InvalidRequest(f"{self.name!r} has {len(expected)} inputs, the request has {len(inputs)}")
        skip = 0
        rows = 1
        if self.batchable:
            skip = 1
            shape = inputs[0].shape
            rows = shape[0] if shape else 0
            if rows < 1:
                raise InvalidRequest(f"{self.name!r} needs at least one row on axis 0 of every input")
        total = 0
        for tensor, want in zip(inputs, expected, strict=True):
            shape = tensor.shape
            if tensor.dtype != want.dtype or len(shape) != want.rank:
                raise self._mismatch(want, tensor)
            if skip and shape[0] != rows:
                raise InvalidRequest(f"inputs of {self.name!r} differ in rows: {rows} and {shape[0]}")
            if tensor.frame:
                raise InvalidRequest("a connection with an arena sends handles, not frames")
            tail = shape[skip:]
            if want.row_nbytes is not None:
                if tail != want.tail:
                    raise self._mismatch(want, tensor)
                nbytes = want.row_nbytes * rows
            else:
                if not _fits(tail, want.tail):
                    raise self._mismatch(want, tensor)
                nbytes = nbytes_of(want.dtype, shape)
            if nbytes > arena_nbytes - tensor.offset:
                check_range(tensor.offset, nbytes, arena_nbytes)  # says what is wrong
            total += nbytes
        if message.outputs:
            total += self._check_outputs(message.outputs, rows, arena_nbytes)
        return rows, total

    def _check_outputs(self, slots: Sequence[Slot], rows: int, arena_nbytes: int) -> int:
        expected = self._output_row_nbytes
        if expected is None or len(slots) != len(expected):
            raise InvalidRequest(f"{self.name!r} cannot use these output slots: send none, or one per output")
        total = 0
        for slot, row_nbytes in zip(slots, expected, strict=True):
            nbytes = slot.nbytes
            if nbytes != row_nbytes * rows:
                raise InvalidRequest(
                    f"an output slot has {nbytes} bytes, and {rows} rows of {self.name!r} "
                    f"take {row_nbytes * rows}"
                )
            if nbytes > arena_nbytes - slot.offset:
                check_range(slot.offset, nbytes, arena_nbytes)
            total += nbytes
        return total

    def _mismatch(self, want: _Expected, tensor: Tensor) -> InvalidRequest:
        return InvalidRequest(
            f"{self.name!r} expects {want.spec}, the request has {dtypes.name_of(tensor.dtype)}{tensor.shape}"
        )

    def lane(self, inputs: Sequence[Tensor]) -> Lane:
        """The lane of requests that may share a batch with these inputs."""
        signature = _NO_FREE_AXES if self._static else tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        lane = self.lanes.get(signature)
        if lane is None:
            if len(self.lanes) >= LANES_MAX:
                raise Overloaded(f"requests of {LANES_MAX} different shapes wait for {self.name!r}", 0.05)
            lane = self.lanes[signature] = Lane(self, signature)
        return lane

    def drop_lane(self, lane: Lane) -> None:
        """Nobody uses the lane. Shapes come from clients, so empty lanes must not pile up."""
        if lane.signature:
            del self.lanes[lane.signature]

    def input_strides(self, request: Request) -> list[int]:
        """Bytes of one row of each input."""
        return [nbytes_of(t.dtype, t.shape) // request.rows for t in request.inputs]

    def output_shapes(self, rows: int) -> list[tuple[int, list[int]]] | None:
        """(dtype, shape) of every output for so many rows; None when not known before the run."""
        if self._output_row_nbytes is None:
            return None
        lead = [rows] if self.batchable else []
        skip = len(lead)
        return [(spec.dtype, [*lead, *(int(n) for n in spec.shape[skip:])]) for spec in self.outputs]


def _axes(spec: TensorSpec) -> list[int | None]:
    """A shape without the names of its free axes, which bind nobody."""
    return [axis if isinstance(axis, int) else None for axis in spec.shape]


def _fits(shape: Sequence[int], tail: Sequence[int | None]) -> bool:
    return all(want is None or have == want for have, want in zip(shape, tail, strict=True))


def _row_nbytes(outputs: Sequence[TensorSpec], skip: int) -> list[int] | None:
    sizes = []
    known = True
    for spec in outputs:
        tail = spec.shape[skip:]
        fixed = [axis for axis in tail if isinstance(axis, int)]
        sizes.append(nbytes_of(spec.dtype, fixed))  # refuses what cannot be
        known = known and len(fixed) == len(tail)
    return sizes if known else None
