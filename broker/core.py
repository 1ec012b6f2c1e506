"""The broker's state machine: everything that decides who runs when lives here.

`handle(event, now_ns) -> actions`, `next_deadline_ns()`, `validate()`. No socket, no clock, no
log, no randomness: the loop passes the time in and carries the actions out, and a simulator can do
the same from a seed.

    event                  what it does
    Submitted              admit into its lane, or fail at once
    Turn                   expire what is late, then lend batches to workers that have credit
    WorkerSaid(Done)       take the lease back, end the requests that are whole
    WorkerSaid(Failed)     one request: it fails; several: each half runs again alone
    WorkerSaid(Leaving)    lend it nothing more; when it is gone, no request is blamed for that
    WorkerGone             its leases go back to their lanes, LOSSES_MAX times at most
    ModelWanted, ModelUnwanted
                           load, swap, or let go a model while the others run (changes.py)
    CancelAsked, ClientGone, a deadline
                           end the request now; its slots are released when no lease holds them

Invariants (validate() checks them): every live request is waiting, leased, or done, row by row;
no worker holds more than CREDIT batches; what lanes and totals count is what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..transport import messages as m
from ..transport.deadlines import Deadlines
from ..transport.errors import BatchyardError, Code, InvalidRequest, Overloaded, UnknownModel, WorkerLost
from ..transport.messages import Priority
from . import events as e
from . import gauges, invariants, replies
from .admission import Account, Admission, Connection
from .batching import NEVER_NS, URGENT_MEMORY_NS, choose, lease_ns, lend_ns, take
from .changes import Changes, load
from .config import YardConfig
from .counters import Counters
from .describes import Describes
from .identical import Key, Run, key_of
from .lanes import MIXED, Lane, Part, Request
from .registry import Batch, Model, Worker

LOSSES_MAX = 2  # workers that died while they ran nothing but this request: it is given up
_CODES = frozenset(map(int, Code))


class Arena:
    """An arena's size, whose it is, and what keeps it open. Pinned: the broker's own, for all
    connections that send frames."""

    __slots__ = ("account", "connections", "nbytes", "pinned", "requests")

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self.nbytes = nbytes
        self.pinned = pinned
        self.account = Account()
        self.connections = 0
        self.requests = 0  # requests whose slots have not been released


class Core:
    """See the module's docstring.

    `config` is checked; `epoch` names this life of the broker, and `pid` is its process.
    """

    def __init__(self, config: YardConfig, epoch: int, pid: int) -> None:
        self.epoch = epoch
        self._pid = pid
        self.models = {name: Model(model) for name, model in config.models.items()}
        self.counters = Counters()
        self._budgets_ns = config.budgets_ns
        self.connections: dict[int, Connection] = {}
        self.arenas: dict[int, Arena] = {}
        self.workers: dict[int, Worker] = {}
        self.admission = Admission(config.limits, self.models, self.workers)
        self.batches: dict[int, Batch] = {}
        self._batch_sequence = 0
        self.lanes: dict[Lane, None] = {}  # lanes that may hold something; ordered, so runs replay
        self._deadlines: Deadlines[Request] = Deadlines(lambda request: request.ended)
        self._describes = Describes(self.models)
        self._changes = Changes(self.models, self.workers, self._pace)
        self.held_bytes = 0  # in slots of requests that have not been released
        self._places = 0  # of lost workers that nobody has taken yet
        self._urgent_until_ns = 0  # urgent traffic is present until then
        self._lend_due_ns = NEVER_NS  # when some busy worker is to be lent its next batch
        self._actions: list[e.Action] = []
        self._unaccounted: list[tuple[Batch, m.Done, list[Request], int]] = []
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            e.Submitted: self._submitted,
            e.Turn: self._turn,
            e.WorkerSaid: self._worker_said,
            e.CancelAsked: self._cancel_asked,
            e.DescribeAsked: self._describe_asked,
            e.ArenaOpened: self._arena_opened,
            e.ClientJoined: self._client_joined,
            e.ClientGone: self._client_gone,
            e.WorkerJoined: self._worker_joined,
            e.WorkerGone: self._worker_gone,
            e.Quarantined: self._quarantined,
            e.ModelWanted: self._model_wanted,
            e.ModelUnwanted: self._model_unwanted,
        }
        self._said: dict[type, Callable[[Worker, Any, Sequence[Any], int], None]] = {
            m.Done: self._done,
            m.BatchFailed: self._batch_failed,
            m.Loaded: self._loaded,
            m.LoadFailed: self._loaded,
            m.Leaving: self._leaving,
        }

    # ---- the three questions ----------------------------------------------------------------

    def handle(self, event: e.Event, now_ns: int) -> list[e.Action]:
        """What to do about an event. The list is the caller's."""
        self._handlers[type(event)](event, now_ns)
        actions = self._actions
        if actions:
            self._actions = []
        return actions

    def next_deadline_ns(self) -> int | None:
        """When Turn must be handled even if nothing happens; None: not at all."""
        due_ns = self._deadlines.next_ns()
        if self._lend_due_ns != NEVER_NS and (due_ns is None or self._lend_due_ns < due_ns):
            due_ns = self._lend_due_ns
        for worker in self.workers.values():
            if worker.overdue_ns and (due_ns is None or worker.overdue_ns < due_ns):
                due_ns = worker.overdue_ns
        return due_ns

    def snapshot(self) -> dict[str, Any]:
        """What has been done so far, and what is under way now."""
        self.tally()
        return self.counters.snapshot() | {"pid": self._pid, "epoch": self.epoch} | gauges.of(self)

    def validate(self) -> None:
        """Raise AssertionError when an invariant does not hold; for tests and simulations."""
        invariants.check(self)

    def tally(self) -> None:
        """Account for what has ended since the last call. Apart, so that the loop can first send."""
        if not self._unaccounted:
            return
        counters = self.counters
        for batch, message, finished, ended_ns in self._unaccounted:
            name = batch.lane.model.name
            counters.batch(name, batch.rows, message)
            # What came in one envelope has waited equally long: few groups, many requests.
            groups: dict[tuple[int, int], int] = {}
            for request in finished:
                key = (request.priority, request.arrived_ns)
                groups[key] = groups.get(key, 0) + 1
            for (priority, arrived_ns), count in groups.items():
                counters.end(name, priority, "ok", count)
                counters.observe(name, priority, ended_ns - arrived_ns, batch.sent_ns - arrived_ns, count)
        self._unaccounted.clear()

    # ---- clients ----------------------------------------------------------------------------

    def _arena_opened(self, event: e.ArenaOpened, now_ns: int) -> None:
        self.arenas[event.arena] = Arena(event.nbytes, event.pinned)

    def _client_joined(self, event: e.ClientJoined, now_ns: int) -> None:
        arena = self.arenas[event.arena]
        arena.connections += 1
        self.connections[event.conn] = Connection(event.arena, Account() if arena.pinned else arena.account)

    def _client_gone(self, event: e.ClientGone, now_ns: int) -> None:
        connection = self.connections.get(event.conn)
        if connection is None:
            return
        self._describes.forget(event.conn)
        for request in list(connection.requests.values()):
            self._end(request, "gone")
            if not request.rows_leased:
                self._actions.append(e.ToClient(event.conn, m.Released([request.id])))
        del self.connections[event.conn]
        arena = self.arenas[connection.arena]
        arena.connections -= 1
        self._close_if_idle(connection.arena)

    def _submitted(self, event: e.Submitted, now_ns: int) -> None:
        message = event.message
        connection = self.connections.get(event.conn)
        if connection is None:
            return
        known = connection.requests.get(message.request)
        if known is not None:
            if known.is_asked_by(message):
                return  # said twice: the one outcome answers both
            self.counters.refuse("duplicate")
            text = f"request {message.request} is already under way on this connection"
            self._actions.append(e.ToClient(event.conn, m.Refused(Code.INVALID_REQUEST, text)))
            return
        arena = self.arenas[event.arena]
        try:
            model = self.served(message.model)
            if not model.inputs:
                raise Overloaded(f"{message.model!r} is not loaded yet", 0.1)
            rows, nbytes = model.check(message, arena.nbytes)
            key = key_of(model.revision, event.digest, message.inputs) if event.digest else None
            if key is not None and self._answered(event.conn, message, model, key, now_ns):
                return
            self.admission.check(
                connection.account, model, rows, nbytes, message.priority, message.deadline_ns, now_ns
            )
            lane = model.lane(message.inputs)
        except BatchyardError as error:
            self._actions.append(e.ToClient(event.conn, self.refused(message, error)))
            return
        request = Request(event.conn, message, event.arena, lane, rows, nbytes, now_ns)
        virtual_ns = now_ns + self._budgets_ns[message.priority]
        deadline_ns = request.deadline_ns
        if deadline_ns:
            self._deadlines.add(deadline_ns, request)
            # A nearer deadline may bring a request forward inside its class, down to the class's
            # floor: half its budget. Otherwise LOW would buy URGENT's place with a short deadline.
            if deadline_ns < virtual_ns:
                virtual_ns = max(deadline_ns, (now_ns + virtual_ns) // 2)
        request.virtual_ns = virtual_ns
        if message.priority == Priority.URGENT:
            self._urgent_until_ns = now_ns + URGENT_MEMORY_NS
        self.admission.add(connection, request)
        arena.requests += 1
        self.held_bytes += nbytes
        lane.users += 1
        if key is not None and model.identical.shares and rows <= model.max_batch:
            request.key = key
            run = model.identical.run(key)
            if run is not None:
                self._join(request, run)
                return
            model.identical.begin(request)
        self._queue(request)

    def refused(self, message: m.Submit, error: BatchyardError) -> m.Failed:
        """What to tell a client whose request is not taken; that is its outcome, and counted."""
        reason = error.code.name.lower()
        self.counters.refuse(reason)
        # A name that no model has is a client's text: counted by it, counters would grow for ever.
        name = message.model if message.model in self.models else ""
        self.counters.end(name, message.priority, reason)
        retry_ns = int(error.retry_after_s * 1e9) if isinstance(error, Overloaded) else 0
        return m.Failed(message.request, error.code, str(error), retry_ns)

    def _queue(self, request: Request) -> None:
        """It waits in its lane, as a whole."""
        part = Part(request, 0, request.rows)
        if request.run is not None:
            request.run.part = part
        request.lane.push(part)
        self.lanes[request.lane] = None
        self.admission.queued(request)

    # ---- identical work: see identical.py ----------------------------------------------------

    def _answered(self, conn: int, message: m.Submit, model: Model, key: Key, now_ns: int) -> bool:
        """Answer from what is kept. Raises WorkerLost for a content that kills workers."""
        left_ns = model.identical.quarantined_ns(key, now_ns)
        if left_ns:
            raise WorkerLost(
                f"{LOSSES_MAX} workers died of this very input of {model.name!r}; it is refused for another "
                f"{left_ns / 1e9:.0f} s"
            )
        kept = model.identical.result(key, now_ns)
        if kept is None:
            return False
        answer = m.Answer(message.request, 0, kept.receipt(model.revision), kept.outputs)
        self._actions.append(e.ToClient(conn, answer, kept.frames))
        self.counters.spared(model.name, "cached")
        self.counters.end(model.name, message.priority, "ok")
        return True

    def _join(self, request: Request, run: Run) -> None:
        """Wait for the leader's result; or lead, if that would wait longer for its turn."""
        self.counters.spared(request.model.name, "joined")
        leader = run.leader
        if (
            request.virtual_ns < leader.virtual_ns
            and run.part is not None
            and request.lane.withdraw(run.part)
        ):
            run.lead(request)
            run.follow(leader)
            self._queue(request)
        else:
            run.follow(request)

    def _abdicate(self, request: Request) -> None:
        """A leader will give no result that can be shared: the next one leads."""
        run = request.run
        if run is None or run.leader is not request or request.key is None:
            return
        request.run = None
        successor = run.succeed()
        if successor is not None:
            self._queue(successor)
        else:
            request.model.identical.end(run, request.key)

    def _share(
        self, request: Request, is_true: bool, batch: Batch, receipt: m.BatchReceipt, now_ns: int
    ) -> None:
        """A request that may have followers is done: give them its result, if it is the result of what
        they sent."""
        model = request.model
        found = replies.gathered(request) if is_true and batch.revision == model.revision else None
        if found is None or request.key is None:
            self._abdicate(request)
            return
        outputs, frames = found
        if request.key[0] == model.revision:  # it may have been asked of an earlier one
            model.identical.keep(request.key, outputs, frames, batch.rows, now_ns)
        for follower in list(request.run.followers) if request.run is not None else ():
            queue_ns = max(0, batch.sent_ns - follower.arrived_ns)
            self._end(follower, "ok")
            self._release(follower)
            self.counters.end(model.name, follower.priority, "ok")
            total_ns = now_ns - follower.arrived_ns
            self.counters.observe(model.name, follower.priority, total_ns, queue_ns, 1)
            answer = m.Answer(follower.id, queue_ns, receipt, outputs)
            self._actions.append(e.ToClient(follower.conn, answer, frames))
        self._abdicate(request)

    def _give_up(self, request: Request) -> None:
        """Workers have died of it: nobody else is to."""
        text = f"{request.losses} workers died while they ran this request alone"
        model = request.model
        self._actions.append(e.Quarantine(model.name, request.arena, request.inputs))
        followers = list(request.run.followers) if request.run is not None else []
        for victim in (*followers, request):
            self._fail(victim, Code.WORKER_LOST, text)

    def _quarantined(self, event: e.Quarantined, now_ns: int) -> None:
        model = self.models.get(event.model)
        if model is not None:
            model.identical.quarantine(key_of(model.revision, event.digest, event.inputs), now_ns)

    # ---- cancels and questions ---------------------------------------------------------------

    def _cancel_asked(self, event: e.CancelAsked, now_ns: int) -> None:
        connection = self.connections.get(event.conn)
        if connection is None:
            return
        unknown = []
        for number in event.message.requests:
            request = connection.requests.get(number)
            if request is not None:
                self._fail(request, Code.CANCELLED, "cancelled by its client")
            elif number not in connection.held:
                unknown.append(number)
        if unknown:
            # It has ended, or it never came: either way its slots are its client's. Said again, for
            # a client that was interrupted before it could listen.
            self._actions.append(e.ToClient(event.conn, m.Released(unknown)))

    def _describe_asked(self, event: e.DescribeAsked, now_ns: int) -> None:
        self._actions += self._describes.ask(event.conn, event.message)

    # ---- models -----------------------------------------------------------------------------

    def served(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel."""
        model = self.models.get(name)
        if model is None or model.leaving:
            raise UnknownModel(self._describes.unknown(name))
        return model

    def _model_wanted(self, event: e.ModelWanted, now_ns: int) -> None:
        self._actions += self._changes.want(event)

    def _model_unwanted(self, event: e.ModelUnwanted, now_ns: int) -> None:
        self._actions += self._changes.unwant(event)
        self._actions += self._describes.answer()

    # ---- workers ----------------------------------------------------------------------------

    def _worker_joined(self, event: e.WorkerJoined, now_ns: int) -> None:
        if self._places:
            self._places -= 1
            self.counters.workers_restarted += 1
        worker = self.workers[event.worker] = Worker(event.worker, event.pid, event.fallen)
        self._actions.append(e.ToWorker(event.worker, m.WorkerWelcome(self.epoch, event.worker, self._pid)))
        for model in self.models.values():
            self._actions.append(load(worker, model.config, model.revision))
        self._changes.joined(worker)

    def _worker_said(self, event: e.WorkerSaid, now_ns: int) -> None:
        self._said[type(event.message)](self.workers[event.worker], event.message, event.frames, now_ns)

    def _loaded(
        self, worker: Worker, message: m.Loaded | m.LoadFailed, frames: Sequence[Any], now_ns: int
    ) -> None:
        """A worker has loaded a model, or can't."""
        worker.loading.discard((message.model, message.revision))
        tried = self._changes.heard(worker, message)
        model = self.models.get(message.model)
        if tried is not None:
            self._actions += tried
        elif model is None or message.revision != model.revision:
            self.counters.refuse("stale_load")
            return
        elif isinstance(message, m.LoadFailed):
            model.failures[worker.id] = message.text
        elif model.inputs and (reason := model.differs(message)):  # its file is another one by now
            self.counters.refuse("bad_load")
            model.failures[worker.id] = reason
        else:
            try:
                worker.serve(model, message)
                self._pace(worker, model)
            except InvalidRequest as error:
                self.counters.refuse("bad_load")
                model.failures[worker.id] = f"a worker described it wrongly: {error}"
        self._actions += self._describes.answer()

    def _leaving(self, worker: Worker, message: m.Leaving, frames: Sequence[Any], now_ns: int) -> None:
        """It is lent nothing more. What it holds comes back when its process is dead, as always."""
        if not worker.leaving:
            worker.leaving = True
            self.counters.workers_left += 1
        self._actions.append(e.ToWorker(worker.id, m.Dismissed()))

    def _worker_gone(self, event: e.WorkerGone, now_ns: int) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        self.counters.workers_lost += 1
        self._places += 1
        for model in self.models.values():
            model.workers.pop(worker.id, None)
            model.failures.pop(worker.id, None)
        self._actions += self._changes.gone(worker)
        running = next(iter(worker.leases.values()), None)
        for batch in worker.leases.values():
            del self.batches[batch.id]
            for part in batch.parts:
                self._take_back_part(part)
                if not part.request.ended:
                    self._requeue(part, batch, batch is running and not worker.leaving)
        if running is not None and not worker.leaving:
            self._suspect(running)

    def _requeue(self, part: Part, batch: Batch, was_running: bool) -> None:
        """A part of a lost batch goes back to the head of its lane.

        If it was running, by itself: should it be what kills workers, then its neighbours get their
        results. Of a model that is not idempotent nothing runs twice, and nobody knows how far the
        worker had come.
        """
        lane = batch.lane
        if not lane.model.config.idempotent:
            lane.push_front(part)  # where the end of a request looks for its rows
            text = f"a worker died under this request, and {lane.model.name!r} is not idempotent"
            self._fail(part.request, Code.WORKER_LOST, text)
            return
        self.counters.requeued += 1
        self.lanes[lane] = None
        if not was_running:
            lane.push_front(part)
            return
        lane.retry([part])

    def _suspect(self, batch: Batch) -> None:
        """A worker died while it ran this. A request that was all of it is given up when that has happened
        LOSSES_MAX times."""
        request = batch.parts[0].request
        if request.ended or any(part.request is not request for part in batch.parts):
            return
        request.losses += 1
        if request.losses >= LOSSES_MAX:
            self._give_up(request)

    # ---- batches ----------------------------------------------------------------------------

    def _turn(self, event: e.Turn, now_ns: int) -> None:
        for request in self._deadlines.due(now_ns):
            self._fail(request, Code.DEADLINE_EXCEEDED, self._why_late(request))
        for worker in self.workers.values():
            if worker.overdue_ns and worker.overdue_ns <= now_ns:
                worker.overdue_ns = 0  # said once; its death gives its batches back
                self.counters.workers_hung += 1
                self._actions.append(e.KillWorker(worker.id))
        self._lend_due_ns = NEVER_NS
        if self.lanes:
            for worker in self.workers.values():
                if not worker.leases:
                    self._lend(worker, now_ns)
            for worker in self.workers.values():
                if len(worker.leases) == 1:
                    self._lend(worker, now_ns)
            for lane in [lane for lane in self.lanes if not lane.rows]:
                del self.lanes[lane]

    def _why_late(self, request: Request) -> str:
        name = request.model.name
        if request.rows_leased:
            return f"the deadline passed while {name!r} was running it"
        if not request.model.workers:
            return f"the deadline passed while no worker was serving {name!r}"
        return f"the deadline passed in the queue of {name!r}, which held {request.lane.rows} rows"

    def _lend(self, worker: Worker, now_ns: int) -> None:
        """Give the worker the best batch there is, if there is one that it should have."""
        choice = choose(self.lanes, worker, now_ns) if not worker.leaving else None
        if choice is None:
            return
        urgent_present = now_ns < self._urgent_until_ns
        due_ns = lend_ns(choice, worker, urgent_present)
        if due_ns > now_ns:
            self._lend_due_ns = min(self._lend_due_ns, due_ns)
            return
        parts = take(choice, worker, urgent_present, self._budgets_ns[Priority.URGENT], now_ns)
        rows = 0
        items = []
        for part in parts:
            taken = part.stop - part.start
            rows += taken
            part.request.rows_leased += taken
            items.append(part.item())
        self._batch_sequence += 1
        worker.passed = worker.passed + 1 if choice[2] >= 0 else 0
        batch = Batch(self._batch_sequence, choice[0], parts, rows, worker, now_ns)
        if not worker.leases:
            self._began(worker, batch, now_ns)
        else:
            worker.busy_until_ns = max(now_ns, worker.busy_until_ns) + batch.predicted_ns
        worker.leases[batch.id] = batch
        self.batches[batch.id] = batch
        model = choice[0].model
        rows = rows if model.batchable else 0
        message = m.Batch(batch.id, model.name, model.revision, rows, items, lease_ns(batch))
        self._actions.append(e.ToWorker(worker.id, message))

    @staticmethod
    def _began(worker: Worker, batch: Batch, now_ns: int) -> None:
        """The worker has nothing before this batch: it runs from now on."""
        batch.began_ns = now_ns
        worker.busy_until_ns = now_ns + batch.predicted_ns
        worker.overdue_ns = now_ns + lease_ns(batch)

    def _take_back_lease(self, worker: Worker, message: m.Done | m.BatchFailed, now_ns: int) -> Batch | None:
        """The lease that a worker's message is about; None for one it does not hold."""
        batch = worker.leases.pop(message.batch, None) if message.epoch == self.epoch else None
        if batch is None:
            self.counters.refuse("stale_batch")
            return None
        del self.batches[batch.id]
        worker.overdue_ns = 0
        worker.busy_until_ns = now_ns
        for following in worker.leases.values():
            self._began(worker, following, now_ns)
        return batch

    def _done(self, worker: Worker, message: m.Done, frames: Sequence[Any], now_ns: int) -> None:
        batch = self._take_back_lease(worker, message, now_ns)
        if batch is None:
            return
        model = batch.lane.model
        elsewhere = {entry.item: entry.outputs for entry in message.elsewhere} if message.elsewhere else None
        receipt = m.BatchReceipt(
            batch.rows,
            message.gather_ns,
            message.compute_ns,
            message.scatter_ns,
            message.copied_bytes,
            worker.id,
            worker.models[model.name].provider,
            batch.revision,
            batch.id,
            now_ns - batch.sent_ns,
        )
        completed: dict[int, m.Completed] = {}
        finished: list[Request] = []
        ran = [0, 0, 0, 0]  # rows, by priority
        for index, part in enumerate(batch.parts):
            request = part.request
            rows = part.stop - part.start
            request.rows_leased -= rows
            request.rows_done += rows
            ran[request.priority] += rows
            if elsewhere is not None and index in elsewhere:
                if request.parts is None:
                    request.parts = []
                request.parts.append((part.start, elsewhere[index], frames))
            if request.key is not None and not request.rows_leased:
                whole = rows == request.rows and index not in message.changed
                self._share(request, whole, batch, receipt, now_ns)
            if request.ended:
                self._release_if_free(request)
                continue
            if rows < request.rows and request.revision != batch.revision:
                request.revision = MIXED if request.revision else batch.revision
            if request.rows_done < request.rows:
                continue
            if request.revision == MIXED:
                self._start_over(request)
                continue
            conn = request.conn
            queue_ns = batch.sent_ns - request.arrived_ns
            self._end(request, "ok")
            self._release(request)
            if request.parts is not None or (request.key is not None and rows == request.rows):
                if not self._answer(request, queue_ns, receipt):
                    continue
            elif conn in completed:
                completed[conn].requests.append(request.id)
                completed[conn].queue_ns.append(queue_ns)
            else:
                reply = completed[conn] = m.Completed([request.id], [queue_ns], receipt)
                self._actions.append(e.ToClient(conn, reply))
            finished.append(request)
        took_ns = message.gather_ns + message.compute_ns + message.scatter_ns
        self.admission.forecast.ran(ran, model.row_ns, took_ns, now_ns - batch.began_ns, now_ns)
        timing = worker.timings.get(model.name)
        if timing is not None and batch.revision == model.revision:
            timing.learn(batch.rows, took_ns)
            if batch.rows == worker.rows_max[model.name] or (timing.has_claims and not model.row_ns):
                self._pace(worker, model)
        self._unaccounted.append((batch, message, finished, now_ns))

    def _start_over(self, request: Request) -> None:
        """Parts of it were run before a swap, and parts after it: together they are no model's answer."""
        name = request.model.name
        if not request.model.config.idempotent:
            text = f"{name!r} was swapped between the parts of this request, and is not idempotent"
            self._fail(request, Code.MODEL_FAILED, text)
            return
        self.counters.requeued += 1
        request.rows_done = request.revision = 0
        request.parts = None
        self.lanes[request.lane] = None
        request.lane.push_front(Part(request, 0, request.rows))

    def _pace(self, worker: Worker, model: Model) -> None:
        """What a full batch is expected to take has changed. Nobody is refused for what a file claims: it
        would never be found out."""
        timing = worker.timings[model.name]
        rows = worker.rows_max[model.name]
        model.row_ns = timing.predict_ns(rows) / rows if timing.is_measured else 0.0
        self.admission.slowest_row_ns = max((other.row_ns for other in self.models.values()), default=0.0)

    def _answer(self, request: Request, queue_ns: int, receipt: m.BatchReceipt) -> bool:
        """Reply with outputs that lie elsewhere than in slots; False: they are not there, and it failed."""
        found = replies.gathered(request)
        if found is not None:
            answer = m.Answer(request.id, queue_ns, receipt, found[0])
            self._actions.append(e.ToClient(request.conn, answer, found[1]))
            return True
        self.counters.refuse("missing_frame")
        self.counters.end(request.model.name, request.priority, Code.WORKER_LOST.name.lower())
        failed = m.Failed(request.id, Code.WORKER_LOST, "a worker's answer lacked its tensors")
        self._actions.append(e.ToClient(request.conn, failed))
        return False

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
            self._take_back_part(part)
            if part.request.ended:
                continue
            if index == message.item or len(batch.parts) == 1:
                batch.lane.push_front(part)  # where the end of a request looks for its rows
                # A worker's message is a peer's data: its code may be none.
                code = message.code if message.code in _CODES and message.code else Code.MODEL_FAILED
                self._fail(part.request, code, message.text)
            else:
                live.append(part)
        if not live:
            return
        lane = batch.lane
        self.lanes[lane] = None
        if 0 <= message.item < len(batch.parts):
            lane.retry(live)
            return
        middle = len(live) // 2
        for half in (live[middle:], live[:middle]):
            if half:
                lane.retry(half)

    # ---- ends -------------------------------------------------------------------------------

    def _end(self, request: Request, outcome: str) -> None:
        """The client's request is over: it no longer waits or counts. Its slots may still be held."""
        request.ended = True
        run = request.run
        if run is not None and run.leader is not request:
            run.leave(request)
        elif request.rows_waiting:
            request.lane.forget(request)
        self.admission.remove(self.connections[request.conn], request)
        forecast = self.admission.forecast
        if outcome == "deadline_exceeded" or (
            forecast.is_careful and request.deadline_ns and outcome == "ok"
        ):
            forecast.ended(request.priority, outcome == "ok")
        if outcome != "ok":  # that is for tally()
            self.counters.end(request.model.name, request.priority, outcome)
            if not request.rows_leased:
                if request.key is not None:
                    self._abdicate(request)
                self._release(request)

    def _fail(self, request: Request, code: int, text: str) -> None:
        held = request.rows_leased > 0
        if held:
            self.connections[request.conn].held.add(request.id)
        self._end(request, Code(code).name.lower())
        self._actions.append(e.ToClient(request.conn, m.Failed(request.id, code, text, 0, held)))

    def _take_back_part(self, part: Part) -> None:
        request = part.request
        request.rows_leased -= part.stop - part.start
        if request.ended:
            if request.key is not None and not request.rows_leased:
                self._abdicate(request)
            self._release_if_free(request)

    def _release_if_free(self, request: Request) -> None:
        """An ended request's last lease is over: tell its client that the slots are its own again."""
        if not request.rows_leased:
            connection = self.connections.get(request.conn)
            if connection is not None:
                connection.held.discard(request.id)
            self._actions.append(e.ToClient(request.conn, m.Released([request.id])))
            self._release(request)

    def _release(self, request: Request) -> None:
        lane = request.lane
        lane.users -= 1
        if not lane.users:
            lane.model.drop_lane(lane)
            if lane.model.leaving:
                self._actions += self._changes.drained(lane.model)
        self.arenas[request.arena].requests -= 1
        self.held_bytes -= request.nbytes
        self._close_if_idle(request.arena)

    def _close_if_idle(self, number: int) -> None:
        arena = self.arenas[number]
        if not arena.connections and not arena.requests and not arena.pinned:
            del self.arenas[number]
            self._actions.append(e.CloseArena(number))
