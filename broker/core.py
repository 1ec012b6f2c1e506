"""The broker's state machine: every transition of requests, batches, and workers.

`handle(event, now_ns) -> actions` and `next_deadline_ns()`. No socket, no clock, no log, no randomness: the
loop passes the time in and carries the actions out, and a simulator can do the same from a seed.

    event                  what it does
    Submitted              admit into its lane, or fail at once
    Turn                   expire what is late, then lend batches to workers that have credit; go on with
                           what many requests at once have left to do
    WorkerSaid(Done)       take the lease back, end the requests that are whole
    WorkerSaid(Yielded)    pass one of several answers on, or say that nobody waits for it
    WorkerSaid(Failed)     one request: it fails; several: each half runs again alone
    WorkerSaid(Leaving)    lend it nothing more; when it is gone, no request is blamed for that
    WorkerCutOff           it is gone if it holds nothing, else its process must die first
    WorkerGone             its leases go back to their lanes, LOSSES_MAX times at most
    ModelWanted, ModelUnwanted
                           load, swap, or let go a model while the others run (rollout.py)
    Leaving                describe every model as not ready
    Stopping               refuse what comes from now on
    CancelAsked, ClientGone, a deadline
                           end the request now; its slots are released when no lease holds them

books.py ends requests, delivery.py their batches; policy.py decides order and size. What must hold
between two events: tests/sim/invariants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..transport import messages as m
from ..transport.deadlines import Deadlines
from ..transport.errors import Code, InvalidRequest
from . import events as e
from . import leases, policy
from .admission import Account, Admission, Arena, ClientAccount
from .arrivals import Arrivals, stopped
from .books import Books
from .config import YardConfig
from .counters import Counters
from .delivery import deliver
from .lanes import Lane
from .models import Model
from .policy import CREDIT
from .questions import Questions
from .requests import MIXED, NEVER_NS, Part, Request, items_of, refusal
from .rollout import Rollout, load
from .serving import Batch, Worker
from .sharing import key_of

ENDED_MAX = 128  # requests that expire in one turn, and as many of clients that are gone: some 10 us each
LARGE_BYTES = 1 << 16  # requests that are worth a look at where they lie
_CODES = frozenset(map(int, Code))


class Core:
    """See the module's docstring.

    `config` is checked; `epoch` names this life of the broker, and `pid` is its process; `order`: the policy
    by its name in policy.py.
    """

    def __init__(self, config: YardConfig, epoch: int, pid: int, order: str = policy.DEFAULT) -> None:
        self.epoch = epoch
        self.pid = pid
        self.models = {name: Model(model) for name, model in config.models.items()}
        self.counters = Counters()
        self.workers: dict[int, Worker] = {}
        self.batches: dict[int, Batch] = {}
        self.policy = policy.POLICIES[order](config.budgets_ns)
        self.admission = Admission(config.limits, self.models, self.workers)
        self._rollout = Rollout(self.models, self.workers, self._pace, self._set_apart)
        self.books = Books(self.admission, self.policy, self.counters, self._rollout.drained)
        self.connections = self.books.connections
        self.arenas = self.books.arenas
        self._questions = Questions(self.models)
        self._deadlines: Deadlines[Request] = Deadlines(lambda request: request.ended)
        self._arrivals = Arrivals(self.models, self.admission, self.policy, self.books, self._deadlines)
        self._batch_sequence = 0
        self._with_credit: dict[int, Worker] = {}  # may be lent a batch
        self._going: dict[int, None] = {}  # connections that are gone, whose requests are still to be ended
        self._is_behind = False  # requests that should have ended may still wait
        self._places = 0  # of lost workers, not yet taken by new ones
        self._lend_due_ns = NEVER_NS  # when some busy worker is to be lent its next batch
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            e.Submitted: self._arrivals.submitted,
            e.Turn: self._turn,
            e.WorkerSaid: self._worker_said,
            e.Leaving: self._leave,
            e.Stopping: self._stop,
            e.CancelAsked: self._cancel_asked,
            e.DescribeAsked: self._describe_asked,
            e.ArenaOpened: self._arena_opened,
            e.ClientJoined: self._client_joined,
            e.ClientGone: self._client_gone,
            e.WorkerJoined: self._worker_joined,
            e.WorkerCutOff: self._worker_cut_off,
            e.WorkerGone: self._worker_gone,
            e.Quarantined: self._quarantined,
            e.ModelWanted: self._model_wanted,
            e.ModelUnwanted: self._model_unwanted,
        }
        self._said: dict[type, Callable[[Worker, Any, Sequence[Any], int], None]] = {
            m.Done: self._done,
            m.Yielded: self._yielded,
            m.BatchFailed: self._batch_failed,
            m.Loaded: self._loaded,
            m.LoadFailed: self._loaded,
            m.Leaving: self._leaving,
            m.RunsAlone: self._runs_alone,
        }

    # ---- for the loop -------------------------------------------------------------------------

    def handle(self, event: e.Event, now_ns: int) -> list[e.Action]:
        """The actions that an event leads to. The list is the caller's."""
        self._handlers[type(event)](event, now_ns)
        actions = self.books.actions
        if actions:
            self.books.actions = []
        return actions

    def next_deadline_ns(self) -> int | None:
        """When Turn must be handled even if nothing happens; None: not at all."""
        if self._going or self._questions.again or self.books.owed:
            return 0
        due_ns = self._deadlines.next_ns()
        if self._lend_due_ns != NEVER_NS and (due_ns is None or self._lend_due_ns < due_ns):
            due_ns = self._lend_due_ns
        for worker in self.workers.values():
            if worker.overdue_ns and (due_ns is None or worker.overdue_ns < due_ns):
                due_ns = worker.overdue_ns
        return due_ns

    # ---- clients ----------------------------------------------------------------------------

    def _arena_opened(self, event: e.ArenaOpened, now_ns: int) -> None:
        self.arenas[event.arena] = Arena(event.nbytes, event.pinned)

    def _client_joined(self, event: e.ClientJoined, now_ns: int) -> None:
        arena = self.arenas[event.arena]
        arena.connections += 1
        account = Account() if arena.pinned else arena.account
        self.connections[event.conn] = ClientAccount(event.arena, account)

    def _client_gone(self, event: e.ClientGone, now_ns: int) -> None:
        connection = self.connections.get(event.conn)
        if connection is None:
            return
        self._questions.forget(event.conn)
        self._going[event.conn] = None
        self._see_off()

    def _see_off(self) -> None:
        """End requests of clients that are gone, ENDED_MAX at most, and then their connections."""
        room = ENDED_MAX
        for conn in list(self._going):
            requests = self.connections[conn].requests  # a copy of 100,000 would take milliseconds
            while requests and room:
                room -= 1
                self._end_gone(requests[next(reversed(requests))])
            if requests:
                return
            del self._going[conn]
            connection = self.connections.pop(conn)
            self.arenas[connection.arena].connections -= 1
            self.books.close_if_idle(connection.arena)

    def _end_gone(self, request: Request) -> None:
        """Ended, it is none of its connection's any more."""
        self.books.end(request, "gone")
        if not request.rows_leased:
            self._act(e.ToClient(request.conn, m.Released([request.id])))

    def _act(self, action: e.Action) -> None:
        self.books.actions.append(action)

    def _quarantined(self, event: e.Quarantined, now_ns: int) -> None:
        model = self.models.get(event.model)
        if model is not None:
            model.sharing.quarantine(key_of(model.revision, event.digest, event.inputs), now_ns)

    def _cancel_asked(self, event: e.CancelAsked, now_ns: int) -> None:
        connection = self.connections.get(event.conn)
        if connection is None:
            return
        unknown = []
        for number in event.message.requests:
            request = connection.requests.get(number)
            if request is not None:
                self.books.fail(request, Code.CANCELLED, "cancelled by its client")
            elif number not in connection.held:
                unknown.append(number)
        if unknown:
            # It has ended, or it never came: either way its slots are its client's. Sent again, for a client
            # that was interrupted before it could listen.
            self._act(e.ToClient(event.conn, m.Released(unknown)))

    def _describe_asked(self, event: e.DescribeAsked, now_ns: int) -> None:
        if self._arrivals.stopped:
            self._act(e.ToClient(event.conn, refusal(event.message, stopped()), is_of_question=True))
            return
        self.books.actions += self._questions.ask(event.conn, event.message)

    # ---- the end ------------------------------------------------------------------------------

    def _leave(self, event: e.Leaving, now_ns: int) -> None:
        self._questions.leaving = True

    def _stop(self, event: e.Stopping, now_ns: int) -> None:
        self._arrivals.stopped = True

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not any(connection.requests for connection in self.connections.values())

    # ---- models -------------------------------------------------------------------------------

    def _model_wanted(self, event: e.ModelWanted, now_ns: int) -> None:
        self.books.actions += self._rollout.want(event)

    def _model_unwanted(self, event: e.ModelUnwanted, now_ns: int) -> None:
        self.books.actions += self._rollout.unwant(event)
        self.books.actions += self._questions.answer()

    # ---- workers ----------------------------------------------------------------------------

    def _worker_joined(self, event: e.WorkerJoined, now_ns: int) -> None:
        if self._places:
            self._places -= 1
            self.counters.workers_restarted += 1
        worker = self.workers[event.worker] = Worker(event.worker, event.pid, event.fallback_reason)
        self._with_credit[event.worker] = worker
        self._act(e.ToWorker(event.worker, m.WorkerWelcome(self.epoch, event.worker, self.pid)))
        for model in self.models.values():
            self._act(load(worker, model.config, model.revision))
        self._rollout.joined(worker)

    def _worker_said(self, event: e.WorkerSaid, now_ns: int) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:  # else it was cut off over an earlier message, and these came with it
            self._said[type(event.message)](worker, event.message, event.frames, now_ns)

    def _loaded(
        self, worker: Worker, message: m.Loaded | m.LoadFailed, frames: Sequence[Any], now_ns: int
    ) -> None:
        """A worker has loaded a model, or can't."""
        worker.loading.discard((message.model, message.revision))
        tried = self._rollout.heard(worker, message)
        model = self.models.get(message.model)
        if tried is not None:
            self.books.actions += tried
        elif model is None or message.revision != model.revision:
            self.counters.refuse("stale_load")
            return
        elif isinstance(message, m.LoadFailed):
            model.failures[worker.id] = message.text
        elif model.outputs and (reason := model.differs(message)):  # its file is another one by now
            self.counters.refuse("bad_load")
            model.failures[worker.id] = reason
        else:
            try:
                if model.name in worker.models:
                    self._learned(worker, model, message)
                else:
                    if model.outputs and model.batchable != message.batchable and not model.disproved:
                        self._run_alone(model, message.alone_reason or model.alone_reason)
                    worker.serve(model, message)
                    self._pace(worker, model)
            except InvalidRequest as error:
                self.counters.refuse("bad_load")
                model.failures[worker.id] = f"a worker described it wrongly: {error}"
        self.books.actions += self._questions.answer()

    def _learned(self, worker: Worker, model: Model, message: m.Loaded) -> None:
        """A worker that serves it has seen on real requests whether rows may share a run. When all have seen
        that they may, they do."""
        if model.batchable or model.disproved:
            return
        if not message.batchable:
            model.alone_reason = message.alone_reason
            return
        model.learned[worker.id] = message
        lessons = [model.learned.get(number) for number in model.workers]
        if None in lessons or any(lesson.batch_axes != message.batch_axes for lesson in lessons if lesson):
            return
        for number in list(model.workers):
            self.workers[number].serve(model, model.learned[number])
            self._pace(self.workers[number], model)
        model.learned.clear()
        self._set_apart(model)

    def _runs_alone(
        self, worker: Worker, message: m.RunsAlone, frames: Sequence[Any], now_ns: int
    ) -> None:
        """A batch's outputs could not be divided among its requests."""
        model = self.models.get(message.model)
        if model is not None and message.revision == model.revision and model.batchable:
            self._run_alone(model, message.reason)

    def _run_alone(self, model: Model, reason: str) -> None:
        """No two requests of this revision share a run any more."""
        model.disprove(reason)
        for other in self.workers.values():
            if model.name in other.rows_max:
                other.rows_max[model.name] = 1
        self._make_whole(model)

    def _set_apart(self, model: Model) -> None:
        """Requests that wait share no run with later ones, whose rows lie elsewhere, or nowhere."""
        model.set_apart()
        self._make_whole(model)

    def _make_whole(self, model: Model) -> None:
        """Requests that have been split are run as a whole, when their parts have come back."""
        leased = [batch.parts for batch in self.batches.values() if batch.model is model]
        for parts in (*leased, *(lane.waiting() for lane in model.lanes.values())):
            for part in parts:
                if part.stop - part.start < part.request.rows:
                    part.request.revision = MIXED

    def _leaving(self, worker: Worker, message: m.Leaving, frames: Sequence[Any], now_ns: int) -> None:
        """It is lent nothing more. Its batches come back when its process is dead, as always."""
        if not worker.leaving:
            worker.leaving = True
            self._with_credit.pop(worker.id, None)
            self.counters.workers_left += 1
        self._act(e.ToWorker(worker.id, m.Dismissed()))

    def _worker_cut_off(self, event: e.WorkerCutOff, now_ns: int) -> None:
        """Its process may live. While it holds batches it may still write: they run again when it is dead."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        holds_batches = bool(worker.leases)
        self._with_credit.pop(worker.id, None)
        self._act(e.CutOff(worker.id, holds_batches))
        if not holds_batches:
            self._worker_gone(event, now_ns)

    def _worker_gone(self, event: e.WorkerGone | e.WorkerCutOff, now_ns: int) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        self._with_credit.pop(worker.id, None)
        self.counters.workers_lost += 1
        self._places += 1
        for model in self.models.values():
            model.workers.pop(worker.id, None)
            model.failures.pop(worker.id, None)
        self.books.actions += self._rollout.gone(worker)
        running = next(iter(worker.leases.values()), None)
        for batch in worker.leases.values():
            del self.batches[batch.id]
            for part in batch.parts:
                self.books.take_back_part(part)
                if not part.request.ended:
                    self.books.requeue(part, batch, batch is running and not worker.leaving)
        if running is None or worker.leaving:
            return
        if leases.was_slow(running, now_ns):
            self.books.was_slow(running, now_ns)
        else:
            self.books.suspect(running)

    # ---- batches ----------------------------------------------------------------------------

    def _turn(self, event: e.Turn, now_ns: int) -> None:
        for request in self._deadlines.due(now_ns, ENDED_MAX):
            self.books.expire(request)
        if self._going:
            self._see_off()
        if self._questions.again:
            self.books.actions += self._questions.some()
        if self.books.owed:
            self.books.pay(now_ns)
        for worker in self.workers.values():
            if worker.overdue_ns and worker.overdue_ns <= now_ns:
                self._look_at(worker, now_ns)
        self._lend_due_ns = NEVER_NS
        lanes = self.policy.lanes
        if lanes:
            late_ns = self._deadlines.next_ns()
            self._is_behind = bool(self._going) or (late_ns is not None and late_ns <= now_ns)
            workers = list(self._with_credit.values())
            for worker in workers:
                if lanes and not worker.leases:
                    self._lend(worker, now_ns)
            for worker in workers:
                if lanes and worker.leases and worker.id in self._with_credit:  # it has one, and no stream
                    self._lend(worker, now_ns)

    def _look_at(self, worker: Worker, now_ns: int) -> None:
        """It has run a batch for long: is it hung?"""
        batch = next(iter(worker.leases.values()))
        if leases.hung_ns(batch, batch.began_ns) > now_ns:
            worker.overdue_ns = leases.look_ns(batch, now_ns)
            return
        worker.overdue_ns = 0  # killed once; its death gives its batches back
        worker.stopped = True
        self.counters.workers_hung += 1
        self._act(e.KillWorker(worker.id))

    def _lend(self, worker: Worker, now_ns: int) -> None:
        """Give the worker the best batch there is, if there is one that it should have."""
        choice = self.policy.next_batch(worker, now_ns)
        if isinstance(choice, int):
            self._lend_due_ns = min(self._lend_due_ns, choice)
            return
        lane, parts = choice
        if self._is_behind:
            parts = self._timely(lane, parts, now_ns)
            if not parts:
                return  # the next turn comes at once
        if len(parts) > 1 and parts[0].request.nbytes >= LARGE_BYTES:
            parts.sort(key=_place)  # neighbours in memory are run there, and not copied together
        rows = 0
        for part in parts:
            taken = part.stop - part.start
            rows += taken
            part.request.rows_leased += taken
        model = parts[0].request.model
        items = items_of(parts, model.is_uniform and not (lane.is_alone or lane.is_ragged))
        self._batch_sequence += 1
        batch = Batch(self._batch_sequence, model, lane, parts, rows, worker, now_ns)
        batch.lease_ns = leases.lease_ns(batch, now_ns)
        if not worker.leases:
            self._began(worker, batch, now_ns)
        else:
            worker.busy_until_ns = max(now_ns, worker.busy_until_ns) + batch.predicted_ns
        worker.leases[batch.id] = batch
        if len(worker.leases) >= CREDIT or model.streams:  # nothing waits behind a stream
            del self._with_credit[worker.id]
        self.batches[batch.id] = batch
        rows = 0 if lane.is_alone else rows
        message = m.Batch(batch.id, model.name, model.revision, rows, items, batch.lease_ns)
        self.books.actions.append(e.ToWorker(worker.id, message))

    def _timely(self, lane: Lane, parts: list[Part], now_ns: int) -> list[Part]:
        """Those whose requests are still wanted; the others end before their turn to."""
        late = [
            part
            for part in parts
            if 0 < part.request.deadline_ns <= now_ns or part.request.conn in self._going
        ]
        for part in late:
            lane.push_front(part)  # where the end of a request looks for its rows
        for part in late:
            request = part.request
            if request.conn in self._going:
                self._end_gone(request)
            elif not request.ended:
                self.books.expire(request)
        return [part for part in parts if not part.request.ended]

    @staticmethod
    def _began(worker: Worker, batch: Batch, now_ns: int) -> None:
        """The worker has nothing before this batch: it runs from now on."""
        batch.began_ns = now_ns
        worker.busy_until_ns = now_ns + batch.predicted_ns
        worker.overdue_ns = leases.look_ns(batch, now_ns)

    def _take_back_lease(self, worker: Worker, message: m.Done | m.BatchFailed, now_ns: int) -> Batch | None:
        """The lease that a worker's message is about; None for one it does not hold."""
        batch = worker.leases.pop(message.batch, None) if message.epoch == self.epoch else None
        if batch is None:
            self.counters.refuse("stale_batch")
            return None
        del self.batches[batch.id]
        if not worker.leaving:
            self._with_credit[worker.id] = worker
        worker.overdue_ns = 0
        worker.busy_until_ns = now_ns
        for following in worker.leases.values():
            self._began(worker, following, now_ns)
            if following.model.streams:
                self._with_credit.pop(worker.id, None)
        return batch

    def _yielded(self, worker: Worker, message: m.Yielded, frames: Sequence[Any], now_ns: int) -> None:
        """One of a request's answers. A batch of a stream is one request."""
        batch = worker.leases.get(message.batch) if message.epoch == self.epoch else None
        if batch is None or not batch.model.streams:
            self.counters.refuse("stale_batch")
            return
        request = batch.parts[0].request
        if request.ended:
            self._act(e.ToWorker(worker.id, m.Unwanted(message.batch)))
        elif all(1 <= tensor.frame <= len(frames) for tensor in message.outputs):
            request.streamed = True
            self._act(e.ToClient(request.conn, m.Streamed(request.id, message.outputs), frames))
        else:
            self.counters.refuse("missing_frame")
            self.books.fail(request, Code.WORKER_LOST, "a worker's answer lacked its tensors")

    def _done(self, worker: Worker, message: m.Done, frames: Sequence[Any], now_ns: int) -> None:
        batch = self._take_back_lease(worker, message, now_ns)
        if batch is None:
            return
        model = batch.model
        ran = deliver(self.books, batch, message, frames, now_ns)
        if model.streams:  # its time says nothing of the next one's
            return
        took_ns = message.gather_ns + message.compute_ns + message.scatter_ns
        self.admission.forecast.ran(ran, model.row_ns, took_ns, now_ns - batch.began_ns, now_ns)
        timing = worker.timings.get(model.name)
        if timing is not None and batch.revision == model.revision:
            if batch.predicted_ns:
                model.steadiness.ran(batch.predicted_ns, took_ns)
            worker.learn(batch, took_ns, message.padding)
            if batch.rows == worker.rows_max[model.name] or (not model.row_ns and timing.has_claims):
                self._pace(worker, model)

    def _pace(self, worker: Worker, model: Model) -> None:
        """The expected time of a full batch has changed. A file's claims never refuse a request: they
        could not be proved wrong."""
        timing = worker.timings[model.name]
        rows = worker.rows_max[model.name]
        model.row_ns = timing.predict_ns(rows) / rows if timing.is_measured else 0.0
        self.admission.slowest_row_ns = max((other.row_ns for other in self.models.values()), default=0.0)

    def _batch_failed(
        self, worker: Worker, message: m.BatchFailed, frames: Sequence[Any], now_ns: int
    ) -> None:
        """Find the request at fault: named by the worker, alone in its batch, or by bisection."""
        batch = self._take_back_lease(worker, message, now_ns)
        if batch is None:
            return
        self.counters.batches_failed += 1
        live: list[Part] = []
        for index, part in enumerate(batch.parts):
            self.books.take_back_part(part)
            if part.request.ended:
                continue
            if index == message.item or len(batch.parts) == 1:
                batch.lane.push_front(part)  # where the end of a request looks for its rows
                # A worker's message is a peer's data: its code may be none.
                code = message.code if message.code in _CODES and message.code else Code.MODEL_FAILED
                self.books.fail(part.request, code, message.text)
            else:
                live.append(part)
        if not live:
            return
        lane = batch.lane
        self.policy.add(lane)
        if 0 <= message.item < len(batch.parts):
            lane.retry(live)
            return
        middle = len(live) // 2
        for half in (live[middle:], live[:middle]):
            if half:
                lane.retry(half)


def _place(part: Part) -> tuple[int, int, int]:
    """Where a part begins, by its first input."""
    request = part.request
    offsets = request.offsets
    return request.arena, offsets[0] if offsets else 0, part.start
