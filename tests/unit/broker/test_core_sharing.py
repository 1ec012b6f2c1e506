"""Identical requests through the core: they share a run, a kept result, or a quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.books import LOSSES_MAX
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.sharing import QUARANTINE_NS
from batchyard.tests.sim import invariants
from batchyard.tests.unit.broker.world import (
    ARENA_BYTES,
    EPOCH,
    HIGH,
    LOW,
    MS,
    NORMAL,
    ROW_BYTES,
    URGENT,
    World,
    net,
    numbers,
)
from batchyard.transport import messages as m
from batchyard.transport.messages import Priority
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

TTL_NS = 50 * MS
NUMBERS = range(1, 16)  # of requests, in World.submit's arena


class Yard(World):
    """A World whose model shares work; what it answers in frames, and what it asks of the loop."""

    def __init__(self, max_batch: int = 4, **model: Any) -> None:
        super().__init__()
        config = ModelConfig("net", Path("/net.onnx"), max_batch, **({"join": True} | model))
        self.core = Core(YardConfig({"net": config}), EPOCH, 4710)
        self.frames: dict[tuple[int, int], list[bytes]] = {}  # by client and request
        self.quarantined: list[e.Quarantine] = []
        for conn in (1, 2, 3):
            self.client(conn)

    def do(self, event: e.Event) -> list[e.Action]:
        actions = super().do(event)
        for action in actions:
            if isinstance(action, e.ToClient) and isinstance(action.message, m.Answer):
                self.frames[action.conn, action.message.request] = [bytes(frame) for frame in action.frames]
            elif isinstance(action, e.Quarantine):
                self.quarantined.append(action)
        return actions

    def ask(
        self,
        conn: int,
        number: int,
        content: bytes = b"same",
        priority: Priority = NORMAL,
        deadline_ns: int = 0,
        rows: int = 1,
        slots: bool = True,
    ) -> None:
        """A request of this content, from the client's own arena."""
        at = number * 64 * ROW_BYTES
        outputs = [Slot(at, rows * ROW_BYTES)] if slots else []
        message = m.Submit(number, "net", priority, deadline_ns, [Tensor(1, [rows, 4], at)], outputs)
        self.do(e.Submitted(conn, conn, message, content.ljust(16)))

    def ran(self, worker: int, batch: m.Batch, value: bytes = b"answer", changed: Sequence[int] = ()) -> None:
        """The worker has run it: what has a digest comes back as frames, `value` and the item's number."""
        inline_outputs, frames = [], []
        for index, item in enumerate(batch.apart()):
            if item.digest:
                frames.append(value + b"%d" % index)
                inline_outputs.append(
                    m.ItemOutputs(index, [Tensor(1, [item.inputs[0].shape[0], 4], 0, len(frames))])
                )
        done = m.Done(EPOCH, batch.batch, 1, 250_000, 1, 0, inline_outputs, list(changed))
        self.say(worker, done, frames)

    def at_rest(self) -> None:
        """Nothing is under way, and nothing is counted as such."""
        assert self.core.admission.rows == self.core.admission.nbytes == 0
        assert not self.core.batches
        assert not self.core.models["net"].sharing._runs
        assert self.core.models["net"].users == 0
        assert self.core.models["net"].waiting == [0, 0, 0, 0]
        assert all(arena.requests == 0 for arena in self.core.arenas.values())

    @property
    def spared(self) -> dict[str, int]:
        return {how: count for _, how, count in gauges.snapshot(self.core)["identical"]}

    def ended_ok(self) -> int:
        return sum(count for _, _, outcome, count in gauges.snapshot(self.core)["requests"] if outcome == "ok")


@pytest.fixture
def yard() -> Yard:
    """Three clients with an arena each, and a worker; identical requests are joined."""
    made = Yard()
    made.worker(1)
    return made


# ---- one run for several ------------------------------------------------------------------------


def test_two_identical_requests_are_one_item_and_both_get_its_frames(yard: Yard) -> None:
    yard.ask(1, 5)
    yard.ask(2, 7)
    (batch,) = yard.turn()
    (item,) = batch.apart()
    assert item.digest == b"same".ljust(16)
    assert item.outputs == [], "what others want as well comes back as frames"
    assert batch.rows == 1
    yard.ran(1, batch)
    assert yard.outcomes(1) == {5: "ok"}
    assert yard.outcomes(2) == {7: "ok"}
    assert yard.frames == {(1, 5): [b"answer0"], (2, 7): [b"answer0"]}
    assert yard.last(1).parts == yard.last(2).parts == [[Tensor(1, [1, 4], 0, 1)]]
    assert yard.last(1).batch == yard.last(2).batch
    assert yard.spared == {"joined": 1}
    assert yard.ended_ok() == 2
    yard.at_rest()


def test_a_request_joins_what_runs_already_and_waits_no_time_in_the_queue(yard: Yard) -> None:
    yard.ask(1, 1)
    (batch,) = yard.turn()
    yard.now_ns += MS
    yard.ask(2, 2)
    assert yard.turn() == []
    yard.ran(1, batch)
    assert yard.outcomes(2) == {2: "ok"}
    assert yard.last(2).queue_ns == 0
    yard.at_rest()


def test_requests_that_are_not_identical_are_items_of_their_own(yard: Yard) -> None:
    yard.ask(1, 1, b"one")
    yard.ask(2, 2, b"two")
    yard.ask(3, 3, b"one", rows=2)
    (batch,) = yard.turn()
    assert [item.digest.strip() for item in batch.apart()] == [b"one", b"two", b"one"]
    yard.ran(1, batch)
    assert yard.frames == {(1, 1): [b"answer0"], (2, 2): [b"answer1"], (3, 3): [b"answer2"]}
    assert yard.spared == {}


def test_two_of_one_client_are_answered_under_their_own_numbers(yard: Yard) -> None:
    for number in (1, 2, 3):
        yard.ask(1, number)
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok", 2: "ok", 3: "ok"}
    yard.at_rest()


def test_after_the_run_the_next_request_leads_a_new_one(yard: Yard) -> None:
    for number in (1, 2):
        yard.ask(1, number)
        (batch,) = yard.turn()
        yard.ran(1, batch)
    assert yard.core.counters.batches == 2
    assert yard.spared == {}


def test_what_has_no_digest_is_run_by_itself_and_into_its_slots(yard: Yard) -> None:
    """A content that is too large, or that the broker can't read."""
    yard.submit(1, 1)
    yard.submit(2, 2, arena=2)
    (batch,) = yard.turn()
    assert [item.digest for item in batch.apart()] == [b"", b""]
    assert all(item.outputs for item in batch.apart())
    yard.done(1, batch)
    assert isinstance(yard.last(1), m.Completed)


def test_a_model_that_shares_nothing_asks_for_no_digest() -> None:
    yard = Yard(join=False)
    yard.worker(1)
    assert not yard.core.models["net"].sharing.wants_digest
    yard.ask(1, 1)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    assert [item.digest for item in batch.apart()] == [b"", b""]


def test_what_is_larger_than_a_batch_is_run_by_itself(yard: Yard) -> None:
    yard.ask(1, 1, rows=6)
    yard.ask(2, 2, rows=6)
    rows = 0
    while batches := yard.turn():
        for batch in batches:
            assert all(not item.digest for item in batch.apart())
            rows += batch.rows
            yard.done(1, batch)
    assert rows == 12
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


# ---- who leads ----------------------------------------------------------------------------------


def busy(yard: Yard) -> m.Batch:
    """The worker has its hands full for now."""
    yard.ask(3, 14, b"busy", rows=4)
    (batch,) = yard.turn()
    return batch


def test_an_urgent_request_leads_a_low_one_that_waits(yard: Yard) -> None:
    running = busy(yard)
    yard.ask(1, 1, priority=LOW)
    yard.ask(1, 2, b"other", NORMAL)
    yard.ask(2, 3, priority=URGENT)
    assert yard.core.models["net"].waiting == [1, 0, 1, 0], "it waits as URGENT, and the LOW one with it"
    yard.ran(1, running)
    (batch,) = yard.turn()
    assert [item.arena for item in batch.apart()] == [2, 1]
    assert numbers(batch) == [3, 2]
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok", 2: "ok"}
    assert yard.outcomes(2) == {3: "ok"}
    yard.at_rest()


def test_a_low_request_follows_an_urgent_one(yard: Yard) -> None:
    running = busy(yard)
    yard.ask(2, 3, priority=URGENT)
    yard.ask(1, 1, priority=LOW)
    assert yard.core.models["net"].waiting == [1, 0, 0, 0]
    yard.ran(1, running)
    (batch,) = yard.turn()
    assert numbers(batch) == [3]


def test_the_lead_goes_up_with_every_class_and_comes_down_with_every_cancel(yard: Yard) -> None:
    running = busy(yard)
    for number, priority in enumerate((LOW, NORMAL, HIGH, URGENT), start=1):
        yard.ask(1, number, priority=priority)
        expected = [0, 0, 0, 0]
        expected[priority] = 1
        assert yard.core.models["net"].waiting == expected
    for number, priority in ((4, HIGH), (3, NORMAL), (2, LOW)):
        yard.cancel(1, number)
        expected = [0, 0, 0, 0]
        expected[priority] = 1
        assert yard.core.models["net"].waiting == expected
    yard.ran(1, running)
    (batch,) = yard.turn()
    assert numbers(batch) == [1]
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok", 2: "CANCELLED", 3: "CANCELLED", 4: "CANCELLED"}
    yard.at_rest()


def test_who_takes_the_lead_takes_it_from_the_lane_in_which_it_waits(yard: Yard) -> None:
    """Once rows may share no run, what waits keeps its lane, and what comes has another."""
    running = busy(yard)
    yard.ask(1, 1, priority=LOW)
    yard.say(1, m.RunsAlone("net", 1, "rows mix"))
    yard.ask(2, 3, priority=URGENT)
    invariants.check(yard.core)
    assert yard.core.models["net"].waiting == [1, 0, 0, 0]
    yard.ran(1, running)
    (batch,) = yard.turn()
    assert numbers(batch) == [3]
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.outcomes(2) == {3: "ok"}
    yard.at_rest()


def test_what_is_to_run_as_it_is_keeps_the_lead(yard: Yard) -> None:
    """Half of a failed batch waits for its run; nobody takes its place, or the culprit is not found."""
    yard.ask(1, 1)
    yard.ask(1, 2, b"other")
    (batch,) = yard.turn()
    yard.failed(1, batch)
    yard.ask(2, 3, priority=URGENT)
    (first, second) = yard.turn()
    assert sorted(numbers(first) + numbers(second)) == [1, 2]
    for half in (first, second):
        yard.ran(1, half)
    assert yard.outcomes(2) == {3: "ok"}
    yard.at_rest()


def test_the_lead_is_taken_from_thousands_without_a_walk_over_them(yard: Yard) -> None:
    """What was withdrawn is skipped, and swept when it is the majority."""
    busy(yard)
    lane = next(iter(yard.core.models["net"].lanes.values()))
    for _ in range(500):
        yard.core.handle(
            e.Submitted(1, 1, m.Submit(1, "net", LOW, 0, [Tensor(1, [1, 4], 0)], []), b"x" * 16), yard.now_ns
        )
        yard.core.handle(
            e.Submitted(2, 2, m.Submit(2, "net", HIGH, 0, [Tensor(1, [1, 4], 0)], []), b"x" * 16), yard.now_ns
        )
        yard.core.handle(e.CancelAsked(1, m.Cancel([1])), yard.now_ns)
        yard.core.handle(e.CancelAsked(2, m.Cancel([2])), yard.now_ns)
    invariants.check(yard.core)
    assert sum(map(len, lane.heaps)) < 300


# ---- those who leave ----------------------------------------------------------------------------


def test_a_leader_that_is_cancelled_while_it_waits_leaves_the_run_to_its_follower(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.cancel(1, 1)
    (batch,) = yard.turn()
    assert [item.arena for item in batch.apart()] == [2]
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "CANCELLED"}
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


def test_a_leader_that_is_cancelled_while_it_runs_leaves_its_result_to_its_follower(yard: Yard) -> None:
    yard.ask(1, 1)
    (batch,) = yard.turn()
    yard.ask(2, 2)
    yard.cancel(1, 1)
    assert yard.last(1).held
    yard.ask(3, 3)  # it may be joined although it has ended
    assert yard.turn() == []
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "CANCELLED"}
    assert yard.last(1) == m.Released([1])
    assert yard.outcomes(2) == {2: "ok"}
    assert yard.outcomes(3) == {3: "ok"}
    yard.at_rest()


def test_a_follower_that_is_cancelled_leaves_the_leader_alone(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.cancel(2, 2)
    assert not yard.last(2).held, "no worker has its slots"
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.outcomes(2) == {2: "CANCELLED"}
    yard.at_rest()


def test_a_followers_deadline_is_its_own(yard: Yard) -> None:
    yard.ask(1, 1)
    (batch,) = yard.turn()
    yard.ask(2, 2, deadline_ns=5 * MS)
    yard.turn(5 * MS)
    assert yard.outcomes(2) == {2: "DEADLINE_EXCEEDED"}
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok"}
    yard.at_rest()


def test_a_leaders_deadline_is_its_own(yard: Yard) -> None:
    running = busy(yard)
    yard.ask(1, 1, deadline_ns=5 * MS)
    yard.ask(2, 2)
    yard.turn(5 * MS)
    assert yard.outcomes(1) == {1: "DEADLINE_EXCEEDED"}
    yard.ran(1, running)
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(2) == {2: "ok"}


@pytest.mark.parametrize("runs", [False, True], ids=["waiting", "running"])
@pytest.mark.parametrize("leaver", [1, 2], ids=["leader", "follower"])
def test_a_client_that_goes_takes_nothing_from_the_other(yard: Yard, leaver: int, runs: bool) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    batches = yard.turn() if runs else []
    yard.do(e.ClientGone(leaver))
    assert (leaver in yard.closed) is not (runs and leaver == 1), "its arena is kept for the worker"
    (batch,) = batches or yard.turn()
    yard.ran(1, batch)
    stays = 3 - leaver
    assert yard.outcomes(stays) == {stays: "ok"}
    assert leaver in yard.closed
    yard.at_rest()


def test_a_client_that_goes_with_all_that_is_identical_leaves_nothing(yard: Yard) -> None:
    for number in NUMBERS:
        yard.ask(1, number)
    yard.do(e.ClientGone(1))
    assert yard.turn() == []
    yard.at_rest()


def test_all_of_many_identical_requests_can_be_cancelled(yard: Yard) -> None:
    for number in NUMBERS:
        yard.ask(1, number)
    yard.cancel(1, *NUMBERS)
    assert set(yard.outcomes(1).values()) == {"CANCELLED"}
    assert yard.turn() == []
    yard.at_rest()


# ---- a result that can't be shared --------------------------------------------------------------


def test_when_the_leader_fails_its_follower_runs_by_itself(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    yard.failed(1, batch)
    assert yard.outcomes(1) == {1: "MODEL_FAILED"}
    assert yard.outcomes(2) == {}
    (batch,) = yard.turn()
    assert [item.arena for item in batch.apart()] == [2]
    yard.ran(1, batch)
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


def test_when_a_worker_dies_under_the_leader_it_runs_again_for_both(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.turn()
    yard.do(e.WorkerGone(1))
    yard.worker(2)
    (batch,) = yard.turn()
    assert len(batch.apart()) == 1
    yard.ran(2, batch)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


def test_when_a_worker_dies_under_a_leader_that_has_ended_its_follower_leads(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.turn()
    yard.cancel(1, 1)
    yard.do(e.WorkerGone(1))
    assert yard.last(1) == m.Released([1])
    yard.worker(2)
    (batch,) = yard.turn()
    assert [item.arena for item in batch.apart()] == [2]
    yard.ran(2, batch)
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


def test_of_a_model_that_is_not_idempotent_the_follower_has_not_run_yet() -> None:
    yard = Yard(idempotent=False)
    yard.worker(1)
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.turn()
    yard.do(e.WorkerGone(1))
    assert yard.outcomes(1) == {1: "WORKER_LOST"}
    yard.worker(2)
    (batch,) = yard.turn()
    yard.ran(2, batch)
    assert yard.outcomes(2) == {2: "ok"}
    yard.at_rest()


def test_what_its_client_has_changed_is_that_clients_answer_and_nobody_elses() -> None:
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1)
    yard.ask(1, 1)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    yard.ran(1, batch, b"poison", changed=[0])
    assert yard.frames == {(1, 1): [b"poison0"]}
    (batch,) = yard.turn()
    assert [item.arena for item in batch.apart()] == [2]
    yard.ran(1, batch, b"true")
    assert yard.frames[2, 2] == [b"true0"]
    yard.ask(3, 3)
    assert yard.frames[3, 3] == [b"true0"], "and only this one was kept"
    yard.at_rest()


def test_only_the_item_that_was_changed_is_not_shared(yard: Yard) -> None:
    for number, content in enumerate((b"a", b"b", b"a", b"b"), start=1):
        yard.ask(1, number, content)
    (batch,) = yard.turn()
    yard.ran(1, batch, changed=[0])
    assert yard.outcomes(1) == {1: "ok", 2: "ok", 4: "ok"}
    (batch,) = yard.turn()
    assert numbers(batch) == [3]


def test_a_leader_that_is_cut_into_parts_is_not_shared() -> None:
    """While urgent requests come, the others are kept short: what leads may be cut all the same."""
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1, net(warmup_ns={1: 2 * MS, 4: 8 * MS}))
    yard.ask(3, 14, b"urgent", URGENT)
    (urgent,) = yard.turn()
    yard.ask(1, 1, rows=4)
    yard.ask(2, 2, rows=4)
    yard.ran(1, urgent)
    (part,) = yard.turn()
    assert part.rows < 4
    assert part.apart()[0].digest == b""
    assert part.apart()[0].outputs, "it is written where it belongs"
    yard.done(1, part)
    while batches := yard.turn(2_000 * MS):
        for batch in batches:
            yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.outcomes(2) == {2: "ok"}
    assert (1, 1) not in yard.frames
    yard.at_rest()


def test_parts_are_compared_with_no_digest_so_their_result_is_nobody_elses() -> None:
    """Whole as it is when they are joined, it may be of what the client wrote later."""
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1, net(outputs=[TensorSpec("y", 1, ["batch", "found"])], warmup_ns={1: 2 * MS, 4: 8 * MS}))
    yard.ask(3, 14, b"urgent", URGENT, slots=False)
    (urgent,) = yard.turn()
    yard.ask(1, 1, rows=4, slots=False)
    yard.ran(1, urgent)
    kept_bytes = yard.core.models["net"].sharing.kept_bytes
    waiting = yard.turn()
    while waiting:
        batch = waiting.pop(0)
        assert batch.rows < 4
        tensor = Tensor(1, [batch.rows, 4], 0, 1)
        yard.done(1, batch, inline_outputs=[m.ItemOutputs(0, [tensor])], frames=[bytes(batch.rows * 16)])
        waiting += yard.turn(10 * MS)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.core.models["net"].sharing.kept_bytes == kept_bytes
    yard.at_rest()


def test_a_worker_that_sends_no_tensors_fails_the_leader_and_nobody_else() -> None:
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1)
    yard.ask(1, 1)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    yard.done(1, batch)  # nothing elsewhere
    assert yard.outcomes(1) == {1: "WORKER_LOST"}
    assert yard.outcomes(2) == {}
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(2) == {2: "ok"}


# ---- revisions ----------------------------------------------------------------------------------


def swap(yard: Yard, revision: int = 2, worker: int = 1) -> None:
    """The same model from another file, on the only worker."""
    config = replace(yard.core.models["net"].config, path=Path("/new.onnx"))
    yard.do(e.ModelWanted(9, config, True))
    yard.say(worker, net(revision=revision))
    assert yard.core.models["net"].revision == revision


def test_what_runs_on_the_old_revision_answers_only_who_asked_for_it(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    (old,) = yard.turn()
    swap(yard)
    yard.ask(3, 3)
    yard.ran(1, old, b"old")
    assert yard.frames == {(1, 1): [b"old0"]}
    (new,) = yard.turn()
    assert new.revision == 2
    yard.ran(1, new, b"new")
    assert (yard.outcomes(2), yard.outcomes(3)) == ({2: "ok"}, {3: "ok"})
    yard.at_rest()


def test_what_waited_for_the_old_revision_is_not_kept_under_it() -> None:
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1)
    running = busy(yard)
    yard.ask(1, 1)
    swap(yard)
    yard.ran(1, running)
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(1) == {1: "ok"}
    assert yard.core.models["net"].sharing.kept_bytes == 0


def test_a_kept_result_does_not_survive_another_revision() -> None:
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1)
    yard.ask(1, 1)
    (batch,) = yard.turn()
    yard.ran(1, batch, b"old")
    assert yard.core.models["net"].sharing.kept_bytes
    swap(yard)
    assert yard.core.models["net"].sharing.kept_bytes == 0
    yard.ask(2, 2)
    (batch,) = yard.turn()
    yard.ran(1, batch, b"new")
    assert yard.frames[2, 2] == [b"new0"]


def test_a_swap_that_says_so_ends_sharing_and_begins_it() -> None:
    yard = Yard(cache_ns=TTL_NS)
    yard.worker(1)
    model = yard.core.models["net"]
    for revision, cache_ns in ((2, 0), (3, TTL_NS)):
        yard.do(e.ModelWanted(9, replace(model.config, cache_ns=cache_ns), True))
        yard.say(1, net(revision=revision))
        yard.ask(1, revision)
        (batch,) = yard.turn()
        yard.ran(1, batch, b"new")
        assert bool(model.sharing.kept_bytes) is bool(cache_ns)


# ---- results that are kept ----------------------------------------------------------------------


@pytest.fixture
def keeping() -> Yard:
    """A yard that keeps results, and has one of the content "same"."""
    made = Yard(cache_ns=TTL_NS)
    made.worker(1)
    made.ask(1, 1)
    (batch,) = made.turn()
    made.ran(1, batch)
    return made


def test_a_kept_result_answers_at_once_and_names_the_cache(keeping: Yard) -> None:
    keeping.ask(2, 2, priority=LOW)
    answer = keeping.last(2)
    assert (answer.request, answer.queue_ns, answer.batch.provider, answer.batch.worker) == (2, 0, "cache", 0)
    assert answer.batch.revision == 1
    assert keeping.frames[2, 2] == [b"answer0"]
    assert keeping.turn() == []
    assert keeping.spared == {"cached": 1}
    assert keeping.ended_ok() == 2
    keeping.at_rest()


def test_a_kept_result_is_forgotten_when_its_time_is_up(keeping: Yard) -> None:
    keeping.turn(TTL_NS - 1)
    keeping.ask(2, 2)
    assert keeping.outcomes(2) == {2: "ok"}
    keeping.turn(1)
    keeping.ask(2, 3)
    assert keeping.outcomes(2) == {2: "ok"}
    (batch,) = keeping.turn()
    assert numbers(batch) == [3]


def test_a_kept_result_makes_room_for_others() -> None:
    yard = Yard(cache_ns=TTL_NS, cache_bytes=2_000)
    yard.worker(1)
    for number in NUMBERS:
        yard.ask(1, number, b"%d" % number)
        (batch,) = yard.turn()
        yard.ran(1, batch)
    yard.ask(2, 1, b"1")
    assert yard.outcomes(2) == {}
    yard.ask(2, 2, b"15")
    assert yard.outcomes(2) == {2: "ok"}


def test_results_are_kept_without_joining() -> None:
    yard = Yard(join=False, cache_ns=TTL_NS)
    yard.worker(1)
    yard.ask(1, 1)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    assert len(batch.apart()) == 2, "nobody waits for another"
    yard.ran(1, batch)
    yard.ask(3, 3)
    assert yard.spared == {"cached": 1}
    yard.at_rest()


def test_a_kept_result_is_no_answer_to_a_request_that_cannot_be(keeping: Yard) -> None:
    """Handles are checked before anything is looked up."""
    message = m.Submit(2, "net", NORMAL, 0, [Tensor(1, [1, 4], ARENA_BYTES)], [])
    keeping.do(e.Submitted(2, 2, message, b"same".ljust(16)))
    assert keeping.outcomes(2) == {2: "INVALID_REQUEST"}


# ---- contents that kill -------------------------------------------------------------------------


def kill_twice(yard: Yard) -> None:
    """One worker after the other dies of a request that is all that it runs."""
    yard.worker(11)
    yard.ask(1, 1)
    for worker in range(11, 11 + LOSSES_MAX):
        assert len(yard.turn()) == 1
        yard.do(e.WorkerGone(worker))
        yard.worker(worker + 1)


def tell(yard: Yard, content: bytes = b"same") -> None:
    """The loop has read the content's digest."""
    (wanted,) = yard.quarantined
    yard.do(e.Quarantined(wanted.model, wanted.inputs, content.ljust(16)))


@pytest.mark.parametrize("join", [True, False])
def test_a_content_that_killed_two_workers_is_refused_for_ten_minutes(join: bool) -> None:
    yard = Yard(join=join)
    kill_twice(yard)
    assert yard.outcomes(1) == {1: "WORKER_LOST"}
    (wanted,) = yard.quarantined
    assert (wanted.model, wanted.arena, wanted.inputs[0].offset) == ("net", 1, 64 * ROW_BYTES)
    tell(yard)
    assert yard.core.models["net"].sharing.wants_digest
    yard.ask(2, 2)
    assert yard.outcomes(2) == {2: "WORKER_LOST"}
    assert "600 s" in yard.last(2).text
    assert yard.core.counters.refused["worker_lost"] == 1
    yard.at_rest()
    yard.ask(2, 3, b"another")
    (batch,) = yard.turn()
    assert numbers(batch) == [3], "other contents are served"
    yard.ran(11 + LOSSES_MAX, batch)
    yard.turn(QUARANTINE_NS)
    yard.ask(2, 4)
    (batch,) = yard.turn()
    assert numbers(batch) == [4]
    assert yard.core.models["net"].sharing.wants_digest is join


def test_the_followers_of_what_kills_end_with_it(yard: Yard) -> None:
    yard.do(e.WorkerGone(1))
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.ask(3, 3, b"innocent")
    yard.worker(1)
    yard.turn()
    yard.do(e.WorkerGone(1))  # with both: nobody knows which it was
    yard.worker(2)
    batches = yard.turn()
    assert [numbers(batch) for batch in batches] == [[1], [3]]
    yard.do(e.WorkerGone(2))
    yard.worker(3)
    yard.turn()
    yard.do(e.WorkerGone(3))
    assert yard.outcomes(1) == {1: "WORKER_LOST"}
    assert yard.outcomes(2) == {2: "WORKER_LOST"}
    assert len(yard.quarantined) == 1
    yard.worker(4)
    (batch,) = yard.turn()
    assert numbers(batch) == [3]
    yard.ran(4, batch)
    assert yard.outcomes(3) == {3: "ok"}
    yard.at_rest()


def test_a_quarantine_of_a_model_that_is_gone_is_nobodys(yard: Yard) -> None:
    yard.do(e.Quarantined("gone", [], b"x" * 16))


def test_what_killed_one_revision_may_be_asked_of_the_next() -> None:
    yard = Yard()
    kill_twice(yard)
    tell(yard)
    swap(yard, worker=11 + LOSSES_MAX)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    assert numbers(batch) == [2]


# ---- bounds -------------------------------------------------------------------------------------


def test_followers_count_against_the_bounds_because_they_hold_memory() -> None:
    yard = Yard()
    yard.core.admission._limits = yard.core.admission._limits.__class__(client_rows_max=3)
    yard.worker(1)
    for number in (1, 2, 3, 4):
        yard.ask(1, number)
    assert yard.outcomes(1) == {4: "OVERLOADED"}
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert set(yard.outcomes(1)) == {1, 2, 3, 4}
    yard.at_rest()


def test_followers_ask_for_no_work(yard: Yard) -> None:
    """Or a lower class would be refused for a load that nobody runs."""
    yard.do(e.WorkerGone(1))
    yard.worker(2, net(warmup_ns={4: 4 * MS}))
    for number in NUMBERS:
        yard.ask(1, number, priority=URGENT)
    assert yard.core.admission.forecast.asked_ns == [MS, 0.0, 0.0, 0.0]


def test_a_request_that_is_said_twice_while_it_follows_has_one_outcome(yard: Yard) -> None:
    yard.ask(1, 1)
    yard.ask(2, 2)
    yard.ask(2, 2)
    (batch,) = yard.turn()
    yard.ran(1, batch)
    assert yard.outcomes(2) == {2: "ok"}
    assert yard.spared == {"joined": 1}


def test_models_with_free_axes_share_by_shape_too() -> None:
    yard = Yard()
    free = [TensorSpec("x", 1, ["n", "w"])]
    yard.worker(1, net(inputs=free, outputs=[TensorSpec("y", 1, ["n", "w"])]))
    for conn, shape in ((1, [2, 4]), (2, [2, 8]), (3, [2, 4])):
        message = m.Submit(conn, "net", NORMAL, 0, [Tensor(1, shape, 0)], [])
        yard.do(e.Submitted(conn, conn, message, b"same".ljust(16)))
    batches = yard.turn() + yard.turn(MS)
    assert sorted(item.inputs[0].shape for batch in batches for item in batch.apart()) == [[2, 4], [2, 8]]
    for batch in batches:
        yard.ran(1, batch)
    assert [yard.outcomes(conn) for conn in (1, 2, 3)] == [{1: "ok"}, {2: "ok"}, {3: "ok"}]
    yard.at_rest()
