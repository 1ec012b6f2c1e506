"""The broker's state machine, event by event in virtual time; every event is followed by invariants.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.books import LOSSES_MAX
from batchyard.broker.config import BUDGETS_NS_DEFAULT, Limits, ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.gauges import LANES_MAX
from batchyard.broker.lanes import Lane
from batchyard.broker.leases import HUNG_UNKNOWN_NS
from batchyard.broker.models import ALONE
from batchyard.broker.policy import CREDIT, OVERDUE_SHARE
from batchyard.broker.requests import Part
from batchyard.broker.taking import take_rows
from batchyard.broker.timing import STEADY_RUNS
from batchyard.tests.sim import invariants
from batchyard.transport import messages as m
from batchyard.transport import snapshot
from batchyard.transport.errors import Code
from batchyard.transport.messages import Priority
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MS = 1_000_000
EPOCH = 77
ARENA_BYTES = 1 << 20
ROW_BYTES = 16  # of the model "net", in and out: float32[batch, 4]
URGENT, HIGH, NORMAL, LOW = Priority


class World:
    """A core, its clock, and what it has said."""

    def __init__(self, models: Sequence[str] = ("net",), max_batch: int = 4, **limits: int) -> None:
        configs = {name: ModelConfig(name, Path(f"/models/{name}.onnx"), max_batch) for name in models}
        self.core = Core(YardConfig(configs, Limits(**limits)), EPOCH, 4710)
        self.now_ns = 1_000 * MS
        self.closed: list[int] = []
        self.lent: dict[int, list[m.Batch]] = {}  # by worker, in the order in which they were sent
        self.told: dict[int, list[Any]] = {}  # messages to each client, oldest first
        self._arena_sequence = 0

    def do(self, event: e.Event) -> list[e.Action]:
        actions = self.core.handle(event, self.now_ns)
        self.core.counters.tally()
        invariants.check(self.core)
        for action in actions:
            if isinstance(action, e.CloseArena):
                self.closed.append(action.arena)
            elif isinstance(action, e.ToClient):
                self.told.setdefault(action.conn, []).append(action.message)
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                self.lent.setdefault(action.worker, []).append(action.message)
        return actions

    def turn(self, later_ns: int = 0) -> list[m.Batch]:
        """Let time pass, and the loop come to the end of its turn. The batches that it lends."""
        self.now_ns += later_ns
        actions = self.do(e.Turn())
        return [a.message for a in actions if isinstance(a, e.ToWorker) and isinstance(a.message, m.Batch)]

    def client(self, conn: int, arena: int | None = None) -> int:
        """Join; the number of the client's arena."""
        if arena is None:
            self._arena_sequence += 1
            arena = self._arena_sequence
            self.do(e.ArenaOpened(arena, ARENA_BYTES))
        self.do(e.ClientJoined(conn, arena))
        return arena

    def worker(self, worker: int, *loaded: m.Loaded) -> None:
        self.do(e.WorkerJoined(worker, 5000 + worker))
        for message in loaded or (net(),):
            self.say(worker, message)

    def say(self, worker: int, message: Any, frames: Sequence[Any] = ()) -> list[e.Action]:
        return self.do(e.WorkerSaid(worker, message, frames))

    def submit(
        self,
        conn: int,
        number: int,
        rows: int = 1,
        priority: Priority = NORMAL,
        deadline_ns: int = 0,
        model: str = "net",
        arena: int = 1,
        slots: bool = True,
    ) -> None:
        """A good request; its handles tell which request they belong to (row `number` * 64)."""
        at = number * 64 * ROW_BYTES
        outputs = [Slot(at, rows * ROW_BYTES)] if slots else []
        message = m.Submit(number, model, priority, deadline_ns, [Tensor(1, [rows, 4], at)], outputs)
        self.do(e.Submitted(conn, arena, message))

    def cancel(self, conn: int, *numbers: int) -> None:
        self.do(e.CancelAsked(conn, m.Cancel(list(numbers))))

    def done(self, worker: int, batch: m.Batch, **changed: Any) -> None:
        fields = {"epoch": EPOCH, "compute_ns": 250_000, "inline_outputs": []} | changed
        frames = fields.pop("frames", ())
        self.say(
            worker,
            m.Done(fields["epoch"], batch.batch, 1, fields["compute_ns"], 1, 0, fields["inline_outputs"]),
            frames,
        )

    def failed(self, worker: int, batch: m.Batch, item: int = -1) -> None:
        self.say(worker, m.BatchFailed(EPOCH, batch.batch, Code.MODEL_FAILED, "it broke", item))

    def outcomes(self, conn: int) -> dict[int, str]:
        """How each request ended; a second outcome is an error."""
        ended: dict[int, str] = {}
        for message in self.told.get(conn, ()):
            if isinstance(message, m.Completed):
                numbers, text = message.requests, "ok"
            elif isinstance(message, m.Answer):
                numbers, text = [message.request], "ok"
            elif isinstance(message, m.Failed):
                numbers, text = [message.request], Code(message.code).name
            else:
                continue
            for number in numbers:
                assert number not in ended, f"request {number} ended twice"
                ended[number] = text
        return ended

    def last(self, conn: int) -> Any:
        return self.told[conn][-1]


def net(max_batch: int = 4, **changed: Any) -> m.Loaded:
    """`net`: float32[batch, 4] -> float32[batch, 4]."""
    fields: dict[str, Any] = {
        "model": "net",
        "revision": 1,
        "inputs": [TensorSpec("x", 1, ["batch", 4])],
        "outputs": [TensorSpec("y", 1, ["batch", 4])],
        "batchable": True,
        "alone_reason": "",
        "max_batch": max_batch,
        "provider": "cpu",
        "placement": "CPUExecutionProvider",
        "warmup_ns": {},
    } | changed
    return m.Loaded(**fields)


def numbers(batch: m.Batch) -> list[int]:
    """Which requests are in a batch (see World.submit)."""
    return [item.inputs[0].offset // (64 * ROW_BYTES) for item in batch.apart()]


@pytest.fixture
def world() -> World:
    """One client (1, arena 1) and one worker (1) that serves `net`, at most 4 rows a run."""
    made = World()
    made.client(1)
    made.worker(1)
    return made


# ---- batches ------------------------------------------------------------------------------------


def test_an_idle_worker_is_lent_a_single_request_at_once(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    assert numbers(batch) == [1]
    assert batch.rows == 1
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_a_batch_is_filled_up_to_the_maximum_in_order_of_arrival(world: World) -> None:
    for number in range(1, 7):
        world.submit(1, number)
    batch, *_ = world.turn()
    assert numbers(batch) == [1, 2, 3, 4]
    assert batch.rows == 4


def test_two_idle_workers_share_what_waits_before_one_is_given_more() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.worker(2)
    for number in range(1, 7):
        world.submit(1, number)
    world.turn()
    assert [numbers(batches[0]) for batches in world.lent.values()] == [[1, 2, 3, 4], [5, 6]]


def test_no_worker_is_lent_more_than_its_credit(world: World) -> None:
    for number in range(1, 40):
        world.submit(1, number)
    for _ in range(5):
        world.turn(MS)
    assert len(world.lent[1]) == CREDIT == 2


def test_a_busy_worker_is_prefetched_a_batch_as_large_as_the_one_it_runs(world: World) -> None:
    world.submit(1, 1)
    (running,) = world.turn()
    world.submit(1, 2)
    (prefetched,) = world.turn()
    assert numbers(prefetched) == [2]
    world.done(1, running)
    assert world.outcomes(1) == {1: "ok"}


def test_a_lone_request_behind_a_full_batch_waits_for_company_only_while_the_worker_is_busy(
    world: World,
) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (running,) = world.turn()
    world.submit(1, 5)
    assert world.turn() == []
    world.done(1, running)
    (batch,) = world.turn()
    assert numbers(batch) == [5]


def test_requests_of_different_shapes_never_share_a_batch() -> None:
    world = World()
    world.client(1)
    world.worker(
        1,
        net(
            inputs=[TensorSpec("x", 1, ["batch", "width"])], outputs=[TensorSpec("y", 1, ["batch", "width"])]
        ),
    )
    for number, width in enumerate((4, 8, 4, 8), start=1):
        message = m.Submit(number, "net", NORMAL, 0, [Tensor(1, [1, width], number * 1024)], [])
        world.do(e.Submitted(1, 1, message))
    shapes = [{item.inputs[0].shape[1] for item in batch.apart()} for batch in world.turn()]
    assert all(len(shape) == 1 for shape in shapes)


def test_a_model_that_cannot_batch_gets_one_request_at_a_time() -> None:
    world = World()
    world.client(1)
    spec = [TensorSpec("x", 1, [1, 4])]
    world.worker(
        1, net(inputs=spec, outputs=[TensorSpec("y", 1, [1, 4])], batchable=False, alone_reason="fixed")
    )
    for number in range(1, 4):
        world.submit(1, number)
    for batch in world.turn():
        assert len(batch.apart()) == 1
        assert batch.rows == 0


def test_a_worker_is_lent_only_models_that_it_has_loaded() -> None:
    world = World(("net", "other"))
    world.client(1)
    world.worker(1)
    world.worker(2, net(model="other"))
    world.submit(1, 1)
    world.submit(1, 2, model="other")
    world.turn()
    assert [batch.model for batch in world.lent[1]] == ["net"]
    assert [batch.model for batch in world.lent[2]] == ["other"]


def test_what_a_worker_is_lent_is_ended_for_several_clients_with_one_message_each() -> None:
    world = World()
    world.client(1)
    world.client(2)
    world.worker(1)
    for conn, number, arena in ((1, 1, 1), (2, 2, 2), (1, 3, 1), (2, 4, 2)):
        world.submit(conn, number, arena=arena)
    (batch,) = world.turn()
    assert [item.arena for item in batch.apart()] == [1, 2, 1, 2]
    world.done(1, batch)
    assert [message.requests for message in world.told[1]] == [[1, 3]]
    assert [message.requests for message in world.told[2]] == [[2, 4]]


# ---- priorities ---------------------------------------------------------------------------------


def test_urgent_goes_before_what_came_earlier_and_may_wait_longer(world: World) -> None:
    for number, priority in enumerate((LOW, NORMAL, HIGH, URGENT), start=1):
        world.submit(1, number, rows=4, priority=priority)
    order: list[int] = []
    for _ in range(4):
        world.turn()
        batch = world.lent[1][len(order)]
        order += numbers(batch)
        world.done(1, batch)
    assert order == [4, 3, 2, 1]


def test_low_is_not_starved_by_a_steady_stream_of_urgent_requests(world: World) -> None:
    """Once it is overdue, LOW has every OVERDUE_SHARE-th batch. Then it waits for what is lent, and runs."""
    world.submit(1, 1, rows=4, priority=LOW)
    submitted_ns = world.now_ns
    run_ns = 10 * MS
    number = 1
    waiting: list[m.Batch] = []
    while 1 not in world.outcomes(1):
        for _ in range(3):  # more than the worker can do, so that there is always an URGENT one
            number += 1
            world.submit(1, number, rows=4, priority=URGENT, deadline_ns=40 * MS)
        waiting += world.turn(run_ns)
        world.done(1, waiting.pop(0))
        assert world.now_ns - submitted_ns < 2 * BUDGETS_NS_DEFAULT[LOW], "LOW is starved"
    waited_ns = world.now_ns - submitted_ns
    bound_ns = BUDGETS_NS_DEFAULT[LOW] + (OVERDUE_SHARE + CREDIT + 1) * run_ns
    assert BUDGETS_NS_DEFAULT[LOW] // 2 < waited_ns <= bound_ns


def test_a_class_does_not_go_before_what_is_due_sooner_and_not_overdue(world: World) -> None:
    for number in (1, 2, 3):
        world.submit(1, number, rows=4)
    world.turn()  # the worker has its credit
    world.turn(90 * MS)
    world.submit(1, 4, rows=4, priority=HIGH)  # due in 25 ms; request 3 in 10
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [3]


def test_an_urgent_request_does_not_wait_for_everything_that_is_older(world: World) -> None:
    """With more work than workers everything gets old; URGENT still goes first, 7 times of 8."""
    for number in range(1, 101):
        world.submit(1, number, rows=4)
    waiting = world.turn(BUDGETS_NS_DEFAULT[NORMAL] * 2)
    for number in range(101, 121):
        world.submit(1, number, rows=4, priority=URGENT)
    heads = []
    for _ in range(16):
        world.done(1, waiting.pop(0))
        waiting += world.turn(MS)
        heads.append(numbers(waiting[-1])[0] > 100)
    first, second = (index for index, is_urgent in enumerate(heads) if not is_urgent)
    assert second - first == OVERDUE_SHARE


def test_a_low_request_with_a_near_deadline_does_not_buy_the_place_of_an_urgent_one(world: World) -> None:
    world.submit(1, 1, rows=4)
    world.submit(1, 2, rows=4)
    world.turn()  # the worker has its credit
    world.submit(1, 3, rows=4, priority=LOW, deadline_ns=2 * MS)
    world.turn(MS)
    world.submit(1, 4, rows=4, priority=URGENT)
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [4]


def test_a_nearer_deadline_goes_first_inside_a_class(world: World) -> None:
    world.submit(1, 1, rows=4)
    world.submit(1, 2, rows=4)
    world.turn()
    world.submit(1, 3, rows=4, deadline_ns=2_000 * MS)
    world.submit(1, 4, rows=4, deadline_ns=70 * MS)
    world.done(1, world.lent[1][0])
    (batch,) = world.turn()
    assert numbers(batch) == [4]


# ---- deadlines and cancellation -----------------------------------------------------------------


def test_expired_request_never_reaches_a_worker(world: World) -> None:
    for number in (1, 2):
        world.submit(1, number, rows=4)
    first, _ = world.turn()
    world.submit(1, 3, deadline_ns=5 * MS)
    assert world.core.next_deadline_ns() == world.now_ns + 5 * MS
    world.now_ns += 5 * MS
    world.done(1, first)
    assert world.turn() == []
    assert world.outcomes(1)[3] == "DEADLINE_EXCEEDED"
    assert world.last(1).held is False
    assert world.core.next_deadline_ns() > world.now_ns + 5 * MS  # only the running batch is watched


def test_request_that_expires_before_any_worker_serves_its_model_says_so(world: World) -> None:
    world.do(e.WorkerGone(1))
    world.submit(1, 1, deadline_ns=5 * MS)
    world.turn(5 * MS)
    assert world.outcomes(1) == {1: "DEADLINE_EXCEEDED"}
    assert "no worker was serving 'net'" in world.last(1).text


def test_request_that_expires_while_it_runs_ends_now_and_releases_its_slots_later(world: World) -> None:
    world.submit(1, 1, deadline_ns=5 * MS)
    (batch,) = world.turn()
    world.turn(5 * MS)
    assert world.outcomes(1) == {1: "DEADLINE_EXCEEDED"}
    assert world.last(1).held is True
    world.done(1, batch)
    assert world.last(1) == m.Released([1])


def test_requests_that_ended_long_before_their_deadline_are_not_kept_until_then(world: World) -> None:
    """A client's default deadline is 30 s: at 20,000 requests/s that would be 600,000 of them."""
    world.submit(1, 1, deadline_ns=60_000 * MS)
    world.do(e.Turn())
    for number in range(2, 5_000):
        world.submit(1, 2, deadline_ns=30_000 * MS + number)
        world.cancel(1, 2)
    assert len(world.core._deadlines) < 2_000
    assert world.core.next_deadline_ns() <= world.now_ns + 60_000 * MS


def test_cancelled_request_never_reaches_a_worker(world: World) -> None:
    for number in (1, 2, 3):
        world.submit(1, number)
    world.cancel(1, 2)
    assert world.outcomes(1) == {2: "CANCELLED"}
    assert world.last(1).held is False
    (batch,) = world.turn()
    assert numbers(batch) == [1, 3]


def test_cancelling_what_runs_ends_it_now_and_releases_its_slots_when_the_worker_is_done(
    world: World,
) -> None:
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    world.cancel(1, 1)
    assert world.last(1).held is True
    world.cancel(1, 1)  # it has its outcome: no second one
    world.done(1, batch)
    assert m.Released([1]) in world.told[1]
    assert world.outcomes(1) == {1: "CANCELLED", 2: "ok"}


def test_cancelling_what_never_was_or_has_ended_says_that_its_slots_are_free(world: World) -> None:
    """A client that was interrupted before it could listen asks again, and must not wait for ever."""
    world.cancel(1, 5, 6, 7)
    assert world.told[1] == [m.Released([5, 6, 7])]


def test_cancelling_what_is_still_held_says_nothing_until_the_worker_is_done(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.cancel(1, 1)
    world.cancel(1, 1)
    assert [type(message) for message in world.told[1]] == [m.Failed]
    world.done(1, batch)
    assert world.told[1][1:] == [m.Released([1])]
    assert world.core.connections[1].held == set()


# ---- many rows ----------------------------------------------------------------------------------


def test_request_with_more_rows_than_a_batch_runs_in_parts_and_completes_once(world: World) -> None:
    world.submit(1, 1, rows=10)
    ranges = []
    while not world.outcomes(1):
        world.turn()
        batch = world.lent[1][len(ranges)]
        (item,) = batch.apart()
        assert item.inputs == [Tensor(1, [10, 4], 64 * ROW_BYTES)]  # whole: a worker knows where its rows lie
        assert item.outputs == [Slot(64 * ROW_BYTES, 10 * ROW_BYTES)]
        assert item.rows == batch.rows
        ranges.append((item.start, item.rows))
        world.now_ns += 7
        world.done(1, batch)
    assert ranges == [(0, 4), (4, 4), (8, 2)]
    (answer,) = world.told[1]
    assert type(answer) is m.Completed
    receipt = answer.batch  # of all its batches together; it waited until the first of them
    assert (receipt.rows, receipt.gather_ns, receipt.compute_ns, receipt.scatter_ns) == (10, 3, 750_000, 3)
    assert (receipt.batch, answer.queue_ns) == (batch.batch, [0])


def test_parts_that_end_out_of_order_are_answered_in_order_of_rows() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(outputs=[TensorSpec("y", 1, ["batch", "found"])]))
    world.worker(2, net(outputs=[TensorSpec("y", 1, ["batch", "found"])]))
    world.submit(1, 1, rows=8, slots=False)
    world.turn()
    for worker, frame in ((2, b"second half"), (1, b"first half!")):
        (batch,) = world.lent[worker]
        outputs = [m.ItemOutputs(0, [Tensor(1, [4, 1], 0, 1)])]
        actions = world.say(worker, m.Done(EPOCH, batch.batch, 0, 1, 0, 0, outputs), [frame])
    (answer,) = actions
    assert isinstance(answer, e.ToClient)
    assert list(answer.frames) == [b"first half!", b"second half"]
    assert [[t.frame for t in part] for part in answer.message.parts] == [[1], [2]]


def test_cancelled_between_its_parts_a_request_gives_the_rest_of_its_rows_back(world: World) -> None:
    world.submit(1, 1, rows=12)
    first, second = world.turn()
    world.cancel(1, 1)
    assert world.last(1).held is True
    world.done(1, first)
    assert m.Released([1]) not in world.told[1]
    world.done(1, second)
    assert world.last(1) == m.Released([1])
    assert world.turn() == []


def test_small_requests_are_not_cut_in_two_to_fill_a_batch(world: World) -> None:
    world.submit(1, 1, rows=3)
    world.submit(1, 2, rows=2)
    batch, *_ = world.turn()
    assert numbers(batch) == [1]
    assert batch.rows == 3


# ---- workers that die ---------------------------------------------------------------------------


def test_a_dead_workers_batches_go_back_and_run_elsewhere(world: World) -> None:
    for number in range(1, 9):
        world.submit(1, number)
    world.turn()
    world.do(e.WorkerGone(1))
    assert world.outcomes(1) == {}
    world.worker(2)
    while batches := world.turn():
        for batch in batches:
            world.done(2, batch)
    assert world.outcomes(1) == dict.fromkeys(range(1, 9), "ok")
    assert world.core.counters.workers_lost == 1


def test_request_that_kills_two_workers_alone_ends_with_worker_lost() -> None:
    world = World()
    world.client(1)
    for worker in range(1, LOSSES_MAX + 1):
        world.worker(worker)
        if worker == 1:
            world.submit(1, 1)
        assert world.outcomes(1) == {}
        (batch,) = world.turn()
        assert numbers(batch) == [1]
        world.do(e.WorkerGone(worker))
    assert world.outcomes(1) == {1: "WORKER_LOST"}
    assert world.last(1).held is False


def test_one_death_counts_once_however_many_parts_of_the_request_it_took() -> None:
    world = World()
    world.client(1)
    for worker in range(1, LOSSES_MAX):
        world.worker(worker)
        if worker == 1:
            world.submit(1, 1, rows=8)
        assert len(world.turn()) == CREDIT
        world.do(e.WorkerGone(worker))
        assert world.outcomes(1) == {}, f"given up after {worker} deaths"


def test_a_death_counts_although_the_batch_had_two_parts_of_the_request(world: World) -> None:
    """What was cut once and came back: there is nobody else to suspect."""
    world.submit(1, 1, rows=4)
    (lane,) = world.core.models["net"].lanes.values()
    (whole,) = take_rows(lane, 4)
    for start in (0, 2):
        lane.push_front(Part(whole.request, start, start + 2))
    for worker in range(1, 1 + LOSSES_MAX):
        assert world.outcomes(1) == {}
        world.turn()
        world.do(e.WorkerGone(worker))
        world.worker(worker + 1)
    assert world.outcomes(1) == {1: "WORKER_LOST"}


def test_request_cancelled_while_its_worker_dies_is_released_and_not_run_again(world: World) -> None:
    world.submit(1, 1)
    world.turn()
    world.cancel(1, 1)
    world.do(e.WorkerGone(1))
    assert world.told[1][-1] == m.Released([1])
    world.worker(2)
    assert world.turn() == []


def test_lost_requests_run_before_what_came_later(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    world.turn()
    world.submit(1, 9, rows=4)
    world.do(e.WorkerGone(1))
    world.worker(2)
    assert [numbers(batch) for batch in world.turn()] == [[1], [2]]  # each by itself


def test_a_request_that_kills_its_workers_takes_no_neighbour_with_it(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    world.turn()
    world.do(e.WorkerGone(1))
    worker = 1
    while len(world.outcomes(1)) < 4:
        worker += 1
        world.worker(worker)
        alive = True
        while alive and (batches := world.turn()):
            for batch in batches:
                if alive and 3 in numbers(batch):
                    world.do(e.WorkerGone(worker))
                    alive = False
                elif alive:
                    world.done(worker, batch)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "WORKER_LOST", 4: "ok"}
    assert worker <= 4


# ---- workers that leave -------------------------------------------------------------------------


def leave(world: World, worker: int) -> None:
    """Its device is lost: it says so, and its process ends."""
    said = world.say(worker, m.Leaving("887A0006"))
    assert [a.message for a in said if isinstance(a, e.ToWorker)] == [m.Dismissed()]
    assert world.turn() == [], "a worker that leaves is lent nothing"
    world.do(e.WorkerGone(worker))


def test_no_request_is_blamed_for_devices_that_were_lost_under_it() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.submit(1, 1)
    for worker in range(1, LOSSES_MAX + 3):
        (batch,) = world.turn()
        assert numbers(batch) == [1]
        leave(world, worker)
        assert world.outcomes(1) == {}
        world.worker(worker + 1)
    (batch,) = world.turn()
    world.done(LOSSES_MAX + 3, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_the_batches_of_a_lost_device_run_again_as_they_were(world: World) -> None:
    for number in range(1, 9):
        world.submit(1, number)
    assert [numbers(batch) for batch in world.turn()] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    leave(world, 1)
    world.worker(2)
    assert sorted(number for batch in world.turn() for number in numbers(batch)) == list(range(1, 9))
    assert world.core.counters.workers_left == 1


def test_a_worker_that_leaves_may_still_end_what_it_runs(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.say(1, m.Leaving("it goes to a better provider"))
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_of_a_model_that_is_not_idempotent_a_lost_devices_requests_fail(world: World) -> None:
    model = world.core.models["net"]
    model.config = replace(model.config, idempotent=False)
    world.submit(1, 1)
    world.turn()
    leave(world, 1)
    assert world.outcomes(1) == {1: "WORKER_LOST"}


def test_why_a_worker_is_on_no_better_provider_is_in_the_snapshot_and_beside_its_models(world: World) -> None:
    world.do(e.WorkerJoined(2, 5002, "webgpu is in quarantine"))
    world.say(2, net())
    assert gauges.snapshot(world.core)["workers_fallen"] == [[2, "webgpu is in quarantine"]]
    (model,) = world.core.models.values()
    assert [worker.fallback_reason for worker in model.info().workers] == ["", "webgpu is in quarantine"]


def test_a_worker_that_was_never_there_can_go(world: World) -> None:
    assert world.do(e.WorkerGone(99)) == []


# ---- batches that fail --------------------------------------------------------------------------


def run_with_one_poisoned(world: World, poisoned: set[int]) -> None:
    """A worker that fails every batch with a poisoned request in it, until nothing is left."""
    for _ in range(100):
        batches = world.turn()
        pending = [*world.core.workers[1].leases]
        if not batches and not pending:
            return
        for batch in [batch for batch in world.lent[1] if batch.batch in pending]:
            if poisoned & set(numbers(batch)):
                world.failed(1, batch)
            else:
                world.done(1, batch)
    raise AssertionError("bisection does not end")


@pytest.mark.parametrize("poisoned", [{1}, {2}, {3}, {4}, {1, 4}, {2, 3}, {1, 2, 3, 4}])
def test_a_failed_batch_is_bisected_and_only_the_guilty_fail(world: World, poisoned: set[int]) -> None:
    for number in range(1, 7):
        world.submit(1, number)
    run_with_one_poisoned(world, poisoned)
    assert world.outcomes(1) == {n: "MODEL_FAILED" if n in poisoned else "ok" for n in range(1, 7)}


def test_halves_of_a_failed_batch_are_not_mixed_with_what_waits(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.submit(1, 9)
    world.failed(1, batch)
    assert {tuple(sorted(numbers(half))) for half in world.turn()} == {(1, 2), (3, 4)}


def test_where_the_worker_names_the_item_at_fault_the_others_run_again_together(world: World) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.failed(1, batch, item=2)
    assert world.outcomes(1) == {3: "MODEL_FAILED"}
    (again,) = world.turn()
    assert sorted(numbers(again)) == [1, 2, 4]
    world.done(1, again)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "MODEL_FAILED", 4: "ok"}


@pytest.mark.parametrize("item", [4, 99, -2, 1 << 40])
def test_an_item_that_is_not_in_the_batch_is_as_good_as_none(world: World, item: int) -> None:
    for number in range(1, 5):
        world.submit(1, number)
    (batch,) = world.turn()
    world.failed(1, batch, item=item)
    assert world.outcomes(1) == {}
    run_with_one_poisoned(world, {3})
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "MODEL_FAILED", 4: "ok"}


def test_requests_that_ended_during_a_failed_batch_do_not_run_again(world: World) -> None:
    for number in range(1, 4):
        world.submit(1, number)
    (batch,) = world.turn()
    world.cancel(1, 2)
    world.failed(1, batch)
    assert m.Released([2]) in world.told[1]
    run_with_one_poisoned(world, {2})
    assert world.outcomes(1) == {1: "ok", 2: "CANCELLED", 3: "ok"}


@pytest.mark.parametrize("code", [0, 999, -1, 1 << 40])
def test_a_failure_with_a_code_that_does_not_exist_still_ends_the_request_with_an_error(
    world: World, code: int
) -> None:
    """A worker's message is a peer's data too: it must not end the broker."""
    world.submit(1, 1)
    (batch,) = world.turn()
    world.say(1, m.BatchFailed(EPOCH, batch.batch, code, "what?"))
    assert world.outcomes(1) == {1: "MODEL_FAILED"}


# ---- messages that are about nothing ------------------------------------------------------------


def test_stale_epochs_unknown_batches_and_repeated_answers_are_counted_and_ignored(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(1, batch, epoch=EPOCH + 1)
    world.say(1, m.Done(EPOCH, 999, 0, 0, 0, 0, []))
    world.say(1, m.BatchFailed(EPOCH - 1, batch.batch, Code.MODEL_FAILED, ""))
    assert world.outcomes(1) == {}
    world.done(1, batch)
    world.done(1, batch)
    world.failed(1, batch)
    assert world.outcomes(1) == {1: "ok"}
    assert world.core.counters.refused == {"stale_batch": 5}


def test_a_worker_cannot_end_another_workers_batch() -> None:
    world = World()
    world.client(1)
    world.worker(1)
    world.worker(2)
    world.submit(1, 1)
    (batch,) = world.turn()
    other = 2 if world.lent.get(1) else 1
    world.done(other, batch)
    world.failed(other, batch)
    assert world.outcomes(1) == {}


def test_answers_that_name_items_and_frames_that_are_not_there_do_not_end_the_core(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    world.done(1, batch, inline_outputs=[m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 7)]), m.ItemOutputs(55, [])])
    assert world.outcomes(1) == {1: "WORKER_LOST", 2: "ok"}


@pytest.mark.parametrize(
    "spec", [TensorSpec("x", 8, ["n", 4]), TensorSpec("x", 99, ["n", 4]), TensorSpec("x", 1, ["n", -4])]
)
def test_metadata_that_no_model_can_have_makes_the_load_fail_and_not_the_broker(spec: TensorSpec) -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[spec]))
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    assert world.last(1).models[0].state is m.ModelState.FAILED
    world.worker(2)
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(2, batch)
    assert world.outcomes(1) == {1: "ok"}


def test_a_load_for_an_unknown_model_or_another_revision_is_ignored(world: World) -> None:
    world.say(1, net(model="nothing"))
    world.say(1, net(revision=9))
    world.say(1, m.LoadFailed("nothing", 1, "no"))
    world.say(1, m.LoadFailed("net", 9, "no"))
    assert world.core.counters.refused == {"stale_load": 4}
    assert world.core.models["net"].state is m.ModelState.READY


# ---- admission ----------------------------------------------------------------------------------


def test_a_second_request_of_one_number_is_refused_and_the_first_lives_on(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 1, rows=2)
    assert isinstance(world.last(1), m.Refused)
    (batch,) = world.turn()
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}
    world.submit(1, 1)  # it has ended: its number is free again
    assert len(world.turn()) == 1


@pytest.mark.parametrize(
    ("limits", "who"),
    [
        ({"queue_rows_max": 10}, "the yard"),
        ({"queue_bytes_max": 10 * 2 * ROW_BYTES}, "the yard"),
        ({"client_rows_max": 10}, "this client"),
        ({"client_bytes_max": 10 * 2 * ROW_BYTES}, "this client"),
    ],
)
def test_past_a_bound_a_request_is_refused_at_once_with_when_to_come_back(
    limits: dict[str, int], who: str
) -> None:
    world = World(**limits)
    world.client(1)
    world.worker(1)
    for number in range(1, 11):
        world.submit(1, number, priority=URGENT)
    assert world.outcomes(1) == {}
    world.submit(1, 11, priority=URGENT)
    assert world.outcomes(1) == {11: "OVERLOADED"}
    assert world.last(1).retry_after_ns >= MS
    assert who in world.last(1).text
    assert next(iter(limits)) in world.last(1).text
    batch = world.turn()[0]
    world.done(1, batch)  # four rows ended: there is room for four
    for number in range(12, 16):
        world.submit(1, number, priority=URGENT)
    assert set(world.outcomes(1)) == {11, *numbers(batch)}


@pytest.mark.parametrize(("priority", "rows"), [(LOW, 80), (NORMAL, 90), (HIGH, 95), (URGENT, 100)])
def test_a_queue_that_fills_is_closed_for_the_lowest_class_first(priority: Priority, rows: int) -> None:
    world = World(queue_rows_max=100)
    world.client(1)
    world.worker(1)
    for number in range(1, rows + 1):
        world.submit(1, number, priority=LOW if number <= 80 else URGENT)
    assert world.outcomes(1) == {}
    world.submit(1, 101, priority=priority)
    assert world.outcomes(1) == {101: "OVERLOADED"}
    if priority:
        assert f"({rows} % of queue_rows_max = 100)" in world.last(1).text
        world.submit(1, 102, priority=Priority(priority - 1))
        assert 102 not in world.outcomes(1)


def test_a_request_that_is_too_large_is_told_what_is_allowed_and_how_to_split_it() -> None:
    world = World(client_rows_max=1000)
    world.client(1)
    world.worker(1)
    world.submit(1, 1, rows=60_000, slots=False)
    assert world.outcomes(1) == {1: "INVALID_REQUEST"}
    assert world.last(1).text == (
        "60,000 rows exceed the 58,982 allowed (90 % of queue_rows_max = 65,536); split the request into parts "
        "of at most 1,000 rows"
    )


def test_one_clients_bound_leaves_room_for_the_others() -> None:
    world = World(client_rows_max=4)
    world.worker(1)
    for conn in (1, 2):
        world.client(conn)
    world.submit(1, 1, rows=4)
    world.submit(1, 2)
    world.submit(2, 1, rows=4, arena=2)
    assert world.outcomes(1) == {2: "OVERLOADED"}
    assert world.outcomes(2) == {}


def test_an_unknown_model_is_an_error_that_names_those_that_there_are(world: World) -> None:
    world.submit(1, 1, model="nte")
    assert world.outcomes(1) == {1: "UNKNOWN_MODEL"}
    assert "net" in world.last(1).text


def test_a_model_that_no_worker_has_loaded_yet_asks_to_come_back() -> None:
    world = World()
    world.client(1)
    world.submit(1, 1)
    assert world.outcomes(1) == {1: "OVERLOADED"}
    assert world.last(1).retry_after_ns > 0


def test_a_lying_handle_is_refused_and_nothing_is_held_for_it(world: World) -> None:
    message = m.Submit(1, "net", NORMAL, 0, [Tensor(1, [1, 4], ARENA_BYTES - 8)], [])
    world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == {1: "INVALID_REQUEST"}
    assert world.core.admission.rows == world.core.admission.nbytes == 0


# ---- describing ---------------------------------------------------------------------------------


def test_describe_waits_while_the_model_loads_and_is_then_answered() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    assert world.told.get(1, []) == []
    world.worker(1)
    (described,) = world.told[1]
    assert described.request == 5
    assert described.models[0].state is m.ModelState.READY
    assert [worker.worker for worker in described.models[0].workers] == [1]


def test_describe_of_a_model_that_cannot_be_loaded_is_answered_with_the_reason() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    world.do(e.WorkerJoined(1, 5001))
    world.say(1, m.LoadFailed("net", 1, "Protobuf parsing failed"))
    (described,) = world.told[1]
    assert described.models[0].state is m.ModelState.FAILED
    assert described.models[0].reason == "Protobuf parsing failed"


def test_describe_of_everything_is_answered_at_once_and_of_an_unknown_name_with_an_error() -> None:
    world = World(("net", "other"))
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "")))
    assert [model.name for model in world.last(1).models] == ["net", "other"]
    world.do(e.DescribeAsked(1, m.Describe(6, "nothing")))
    assert world.outcomes(1) == {6: "UNKNOWN_MODEL"}


def test_a_client_that_left_is_not_told_what_it_asked() -> None:
    world = World()
    world.client(1)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    world.do(e.ClientGone(1))
    world.worker(1)
    assert world.told.get(1, []) == []


# ---- clients that leave, and their arenas -------------------------------------------------------


def test_a_client_that_left_frees_everything_and_its_arena_is_closed_after_the_last_lease(
    world: World,
) -> None:
    for number in range(1, 11):
        world.submit(1, number)
    first, second = world.turn()
    world.do(e.ClientGone(1))
    assert world.core.admission.rows == world.core.admission.nbytes == 0
    assert world.closed == []  # a worker may still write
    world.done(1, first)
    assert world.closed == []
    world.failed(1, second)
    assert world.closed == [1]
    assert world.turn() == []
    assert world.core.arenas == {}


def test_a_client_that_left_with_nothing_under_way_has_its_arena_closed_at_once(world: World) -> None:
    world.do(e.ClientGone(1))
    assert world.closed == [1]
    world.do(e.ClientGone(1))
    assert world.closed == [1]


def test_an_arena_that_two_connections_share_is_closed_with_the_second(world: World) -> None:
    world.client(2, arena=1)
    world.do(e.ClientGone(1))
    assert world.closed == []
    world.do(e.ClientGone(2))
    assert world.closed == [1]


def test_the_brokers_own_arena_outlives_every_client() -> None:
    world = World()
    world.do(e.ArenaOpened(9, ARENA_BYTES, pinned=True))
    world.worker(1)
    for conn in (1, 2):
        world.client(conn, arena=9)
        world.submit(conn, 1, arena=9)
    (batch,) = world.turn()
    world.do(e.ClientGone(1))
    world.do(e.ClientGone(2))
    world.done(1, batch)
    assert world.closed == []
    assert 9 in world.core.arenas


def test_requests_of_a_client_that_left_are_released_to_the_loop_exactly_once() -> None:
    """The loop frees the slots of inline requests by this message, whoever still listens."""
    world = World()
    world.do(e.ArenaOpened(9, ARENA_BYTES, pinned=True))
    world.client(1, arena=9)
    world.worker(1)
    for number in range(1, 11):
        world.submit(1, number, arena=9)
    first, second = world.turn()
    world.do(e.ClientGone(1))
    world.done(1, first)
    world.failed(1, second)
    released = [n for message in world.told[1] if isinstance(message, m.Released) for n in message.requests]
    assert sorted(released) == list(range(1, 11))


def test_counters_and_gauges_tell_what_happened(world: World) -> None:
    world.submit(1, 1)
    world.submit(1, 2, priority=LOW)
    (batch,) = world.turn()
    counts = {
        "rows_under_way": 2,
        "bytes_under_way": 4 * ROW_BYTES,
        "clients": 1,
        "workers": 1,
        "batches_lent": 1,
    }
    assert counts.items() <= gauges.snapshot(world.core).items()
    world.done(1, batch)
    counters = world.core.counters.snapshot()
    assert sorted(counters["requests"]) == [["net", 2, "ok", 1], ["net", 3, "ok", 1]]
    assert (counters["batches"], counters["rows"]) == (1, 2)


def test_every_request_is_counted_once_under_the_outcome_that_its_client_was_told() -> None:
    world = World(queue_rows_max=40)
    world.client(1)
    world.worker(1)
    world.submit(1, 1)
    world.submit(1, 1)  # said twice: one request
    world.submit(1, 2, priority=LOW)
    world.submit(1, 3, model="nonesuch", priority=HIGH)
    world.submit(1, 5, rows=35)
    world.do(e.Submitted(1, 1, m.Submit(4, "net", NORMAL, 0, [Tensor(7, [1, 4], 0)], [])))
    world.submit(1, 6, deadline_ns=MS)
    (batch, *_) = world.turn(0)
    world.done(1, batch)
    world.submit(1, 7)
    world.submit(1, 8)
    world.cancel(1, 8)
    for _ in range(3):
        for batch in world.turn(2 * MS):
            world.failed(1, batch)
    world.submit(1, 9)
    (batch,) = world.turn()
    world.done(1, batch, inline_outputs=[m.ItemOutputs(0, [Tensor(1, [1, 4], 0, 7)])])  # a frame that isn't there
    told: dict[str, int] = {}
    for outcome in world.outcomes(1).values():
        told[outcome.lower()] = told.get(outcome.lower(), 0) + 1
    counted: dict[str, int] = {}
    for _, _, outcome, count in gauges.snapshot(world.core)["requests"]:
        counted[outcome] = counted.get(outcome, 0) + count
    assert counted == told
    assert sum(counted.values()) == 9
    assert {"ok", "unknown_model", "invalid_request", "overloaded", "cancelled", "worker_lost"} <= set(counted)


def test_a_name_that_no_model_has_is_never_a_counters_key(world: World) -> None:
    for number in range(5):
        world.submit(1, number, model=f"nonesuch{number}")
    assert gauges.snapshot(world.core)["requests"] == [["", NORMAL, "unknown_model", 5]]


def test_what_ended_while_a_worker_runs_it_still_holds_its_bytes(world: World) -> None:
    world.submit(1, 1, rows=2)
    (batch,) = world.turn()
    world.cancel(1, 1)
    snapshot = gauges.snapshot(world.core)
    assert (snapshot["bytes_under_way"], snapshot["bytes_held"]) == (0, 4 * ROW_BYTES)
    world.done(1, batch)
    assert gauges.snapshot(world.core)["bytes_held"] == 0


def test_a_worker_that_takes_a_lost_ones_place_counts_as_restarted_and_one_more_does_not(world: World) -> None:
    world.worker(2)
    assert gauges.snapshot(world.core)["workers_restarted"] == 0
    world.do(e.WorkerGone(1))
    assert gauges.snapshot(world.core)["workers_restarted"] == 0
    world.worker(3)
    world.worker(4)
    snapshot = gauges.snapshot(world.core)
    assert (snapshot["workers_lost"], snapshot["workers_restarted"], snapshot["workers"]) == (1, 1, 3)


def test_a_snapshot_names_lanes_and_what_every_worker_has_been_lent(world: World) -> None:
    world.submit(1, 1, rows=2)
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 2]]
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, []]]
    (batch,) = world.turn()
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 0]]
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, [["net", 2]]]]
    world.done(1, batch)
    assert gauges.snapshot(world.core)["leases"] == [[1, 5001, {"net": "cpu"}, []]]


def test_a_snapshot_names_the_fullest_lanes_and_how_many_there_are_besides() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[TensorSpec("x", 1, ["batch", "t"])], outputs=[TensorSpec("y", 1, ["batch", 4])]))
    for width in range(1, 301):
        for number in (width, width + 1000) if width == 7 else (width,):
            message = m.Submit(number, "net", NORMAL, 0, [Tensor(1, [1, width], 0)], [])
            world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == {}, "any number of shapes may wait"
    snapshot = gauges.snapshot(world.core)
    assert len(snapshot["lanes"]) == LANES_MAX
    assert snapshot["lanes"][0] == ["net", [[7]], 2]
    assert snapshot["lanes_omitted"] == {"net": 300 - LANES_MAX}


def test_a_snapshot_of_a_lane_without_shapes_of_its_own_is_read_by_its_readers(counters: dict[str, Any]) -> None:
    """Requests that run alone share a lane; a lane of what a batch shares has a digest in its signature."""
    lanes = [Lane("net", [0, 0, 0, 0], signature) for signature in (ALONE, (b"digest", (3,), 0))]
    world = World()
    world.core.models["net"].lanes = {lane.signature: lane for lane in lanes}
    assert gauges.snapshot(world.core)["lanes"] == [["net", [], 0], ["net", [[3]], 0]]
    assert len(snapshot.read(counters | gauges.snapshot(world.core)).lanes) == 2


def test_a_snapshot_names_models_what_waits_for_them_and_who_serves_them(world: World) -> None:
    for number in range(1, 13):
        world.submit(1, number, priority=LOW)
    world.submit(1, 13, rows=3, priority=URGENT)
    assert gauges.snapshot(world.core)["models"] == [["net", 1, m.ModelState.READY, [3, 0, 0, 12], {"cpu": 1}]]
    assert gauges.snapshot(world.core)["credit"] == CREDIT
    world.turn()
    snapshot = gauges.snapshot(world.core)
    assert snapshot["credit"] == CREDIT - snapshot["batches_lent"] < CREDIT
    assert snapshot["worker_pids"] == [5001]
    assert snapshot["epoch"] == EPOCH


# ---- scheduling by predicted times ------------------------------------------------------------------


def timed(**warmup_ms: int) -> m.Loaded:
    """`net` with a warm-up: rows -> milliseconds."""
    loaded = net()
    loaded.warmup_ns = {int(rows[1:]): ms * MS for rows, ms in warmup_ms.items()}
    return loaded


@pytest.fixture
def paced() -> World:
    """A worker that needs 10 ms for one row and 40 ms for four (its maximum)."""
    world = World()
    world.client(1)
    world.worker(1, timed(r1=10, r2=20, r4=40))
    return world


def test_a_batch_is_no_larger_than_its_nearest_deadline_allows(paced: World) -> None:
    paced.submit(1, 1, deadline_ns=25 * MS)
    for number in range(2, 5):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [2]


def test_what_is_lent_ahead_is_bound_only_when_the_running_batch_is_nearly_done(paced: World) -> None:
    for number in range(1, 9):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [4]  # 40 ms
    assert paced.core.next_deadline_ns() == paced.now_ns + 38 * MS
    assert paced.turn(37 * MS) == []
    paced.submit(1, 9, priority=HIGH)  # it still goes ahead of what waited longer
    (ahead,) = paced.turn(1 * MS)
    assert numbers(ahead)[0] == 9
    assert paced.core.next_deadline_ns() != paced.now_ns


@pytest.mark.parametrize("lie", [{1: 1, 4: 1}, {1: 10**13, 4: 10**13}, {4: 10**13}, {1: 10**13}])
def test_a_file_that_lies_about_its_times_has_nobody_refused_and_no_worker_killed(
    lie: dict[int, int],
) -> None:
    """Without a warm-up nothing is measured: the first batch runs as if nothing were claimed."""
    world = World()
    world.client(1)
    world.worker(1, net(claimed_ns=lie))
    for number in range(1, 9):
        world.submit(1, number, deadline_ns=200 * MS)
    first, *ahead = world.turn()
    assert first.lease_ns == HUNG_UNKNOWN_NS
    world.done(1, first)  # in next to no time: now that is what counts
    assert world.core.workers[1].timings["net"].predict_ns(4) < 3 * MS
    world.submit(1, 9, deadline_ns=200 * MS)
    assert set(world.outcomes(1).values()) == {"ok"}
    while ahead := [*ahead, *world.turn()]:
        world.done(1, ahead.pop(0))
    assert list(world.outcomes(1)) == list(range(1, 10))


def test_after_one_batch_what_the_file_claims_says_how_long_a_full_one_takes() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(claimed_ns={1: 10 * MS, 4: 20 * MS}))
    assert world.core.models["net"].row_ns == 0
    world.submit(1, 1)
    (batch,) = world.turn()
    world.done(1, batch, compute_ns=20 * MS)  # half as fast as claimed
    assert world.core.models["net"].row_ns == pytest.approx(10 * MS, rel=0.01)


def test_without_deadlines_the_batch_is_full(paced: World) -> None:
    for number in range(1, 6):
        paced.submit(1, number)
    assert [batch.rows for batch in paced.turn()] == [4]


def test_what_would_miss_its_deadline_is_refused_at_once_and_told_when_to_come_back(paced: World) -> None:
    for number in range(1, 9):
        paced.submit(1, number)
    paced.turn()  # two batches of 40 ms are lent
    paced.submit(1, 9, deadline_ns=60 * MS)
    assert paced.outcomes(1)[9] == "OVERLOADED"
    assert paced.last(1).retry_after_ns == 30 * MS  # it would be done in 90 ms
    paced.submit(1, 10, deadline_ns=100 * MS)
    assert 10 not in paced.outcomes(1)


def test_an_idle_yard_does_not_second_guess_a_short_deadline(paced: World) -> None:
    paced.submit(1, 1, deadline_ns=1 * MS)
    assert [batch.rows for batch in paced.turn()] == [1]


def test_while_urgent_requests_come_other_batches_are_kept_short(paced: World) -> None:
    paced.submit(1, 1, priority=URGENT)
    (urgent,) = paced.turn()
    for number in range(2, 8):
        paced.submit(1, number)
    assert paced.turn() == []  # nothing is lent ahead of an urgent request that may come
    paced.done(1, urgent)
    assert [batch.rows for batch in paced.turn()] == [1]  # the least that can be run; 5 ms were allowed


def test_a_worker_that_runs_one_batch_for_far_too_long_is_killed_once(paced: World) -> None:
    for _ in range(STEADY_RUNS):
        paced.core.models["net"].steadiness.ran(1, 1)
    paced.submit(1, 1)
    paced.turn()
    due_ns = paced.core.next_deadline_ns()
    assert due_ns is not None
    paced.now_ns = due_ns
    actions = paced.core.handle(e.Turn(), paced.now_ns)
    assert actions == [e.KillWorker(1)]
    assert paced.core.handle(e.Turn(), paced.now_ns + 1) == []
    paced.do(e.WorkerGone(1))
    paced.worker(2, timed(r1=10))
    assert [batch.rows for batch in paced.turn()] == [1]


def test_predictions_follow_what_batches_take(paced: World) -> None:
    timing = paced.core.workers[1].timings["net"]
    paced.submit(1, 1)
    (batch,) = paced.turn()
    paced.do(e.WorkerSaid(1, m.Done(EPOCH, batch.batch, 0, 30 * MS, 0, 0, [])))
    assert timing.predict_ns(1) == 20 * MS


def test_a_request_said_twice_has_one_outcome_and_another_under_its_number_is_refused(world: World) -> None:
    world.submit(1, 1, deadline_ns=50 * MS)
    world.submit(1, 1, deadline_ns=20 * MS)  # sent again, when less time was left
    assert 1 not in world.told
    world.submit(1, 1, rows=2)
    world.submit(1, 1, priority=LOW)
    assert [type(message) for message in world.told[1]] == [m.Refused, m.Refused]
    (batch,) = world.turn()
    assert numbers(batch) == [1]
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok"}


# ---- rows that are none after all ---------------------------------------------------------------


def alone(world: World, worker: int = 1, revision: int = 1) -> None:
    world.say(worker, m.RunsAlone("net", revision, "output 'y' came out with shape [1, 4] for 3 rows"))


def run_all(world: World) -> list[tuple[int, list[int], list[tuple[int, int]]]]:
    """Run what waits: (Batch.rows, its requests, their start and rows) of each batch."""
    ran = []
    for _ in range(50):
        for batch in world.turn():
            ran.append((batch.rows, numbers(batch), [(item.start, item.rows) for item in batch.apart()]))
            world.done(1, batch)
    return ran


def test_what_waits_runs_one_by_one_once_rows_are_disproved(world: World) -> None:
    for number, rows in ((1, 1), (2, 9), (3, 2)):
        world.submit(1, number, rows)
    alone(world)
    world.submit(1, 4, rows=3)
    assert run_all(world) == [(0, [n], [(0, 0)]) for n in (1, 2, 3, 4)]
    assert world.outcomes(1) == dict.fromkeys((1, 2, 3, 4), "ok")
    world.do(e.DescribeAsked(1, m.Describe(9, "net")))
    (info,) = world.last(1).models
    assert (info.batchable, info.max_batch) == (False, 1)
    assert info.alone_reason == "output 'y' came out with shape [1, 4] for 3 rows"


def test_what_has_run_in_parts_is_run_again_as_a_whole(world: World) -> None:
    world.submit(1, 1, rows=10)
    first, second = world.turn()
    world.done(1, first)
    assert (second.rows, second.apart()[0].start) == (4, 4)
    alone(world)  # before the answer, as a worker says it
    world.done(1, second)
    assert world.outcomes(1) == {}
    ran = run_all(world)
    assert ran[-1] == (0, [1], [(0, 0)])
    assert world.outcomes(1) == {1: "ok"}


def test_parts_that_are_all_lent_are_run_again_as_a_whole_too(world: World) -> None:
    world.submit(1, 1, rows=8)
    first, second = world.turn()
    assert [batch.apart()[0].start for batch in (first, second)] == [0, 4]
    alone(world)
    for batch in (first, second):
        world.done(1, batch)
    assert world.outcomes(1) == {}
    assert run_all(world) == [(0, [1], [(0, 0)])]
    assert world.outcomes(1) == {1: "ok"}


def test_parts_that_only_wait_are_run_again_as_a_whole_too() -> None:
    """A worker died under the first part: nothing is done, nothing is lent, and the request is in two."""
    world = World()
    world.client(1)
    world.worker(1)
    world.submit(1, 1, rows=6)
    world.turn()
    world.do(e.WorkerGone(1))
    world.worker(3)
    alone(world, 3)
    parts = []
    for _ in range(9):
        for batch in world.turn():
            parts.append((batch.apart()[0].start, batch.apart()[0].rows))
            world.done(3, batch)
    assert parts[-1] == (0, 0)
    assert world.outcomes(1) == {1: "ok"}


def test_where_nothing_may_run_twice_a_request_in_parts_that_are_none_fails(world: World) -> None:
    world.core.models["net"].config = replace(world.core.models["net"].config, idempotent=False)
    world.submit(1, 1, rows=6)
    world.submit(1, 2)
    (first,) = world.turn()
    alone(world)
    world.done(1, first)
    run_all(world)
    assert world.outcomes(1) == {1: "MODEL_FAILED", 2: "ok"}


def test_another_revisions_disproof_is_nothing_to_this_one(world: World) -> None:
    alone(world, revision=2)
    world.say(1, m.RunsAlone("nothing", 1, "no"))
    world.submit(1, 1)
    world.submit(1, 2)
    (batch,) = world.turn()
    assert batch.rows == 2


def test_workers_that_do_not_see_the_same_run_everything_alone() -> None:
    """One found no inputs to try in time, the other did: neither is refused."""
    for said in (False, True):
        world = World()
        world.client(1)
        kinds = [net(batchable=said, alone_reason="" if said else "no inputs could be invented")]
        kinds.append(net(batchable=not said, alone_reason="no inputs could be invented" if said else ""))
        for number, kind in enumerate(kinds, start=1):
            world.worker(number, kind)
        for number in (1, 2, 3):
            world.submit(1, number)
        assert [(batch.rows, len(batch.apart())) for batch in world.turn()][:2] == [(0, 1), (0, 1)]
        world.do(e.DescribeAsked(1, m.Describe(9, "net")))
        (info,) = world.last(1).models
        assert len(info.workers) == 2
        assert info.alone_reason == "no inputs could be invented"


def test_a_request_that_is_larger_than_a_batch_is_whole_where_it_runs_alone() -> None:
    world = World()
    world.client(1)
    world.worker(1, net(inputs=[TensorSpec("x", 1, ["n", 4]), TensorSpec("k", 1, ["m", 4])], batch_axes=[0, 0, 0]))
    inputs = [Tensor(1, [9, 4], 0), Tensor(1, [5, 4], 1024)]
    world.do(e.Submitted(1, 1, m.Submit(1, "net", NORMAL, 0, inputs, [])))
    world.do(e.Submitted(1, 1, m.Submit(2, "net", NORMAL, 0, inputs, [])))
    first, second = world.turn()
    assert [(batch.rows, len(batch.apart()), batch.apart()[0].rows) for batch in (first, second)] == [(0, 1, 0)] * 2
    world.failed(1, first)
    assert world.outcomes(1) == {1: "MODEL_FAILED"}, "it was alone in its batch"


def test_a_lane_whose_last_request_is_cancelled_is_looked_at_no_more() -> None:
    """Else whoever waits there last keeps it for good, and every round looks for something to lend."""
    world = World()
    world.client(1)
    world.worker(1)
    for number in (1, 2, 3):
        world.submit(1, number)
        world.turn()
    assert len(world.lent[1]) == 2
    assert world.core.policy.lanes
    world.cancel(1, 3)
    for batch in world.lent[1]:
        world.done(1, batch)
    assert not world.core.policy.lanes


# ---- the end ------------------------------------------------------------------------------------


def test_a_broker_that_stops_answers_what_it_has_admitted_and_refuses_the_rest_at_once(world: World) -> None:
    world.submit(1, 1)
    (batch,) = world.turn()
    world.submit(1, 2)
    world.do(e.Stopping())
    assert not world.core.is_idle
    world.submit(1, 3)
    refused = world.told[1][-1]
    assert isinstance(refused, m.Failed)
    assert (refused.request, refused.code, refused.retry_after_ns) == (3, Code.OVERLOADED, 1_000 * MS)
    assert "is being stopped" in refused.text
    world.do(e.DescribeAsked(1, m.Describe(4, "net")))
    assert (world.told[1][-1].request, world.told[1][-1].code) == (4, Code.OVERLOADED)
    world.done(1, batch)
    (batch,) = world.lent[1][1:] or world.turn()
    assert not world.core.is_idle
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok", 2: "ok", 3: "OVERLOADED", 4: "OVERLOADED"}
    assert world.core.is_idle


def test_nobody_is_waited_for_who_has_gone(world: World) -> None:
    world.submit(1, 1)
    world.turn()
    world.do(e.Stopping())
    world.do(e.ClientGone(1))
    assert world.core.is_idle


# ---- requests in columns ------------------------------------------------------------------------


def together(*numbers: int, rows: int = 1, left_ns: Sequence[int] = (), **changed: Any) -> m.Submit:
    """The requests that World.submit would send one by one."""
    left_ns = left_ns or [0] * len(numbers)
    first, *others = ([number * 64 * ROW_BYTES] * 2 for number in numbers)
    more = m.More(list(numbers[1:]), list(left_ns[1:]), [offset for places in others for offset in places])
    inputs, outputs = [Tensor(1, [rows, 4], first[0])], [Slot(first[1], rows * ROW_BYTES)]
    fields = {"model": "net", "priority": NORMAL} | changed
    return m.Submit(numbers[0], fields["model"], fields["priority"], left_ns[0], inputs, outputs, more)


def test_requests_in_columns_run_as_those_that_came_one_by_one(world: World) -> None:
    world.client(2)
    world.do(e.Submitted(1, 1, together(1, 2, 3, 4, 5)))
    for number in range(1, 6):
        world.submit(2, number, arena=2)
    seen: dict[int, list[int]] = {1: [], 2: []}
    while batches := world.turn():
        for batch in batches:
            for item in batch.apart():
                seen[item.arena].append(item.inputs[0].offset // (64 * ROW_BYTES))
                assert item.outputs == [Slot(item.inputs[0].offset, ROW_BYTES)]
            world.done(1, batch)
    assert seen == {1: [1, 2, 3, 4, 5], 2: [1, 2, 3, 4, 5]}
    assert world.outcomes(1) == world.outcomes(2) == dict.fromkeys(range(1, 6), "ok")
    assert world.core.admission.rows == world.core.admission.nbytes == world.core.books.held_bytes == 0


def test_requests_that_are_alike_are_lent_in_columns_however_they_came(world: World) -> None:
    world.do(e.Submitted(1, 1, together(1, 2)))
    world.submit(1, 3)
    world.submit(1, 4)
    (batch,) = world.turn()
    (item,) = batch.items
    assert numbers(batch) == [1, 2, 3, 4]
    assert len(item.more) == 2 * 3


def test_each_in_columns_has_a_deadline_of_its_own_and_can_be_cancelled(world: World) -> None:
    world.do(e.Submitted(1, 1, together(1, 2, 3, left_ns=[10**9, 5_000_000, 10**9])))
    world.cancel(1, 3)
    (batch,) = world.turn(6_000_000)
    assert numbers(batch) == [1]
    world.done(1, batch)
    assert world.outcomes(1) == {1: "ok", 2: "DEADLINE_EXCEEDED", 3: "CANCELLED"}


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        (together(1, 2, 1 << 40), {1 << 40: "INVALID_REQUEST"}),  # outside the arena
        (together(1, 2, 3, model="other"), dict.fromkeys((1, 2, 3), "UNKNOWN_MODEL")),
        (together(7, 8, rows=3), {8: "OVERLOADED"}),
    ],
    ids=["one is outside", "no such model", "there is room for one"],
)
def test_where_one_in_columns_is_wrong_the_others_are_not(message: m.Submit, refused: dict[int, str]) -> None:
    world = World(queue_rows_max=5)
    world.client(1)
    world.worker(1)
    world.do(e.Submitted(1, 1, message))
    assert world.outcomes(1) == refused


def test_a_number_that_is_under_way_is_refused_and_the_others_in_its_columns_are_not(world: World) -> None:
    world.submit(1, 2, rows=2)
    world.do(e.Submitted(1, 1, together(1, 2, 3)))
    assert isinstance(world.last(1), m.Refused)
    assert sorted(world.core.connections[1].requests) == [1, 2, 3]
    world.do(e.Submitted(1, 1, together(4, 4)))
    assert sorted(world.core.connections[1].requests) == [1, 2, 3, 4]
