"""Every message of the protocol, one struct each. docs/protocol.md describes them in prose.

On the wire a struct is a MessagePack array whose first element is its tag. Fields are only ever
added at the end, with a default. Direction decides which tags are legal; see codec.py.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import msgspec

from .python_models import Function
from .segments import SegmentHandle
from .tensors import RANK_MAX, Count, Slot, Tensor, TensorSpec, moved
from .wire import ALONG_MAX

PROTOCOL_VERSION = 6
MESSAGES_MAX = 4096  # messages in one envelope
REQUESTS_MAX = 4096  # request ids in one Cancel
MORE_MAX = 256  # further requests of one Submit

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
TOOK_NS_MAX = 10**13
Took = Annotated[int, msgspec.Meta(ge=0, le=TOOK_NS_MAX)]  # hours; sums of them stay below 2**63
RUN_SECONDS_MAX = 604_800  # the most that a run may be allowed: a week
RunTime = Annotated[int, msgspec.Meta(ge=0, le=RUN_SECONDS_MAX * 10**9)]
TENSORS_MAX = 4096  # inputs or outputs of a model
INLINE_BYTES_MAX = 256 << 20  # of one frame that a client sends
ANSWER_BYTES_MAX = 1 << 36  # of one frame that it gets: the requesting client's arena is the bound
NAME_CHARS_MAX = 255  # of a model
Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Path = Annotated[str, msgspec.Meta(max_length=4096)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
LongText = Annotated[str, msgspec.Meta(max_length=1 << 16)]
ROWS_MAX = 1024  # of one run
Rows = Annotated[int, msgspec.Meta(ge=1, le=ROWS_MAX)]
SIZES_MAX = 64  # batch sizes of a model
Axis = Annotated[int, msgspec.Meta(ge=-1, lt=RANK_MAX)]
RunTimes = Annotated[dict[Rows, Took], msgspec.Meta(max_length=16)]  # rows -> time of one run
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]  # of an axis
PADDED_AXES_MAX = 4  # names of one model's axes
PAD_SIZES_MAX = 64  # of one name


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
    borrows: bool = False  # frames may come to it as segments


class More(msgspec.Struct, array_like=True, gc=False):
    """Requests that differ from a Submit's own in nothing but these columns: their numbers, the time they
    have left, and where their tensors lie. `offsets` has each request's inputs, then its output slots."""

    requests: Annotated[list[Id], msgspec.Meta(max_length=MORE_MAX)]
    deadlines_ns: Annotated[list[Nanoseconds], msgspec.Meta(max_length=MORE_MAX)]
    offsets: list[Count]

    def fits(self, width: int) -> bool:
        """Whether the columns are of one length, for requests of so many tensors and slots."""
        count = len(self.requests)
        return count > 0 and len(self.deadlines_ns) == count and len(self.offsets) == count * width


class Submit(msgspec.Struct, array_like=True, tag=2, gc=False):
    """A request, and more that are like it. `request` is the client's own number, unique among what it has
    under way. `packed`: every row is a request of its caller's, which the client has laid beside others."""

    request: Id
    model: Name
    priority: Annotated[int, msgspec.Meta(ge=0, le=3)]
    deadline_ns: Nanoseconds  # time left when this was sent; 0: none
    inputs: Annotated[list[Tensor], msgspec.Meta(max_length=TENSORS_MAX)]
    outputs: Annotated[list[Slot], msgspec.Meta(max_length=TENSORS_MAX)]  # in the model's order, or empty
    more: More | None = None
    packed: bool = False

    @property
    def width(self) -> int:
        """Offsets of each request in `more`."""
        return len(self.inputs) + len(self.outputs)

    def apart(self) -> list[Submit]:
        """Its requests, each as a Submit of its own."""
        more, width = self.more, self.width
        if more is None:
            return [self]
        model, priority, packed = self.model, self.priority, self.packed
        submits = [
            Submit(self.request, model, priority, self.deadline_ns, self.inputs, self.outputs, None, packed)
        ]
        for index, (number, left_ns) in enumerate(zip(more.requests, more.deadlines_ns, strict=True)):
            tensors, slots = moved(
                self.inputs, self.outputs, more.offsets[index * width : (index + 1) * width]
            )
            submits.append(Submit(number, model, priority, left_ns, tensors, slots, None, packed))
        return submits


class Cancel(msgspec.Struct, array_like=True, tag=3):
    """Drop these requests; each still gets its one outcome."""

    requests: Annotated[list[Id], msgspec.Meta(max_length=REQUESTS_MAX)]


class Describe(msgspec.Struct, array_like=True, tag=4):
    """Ask which models there are. With a name: answered once that model is ready or has failed."""

    request: Id
    model: Name


class Bye(msgspec.Struct, array_like=True, tag=5):
    """The connection ends in order; its requests under way are dropped."""


# ---- broker -> client -----------------------------------------------------------------------


class BatchReceipt(msgspec.Struct, array_like=True, frozen=True):
    """A batch that a request ran in: sizes, and times in nanoseconds."""

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
    padded: float = 0.0  # the share of the batch's elements, along padded axes, that were padding


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


class FrameSegment(msgspec.Struct, array_like=True):
    """A frame that is sent empty: its bytes are a memfd's, whose descriptor comes along. It is sealed against
    every change."""

    frame: Annotated[int, msgspec.Meta(ge=1, le=TENSORS_MAX)]
    segment: SegmentHandle


Lent = Annotated[list[FrameSegment], msgspec.Meta(max_length=ALONG_MAX)]  # in the order of their descriptors


class Answer(msgspec.Struct, array_like=True, tag=3):
    """One request is done, in parts of consecutive rows; outputs in a slot or in a frame."""

    request: int
    queue_ns: int
    batch: BatchReceipt
    parts: list[list[Tensor]]
    lent: Lent = []
    # Of several parts: the axis of each output to join them on. A client may know another revision's.
    axes: Annotated[list[Axis], msgspec.Meta(max_length=TENSORS_MAX)] = []


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
    fallback_reason: str = ""  # why the worker is on no better provider, where it might be


class Provenance(msgspec.Struct, array_like=True, frozen=True):
    """Claims that a model's file makes about itself (`batchyard export` writes them), beside its real digest.
    For people to read, and no more. `figures`: size_ratio, rms, abs_max, agreement, and so on; see
    docs/export.md. `measured_ns`: by onnxruntime's name of the provider."""

    sha256: Annotated[str, msgspec.Meta(max_length=64)]  # of the file that the worker has loaded
    variant: Short = ""  # "" where the file does not say
    source: Short = ""
    figures: Annotated[dict[Short, float], msgspec.Meta(max_length=16)] = {}
    measured_ns: Annotated[dict[Short, RunTimes], msgspec.Meta(max_length=8)] = {}
    # Its other entries, as their writer left them: names of classes, stride, task.
    metadata: Annotated[dict[Short, LongText], msgspec.Meta(max_length=64)] = {}


class ModelState(IntEnum):
    LOADING = 0
    READY = 1
    FAILED = 2


class ModelInfo(msgspec.Struct, array_like=True, frozen=True):
    """A model as its users see it."""

    name: str
    state: ModelState
    reason: str  # why it failed, or, of one that is served, why it soon will not be
    revision: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batchable: bool
    alone_reason: str  # why requests run alone, when they do
    max_batch: int
    workers: list[WorkerInfo]
    idempotent: bool = True  # whether a request may run twice when something died under it
    origin: Provenance | None = None  # of the file that the worker heard of last has loaded
    batch_axes: list[int] = []  # as in Loaded
    evidence: str = ""  # why rows may share a run, with the figure
    padded_axes: list[str] = []  # names of axes on which requests of different sizes share a run
    pad_reason: str = ""  # why they may, or may not though the configuration asks for it; with the figure
    elements: int = 0  # along padded axes, of all its batches so far
    padding: int = 0  # of these, what was padding
    streams: bool = False  # it answers a request several times; see Yielded
    packs: bool = False  # small requests for it may go as rows of one; see Submit


class Described(msgspec.Struct, array_like=True, tag=6):
    """Answer to Describe."""

    request: int
    models: list[ModelInfo]


class Streamed(msgspec.Struct, array_like=True, tag=7):
    """One answer of a request that has several, its outputs in frames. An Answer without outputs, or Failed,
    is the request's end."""

    request: int
    outputs: list[Tensor]


# ---- worker -> broker -----------------------------------------------------------------------


class Register(msgspec.Struct, array_like=True, tag=1):
    """First message of a worker's connection."""

    pid: Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
    providers: Annotated[list[str], msgspec.Meta(max_length=16)]
    fallback_reason: Text = ""  # why it is on no better provider, where it might be
    secret: Short = ""  # the yard's, where it has no CURVE keys; see secret.py


class Padding(msgspec.Struct, array_like=True):
    """A worker's findings on the padding that Load.pad asks for. `axes`: of each input, the axis that has
    each padded name, in Load.pad's order, -1 where it has none; empty: padding changes answers, and is not
    done. `whole`: batches are padded to a size of the configuration, else to the longest of their requests.
    `run_ns`: elements of one row along padded axes -> rows -> time of one run."""

    axes: Annotated[
        list[Annotated[list[Axis], msgspec.Meta(max_length=PADDED_AXES_MAX)]],
        msgspec.Meta(max_length=TENSORS_MAX),
    ]
    reason: Text
    whole: bool = False
    run_ns: Annotated[dict[Size, RunTimes], msgspec.Meta(max_length=PAD_SIZES_MAX)] = {}


class Loaded(msgspec.Struct, array_like=True, tag=2):
    """The model is loaded and warm on this worker."""

    model: Name
    revision: Id
    inputs: Annotated[list[TensorSpec], msgspec.Meta(max_length=TENSORS_MAX)]
    outputs: Annotated[list[TensorSpec], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    batchable: bool
    alone_reason: Text
    max_batch: Rows
    provider: str
    placement: Text
    warmup_ns: Annotated[dict[Rows, Took], msgspec.Meta(max_length=SIZES_MAX)]
    buckets: Annotated[list[Rows], msgspec.Meta(max_length=SIZES_MAX)] = []  # the only ones; empty: any
    difference: float | None = None  # greatest, of the canary's answers from those of Load.baseline_revision
    origin: Provenance | None = None
    claimed_ns: RunTimes = {}  # what the file says of this worker's provider; warmup_ns is what was seen
    # Of a batchable model: the axis that counts the rows of each input, then of each output; -1: an input
    # of which all rows of a batch have the same value. Empty: axis 0 of every tensor.
    batch_axes: Annotated[list[Axis], msgspec.Meta(max_length=2 * TENSORS_MAX)] = []
    evidence: Text = ""  # why rows may share a run, with the figure
    padding: Padding | None = None  # None: the configuration asks for none
    streams: bool = False  # it answers a request several times, and runs each by itself


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
    """A batch has run. Items that are not in `inline_outputs` have their outputs in their slots."""

    epoch: Id
    batch: Id
    gather_ns: Took
    compute_ns: Took
    scatter_ns: Took
    copied_bytes: Count
    inline_outputs: list[ItemOutputs]
    changed: list[Count] = []  # items whose inputs do not have Item.digest
    padding: Count = 0  # elements along padded axes that were no request's
    lent: Lent = []


class BatchFailed(msgspec.Struct, array_like=True, tag=5):
    """A batch did not run. `item` is the one at fault where the worker knows it, else -1."""

    epoch: Id
    batch: Id
    code: int
    text: Text
    item: int = -1


class RunsAlone(msgspec.Struct, array_like=True, tag=7):
    """A batch gave outputs that can't be divided among its requests: they were run again one by one, and
    from now on this revision runs every request by itself, on every worker."""

    model: Name
    revision: Id
    reason: Text


class Yielded(msgspec.Struct, array_like=True, tag=8):
    """One answer of a batch of one request that has several, its outputs in frames. Done, with no outputs,
    follows the last one."""

    epoch: Id
    batch: Id
    outputs: Annotated[list[Tensor], msgspec.Meta(max_length=TENSORS_MAX)]


class Leaving(msgspec.Struct, array_like=True, tag=6):
    """The worker is about to exit, through no fault of its batches: either its device is lost, and it runs
    nothing more; or it moves to a better one, and runs the batches that come before the answer, Dismissed."""

    text: Text


# ---- broker -> worker -----------------------------------------------------------------------


class WorkerWelcome(msgspec.Struct, array_like=True, tag=1):
    """Answer to Register. `pid` is the broker's: memfd arenas are opened through it."""

    epoch: int
    worker: int
    pid: int


class Pad(msgspec.Struct, array_like=True, frozen=True):
    """How an axis of one name is padded. `to`: the sizes, rising; a longer request shares a run with its own
    length alone. `fill`: by an input's name, what stands in the padding; 0 for what it does not name."""

    to: list[int]
    fill: dict[str, float] = {}


class Load(msgspec.Struct, array_like=True, tag=2):
    """Load this file, or this function, and warm it; answered by Loaded or LoadFailed."""

    model: str
    revision: int
    path: str
    max_batch: int
    batchable: bool | None
    warmup: bool
    buckets: list[int] = []  # the only batch sizes to run, rising; empty: the provider decides
    baseline_revision: int = 0  # the revision to compare a canary's answers with; 0: none
    tolerance: float | None = None  # greatest difference of the canary's answers; None: any
    function: Function | None = None  # None: the file is an ONNX model; else `path` is its file, or ""
    batch_axis: int | dict[str, int] | None = (
        None  # where the operator says the rows are; None: see the names
    )
    trusted: bool = False  # the operator vouches for independent rows: they are not tried
    pad: dict[str, Pad] = {}  # by the axis's name: requests of different sizes may share a run


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
    """A request in a batch, with its whole tensors; of them rows `start` to `start + rows` are run, all where
    `rows` is 0. `outputs` empty, or of other sizes than come out: the outputs go back as frames. `digest`:
    others want this result too, if the inputs are what they were; see docs/architecture.md, "Identical
    work". `more`: the offsets of further whole requests that are like it, as in More; each counts as an item
    of the batch. `packed`: as in Submit. Where rows may share no run, it is refused."""

    arena: int
    inputs: list[Tensor]
    outputs: list[Slot]
    digest: bytes = b""
    start: int = 0
    rows: int = 0
    more: list[Count] = []
    packed: bool = False

    def apart(self) -> list[Item]:
        """Its requests, each as an Item of its own."""
        width = len(self.inputs) + len(self.outputs)
        packed = self.packed
        items = [
            Item(self.arena, self.inputs, self.outputs, self.digest, self.start, self.rows, [], packed)
        ]
        for at in range(0, len(self.more), width):
            places = self.more[at : at + width]
            tensors, slots = moved(self.inputs, self.outputs, places)
            items.append(Item(self.arena, tensors, slots, b"", 0, 0, [], packed))
        return items


class Batch(msgspec.Struct, array_like=True, tag=6):
    """Run these items as one. `rows` is the sum of their rows; 0: one request that runs alone."""

    batch: int
    model: str
    revision: int
    rows: int
    items: list[Item]
    lease_ns: int = 0  # a worker that runs it longer is hung; 0: no limit

    def apart(self) -> list[Item]:
        """An Item for each of its requests."""
        return [each for item in self.items for each in item.apart()]


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
    """Answer to Leaving: the broker knows why the process ends. No batch follows."""


class Unwanted(msgspec.Struct, array_like=True, tag=8):
    """Answer to Yielded: the request has ended, so its batch may end with this answer."""

    batch: int


# ---- admin ----------------------------------------------------------------------------------

Options = Annotated[dict[Short, Any], msgspec.Meta(max_length=64)]


class Snapshot(msgspec.Struct, array_like=True, tag=1):
    """Ask for the cumulative counters."""

    secret: Short = ""  # of every message here: the yard's, over tcp without CURVE keys; see secret.py


class LoadModel(msgspec.Struct, array_like=True, tag=2):
    """Serve one more model. `file` is relative to the yard's models_root. Answered by ModelChanged
    when a worker has it loaded and warm, or by Refused."""

    model: Name
    file: Path
    max_batch: Rows | None = None  # None: the yard's default
    run_ns_max: RunTime | None = None  # a worker that runs it for longer is ended; None, 0: no such bound
    options: Options = {}  # as a model's table in batchyard.toml has them, by the same keys
    secret: Short = ""


class SwapModel(msgspec.Struct, array_like=True, tag=3):
    """Serve a model from this file from now on ("": the file that it has, read anew). Every worker
    loads it beside the old one, and compares their answers; then all switch, or none does."""

    model: Name
    file: Path
    tolerance: Annotated[float, msgspec.Meta(ge=0)] | None = None  # of a canary's answers; None: any
    run_ns_max: RunTime | None = None  # as in LoadModel; 0: no such bound any more; None: as it was
    options: Options = {}  # as of LoadModel; an option that is not named stays as it is
    secret: Short = ""


class UnloadModel(msgspec.Struct, array_like=True, tag=4):
    """Stop serving it. Waiting requests still run; answered when they are done."""

    model: Name
    secret: Short = ""


class SnapshotTaken(msgspec.Struct, array_like=True, tag=1):
    """The counters: plain integers, never reset while the broker lives."""

    counters: dict[str, Any]


class ModelChanged(msgspec.Struct, array_like=True, tag=2):
    """The model is loaded, swapped, or gone. `difference` as in Loaded, the greatest of all workers."""

    model: str
    revision: int
    difference: float | None = None


ClientMessage = Hello | Submit | Cancel | Describe | Bye
BrokerToClient = Refused | Welcome | Completed | Answer | Failed | Released | Described | Streamed
WorkerMessage = Register | Loaded | LoadFailed | Done | BatchFailed | Leaving | RunsAlone | Yielded
BrokerToWorker = Refused | WorkerWelcome | Load | Unload | Attach | Detach | LentBatch | Dismissed | Unwanted
AdminMessage = Snapshot | LoadModel | SwapModel | UnloadModel
BrokerToAdmin = Refused | SnapshotTaken | ModelChanged
