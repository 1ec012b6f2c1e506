"""How long a worker may keep a batch: slow is not hung, and slow is not poison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.leases import HUNG_MIN_NS, HUNG_UNKNOWN_NS, LOOK_NS
from batchyard.broker.timing import STEADY_RUNS, SURPRISE_RUNS, Steadiness
from batchyard.tests.sim import invariants
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.python_models import Function
from batchyard.transport.tensors import Tensor, TensorSpec

MS = 1_000_000
S = 1_000 * MS
EPOCH = 7
DIGEST = b"d" * 16
FIXED, FREE = [TensorSpec("x", 1, ["n", 4])], [TensorSpec("x", 1, ["n", "t"])]


class Yard:
    """One client and workers that need 10 ms for whatever they run, as far as anybody knows."""

    def __init__(
        self,
        inputs: list[TensorSpec] | None = None,
        outputs: list[TensorSpec] | None = None,
        steady: bool = True,
        measured: bool = True,
        **config: Any,
    ) -> None:
        self.inputs = inputs or FIXED
        self.outputs = outputs or self.inputs
        self.warmup_ns = {1: 10 * MS, 4: 10 * MS} if measured else {}
        self.core = Core(YardConfig({"net": ModelConfig("net", Path("/net.onnx"), 4, **config)}), EPOCH, 4710)
        self.now_ns = 0
        self.told: list[Any] = []
        self.lent: list[m.Batch] = []
        self.killed: list[int] = []
        self.quarantined = 0
        self.do(e.ArenaOpened(1, 1 << 20))
        self.do(e.ClientJoined(1, 1))
        self.workers = 0
        self.worker()
        if steady:
            for _ in range(STEADY_RUNS):
                self.core.models["net"].steadiness.ran(10 * MS, 10 * MS)

    def worker(self) -> None:
        self.workers += 1
        self.do(e.WorkerJoined(self.workers, 5000 + self.workers))
        loaded = m.Loaded("net", 1, self.inputs, self.outputs, True, "", 4, "cpu", "", self.warmup_ns)
        self.do(e.WorkerSaid(self.workers, loaded))

    def do(self, event: e.Event) -> None:
        for action in self.core.handle(event, self.now_ns):
            if isinstance(action, e.KillWorker):
                self.killed.append(action.worker)
            elif isinstance(action, e.Quarantine):
                self.quarantined += 1
            elif isinstance(action, e.ToClient):
                self.told.append(action.message)
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Batch):
                self.lent.append(action.message)
        self.core.counters.tally()
        invariants.check(self.core)

    def submit(self, number: int, deadline_ns: int = 0, digest: bytes = b"") -> None:
        message = m.Submit(number, "net", 2, deadline_ns, [Tensor(1, [1, 4], number * 64)], [])
        self.do(e.Submitted(1, 1, message, digest))

    def turn(self) -> None:
        self.do(e.Turn())

    def until(self, now_ns: int) -> None:
        """Let time pass, with a turn whenever the core asks for one."""
        while (due_ns := self.core.next_deadline_ns()) is not None and due_ns <= now_ns:
            assert due_ns > self.now_ns or due_ns == 0
            self.now_ns = due_ns
            self.turn()
        self.now_ns = now_ns
        self.turn()

    def killed_at_ns(self, within_ns: int) -> int:
        """When the first worker that is killed next was; 0: none was."""
        before = len(self.killed)
        until_ns = self.now_ns + within_ns
        while len(self.killed) == before:
            due_ns = self.core.next_deadline_ns()
            if due_ns is None or due_ns > until_ns:
                self.now_ns = until_ns
                return 0
            self.now_ns = max(self.now_ns, due_ns)
            self.turn()
        return self.now_ns

    def die(self) -> None:
        """The last worker's process is dead, and another one comes."""
        self.do(e.WorkerGone(self.workers))
        self.worker()
        self.turn()

    def codes(self) -> dict[int, str]:
        return {each.request: Code(each.code).name for each in self.told if isinstance(each, m.Failed)}


def test_where_every_run_was_alike_a_long_one_says_that_the_worker_is_hung() -> None:
    yard = Yard()
    yard.submit(1, 60 * S)
    yard.turn()
    assert yard.lent[0].lease_ns == HUNG_MIN_NS
    assert yard.killed_at_ns(100 * S) == HUNG_MIN_NS


FUNCTION = Function("f", "module")


@pytest.mark.parametrize(
    "options",
    [
        {"inputs": FREE},
        {"outputs": FREE},
        {"function": FUNCTION},
        {"steady": False},
    ],
    ids=["free axes", "free outputs", "a function", "nothing learnt"],
)
def test_elsewhere_a_worker_is_hung_only_when_nobody_can_have_the_answer(options: dict[str, Any]) -> None:
    yard = Yard(**options)
    yard.submit(1, 60 * S)
    yard.turn()
    assert yard.lent[0].lease_ns == 60 * S
    assert yard.killed_at_ns(100 * S) == 60 * S
    assert yard.codes() == {1: "DEADLINE_EXCEEDED"}
    yard.die()
    assert len(yard.lent) == 1, "there is nothing to run again"
    assert not yard.quarantined


def test_a_deadline_that_passes_kills_no_worker_before_its_time() -> None:
    yard = Yard(FREE)
    yard.submit(1, 20 * MS)
    yard.turn()
    assert yard.killed_at_ns(100 * S) == HUNG_MIN_NS


def test_where_nothing_is_measured_a_first_run_has_time() -> None:
    yard = Yard(measured=False)
    yard.submit(1, 20 * S)
    yard.turn()
    assert yard.killed_at_ns(1_000 * S) == HUNG_UNKNOWN_NS


def test_the_last_of_a_batch_to_be_awaited_decides() -> None:
    yard = Yard(FREE)
    for number, deadline_ns in ((1, 20 * S), (2, 90 * S), (3, 40 * S)):
        yard.submit(number, deadline_ns)
    yard.turn()
    assert len(yard.lent[0].apart()) == 3
    assert yard.killed_at_ns(100 * S) == 90 * S


def test_a_run_without_a_deadline_has_no_end_while_its_client_waits() -> None:
    yard = Yard(FREE)
    yard.submit(1)
    yard.turn()
    assert yard.lent[0].lease_ns == 0, "its worker's own watch lets it run"
    assert yard.killed_at_ns(3_600 * S) == 0
    yard.do(e.CancelAsked(1, m.Cancel([1])))
    assert not yard.killed, "not at once: it may be about to end"
    assert 0 < yard.killed_at_ns(60 * S) <= 3_600 * S + LOOK_NS


def test_a_cancel_does_not_kill_a_worker_that_has_only_begun() -> None:
    yard = Yard(FREE)
    yard.submit(1, 60 * S)
    yard.turn()
    yard.do(e.CancelAsked(1, m.Cancel([1])))
    assert yard.killed_at_ns(60 * S) == HUNG_MIN_NS


def test_who_waits_for_the_same_result_is_waited_for() -> None:
    yard = Yard(FREE, join=True)
    yard.submit(1, 10 * S, DIGEST)
    yard.turn()
    assert yard.lent[0].lease_ns == HUNG_UNKNOWN_NS, "others may come while it runs"
    yard.until(4 * S)
    yard.submit(2, 60 * S, DIGEST)
    assert yard.killed_at_ns(100 * S) == 64 * S


@pytest.mark.parametrize("options", [{}, {"inputs": FREE}, {"measured": False}])
def test_run_seconds_max_bounds_every_run_and_fails_what_was_alone_in_it(options: dict[str, Any]) -> None:
    yard = Yard(run_ns_max=2 * S, **options)
    yard.submit(1, 60 * S)
    yard.submit(2, 60 * S)
    yard.turn()
    assert yard.lent[0].lease_ns == 2 * S
    assert yard.killed_at_ns(100 * S) == 2 * S
    assert not yard.codes(), "one of the two was slow: each is run by itself"
    yard.die()
    assert [len(batch.apart()) for batch in yard.lent][:2] == [2, 1]
    yard.killed_at_ns(100 * S)
    yard.die()
    assert yard.codes() == {2: "MODEL_FAILED"} or yard.codes() == {1: "MODEL_FAILED"}
    (failed,) = (each for each in yard.told if isinstance(each, m.Failed))
    assert "longer than run_seconds_max = 2 " in failed.text
    assert not yard.quarantined


def test_a_limit_of_the_operator_is_sooner_than_any_other() -> None:
    yard = Yard(run_ns_max=30 * MS)
    yard.submit(1, 60 * S)
    yard.turn()
    assert yard.killed_at_ns(60 * S) == 30 * MS


def test_a_request_whose_worker_was_killed_for_its_time_is_then_given_all_its_time() -> None:
    yard = Yard()
    yard.submit(1, 60 * S)
    yard.turn()
    assert yard.killed_at_ns(60 * S) == HUNG_MIN_NS
    yard.die()
    assert len(yard.lent) == 2
    yard.until(13 * S)  # 8 s of work
    assert len(yard.killed) == 1
    yard.do(e.WorkerSaid(2, m.Done(EPOCH, yard.lent[1].batch, 0, 8 * S, 0, 0, [m.ItemOutputs(0, [])])))
    assert not yard.codes()
    assert not yard.quarantined
    assert not yard.core.models["net"].steadiness.is_steady


def test_slow_is_not_poison_however_often_and_a_crash_is() -> None:
    yard = Yard()
    yard.submit(1, 100 * S)
    yard.turn()
    assert yard.killed_at_ns(60 * S)
    yard.die()
    assert not yard.core.connections[1].requests[1].losses
    yard.die()  # by itself: once
    assert not yard.quarantined
    yard.die()
    assert yard.quarantined == 1
    assert yard.codes() == {1: "WORKER_LOST"}


def test_an_end_by_the_workers_own_watch_is_no_crash_either() -> None:
    yard = Yard(FREE)
    for number in (1, 2, 3):
        yard.submit(number, yard.now_ns + 8 * S, DIGEST)
        yard.turn()
        yard.now_ns += yard.lent[-1].lease_ns + S  # the broker was held up meanwhile
        yard.die()
    assert not yard.quarantined


def test_what_was_bound_to_follow_is_not_blamed_for_a_worker_that_was_killed() -> None:
    yard = Yard()
    yard.submit(1, 60 * S)
    yard.turn()
    for number in range(2, 6):
        yard.submit(number, 60 * S)
    yard.until(9 * MS)
    assert len(yard.lent) == 2
    assert yard.killed_at_ns(60 * S)
    done = m.Done(EPOCH, yard.lent[0].batch, 0, 5 * S, 0, 0, [m.ItemOutputs(0, [])])
    yard.do(e.WorkerSaid(1, done))  # it was done after all, and its death comes all the same
    yard.die()
    assert not any(request.losses for request in yard.core.connections[1].requests.values())


def test_what_must_not_run_twice_is_told_so() -> None:
    yard = Yard(idempotent=False)
    yard.submit(1, 60 * S)
    yard.turn()
    yard.killed_at_ns(60 * S)
    yard.die()
    assert yard.codes() == {1: "WORKER_LOST"}
    assert len(yard.lent) == 1


def test_a_model_is_steady_when_many_runs_took_what_was_expected_and_long_not_after_a_surprise() -> None:
    steadiness = Steadiness()
    for _ in range(STEADY_RUNS):
        assert not steadiness.is_steady
        steadiness.ran(10 * MS, 39 * MS)
    assert steadiness.is_steady
    steadiness.ran(10_000, 200 * MS)  # much for so small a model, and little for a loaded machine
    assert steadiness.is_steady
    steadiness.ran(100 * MS, 500 * MS)
    for _ in range(SURPRISE_RUNS):
        assert not steadiness.is_steady
        steadiness.ran(100 * MS, 100 * MS)
    assert steadiness.is_steady
