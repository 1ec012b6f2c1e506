"""The language of core.py: the events that it handles, and the actions that it returns.

Connections, workers, and arenas are the loop's numbers for them. `frames` are opaque here: the
core hands them on and never looks inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..transport import messages as m
from ..transport.tensors import Tensor
from .config import ModelConfig


class ArenaOpened(msgspec.Struct, gc=False):
    """The loop holds an arena of so many bytes. Pinned: the broker's own, kept with no connection."""

    arena: int
    nbytes: int
    pinned: bool = False


class ClientJoined(msgspec.Struct, gc=False):
    """A connection was greeted; its handles refer to `arena` (the broker's own
    for a connection that sends frames)."""

    conn: int
    arena: int


class ClientGone(msgspec.Struct, gc=False):
    """The connection ended, in order or not."""

    conn: int


class Submitted(msgspec.Struct, gc=False):
    """A request came in. `arena` is where its handles lie."""

    conn: int
    arena: int
    message: m.Submit
    digest: bytes = b""  # of its content, where the model asks for it
    shared: bytes = b""  # of the inputs that all rows of a batch have in common, where there are any


class Leaving(msgspec.Struct, gc=False):
    """The broker is to end soon: models are described as not ready, and requests are admitted as before."""


class Stopping(msgspec.Struct, gc=False):
    """The broker is to end: nothing more is admitted, what was admitted is run."""


class CancelAsked(msgspec.Struct, gc=False):
    conn: int
    message: m.Cancel


class DescribeAsked(msgspec.Struct, gc=False):
    conn: int
    message: m.Describe


class WorkerJoined(msgspec.Struct, gc=False):
    worker: int
    pid: int
    fallback_reason: str = ""  # as in Register


class WorkerGone(msgspec.Struct, gc=False):
    """The worker cannot touch memory any more: its process is dead."""

    worker: int


class WorkerCutOff(msgspec.Struct, gc=False):
    """The worker's connection has ended, or it does not read. Its process may live, and may still write."""

    worker: int


class WorkerSaid(msgspec.Struct, gc=False):
    """A message of a registered worker, with the frames that came behind it."""

    worker: int
    message: m.Loaded | m.LoadFailed | m.Done | m.BatchFailed | m.Leaving | m.RunsAlone | m.Yielded
    frames: Sequence[Any] = ()


class Quarantined(msgspec.Struct, gc=False):
    """The digest of a content that workers have died of; the answer to Quarantine."""

    model: str
    inputs: list[Tensor]
    digest: bytes


class ModelWanted(msgspec.Struct, gc=False):
    """An operator wants a model served from this file: a new one, or (`swap`) in place of the one of
    that name. `admin` is whom to answer."""

    admin: int
    config: ModelConfig
    swap: bool
    tolerance: float | None = None


class ModelUnwanted(msgspec.Struct, gc=False):
    """An operator wants a model served no longer."""

    admin: int
    model: str


class SnapshotAsked(msgspec.Struct, gc=False):
    """An operator wants the counters. The loop answers; the core never sees it."""

    admin: int


class Turn(msgspec.Struct, gc=False):
    """Everything readable has been read: drop what is late, and form batches."""


class ToClient(msgspec.Struct, gc=False):
    conn: int
    message: Any
    frames: Sequence[Any] = ()
    is_of_question: bool = False  # whose number may be that of a request, and means no slots


class ToWorker(msgspec.Struct, gc=False):
    worker: int
    message: Any


class ToAdmin(msgspec.Struct, gc=False):
    admin: int
    message: m.ModelChanged | m.Refused | m.SnapshotTaken


class KillWorker(msgspec.Struct, gc=False):
    """The worker is hung: end its process. WorkerGone follows when it is dead."""

    worker: int


class CutOff(msgspec.Struct, gc=False):
    """A worker whose connection has ended. `holds_batches`: its process must end, and WorkerGone follows when
    it has; else the core has forgotten it already."""

    worker: int
    holds_batches: bool


class Quarantine(msgspec.Struct, gc=False):
    """Workers have died of this content: tell its digest, while it is still there."""

    model: str
    arena: int
    inputs: list[Tensor]


class CloseArena(msgspec.Struct, gc=False):
    """No connection and no lease refers to the arena any more."""

    arena: int


Event = (
    ArenaOpened
    | ClientJoined
    | ClientGone
    | Submitted
    | Leaving
    | Stopping
    | CancelAsked
    | DescribeAsked
    | WorkerJoined
    | WorkerGone
    | WorkerCutOff
    | WorkerSaid
    | Quarantined
    | ModelWanted
    | ModelUnwanted
    | SnapshotAsked
    | Turn
)
Action = ToClient | ToWorker | ToAdmin | KillWorker | CutOff | Quarantine | CloseArena
