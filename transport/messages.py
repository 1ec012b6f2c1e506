"""Every message of the protocol, one struct each. docs/protocol.md describes them in prose.

On the wire a struct is a MessagePack array whose first element is its tag. Fields are only ever
added at the end, with a default. Direction decides which tags are legal; see codec.py.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import msgspec

from .functions import Function
from .segments import SegmentHandle
from .tensors import Count, Slot, Tensor, TensorSpec

PROTOCOL_VERSION = 3
MESSAGES_MAX = 4096  # messages in one envelope
REQUESTS_MAX = 4096  # request ids in one Cancel

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Took = Annotated[int, msgspec.Meta(ge=0, le=10**13)]  # hours; sums of them stay below 2**63
TENSORS_MAX = 1024  # inputs or outputs of a model
INLINE_BYTES_MAX = 256 << 20  # of one frame
Name = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Path = Annotated[str, msgspec.Meta(max_length=4096)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=1024)]  # of one run
SIZES_MAX = 64  # batch sizes of a model
RunTimes = Annotated[dict[Rows, Took], msgspec.Meta(max_length=16)]  # rows -> time of one run


class Priority(IntEnum):
    """How soon a request should run; the class budget of each is the broker's configuration."""

    URGENT = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


# ---- client -> broker -----------------------------------------------------------------------


class Hello(msgspec.Struct, array_like=True, tag=1):
    """First message of a connection. Without a segment, tensors travel as frames."""

    segment: SegmentHandle | None
    client: Annotated[str, msgspec.Meta(max_length=128)]


class Submit(msgspec.Struct, array_like=True, tag=2, gc=False):
    """One request. `request` is the client's own number, unique among what it has under way."""

    request: Id
    model: Name
    priority: Annotated[int, msgspec.Meta(ge=0, le=3)]
    deadline_ns: Nanoseconds  # time left when this was sent; 0: none
    inputs: Annotated[list[Tensor], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    outputs: Annotated[list[Slot], msgspec.Meta(max_length=TENSORS_MAX)]  # in the model's order, or empty


class Cancel(msgspec.Struct, array_like=True, tag=3):
    """Drop these requests; each still gets its one outcome."""

    requests: Annotated[list[Id], msgspec.Meta(max_length=REQUESTS_MAX)]


class Describe(msgspec.Struct, array_like=True, tag=4):
    """What models there are. With a name: answered once that model is ready or has failed."""

    request: Id
    model: Name


class Bye(msgspec.Struct, array_like=True, tag=5):
    """The connection ends in order; whatever it had under way is dropped."""


# ---- broker -> client -----------------------------------------------------------------------


class BatchReceipt(msgspec.Struct, array_like=True, frozen=True):
    """What happened to the batch that a request ran in. Times in nanoseconds."""

    rows: int
    gather_ns: int
    compute_ns: int
    scatter_ns: int
    copied_bytes: int  # moved by the worker for the whole batch: 0 is what zero-copy means
    worker: int
    provider: str
    revision: int
    batch: int = 0  # the broker's number for it; 0: there was none
    lent_ns: int = 0  # from when the worker was sent the batch until the broker heard that it is done


class Refused(msgspec.Struct, array_like=True, tag=0):
    """The message, or the connection, was refused. This layout is frozen for every version."""

    code: int
    text: str


class Welcome(msgspec.Struct, array_like=True, tag=1):
    """Answer to Hello. `epoch` names this life of the broker."""

    epoch: int
    inline_bytes_max: int  # most bytes of frames that one message may carry


class Completed(msgspec.Struct, array_like=True, tag=2):
    """These requests are done, and their outputs lie in the slots that they reserved."""

    requests: list[int]
    queue_ns: list[int]
    batch: BatchReceipt


class Answer(msgspec.Struct, array_like=True, tag=3):
    """One request is done, in parts of consecutive rows; outputs in a slot or in a frame."""

    request: int
    queue_ns: int
    batch: BatchReceipt
    parts: list[list[Tensor]]


class Failed(msgspec.Struct, array_like=True, tag=4):
    """One request ended without a result. `held`: a worker may still touch its slots; Released follows."""

    request: int
    code: int
    text: str
    retry_after_ns: int = 0
    held: bool = False


class Released(msgspec.Struct, array_like=True, tag=5):
    """No worker can touch the slots of these requests any more."""

    requests: list[int]


class WorkerInfo(msgspec.Struct, array_like=True, frozen=True):
    """One worker that serves a model."""

    worker: int
    pid: int
    provider: str
    placement: str
    warmup_ns: dict[int, int]  # rows -> time of one run
    fallen: str = ""  # why the worker is on no better provider, where it might be


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """What a model's file says of itself (`batchyard export` writes that), beside its real digest. Claims:
    for people to read, and no more. `figures`: size_ratio, rms, abs_max, agreement, and so on; see
    docs/export.md. `measured_ns`: by onnxruntime's name of the provider."""

    sha256: Annotated[str, msgspec.Meta(max_length=64)]  # of the file that the worker has loaded
    variant: Short = ""  # "" where the file does not say
    source: Short = ""
    figures: Annotated[dict[Short, float], msgspec.Meta(max_length=16)] = {}
    measured_ns: Annotated[dict[Short, RunTimes], msgspec.Meta(max_length=8)] = {}


class ModelState(IntEnum):
    LOADING = 0
    READY = 1
    FAILED = 2


class ModelInfo(msgspec.Struct, array_like=True, frozen=True):
    """A model as its users see it."""

    name: str
    state: ModelState
    reason: str  # why it failed
    revision: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batchable: bool
    alone_reason: str  # why requests run alone, when they do
    max_batch: int
    workers: list[WorkerInfo]
    idempotent: bool = True  # whether a request may run twice when something died under it
    origin: Origin | None = None  # of the file that the worker heard of last has loaded


class Described(msgspec.Struct, array_like=True, tag=6):
    """Answer to Describe."""

    request: int
    models: list[ModelInfo]


# ---- worker -> broker -----------------------------------------------------------------------


class Register(msgspec.Struct, array_like=True, tag=1):
    """First message of a worker's connection."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
    providers: Annotated[list[str], msgspec.Meta(max_length=16)]
    fallen: Text = ""  # why it is on no better provider, where it might be


class Loaded(msgspec.Struct, array_like=True, tag=2):
    """The model is loaded and warm on this worker."""

    model: Name
    revision: Id
    inputs: Annotated[list[TensorSpec], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    outputs: Annotated[list[TensorSpec], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    batchable: bool
    alone_reason: Text
    max_batch: Rows
    provider: str
    placement: Text
    warmup_ns: Annotated[dict[Rows, Took], msgspec.Meta(max_length=SIZES_MAX)]
    buckets: Annotated[list[Rows], msgspec.Meta(max_length=SIZES_MAX)] = []  # the only ones; empty: any
    difference: float | None = None  # greatest, of the canary's answers from those of Load.beside
    origin: Origin | None = None
    claimed_ns: RunTimes = {}  # what the file says of this worker's provider; warmup_ns is what was seen


class LoadFailed(msgspec.Struct, array_like=True, tag=3):
    """The model cannot be served by this worker, and why."""

    model: Name
    revision: Id
    text: Text


class ItemOutputs(msgspec.Struct, array_like=True):
    """Where the outputs of one item of a batch are, when they are not in its slots."""

    item: Count
    outputs: list[Tensor]


class Done(msgspec.Struct, array_like=True, tag=4):
    """A batch has run. Items that are not in `elsewhere` have their outputs in their slots."""

    epoch: Id
    batch: Id
    gather_ns: Took
    compute_ns: Took
    scatter_ns: Took
    copied_bytes: Count
    elsewhere: list[ItemOutputs]
    changed: list[Count] = []  # items whose inputs were not what Item.digest says


class BatchFailed(msgspec.Struct, array_like=True, tag=5):
    """A batch did not run. `item` is the one at fault where the worker knows it, else -1."""

    epoch: Id
    batch: Id
    code: int
    text: Text
    item: int = -1


class Leaving(msgspec.Struct, array_like=True, tag=6):
    """The worker's process is about to end, and not for what it was lent: its device is lost, and it runs
    nothing any more; or it goes to a better one, and runs what comes before the answer, Dismissed."""

    text: Text


# ---- broker -> worker -----------------------------------------------------------------------


class WorkerWelcome(msgspec.Struct, array_like=True, tag=1):
    """Answer to Register. `pid` is the broker's: memfd arenas are opened through it."""

    epoch: int
    worker: int
    pid: int


class Load(msgspec.Struct, array_like=True, tag=2):
    """Load this file, or this function, and warm it; answered by Loaded or LoadFailed."""

    model: str
    revision: int
    path: str
    max_batch: int
    batchable: bool | None
    warmup: bool
    buckets: list[int] = []  # the only batch sizes to run, rising; empty: the provider decides
    beside: int = 0  # the revision to compare a canary's answers with; 0: none
    tolerance: float | None = None  # greatest difference of the canary's answers; None: any
    function: Function | None = None  # None: the file is an ONNX model; else `path` is its file, or ""


class Unload(msgspec.Struct, array_like=True, tag=3):
    """Forget the model; no batch for it follows."""

    model: str
    revision: int


class Attach(msgspec.Struct, array_like=True, tag=4):
    """An arena that batches may refer to from now on."""

    arena: int
    segment: SegmentHandle


class Detach(msgspec.Struct, array_like=True, tag=5):
    """No batch refers to the arena any more: unmap it."""

    arena: int


class Item(msgspec.Struct, array_like=True, gc=False):
    """A request's rows in a batch. `outputs` empty: send the outputs back as frames. `digest`: others
    want this result too, if the inputs are what they were; see docs/architecture.md, "Identical work"."""

    arena: int
    inputs: list[Tensor]
    outputs: list[Slot]
    digest: bytes = b""


class Batch(msgspec.Struct, array_like=True, tag=6):
    """Run these items as one. `rows` is the sum of their rows; 0 when the model is not batchable."""

    batch: int
    model: str
    revision: int
    rows: int
    items: list[Item]
    lease_ns: int = 0  # a worker that runs it longer is hung; 0: no limit


class LentBatch(msgspec.Struct, array_like=True, tag=6):
    """A Batch as a worker reads it: the same bytes, the items not yet decoded, because handles that
    have been seen before need no second look."""

    batch: int
    model: str
    revision: int
    rows: int
    items: msgspec.Raw
    lease_ns: int = 0


class Dismissed(msgspec.Struct, array_like=True, tag=7):
    """Answer to Leaving: it is known why the process ends, and it is lent nothing behind this."""


# ---- admin ----------------------------------------------------------------------------------


class Snapshot(msgspec.Struct, array_like=True, tag=1):
    """Ask for the cumulative counters."""


class LoadModel(msgspec.Struct, array_like=True, tag=2):
    """Serve one more model. `file` is relative to the yard's models_root. Answered by ModelChanged
    when a worker has it loaded and warm, or by Refused."""

    model: Name
    file: Path
    max_batch: Rows | None = None  # None: the yard's default


class SwapModel(msgspec.Struct, array_like=True, tag=3):
    """Serve a model from this file from now on ("": the file that it has, read anew). Every worker
    loads it beside the old one, and compares their answers; then all switch, or none does."""

    model: Name
    file: Path
    tolerance: Annotated[float, msgspec.Meta(ge=0)] | None = None  # of a canary's answers; None: any


class UnloadModel(msgspec.Struct, array_like=True, tag=4):
    """Serve it no longer. What waits for it is still run; answered when that is done."""

    model: Name


class SnapshotTaken(msgspec.Struct, array_like=True, tag=1):
    """The counters: plain integers, never reset while the broker lives."""

    counters: dict[str, Any]


class ModelChanged(msgspec.Struct, array_like=True, tag=2):
    """The model is loaded, swapped, or gone. `difference` as in Loaded, the greatest of all workers."""

    model: str
    revision: int
    difference: float | None = None


ClientMessage = Hello | Submit | Cancel | Describe | Bye
BrokerToClient = Refused | Welcome | Completed | Answer | Failed | Released | Described
WorkerMessage = Register | Loaded | LoadFailed | Done | BatchFailed | Leaving
BrokerToWorker = Refused | WorkerWelcome | Load | Unload | Attach | Detach | LentBatch | Dismissed
AdminMessage = Snapshot | LoadModel | SwapModel | UnloadModel
BrokerToAdmin = Refused | SnapshotTaken | ModelChanged
