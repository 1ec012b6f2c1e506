"""Models that come, change, and go while the yard runs.

A change is tried on every worker, one after the other, so that the others serve undisturbed: the worker
loads the new revision beside the one that it serves, warms it, and compares the answers of both. When
all have it, all switch at once: what is lent from then on names the new revision, what was lent before
ends on the old one, and then the old one is dropped. When one can't, all keep what they have. A model
that goes takes no more requests, and goes when those that it has have ended.

Pure. Must not import the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..transport import messages as m
from ..transport.errors import Code, InvalidRequest
from . import events as e
from .config import MODELS_MAX, ModelConfig
from .models import Model, unknown
from .serving import Worker


@dataclass(slots=True)
class Change:
    """A revision on trial. The first worker of `waiting` is loading it."""

    admin: int
    config: ModelConfig
    revision: int
    tolerance: float | None
    waiting: list[int]
    loaded: dict[int, m.Loaded] = field(default_factory=dict)


class Rollout:
    """`pace` is called for every worker that begins to serve a model; `set_apart` for a model whose rows lie
    elsewhere than those of the revision before, or nowhere."""

    def __init__(
        self,
        models: dict[str, Model],
        workers: dict[int, Worker],
        pace: Callable[[Worker, Model], None],
        set_apart: Callable[[Model], None],
    ) -> None:
        self._models = models
        self._workers = workers
        self._pace = pace
        self._set_apart = set_apart
        self._changes: dict[str, Change] = {}
        self._leaving: dict[str, list[int]] = {}  # model -> whom to tell when it is gone
        self._revisions: dict[str, int] = {}  # the last of each name: a late answer is about no later one

    # ---- orders -------------------------------------------------------------------------------

    def want(self, event: e.ModelWanted) -> list[e.Action]:
        """Try a new model, or another file for a served one."""
        name = event.config.name
        model = self._models.get(name)
        if name in self._leaving:
            return [_refused(event.admin, Code.OVERLOADED, f"{name!r} is being unloaded; try again")]
        if model is not None and not event.swap:
            text = f"{name!r} is served already: swap it, or unload it first"
            return [_refused(event.admin, Code.INVALID_REQUEST, text)]
        if model is None and len(self._models) >= MODELS_MAX:
            text = f"this yard has {MODELS_MAX} models, and no more are allowed: unload one first"
            return [_refused(event.admin, Code.INVALID_REQUEST, text)]
        if not self._workers:
            return [_refused(event.admin, Code.OVERLOADED, "no worker is up to load it; try again")]
        actions = self._give_up(name, Code.CANCELLED, "a newer change of the same model came")
        last = self._revisions.get(name, model.revision if model is not None else 0)
        self._revisions[name] = last + 1
        change = Change(event.admin, event.config, last + 1, event.tolerance, list(self._workers))
        self._changes[name] = change
        return [*actions, self._try_next(change)]

    def unwant(self, event: e.ModelUnwanted) -> list[e.Action]:
        name = event.model
        model = self._models.get(name)
        if model is None and name not in self._changes:
            return [_refused(event.admin, Code.UNKNOWN_MODEL, unknown(self._models, name))]
        if model is not None:
            model.leaving = True
        actions = self._give_up(name, Code.CANCELLED, "the model was unloaded meanwhile")
        if model is None:
            return [*actions, e.ToAdmin(event.admin, m.ModelChanged(name, self._revisions[name]))]
        self._leaving.setdefault(name, []).append(event.admin)
        return actions + self.drained(model)

    def drained(self, model: Model) -> list[e.Action]:
        """A request of a leaving model has ended. With the last one, the model is gone."""
        if model.users:
            return []
        name = model.name
        self._revisions[name] = max(model.revision, self._revisions.get(name, 0))
        del self._models[name]
        actions: list[e.Action] = []
        for worker in self._workers.values():
            worker.forget(name)
            actions.append(unload(worker, name, model.revision))
        admins = self._leaving.pop(name)
        return actions + [e.ToAdmin(admin, m.ModelChanged(name, model.revision)) for admin in admins]

    # ---- workers' answers ---------------------------------------------------------------------

    def heard(self, worker: Worker, message: m.Loaded | m.LoadFailed) -> list[e.Action] | None:
        """A worker's answer to a trial; None if the message belongs to no trial."""
        name = message.model
        change = self._changes.get(name)
        if change is None or message.revision != change.revision or worker.id != change.waiting[0]:
            return None
        if isinstance(message, m.Loaded):
            reason = self._unfit(change, message)
            if not reason:
                change.loaded[change.waiting.pop(0)] = message
                return [self._try_next(change)] if change.waiting else self._switch(change)
        else:
            reason = message.text or "the worker gave no reason"
        return self._give_up(name, Code.MODEL_FAILED, f"{reason} (worker {worker.id})")

    def joined(self, worker: Worker) -> None:
        """A worker has joined: nothing is switched without it."""
        for change in self._changes.values():
            change.waiting.append(worker.id)

    def gone(self, worker: Worker) -> list[e.Action]:
        """A worker has died. If it was loading a trial, the trial has failed."""
        actions: list[e.Action] = []
        for name, change in list(self._changes.items()):
            change.loaded.pop(worker.id, None)
            if worker.id == change.waiting[0]:
                actions += self._give_up(name, Code.MODEL_FAILED, "a worker died while it loaded it")
            elif worker.id in change.waiting:
                change.waiting.remove(worker.id)
        return actions

    # ---- trials -------------------------------------------------------------------------------

    def _try_next(self, change: Change) -> e.Action:
        worker = self._workers[change.waiting[0]]
        model = self._models.get(change.config.name)
        baseline_revision = model.revision if model is not None and worker.id in model.workers else 0
        return load(worker, change.config, change.revision, baseline_revision, change.tolerance)

    def _unfit(self, change: Change, message: m.Loaded) -> str:
        """Why the loaded revision cannot be served under its name; "": it can."""
        model = self._models.get(message.model)
        reason = ""
        if model is not None and model.outputs:
            reason = model.differs(message)
        if not reason:
            try:
                Model(change.config).loaded(0, 0, message)
            except InvalidRequest as error:
                reason = f"it was described wrongly: {error}"
        return reason

    def _give_up(self, name: str, code: Code, text: str) -> list[e.Action]:
        """Keep the present revision."""
        change = self._changes.pop(name, None)
        if change is None:
            return []
        tried = [*change.loaded, change.waiting[0]]
        actions: list[e.Action] = [
            unload(self._workers[worker], name, change.revision)
            for worker in tried if worker in self._workers
        ]
        model = self._models.get(name)
        if model is None:
            text = f"could not load {name!r}: {text}"
        else:
            kept = "" if model.leaving else f"; revision {model.revision} serves on"
            text = f"{name!r} was not changed: {text}{kept}"
        return [*actions, _refused(change.admin, code, text)]

    def _switch(self, change: Change) -> list[e.Action]:
        """Every worker has loaded it: all serve it from now on."""
        name = change.config.name
        del self._changes[name]
        model = self._models.get(name)
        actions: list[e.Action] = []
        if model is None:
            model = self._models[name] = Model(change.config)
        else:
            # Behind earlier batches on the same connection, so they run first.
            actions += [unload(worker, name, model.revision) for worker in self._workers.values()]
        axes = model.batch_axes
        model.become(change.config, change.revision)
        alone = [message for message in change.loaded.values() if not message.batchable]
        if alone and len(alone) < len(change.loaded):
            model.disproved = alone[0].alone_reason  # workers disagree
        for number, message in change.loaded.items():
            self._workers[number].serve(model, message)
            self._pace(self._workers[number], model)
        if model.batch_axes != axes:  # the file's own evidence, not the last one's
            self._set_apart(model)
        differences = [message.difference for message in change.loaded.values()]
        known = [difference for difference in differences if difference is not None]
        changed = m.ModelChanged(name, change.revision, max(known, default=None))
        return [*actions, e.ToAdmin(change.admin, changed)]


def load(
    worker: Worker,
    config: ModelConfig,
    revision: int,
    baseline_revision: int = 0,
    tolerance: float | None = None,
) -> e.ToWorker:
    """Have a worker load a model; until its answer, its runs are given more time."""
    worker.loading.add((config.name, revision))
    c = config
    path = "" if c.function is not None and c.function.module else str(c.path)
    message = m.Load(
        c.name,
        revision,
        path,
        c.max_batch,
        c.batchable,
        c.warmup,
        list(c.buckets),
        baseline_revision,
        tolerance,
        c.function,
        c.batch_axis,
        c.trusted,
        c.pad,
    )
    return e.ToWorker(worker.id, message)


def unload(worker: Worker, name: str, revision: int) -> e.ToWorker:
    """Have a worker drop a revision, or give up loading it."""
    worker.loading.discard((name, revision))
    return e.ToWorker(worker.id, m.Unload(name, revision))


def _refused(admin: int, code: Code, text: str) -> e.Action:
    return e.ToAdmin(admin, m.Refused(code, text))
