"""Admitted requests: from their place in a lane to their end, and to the release of their slots.

Owns what is counted for them: their connection, their arena, their lane, the yard's totals. A request ends
once. Its slots are released when it has ended and no lease holds them. Identical requests share a run: when
its leader ends, one of its followers leads, or all of them are answered.

Part of the core: pure, with the time as an argument. `actions` is what the core wants done, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..transport import messages as m
from ..transport.errors import Code, WorkerLost
from . import events as e
from . import leases
from .admission import Admission, Arena, ClientAccount
from .counters import Counters
from .lanes import Lane
from .models import Model
from .policy import Policy
from .requests import Key, Outputs, Part, Request, SharedRun
from .serving import Batch

ANSWERS_MAX = 192  # to followers of a run, in one turn: some 10 us each
LOSSES_MAX = 2  # workers that died while they ran nothing but this request: it is given up


class Owed(NamedTuple):
    """A run's result, and the followers that are still to get it, the first one last."""

    model: Model
    followers: list[Request]
    sent_ns: int
    receipt: m.BatchReceipt
    outputs: Outputs
    frames: Sequence[Any]


class Books:
    """`drained` is called when the last slot of a leaving model is released."""

    def __init__(
        self,
        admission: Admission,
        policy: Policy,
        counters: Counters,
        drained: Callable[[Model], list[e.Action]],
    ) -> None:
        self.actions: list[e.Action] = []
        self.connections: dict[int, ClientAccount] = {}
        self.arenas: dict[int, Arena] = {}
        self.held_bytes = 0  # in slots of requests that have not been released
        self._admission = admission
        self._policy = policy
        self.counters = counters
        self._drained = drained
        self.owed: deque[Owed] = deque()  # results that not all who wait for them have got

    # ---- begin --------------------------------------------------------------------------------

    def admit(self, connection: ClientAccount, request: Request) -> None:
        """The request is under way, and its slots are held."""
        self._admission.add(connection, request)
        self.arenas[connection.arena].requests += 1
        self.held_bytes += request.nbytes
        request.lane.users += 1
        request.model.users += 1

    def admit_together(self, connection: ClientAccount, lane: Lane, parts: Sequence[Part]) -> None:
        """Requests of one connection and lane, as big as one another, are under way and wait, each as a
        whole."""
        first, count = parts[0].request, len(parts)
        for part in parts:
            connection.requests[part.request.id] = part.request
            lane.push(part)
        self._admission.add_together(connection, first, count)
        self.arenas[connection.arena].requests += count
        self.held_bytes += first.nbytes * count
        lane.users += count
        first.model.users += count
        self._policy.add(lane)

    def queue(self, request: Request) -> None:
        """The request waits in its lane, as a whole."""
        part = Part(request, 0, request.rows)
        if request.run is not None:
            request.run.part = part
        request.lane.push(part)
        self._policy.add(request.lane)
        self._admission.queued(request)

    def start_over(self, request: Request) -> None:
        """Parts of it were run before a swap, and parts after it: together they are no model's answer."""
        name = request.model.name
        if not request.model.config.idempotent:
            text = f"the parts of this request do not belong together, and {name!r} is not idempotent"
            self.fail(request, Code.MODEL_FAILED, text)
            return
        self.counters.requeued += 1
        request.rows_done = request.revision = 0
        request.parts = None
        request.receipt = None
        request.key = None  # nobody waits for its result any more
        self._policy.add(request.lane)
        request.lane.push_front(Part(request, 0, request.rows))

    # ---- shared runs --------------------------------------------------------------------------

    def answered(self, conn: int, message: m.Submit, model: Model, key: Key, now_ns: int) -> bool:
        """Answer from the results that are kept. Raises WorkerLost for a content that kills workers."""
        left_ns = model.sharing.quarantined_ns(key, now_ns)
        if left_ns:
            raise WorkerLost(
                f"{LOSSES_MAX} workers died of this very input of {model.name!r}; it is refused for another "
                f"{left_ns / 1e9:.0f} s"
            )
        kept = model.sharing.result(key, now_ns)
        if kept is None:
            return False
        answer = m.Answer(message.request, 0, kept.receipt(model.revision), kept.outputs)
        self.actions.append(e.ToClient(conn, answer, kept.frames))
        self.counters.spared(model.name, "cached")
        self.counters.end(model.name, message.priority, "ok")
        return True

    def join(self, request: Request, run: SharedRun) -> None:
        """Wait for the leader's result; or lead, if that would wait longer for its turn."""
        self.counters.spared(request.model.name, "joined")
        leader = run.leader
        if (
            request.virtual_ns < leader.virtual_ns
            and run.part is not None
            and leader.lane.withdraw(run.part)
        ):
            run.lead(request)
            run.follow(leader)
            self.queue(request)
        else:
            run.follow(request)

    def abdicate(self, request: Request) -> None:
        """The leader will give no result that can be shared: a follower takes the lead."""
        run = request.run
        if run is None or run.leader is not request or request.key is None:
            return
        request.run = None
        successor = run.succeed()
        if successor is not None:
            self.queue(successor)
        else:
            request.model.sharing.end(run, request.key)

    def share(
        self, request: Request, is_true: bool, batch: Batch, receipt: m.BatchReceipt, now_ns: int
    ) -> None:
        """A request that may have followers is done: give them its result, if it belongs to their inputs."""
        model = request.model
        result = request.gathered() if is_true and batch.revision == model.revision else None
        if result is None or request.key is None:
            self.abdicate(request)
            return
        outputs, frames = result
        if request.key[0] == model.revision:  # it may belong to an earlier one
            model.sharing.keep(request.key, outputs, frames, batch.rows, now_ns)
        run = request.run
        if run is None or run.leader is not request:
            return
        request.run = None
        model.sharing.end(run, request.key)  # who comes now is not among these
        run.is_answered = True
        self.owed.append(Owed(model, list(run.followers)[::-1], batch.sent_ns, receipt, outputs, frames))
        self.pay(now_ns)

    def pay(self, now_ns: int) -> None:
        """Answer followers whose results have come: some of them, if there are many."""
        for _ in range(ANSWERS_MAX):
            if not self.owed:
                return
            owed = self.owed[0]
            if not owed.followers:
                self.owed.popleft()
                continue
            follower = owed.followers.pop()
            if follower.ended:
                continue
            queue_ns = max(0, owed.sent_ns - follower.arrived_ns)
            self.end(follower, "ok")
            self.release(follower)
            self.counters.end(owed.model.name, follower.priority, "ok")
            total_ns = now_ns - follower.arrived_ns
            self.counters.observe(owed.model.name, follower.priority, total_ns, queue_ns, 1)
            answer = m.Answer(follower.id, queue_ns, owed.receipt, owed.outputs)
            self.actions.append(e.ToClient(follower.conn, answer, owed.frames))

    def give_up(self, request: Request, code: Code, text: str) -> None:
        """Workers have died over this request: no other worker gets it."""
        followers = list(request.run.followers) if request.run is not None else []
        for victim in (*followers, request):
            self.fail(victim, code, text)

    # ---- lost workers -------------------------------------------------------------------------

    def requeue(self, part: Part, batch: Batch, was_running: bool) -> None:
        """A part of a lost batch goes back to the head of its lane.

        If it was running, by itself: should it be what kills workers, then its neighbours get their
        results. Of a model that is not idempotent nothing runs twice, and nobody knows how far the
        worker had come. Nor are answers given twice that the client has.
        """
        lane = batch.lane
        streamed = part.request.streamed
        if streamed or not batch.model.config.idempotent:
            lane.push_front(part)  # where the end of a request looks for its rows
            text = f"a worker died under this request, and {batch.model.name!r} is not idempotent"
            if streamed:
                text = "a worker died under this request, whose client has some of its answers"
            self.fail(part.request, Code.WORKER_LOST, text)
            return
        self.counters.requeued += 1
        self._policy.add(lane)
        if not was_running:
            lane.push_front(part)
            return
        lane.retry([part])

    def suspect(self, batch: Batch) -> None:
        """A worker died by itself while it ran this. A request that was all of it is given up when that has
        happened LOSSES_MAX times, and its content is quarantined."""
        request = batch.parts[0].request
        if request.ended or not batch.is_of_one:
            return
        request.losses += 1
        if request.losses >= LOSSES_MAX:
            model = request.model
            self.actions.append(e.Quarantine(model.name, request.arena, request.inputs))
            text = f"{request.losses} workers died while they ran this request alone"
            self.give_up(request, Code.WORKER_LOST, text)

    def was_slow(self, batch: Batch, now_ns: int) -> None:
        """A worker was ended for the time that it ran this. Nothing says that it would have died of it."""
        for part in batch.parts:
            part.request.was_slow = True
        request = batch.parts[0].request
        if not request.ended and batch.is_of_one and leases.is_over_limit(batch, now_ns):
            config = request.model.config
            text = (
                f"{config.name!r} ran this request for longer than run_seconds_max = "
                f"{config.run_ns_max / 1e9:g} allows it, and was stopped"
            )
            self.give_up(request, Code.MODEL_FAILED, text)

    # ---- end ----------------------------------------------------------------------------------

    def end(self, request: Request, outcome: str) -> None:
        """The client's request is over: it no longer waits or counts. Its slots may still be held."""
        request.ended = True
        run = request.run
        if run is not None and run.leader is not request:
            run.leave(request)
        elif request.rows_waiting:
            request.lane.forget(request)
        self._admission.remove(self.connections[request.conn], request)
        forecast = self._admission.forecast
        if outcome == "deadline_exceeded" or (
            forecast.is_careful and request.deadline_ns and outcome == "ok"
        ):
            forecast.ended(request.priority, outcome == "ok")
        if outcome != "ok":  # that is for tally()
            self.counters.end(request.model.name, request.priority, outcome)
            if not request.rows_leased:
                if request.key is not None:
                    self.abdicate(request)
                self.release(request)

    def end_together(self, lane: Lane, requests: Sequence[Request]) -> None:
        """End and release requests of one batch that have their results: whole, unshared, not ended before.
        Their connections live, so no arena is closed for them."""
        forecast = self._admission.forecast
        sums: dict[int, list[int]] = {}  # requests, rows, and bytes, by connection
        for request in requests:
            request.ended = True
            if request.deadline_ns and forecast.is_careful:
                forecast.ended(request.priority, True)
            each = sums.get(request.conn)
            if each is None:
                each = sums[request.conn] = [0, 0, 0]
            each[0] += 1
            each[1] += request.rows
            each[2] += request.nbytes
            del self.connections[request.conn].requests[request.id]
        for conn, (count, rows, nbytes) in sums.items():
            connection = self.connections[conn]
            self._admission.subtract(connection.account, rows, nbytes)
            self.arenas[connection.arena].requests -= count
            self.held_bytes -= nbytes
        self._leave(lane, requests[0].model, len(requests))

    def fail(self, request: Request, code: int, text: str) -> None:
        held = request.rows_leased > 0
        if held:
            self.connections[request.conn].held.add(request.id)
        self.end(request, Code(code).name.lower())
        self.actions.append(e.ToClient(request.conn, m.Failed(request.id, code, text, 0, held)))

    def expire(self, request: Request) -> None:
        """The request's deadline has passed."""
        name = request.model.name
        if request.rows_leased:
            text = f"the deadline passed while {name!r} was running it"
        elif not request.model.workers:
            text = f"the deadline passed while no worker was serving {name!r}"
        else:
            text = f"the deadline passed in the queue of {name!r}, which held {request.lane.rows} rows"
        self.fail(request, Code.DEADLINE_EXCEEDED, text)

    def take_back_part(self, part: Part) -> None:
        request = part.request
        request.rows_leased -= part.stop - part.start
        if request.ended:
            if request.key is not None and not request.rows_leased:
                self.abdicate(request)
            self.release_if_free(request)

    def release_if_free(self, request: Request) -> None:
        """An ended request's last lease is over: tell its client that the slots are its own again."""
        if not request.rows_leased:
            connection = self.connections.get(request.conn)
            if connection is not None:
                connection.held.discard(request.id)
            self.actions.append(e.ToClient(request.conn, m.Released([request.id])))
            self.release(request)

    def release(self, request: Request) -> None:
        """No worker can touch the request's slots any more."""
        self._leave(request.lane, request.model, 1)
        self.arenas[request.arena].requests -= 1
        self.held_bytes -= request.nbytes
        self.close_if_idle(request.arena)

    def _leave(self, lane: Lane, model: Model, count: int) -> None:
        """`count` requests have left a lane for good."""
        lane.users -= count
        model.users -= count
        if not lane.users:
            if lane.signature:
                model.drop_lane(lane)
            if lane in self._policy.lanes:
                self._policy.drop(lane)
            if model.leaving and not model.users:
                self.actions += self._drained(model)

    def close_if_idle(self, number: int) -> None:
        arena = self.arenas[number]
        if not arena.connections and not arena.requests and not arena.pinned:
            del self.arenas[number]
            self.actions.append(e.CloseArena(number))
