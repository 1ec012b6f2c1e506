"""The broker's core under watch: the real Core, and after every event the promises held against it.

What is checked here is what the broker says and does; what reaches a client is client.py's part.
It keeps books of its own, from the events and the actions alone, and asks the core only which
request an item of a batch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchyard.broker import events as e
from batchyard.broker.books import LOSSES_MAX
from batchyard.broker.config import YardConfig
from batchyard.broker.core import ENDED_MAX, Core
from batchyard.broker.leases import HUNG_MIN_NS
from batchyard.broker.policy import CREDIT, DEFAULT, OVERDUE_SHARE
from batchyard.tests.sim import invariants
from batchyard.tests.sim.models import FREE
from batchyard.transport import messages as m

if TYPE_CHECKING:
    from .world import World


class Seen:
    """A request as the broker has seen it."""

    __slots__ = (
        "arrived_ns", "budget_ns", "deadline_ns", "done", "held", "lent", "losses", "mixed", "model", "outcome",
        "retried", "revisions", "split",
    )  # fmt: skip

    def __init__(self, message: m.Submit, budget_ns: int, now_ns: int) -> None:
        self.model = message.model
        self.arrived_ns = now_ns
        self.budget_ns = budget_ns
        self.deadline_ns = now_ns + message.deadline_ns if message.deadline_ns else 0
        self.outcome = ""
        self.held = False
        self.losses = 0  # workers that died while they ran nothing else
        self.lent: list[tuple[int, int]] = []  # rows that workers have
        self.done: list[tuple[int, int]] = []
        self.revisions: set[int] = set()  # that have run what is done
        self.retried = False
        self.split = False  # parts of it have been lent
        self.mixed = False  # they are parts of what has none

    @property
    def floor_ns(self) -> int:
        """The earliest place that it can have."""
        return self.arrived_ns + self.budget_ns // (2 if self.deadline_ns else 1)


Lent = list[tuple[Seen, tuple[int, int]]]


class WatchedCore:
    """Raises AssertionError as soon as a promise is broken. It holds a core, and is no subclass: a compiled
    class has none."""

    def __init__(self, world: World, config: YardConfig, epoch: int, pid: int) -> None:
        self._core = Core(config, epoch, pid, world.order)
        self._world = world
        self._limits = config.limits
        self._budgets_ns = config.budgets_ns
        self.seen: dict[tuple[int, int], Seen] = {}  # by (connection, number), until released
        self._passed: dict[int, int] = {}  # batches that went before what was overdue, by worker
        self._lent: dict[int, dict[int, Lent]] = {}  # by worker and batch
        self._stopped: set[int] = set()  # workers that the broker has killed for their time
        self._disproved: set[tuple[str, int]] = set()  # models and revisions whose requests share no run
        self._leaving: set[int] = set()  # workers that are lent nothing more, and die of no request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def handle(self, event: e.Event, now_ns: int) -> list[e.Action]:
        kind = type(event)
        died_with: list[Seen] = []
        if kind is e.Submitted:
            self._submitted_seen(event, now_ns)  # type: ignore[arg-type]
        elif kind is e.ClientGone:
            self._gone_seen(event.conn)  # type: ignore[union-attr]
        elif kind is e.WorkerJoined:
            self._lent[event.worker] = {}  # type: ignore[union-attr]
        elif kind is e.WorkerSaid:
            self._said_seen(event)  # type: ignore[arg-type]
        elif kind is e.WorkerCutOff:
            self._cut_off_seen(event.worker, now_ns)  # type: ignore[union-attr]
        elif kind is e.WorkerGone:
            died_with = self._worker_gone_seen(event.worker, now_ns)  # type: ignore[union-attr]
        self._asked_again = set(event.message.requests) if isinstance(event, e.CancelAsked) else set()
        kept = len(self._core._deadlines)
        actions = self._core.handle(event, now_ns)
        if kind is e.WorkerSaid and isinstance(event.message, m.Loaded):  # type: ignore[union-attr]
            self._loaded_seen(event.message.model)  # type: ignore[union-attr]
        for action in actions:
            if isinstance(action, e.ToClient) and not action.is_of_question:
                self._told(action.conn, action.message)
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                self._batch_lent(action.worker, action.message, now_ns)
            elif isinstance(action, e.KillWorker):
                self._world.count("hung_killed")
                self._killed(action.worker, now_ns)
                self._world.check_hung(self.workers[action.worker].pid)
            elif isinstance(action, e.Quarantine):
                self._world.count("quarantined")
                assert any(seen.losses >= LOSSES_MAX for seen in died_with), "nobody has died of it"
        if kind is e.Turn:
            if kept - len(self._core._deadlines) < ENDED_MAX:  # else the next turn goes on
                self._after_turn(now_ns)
        elif kind is e.WorkerGone:
            for seen in died_with:
                assert seen.outcome or seen.losses < LOSSES_MAX, "it may kill every worker there is"
        elif kind is e.CancelAsked:
            for number in event.message.requests:  # type: ignore[union-attr]
                seen = self.seen.get((event.conn, number))  # type: ignore[union-attr]
                assert seen is None or seen.outcome, "a cancelled request goes on"
        assert self.admission.rows <= self._limits.queue_rows_max
        assert self.admission.nbytes <= self._limits.queue_bytes_max
        for connection in self.connections.values():
            assert connection.account.rows <= self._limits.client_rows_max
        invariants.check(self._core)
        self._world.trace("core", kind.__name__, len(actions), self.admission.rows, len(self.batches))
        return actions

    # ---- what comes in ------------------------------------------------------------------------

    def _submitted_seen(self, event: e.Submitted, now_ns: int) -> None:
        for message in event.message.apart():
            key = (event.conn, message.request)
            assert key not in self.seen, "the client used a number twice"
            self.seen[key] = Seen(message, self._budgets_ns[message.priority], now_ns)

    def _gone_seen(self, conn: int) -> None:
        for key, seen in list(self.seen.items()):
            if key[0] == conn and not seen.outcome:
                seen.outcome = "gone"
                seen.held = bool(seen.lent)

    def _killed(self, worker: int, now_ns: int) -> None:
        """Slow is not hung: either it is past the operator's bound, or nobody waits for it any more; or every
        run of the model is like the others."""
        self._stopped.add(worker)
        batch = next(iter(self.workers[worker].leases.values()))
        held_ns = now_ns - batch.began_ns
        model = batch.model
        if 0 < model.config.run_ns_max <= held_ns:
            return
        assert held_ns >= HUNG_MIN_NS, f"worker {worker} is killed after {held_ns} ns"
        awaited = [part.request.id for part in batch.parts if not part.request.ended]
        assert model.name not in FREE or not awaited, f"somebody waits for {awaited}, and it may be slow"

    def _cut_off_seen(self, worker: int, now_ns: int) -> None:
        """One that holds nothing is gone with its connection; else its process has to end first."""
        if worker in self.workers and not self.workers[worker].leases:
            assert not self._lent[worker], "a worker that holds a batch counts as gone while it lives"
            self._worker_gone_seen(worker, now_ns)

    def _worker_gone_seen(self, worker: int, now_ns: int) -> list[Seen]:
        """Requests that were all that the worker was running when it died of itself."""
        running = worker not in self._leaving
        held = next(iter(self.workers[worker].leases.values()), None) if worker in self.workers else None
        watched = held is not None and 0 < held.lease_ns <= now_ns - held.began_ns
        slow = worker in self._stopped or watched
        alone: list[Seen] = []
        for batch in self._lent.pop(worker, {}).values():
            _take_back(batch, retried=running)
            if running and all(seen is batch[0][0] for seen, _ in batch):
                alone.append(batch[0][0])
            running = False
        if slow:
            return []
        for seen in alone:
            seen.losses += 1
        return alone

    def _said_seen(self, event: e.WorkerSaid) -> None:
        message = event.message
        if isinstance(message, m.Leaving):
            self._leaving.add(event.worker)
        if isinstance(message, m.RunsAlone):
            self._world.count("runs_alone")
            self._disprove(message.model, message.revision)
        if isinstance(message, m.Loaded) and message.batchable and not message.batch_axes:
            raise AssertionError("a worker says that a model has rows, and not where")
        if isinstance(message, m.Done | m.BatchFailed) and message.epoch == self.epoch:
            batch = self._lent[event.worker].pop(message.batch, None)
            if batch is not None:
                _take_back(batch, retried=isinstance(message, m.BatchFailed))
                if isinstance(message, m.Done):
                    for seen, rows in batch:
                        seen.done.append(rows)
                        seen.revisions.add(self.batches[message.batch].revision)

    def _loaded_seen(self, name: str) -> None:
        """A worker that has not found what the others have disproves rows, too."""
        model = self.models.get(name)
        if model is not None and model.disproved:
            self._disprove(name, model.revision)

    def _disprove(self, name: str, revision: int) -> None:
        model = self.models.get(name)
        if model is None or model.revision != revision or (name, revision) in self._disproved:
            return
        self._disproved.add((name, revision))
        for seen in self.seen.values():
            seen.mixed = seen.mixed or (seen.model == name and seen.split)

    # ---- what goes out ------------------------------------------------------------------------

    def _told(self, conn: int, message: Any) -> None:
        if isinstance(message, m.Completed):
            for number in message.requests:
                self._ended(conn, number, "ok")
        elif isinstance(message, m.Answer):
            self._ended(conn, message.request, "ok")
        elif isinstance(message, m.Failed) and (conn, message.request) in self.seen:  # else it was refused
            self._ended(conn, message.request, str(message.code), message.held)
        elif isinstance(message, m.Released):
            for number in message.requests:
                if number in self._asked_again and (conn, number) not in self.seen:
                    continue  # a cancel of what is over is answered once more
                seen = self.seen.pop((conn, number))
                assert seen.outcome, "released before it ended"
                assert seen.held or seen.outcome == "gone", "released, and nobody held it"
                assert not seen.lent, "released while a worker may touch it"

    def _ended(self, conn: int, number: int, outcome: str, held: bool = False) -> None:
        seen = self.seen.get((conn, number))
        assert seen is not None, f"request {number} of {conn} is over"
        assert not seen.outcome, f"request {number} of {conn} ended twice"
        assert outcome != "ok" or len(seen.revisions) <= 1, f"request {number} has two revisions' answers"
        assert outcome != "ok" or not seen.mixed, f"request {number} has an answer in parts of what has none"
        seen.outcome = outcome
        seen.held = held
        # Released may follow at once; that it follows is seen at the end.
        assert held or not seen.lent, f"request {number} of {conn}: a worker still has it"
        if not held:
            del self.seen[conn, number]

    def _batch_lent(self, worker: int, message: m.Batch, now_ns: int) -> None:
        assert worker not in self._leaving, "a worker that leaves is lent a batch"
        batch = self.batches[message.batch]
        lent: Lent = []
        earliest_ns = None
        for part, item in zip(batch.parts, message.apart(), strict=True):
            request = part.request
            seen = self.seen.get((request.conn, request.id))
            assert seen is not None, f"request {request.id} is over, and is lent"
            assert not seen.outcome, f"request {request.id} has ended, and is lent"
            assert not seen.deadline_ns or seen.deadline_ns > now_ns, "expired, and lent"
            assert item.arena == request.arena
            assert request.leader is None, f"request {request.id} waits for another's result, and is lent"
            whole = part.stop - part.start == request.rows
            if request.key is not None and request.model.config.join and whole:
                leads = request.run is not None and request.model.sharing.run(request.key) is request.run
                assert leads, f"request {request.id} is lent beside one that is like it"
            rows = (part.start, part.stop)
            does_not_go_together = seen.mixed or len(seen.revisions) > 1
            if does_not_go_together and sum(stop - start for start, stop in seen.done) == request.rows:
                seen.done.clear()  # it is run again
                seen.revisions.clear()
                seen.split = seen.mixed = False
            seen.split = seen.split or not whole
            for start, stop in seen.lent + seen.done:
                assert part.stop <= start or stop <= part.start, f"rows {rows} are run twice"
            seen.lent.append(rows)
            lent.append((seen, rows))
            earliest_ns = seen.floor_ns if earliest_ns is None else min(earliest_ns, seen.floor_ns)
        self._lent[worker][message.batch] = lent
        assert message.revision == batch.model.revision, "an old revision is lent"
        assert len(self._lent[worker]) <= CREDIT
        total = sum(stop - start for _, (start, stop) in lent)
        if message.rows:
            assert (message.model, message.revision) not in self._disproved, "rows that are none share a run"
            assert message.rows == total <= batch.model.max_batch, "larger than the model takes"
        else:
            assert len(lent) == 1, "two requests share a run that can't"
        self._world.lent(self, worker, message)
        assert earliest_ns is not None, "a batch of nothing"
        if self._world.order == DEFAULT:
            self._check_order(worker, earliest_ns, now_ns)

    def _check_order(self, worker: int, earliest_ns: int, now_ns: int) -> None:
        """Nothing that this worker serves waits with a place that was surely before this batch's, unless
        it is overdue; and then not longer than for OVERDUE_SHARE batches."""
        models = self.workers[worker].models
        timings = self.workers[worker].timings
        full_ns = {name: timings[name].predict_ns(self.models[name].max_batch) for name in models}
        starts_ns = max(now_ns, self.workers[worker].busy_until_ns)
        overtaken = []
        overdue = earliest_ns <= now_ns  # perhaps: it is not known which of its places a deadline gave it
        for (conn, number), seen in self.seen.items():
            if seen.retried:  # halves of a failed batch go first, whatever waits
                self._passed[worker] = 0
                return
            if seen.outcome or seen.model not in models or not self._waits(conn, number):
                continue
            overdue = overdue or seen.floor_ns <= now_ns
            if 0 < seen.deadline_ns < starts_ns + full_ns[seen.model]:
                continue  # it may be too late for it, and then it goes only when nothing else waits
            if seen.arrived_ns + seen.budget_ns < earliest_ns:
                overtaken.append(number)
        assert overdue or not overtaken, f"requests {overtaken} were overtaken"
        self._passed[worker] = self._passed.get(worker, 0) + 1 if overtaken else 0
        assert self._passed[worker] < OVERDUE_SHARE, "what is overdue never gets its share"

    def _waits(self, conn: int, number: int) -> bool:
        """Whether rows of it wait to be lent; that they are there, invariants.py holds."""
        connection = self.connections.get(conn)
        request = connection.requests.get(number) if connection is not None else None
        return request is not None and request.leader is None and request.rows_waiting > 0

    def _follows(self, conn: int, number: int) -> bool:
        """Whether another request is run for it; that this one is there, invariants.py holds."""
        connection = self.connections.get(conn)
        request = connection.requests.get(number) if connection is not None else None
        return request is not None and request.leader is not None

    def _after_turn(self, now_ns: int) -> None:
        waiting = set()
        for (conn, number), seen in self.seen.items():
            if seen.outcome:
                continue
            assert not seen.deadline_ns or seen.deadline_ns > now_ns, f"request {number} was not expired"
            if not seen.lent and not self._follows(conn, number):
                waiting.add(seen.model)
        for number, worker in self.workers.items():
            served = waiting & set(worker.models) if not worker.leaving else set()
            assert worker.leases or not served, f"worker {number} is idle and {sorted(served)} wait"
        due_ns = self.next_deadline_ns()
        assert due_ns is None or due_ns > now_ns, "the loop would spin"

    def at_rest(self) -> list[str]:
        """What is still under way."""
        found = [f"{name} is not empty" for name in ("seen", "batches") if getattr(self, name)]
        found += [f"{model.name} keeps {len(lanes)} lanes" for model in self.models.values() if (lanes := [
            lane for lane in model.lanes.values() if lane.signature])]
        if self.admission.rows or self.admission.nbytes:
            found.append(f"{self.admission.rows} rows are counted as under way")
        return found


def _take_back(batch: Sequence[tuple[Seen, tuple[int, int]]], retried: bool) -> None:
    for seen, rows in batch:
        seen.lent.remove(rows)
        seen.retried = seen.retried or retried
