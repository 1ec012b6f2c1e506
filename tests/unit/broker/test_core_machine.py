"""The core against every order of events that Hypothesis can think of.

The model beside it knows only what a client and a worker can see: what was submitted, what has been
answered, what is lent. Held after each step: invariants.py; one outcome per request; slots released
once, and never while a worker holds them; nothing that has ended is lent; bounds; and after a turn
no worker is idle while something waits that it could run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchyard.broker import events as e
from batchyard.broker.config import Limits, ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.policy import CREDIT
from batchyard.tests.sim import invariants
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import ABSENT, Slot, Tensor, TensorSpec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

MS = 1_000_000
EPOCH = 77
ARENA_BYTES = 1 << 20
ROWS_MAX = 40
CLIENT_ROWS_MAX = 24
MAX_BATCH = 4
ROW_BYTES = 16

# net: sizes known. free: a free axis and outputs of unknown size. alone: cannot batch.
LOADED = {
    "net": m.Loaded(
        "net", 1, [TensorSpec("x", 1, ["n", 4])], [TensorSpec("y", 1, ["n", 4])], True, "", 4, "cpu", "", {}
    ),
    "free": m.Loaded(
        "free",
        1,
        [TensorSpec("x", 1, ["n", "w"])],
        [TensorSpec("y", 1, ["n", "f"])],
        True,
        "",
        3,
        "cpu",
        "",
        {},
    ),
    "alone": m.Loaded(
        "alone", 1, [TensorSpec("x", 1, [3, 4])], [TensorSpec("y", 1, [3, 4])], False, "", 1, "cpu", "", {}
    ),
}


@dataclass
class Sent:
    """A request as its client knows it."""

    conn: int
    number: int
    model: str
    arena: int
    offset: int  # of its only input, unlike any other's in the arena
    nbytes: int
    outcome: str = ""
    released: bool = False
    rows_lent: int = 0  # as the workers know it
    gone: bool = False  # its client left before the outcome


@dataclass
class Lent:
    batch: m.Batch
    requests: list[tuple[Sent, int]] = field(default_factory=list)  # by item, with its rows


class CoreMachine(RuleBasedStateMachine):
    @initialize(ready=st.booleans())
    def start(self, ready: bool) -> None:
        configs = {name: ModelConfig(name, Path(f"/models/{name}.onnx"), MAX_BATCH) for name in LOADED}
        limits = Limits(queue_rows_max=ROWS_MAX, client_rows_max=CLIENT_ROWS_MAX, queue_bytes_max=1 << 20)
        self.core = Core(YardConfig(configs, limits), EPOCH, 4710)
        self.now_ns = 1_000 * MS
        self.sequence = 0
        self.open_arenas: set[int] = set()
        self.clients: dict[int, int] = {}  # conn -> arena
        self.sent: list[Sent] = []
        self.current: dict[tuple[int, int], Sent] = {}  # by connection and number
        self.offsets: dict[int, int] = {}  # arena -> next free offset
        self.workers: dict[int, set[str]] = {}  # worker -> models that it serves
        self.lent: dict[int, list[Lent]] = {}
        self.settled_after_turn = False
        self.alone = {"alone"}  # models whose requests share no run
        self.asked_again: set[int] = set()  # numbers of the cancel that is being handled
        self.do(e.ArenaOpened(1, ARENA_BYTES, pinned=True))  # the broker's own
        self.open_arenas.add(1)
        self.arena_sequence = 1
        if ready:
            self.client_joins(True)
            self.worker_joins(set(LOADED))

    # ---- the core, and what its answers mean ------------------------------------------------------

    def do(self, event: e.Event) -> None:
        self.settled_after_turn = isinstance(event, e.Turn)
        for action in self.core.handle(event, self.now_ns):
            if isinstance(action, e.CloseArena):
                self.arena_closed(action.arena)
            elif isinstance(action, e.ToClient):
                self.client_told(action.conn, action.message, len(action.frames))
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                self.batch_lent(action.worker, action.message)
        self.core.counters.tally()

    def arena_closed(self, arena: int) -> None:
        assert arena in self.open_arenas, "closed twice, or never opened"
        assert arena != 1, "the broker's own arena stays"
        assert arena not in self.clients.values(), "closed under a connection"
        assert not any(r.arena == arena and r.rows_lent for r in self.sent), "closed under a worker"
        self.open_arenas.remove(arena)

    def client_told(self, conn: int, message: Any, frame_count: int) -> None:
        if isinstance(message, m.Completed):
            assert len(message.requests) == len(message.queue_ns)
            for number in message.requests:
                self.ended(conn, number, "ok", released=True)
        elif isinstance(message, m.Answer):
            rows = sum(part[0].shape[0] for part in message.parts)
            sent = self.current[conn, message.request]
            assert sent.model == "free"
            assert len(message.parts) == 1 or "free" not in self.alone, "parts of rows that are none"
            assert rows * ROW_BYTES == sent.nbytes, "an answer has every row of its request"
            assert [part[0].frame for part in message.parts] == list(range(1, frame_count + 1))
            self.ended(conn, message.request, "ok", released=True)
        elif isinstance(message, m.Failed):
            assert message.code != Code.OK
            self.ended(conn, message.request, Code(message.code).name, released=not message.held)
        elif isinstance(message, m.Released):
            for number in message.requests:
                sent = self.current.get((conn, number))
                if number in self.asked_again and (sent is None or sent.released):
                    continue  # a cancel of what is over is answered once more
                assert sent is not None
                assert sent.outcome or sent.gone, "released before it ended"
                self.release(sent)
        else:
            assert isinstance(message, m.Refused | m.Described)

    def ended(self, conn: int, number: int, outcome: str, released: bool) -> None:
        sent = self.current[conn, number]
        assert not sent.outcome, f"request {number} ended twice: {sent.outcome}, {outcome}"
        assert not sent.gone, "the client had left"
        sent.outcome = outcome
        if released:
            self.release(sent)

    def release(self, sent: Sent) -> None:
        assert not sent.released, "released twice"
        assert sent.rows_lent == 0, "released while a worker may touch it"
        sent.released = True

    def batch_lent(self, worker: int, batch: m.Batch) -> None:
        assert batch.model in self.workers[worker]
        lent = Lent(batch)
        for item in batch.apart():
            (tensor,) = item.inputs
            (sent,) = [r for r in self.sent if (r.arena, r.offset) == (item.arena, tensor.offset)]
            assert not sent.outcome, "ended, and yet lent"
            assert not sent.gone
            assert not sent.released
            assert sent.model == batch.model
            assert tensor.shape[0] * ROW_BYTES == sent.nbytes
            rows = item.rows or tensor.shape[0]
            assert item.start + rows <= tensor.shape[0], "past the request's own rows"
            for slot in item.outputs:
                assert (slot.offset, slot.nbytes) == (tensor.offset, sent.nbytes), "not the request's slot"
            sent.rows_lent += rows
            lent.requests.append((sent, rows))
        total = sum(rows for _, rows in lent.requests)
        if batch.model in self.alone:
            assert batch.rows == 0
            assert len(batch.apart()) == 1, "two share a run that can't"
        else:
            assert batch.rows == total <= {"net": 4, "free": 3}[batch.model]
        held = self.lent[worker]
        held.append(lent)
        assert len(held) <= CREDIT

    def given_back(self, lent: Lent) -> None:
        for sent, rows in lent.requests:
            sent.rows_lent -= rows

    # ---- clients ----------------------------------------------------------------------------------

    @rule(own=st.booleans())
    def client_joins(self, own: bool) -> None:
        if len(self.clients) >= 4:
            return
        self.sequence += 1
        arena = 1
        if own:
            self.arena_sequence += 1
            arena = self.arena_sequence
            self.open_arenas.add(arena)
            self.do(e.ArenaOpened(arena, ARENA_BYTES))
        self.clients[self.sequence] = arena
        self.do(e.ClientJoined(self.sequence, arena))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.clients)))
        for sent in self.sent:
            if sent.conn == conn and not sent.outcome:
                sent.gone = True
        del self.clients[conn]
        self.do(e.ClientGone(conn))

    @precondition(lambda self: self.clients)
    @rule(
        data=st.data(),
        model=st.sampled_from(sorted(LOADED)),
        rows=st.integers(1, 10),
        priority=st.integers(0, 3),
        deadline_ns=st.sampled_from([0, 0, 1, 3 * MS, 40 * MS, 900 * MS]),
    )
    def submit(self, data: st.DataObject, model: str, rows: int, priority: int, deadline_ns: int) -> None:
        conn = data.draw(st.sampled_from(sorted(self.clients)))
        self.send(conn, model, 3 if model == "alone" else rows, priority, deadline_ns)

    def send(self, conn: int, model: str, rows: int, priority: int, deadline_ns: int) -> None:
        arena = self.clients[conn]
        self.sequence += 1
        nbytes = rows * ROW_BYTES
        offset = self.offsets.get(arena, 0)
        if offset + nbytes > ARENA_BYTES:
            return
        self.offsets[arena] = offset + nbytes
        sent = Sent(conn, self.sequence, model, arena, offset, nbytes)
        self.sent.append(sent)
        self.current[conn, sent.number] = sent
        outputs = [] if model == "free" else [Slot(offset, nbytes)]
        message = m.Submit(sent.number, model, priority, deadline_ns, [Tensor(1, [rows, 4], offset)], outputs)
        self.do(e.Submitted(conn, arena, message))

    @precondition(lambda self: self.clients)
    @rule(
        data=st.data(),
        lie=st.sampled_from(["model", "dtype", "shape", "absent", "outside", "slot", "slots", "frame"]),
    )
    def submit_nonsense(self, data: st.DataObject, lie: str) -> None:
        conn = data.draw(st.sampled_from(sorted(self.clients)))
        self.sequence += 1
        sent = Sent(conn, self.sequence, "net", self.clients[conn], -1, 0)
        self.sent.append(sent)
        self.current[conn, sent.number] = sent
        tensor = {
            "dtype": Tensor(7, [1, 4], 0),
            "shape": Tensor(1, [1, 5], 0),
            "absent": Tensor(ABSENT, [], 0),
            "outside": Tensor(1, [2, 4], ARENA_BYTES - ROW_BYTES),
            "frame": Tensor(1, [1, 4], 0, 1),
        }.get(lie, Tensor(1, [1, 4], 0))
        slots = {"slot": [Slot(ARENA_BYTES, ROW_BYTES)], "slots": [Slot(0, ROW_BYTES)] * 2}.get(lie, [])
        model = "nothing" if lie == "model" else "net"
        self.do(e.Submitted(conn, self.clients[conn], m.Submit(sent.number, model, 2, 0, [tensor], slots)))
        assert sent.outcome in ("INVALID_REQUEST", "UNKNOWN_MODEL", "OVERLOADED")
        assert sent.released

    @precondition(lambda self: any(not r.outcome and not r.gone for r in self.sent))
    @rule(data=st.data())
    def submit_a_number_twice(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from([r for r in self.sent if not r.outcome and not r.gone]))
        message = m.Submit(sent.number, "net", 2, 0, [Tensor(1, [1, 4], 0)], [])
        self.do(e.Submitted(sent.conn, sent.arena, message))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.clients)))
        numbers = [r.number for r in self.sent if r.conn == conn][-12:] + [10**9]
        chosen = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=4))
        self.asked_again = set(chosen)
        self.do(e.CancelAsked(conn, m.Cancel(chosen)))
        self.asked_again = set()
        for sent in self.sent:
            if sent.conn == conn and sent.number in chosen:
                assert sent.outcome

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), model=st.sampled_from(["", "net", "free", "nothing"]))
    def describe(self, data: st.DataObject, model: str) -> None:
        conn = data.draw(st.sampled_from(sorted(self.clients)))
        self.sequence += 1
        self.current[conn, self.sequence] = Sent(conn, self.sequence, "", 0, -1, 0)
        self.do(e.DescribeAsked(conn, m.Describe(self.sequence, model)))

    # ---- time -------------------------------------------------------------------------------------

    @rule(passed_ns=st.sampled_from([0, 1, MS, 5 * MS, 50 * MS, 1_000 * MS]))
    def turn(self, passed_ns: int) -> None:
        self.now_ns += passed_ns
        self.do(e.Turn())
        due_ns = self.core.next_deadline_ns()
        assert due_ns is None or due_ns > self.now_ns

    # ---- workers ----------------------------------------------------------------------------------

    @rule(models=st.sets(st.sampled_from(sorted(LOADED))))
    def worker_joins(self, models: set[str]) -> None:
        if len(self.workers) >= 3:
            return
        self.sequence += 1
        worker = self.sequence
        self.workers[worker] = set()
        self.lent[worker] = []
        self.do(e.WorkerJoined(worker, 5000 + worker))
        for name in sorted(models):
            self.workers[worker].add(name)
            self.do(e.WorkerSaid(worker, LOADED[name]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), model=st.sampled_from([*sorted(LOADED), "nothing"]), revision=st.integers(1, 2))
    def worker_cannot_load(self, data: st.DataObject, model: str, revision: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        if model not in self.workers[worker]:
            self.do(e.WorkerSaid(worker, m.LoadFailed(model, revision, "no")))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        for lent in self.lent.pop(worker):
            self.given_back(lent)
        del self.workers[worker]
        self.do(e.WorkerGone(worker))

    def take_lent(self, worker: int, index: int) -> Lent:
        lent = self.lent[worker].pop(index)
        self.given_back(lent)
        return lent

    @precondition(lambda self: any(self.lent.values()))
    @rule(data=st.data(), in_order=st.booleans())
    def worker_is_done(self, data: st.DataObject, in_order: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, held in self.lent.items() if held)))
        self.answer(worker, 0 if in_order else len(self.lent[worker]) - 1)

    def answer(self, worker: int, index: int) -> None:
        lent = self.take_lent(worker, index)
        inline_outputs = []
        frames = []
        if lent.batch.model == "free":
            for number, item in enumerate(lent.batch.apart()):
                frames.append(b"frame")
                whole = item.inputs[0].shape
                shape = whole if not lent.batch.rows else [item.rows or whole[0], whole[1]]
                inline_outputs.append(m.ItemOutputs(number, [Tensor(1, shape, 0, len(frames))]))
        self.do(e.WorkerSaid(worker, m.Done(EPOCH, lent.batch.batch, 1, 2, 3, 4, inline_outputs), frames))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), model=st.sampled_from([*sorted(LOADED), "nothing"]), revision=st.integers(1, 2))
    def worker_finds_that_rows_are_none(self, data: st.DataObject, model: str, revision: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        if revision == 1 and model in LOADED and self.core.models[model].batchable:
            self.alone.add(model)
        self.do(e.WorkerSaid(worker, m.RunsAlone(model, revision, "it came out as [1]")))

    @precondition(lambda self: any(self.lent.values()))
    @rule(
        data=st.data(),
        item=st.integers(-2, 5),
        code=st.sampled_from([Code.MODEL_FAILED, Code.INVALID_REQUEST, 0, 999]),
    )
    def worker_fails_a_batch(self, data: st.DataObject, item: int, code: int) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, held in self.lent.items() if held)))
        lent = self.take_lent(worker, 0)
        self.do(e.WorkerSaid(worker, m.BatchFailed(EPOCH, lent.batch.batch, code, "it broke", item)))
        live = [sent for sent, _ in lent.requests if not sent.gone]
        if 0 <= item < len(lent.requests) and not lent.requests[item][0].gone:
            assert lent.requests[item][0].outcome
        elif len(lent.requests) == 1 and live:
            assert live[0].outcome

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(), kind=st.sampled_from(["epoch", "unknown", "another worker's"]), failed=st.booleans()
    )
    def worker_says_something_stale(self, data: st.DataObject, kind: str, failed: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        epoch, number = EPOCH, 10**6
        if kind == "epoch" and self.lent[worker]:
            epoch, number = EPOCH - 1, self.lent[worker][0].batch.batch
        elif kind == "another worker's":
            number = next(
                (held[0].batch.batch for w, held in self.lent.items() if held and w != worker), number
            )
        if failed:
            self.do(e.WorkerSaid(worker, m.BatchFailed(epoch, number, Code.MODEL_FAILED, "")))
        else:
            self.do(e.WorkerSaid(worker, m.Done(epoch, number, 0, 0, 0, 0, [])))

    # ---- what always holds ------------------------------------------------------------------------

    @invariant()
    def the_core_is_consistent(self) -> None:
        invariants.check(self.core)

    @invariant()
    def what_is_under_way_is_bounded_and_known(self) -> None:
        open_requests = [r for r in self.sent if not r.outcome and not r.gone]
        assert self.core.admission.rows <= ROWS_MAX
        assert all(c.account.rows <= CLIENT_ROWS_MAX for c in self.core.connections.values())
        assert sum(len(c.requests) for c in self.core.connections.values()) == len(open_requests)
        assert set(self.core.arenas) == self.open_arenas

    @invariant()
    def every_request_is_counted_once_when_it_ends(self) -> None:
        told = Counter(r.outcome.lower() or "gone" for r in self.sent if r.outcome or r.gone)
        counted: Counter[str] = Counter()
        for (_, _, outcome), count in self.core.counters.requests.items():
            counted[outcome] += count
        assert counted == told

    @invariant()
    def no_worker_is_idle_while_something_waits_that_it_serves(self) -> None:
        if not self.settled_after_turn:
            return
        waiting = {
            lane.model_name
            for model in self.core.models.values()
            for lane in model.lanes.values()
            if lane.rows
        }
        for worker, models in self.workers.items():
            assert self.lent[worker] or not models & waiting

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        if len(self.workers) >= 3:
            worker = next(iter(self.workers))
            for lent in self.lent.pop(worker):
                self.given_back(lent)
            del self.workers[worker]
            self.do(e.WorkerGone(worker))
        self.worker_joins(set(LOADED))
        for _ in range(1000):
            self.turn(0)
            busy = [worker for worker, held in self.lent.items() if held]
            if not busy:
                break
            for worker in busy:
                self.answer(worker, 0)
            invariants.check(self.core)
        assert all(r.outcome or r.gone for r in self.sent), "a request has no outcome"
        assert all(r.released for r in self.sent), "slots were not released"
        assert self.core.admission.rows == self.core.admission.nbytes == 0
        for conn in list(self.clients):
            del self.clients[conn]
            self.do(e.ClientGone(conn))
        invariants.check(self.core)
        assert self.open_arenas == {1} == set(self.core.arenas), "an arena was left"
        assert not self.core.batches


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=300, stateful_step_count=50)
