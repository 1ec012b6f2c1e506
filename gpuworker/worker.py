"""A worker's side of the dialogue: what it does with each message of the broker. No socket, no clock.

It loads models, attaches arenas, and runs batches in the order in which they come. Its models outlive a
broker; revisions and arenas do not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ..evidence.words import of_run
from ..transport import codec
from ..transport import messages as m
from ..transport.errors import Code
from ..transport.lent import LentFrame
from ..transport.tensors import Tensor
from .backends.onnx import ServedModel
from .device import DeviceLost
from .handles import ItemRefused
from .imports import UserError
from .loader import Outcome
from .memory import Memory

LEAVING_CHARS_MAX = 1000

log = logging.getLogger("batchyard.gpuworker")


class Worker:
    """Handles the broker's messages; `send(messages, frames)` carries the answers away.

    `start_load(key, load, baseline)` begins to load a model; its caller calls `loaded(key, outcome)` at the
    end. `secret` is asked at every greeting, because the next broker may have another one. A simulator passes
    its own models and memory; nothing else here knows onnxruntime or a segment.
    """

    def __init__(
        self,
        provider: str,
        pid: int,
        send: Callable[..., None],
        start_load: Callable[[Any, m.Load, ServedModel | None], None],
        memory: Memory,
        fallback_reason: str = "",
        secret: Callable[[], str] = str,
    ) -> None:
        self._provider = provider
        self._fallback_reason = fallback_reason
        self._secret = secret
        self._pid = pid
        self._send = send
        self._start_load = start_load
        self._memory = memory
        self._models: dict[tuple[str, int], ServedModel] = {}  # by name and revision
        # With their sources, newest last; a former broker's, too.
        self._kept: list[tuple[Any, ServedModel]] = []
        self._loading: dict[Any, list[m.Load]] = {}  # by source: the Loads of this broker that it will answer
        self._epoch = 0
        self._broker_pid = 0
        self._complained = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.LentBatch: self._batch,
            m.Attach: self._attach,
            m.Detach: self._detach,
            m.WorkerWelcome: self._welcome,
            m.Load: self._load,
            m.Unload: self._unload,
            m.Refused: self._refused,
            m.Dismissed: self._dismissed,
            m.Unwanted: lambda message: None,  # its batch has ended meanwhile
        }
        self.glance: Callable[[], list[Any]] = lambda: []  # what has come while a batch runs
        self.later: list[Any] = []  # of it, what is to be handled after the batch
        self.dismissed = False  # the broker knows that this process is about to exit
        self.unauthorized = False  # the secret was not the broker's: to be greeted again, in a while

    def register(self) -> None:
        """Greet a broker. A broker that already knows this connection ignores it, so arenas and revisions
        stay until a WorkerWelcome."""
        self._send([m.Register(self._pid, [self._provider], self._fallback_reason, self._secret())])

    def handle(self, message: m.BrokerToWorker) -> None:
        self._handlers[type(message)](message)

    def _welcome(self, message: m.WorkerWelcome) -> None:
        self._complained = False
        for _, model in self._kept:
            model.forget_bindings()
        self._memory.detach_all()
        self._models.clear()  # a new broker counts revisions anew
        for loads in self._loading.values():
            loads.clear()
        self._epoch = message.epoch
        self._broker_pid = message.pid

    def _refused(self, message: m.Refused) -> None:
        if message.code == Code.UNAUTHORIZED:
            self.unauthorized = True
            if not self._complained:  # once, and not at every greeting
                log.error("%s", message.text)
            self._complained = True
            return
        log.error("the broker refused a message: %s", message.text)
        if message.code == Code.UNKNOWN_CONNECTION:
            self.register()

    def leave(self, text: str, runs_on: bool = False) -> None:
        """Tell the broker that this process is about to exit, through no fault of its batches. It runs no
        more batches; with `runs_on`, it runs those that arrive before the broker's answer."""
        if not runs_on:
            self._handlers[m.LentBatch] = lambda message: None
        self._send([m.Leaving(text[:LEAVING_CHARS_MAX])])

    def _dismissed(self, message: m.Dismissed) -> None:
        self.dismissed = True

    # ---- models -------------------------------------------------------------------------------

    def _load(self, message: m.Load) -> None:
        """Load a model, unless it is loaded already: a new broker gets the last one's models at once. A trial
        against a served revision always reads the file, and is compared."""
        try:
            source = _source(message)
        except OSError as error:
            self._send(
                [
                    m.LoadFailed(
                        message.model, message.revision, f"{Path(message.path).name}: {error.strerror}"
                    )
                ]
            )
            return
        # A trial's outcome does not answer a Load of the same file without a trial.
        trial = bool(message.baseline_revision)
        key = source, (self._epoch, message.baseline_revision, message.tolerance) if trial else None
        kept = [] if trial else [model for known, model in self._kept if known == source]
        if kept:
            self._serve(message, kept[-1], None)
        elif key in self._loading:
            self._loading[key].append(message)
        else:
            self._loading[key] = [message]
            self._start_load(key, message, self._models.get((message.model, message.baseline_revision)))

    def loaded(self, key: Any, outcome: Outcome) -> None:
        """The load that was started under `key` has ended; if it failed, `outcome` says why. Raises
        DeviceLost."""
        loads = self._loading.pop(key)
        if isinstance(outcome, DeviceLost):
            raise outcome
        if not loads:
            return  # it was unloaded meanwhile, or its broker is gone
        source = key[0]
        if not isinstance(outcome, str) and not _is_still(source, loads[0]):
            outcome = "the file changed while it was loaded"
        if isinstance(outcome, str):
            self._send([m.LoadFailed(message.model, message.revision, outcome) for message in loads])
            return
        model, difference = outcome
        self._kept.append((source, model))
        for message in loads:
            self._serve(message, model, difference)

    def _serve(self, message: m.Load, model: ServedModel, difference: float | None) -> None:
        self._models[message.model, message.revision] = model
        self._describe(message.model, message.revision, model, difference)

    def _describe(self, name: str, revision: int, model: ServedModel, difference: float | None) -> None:
        loaded = m.Loaded(
            name,
            revision,
            model.inputs,
            model.outputs,
            model.batchable,
            model.alone_reason,
            model.max_batch,
            model.recipe.name,
            model.placement,
            model.warmup_ns,
            model.buckets,
            difference,
            model.origin,
            model.claimed_ns,
            model.batch_axes or [],
            model.evidence,
            model.padding,
            model.streams,
        )
        unfit = codec.worker_to_broker.refusal(loaded)
        if unfit:
            unfit = f"its inputs and outputs don't fit into a message to the broker: {unfit}"
            self._send([m.LoadFailed(name, revision, unfit)])
            return
        self._send([loaded])

    def _unload(self, message: m.Unload) -> None:
        self._models.pop((message.model, message.revision), None)
        for loads in self._loading.values():
            loads[:] = [
                load for load in loads if (load.model, load.revision) != (message.model, message.revision)
            ]
        used = set(map(id, self._models.values()))
        self._kept = [(source, model) for source, model in self._kept if id(model) in used]

    def _attach(self, message: m.Attach) -> None:
        self._memory.attach(message.arena, message.segment, self._broker_pid)

    def _detach(self, message: m.Detach) -> None:
        for _, model in self._kept:
            model.forget_bindings()
        self._memory.detach(message.arena)

    def _refuse_shrunken(self) -> None:
        """Requests of these arenas fail. Only a client that shrinks its segment during the run ends this
        process."""
        for number in self._memory.shrunken():
            for _, model in self._kept:
                model.forget_bindings()
            self._memory.refuse(number, "its client has shrunk its segment")

    def _batch(self, message: m.LentBatch) -> None:
        model = self._models.get((message.model, message.revision))
        if model is None:
            text = f"this worker has not loaded revision {message.revision} of {message.model!r}"
            self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
            return
        if self._memory.may_shrink:
            self._refuse_shrunken()
        try:
            if model.streams:
                result = model.stream(message, self._memory, partial(self._emit, message.batch))
            else:
                result = model.run(message, self._memory)
        except ItemRefused as error:
            self._tell_of_rows(message, model)
            failed = m.BatchFailed(
                self._epoch, message.batch, Code.INVALID_REQUEST, str(error)[:4000], error.item
            )
            self._send([failed])
        except Exception as error:  # an error of the runtime is the model's failure
            text = f"{message.model!r} failed: {of_run(error)}"[:4000]
            self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
        else:
            done = m.Done(
                self._epoch,
                message.batch,
                min(result.gather_ns, m.TOOK_NS_MAX),
                min(result.compute_ns, m.TOOK_NS_MAX),
                min(result.scatter_ns, m.TOOK_NS_MAX),
                result.copied_bytes,
                result.inline_outputs,
                result.changed,
                result.padding,
                [
                    m.FrameSegment(number, frame.segment)
                    for number, frame in enumerate(result.frames, 1)
                    if type(frame) is LentFrame
                ],
            )
            unfit = codec.worker_to_broker.refusal(done) if result.frames else ""
            if unfit:
                text = f"the answer of {message.model!r} doesn't fit into a message to the broker: {unfit}"
                self._send([m.BatchFailed(self._epoch, message.batch, Code.MODEL_FAILED, text)])
                return
            self._tell_of_rows(message, model)
            self._send([done], result.frames)
            if model.has_learned:
                model.has_learned = False
                for (name, revision), served in self._models.items():
                    if served is model:
                        self._describe(name, revision, model, None)

    def _tell_of_rows(self, message: m.LentBatch, model: ServedModel) -> None:
        """Say that rows depend on each other, if this batch has shown it. Before the batch's own outcome: it
        decides what the broker does with its parts."""
        reason = model.disproved
        if reason and model.batchable:
            model.batchable = False
            self._send([m.RunsAlone(message.model, message.revision, reason[:4000])])

    def _emit(self, batch: int, outputs: list[Tensor], frame: Any) -> bool:
        """Send one of a batch's answers. Returns whether another is wanted."""
        message = m.Yielded(self._epoch, batch, outputs)
        unfit = codec.worker_to_broker.refusal(message)
        if unfit:
            raise UserError(f"an answer doesn't fit into a message to the broker: {unfit}")
        self._send([message], [frame])
        wanted = True
        for heard in self.glance():
            if isinstance(heard, m.Unwanted) and heard.batch == batch:
                wanted = False
            else:
                self.later.append(heard)
        return wanted


def _source(load: m.Load) -> Any:
    """The source that a Load names, as a key. Raises OSError."""
    file: tuple[Any, ...] = ()
    if load.path:  # else a function of a module, which this process imports once
        status = Path(load.path).stat()  # of the file itself: where a link leads may change
        file = (load.path, status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
    function = msgspec.json.encode(load.function)  # lists of axes have no hash
    axis = msgspec.json.encode(load.batch_axis)
    pad = msgspec.json.encode(load.pad)
    how = load.max_batch, load.batchable, load.warmup, tuple(load.buckets), axis, load.trusted, pad
    return load.model, file, function, *how


def _is_still(source: Any, load: m.Load) -> bool:
    """Whether the file is the one that it was when the Load came."""
    try:
        return bool(_source(load) == source)
    except OSError:
        return False
