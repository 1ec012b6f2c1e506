"""Models that come, change, and go, event by event through the core; every event is followed by invariants.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import gauges
from batchyard.broker.config import MODELS_MAX, Limits, ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.leases import HUNG_LOADING_NS, HUNG_MIN_NS
from batchyard.broker.models import Model
from batchyard.broker.timing import STEADY_RUNS
from batchyard.tests.sim import invariants
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.messages import ModelState, Priority
from batchyard.transport.tensors import Slot, Tensor, TensorSpec

MS = 1_000_000
EPOCH = 77
OLD, NEW = Path("/models/net.onnx"), Path("/models/net-2.onnx")
X, Y = TensorSpec("x", 1, ["batch", 4]), TensorSpec("y", 1, ["batch", 4])


def config(name: str = "net", path: Path = OLD) -> ModelConfig:
    return ModelConfig(name, path, 4)


def make_steady(model: Model) -> None:
    """Its runs have taken what was expected of them: from now on a long one says that a worker is hung."""
    for _ in range(STEADY_RUNS):
        model.steadiness.ran(1, 1)


def loaded(revision: int = 1, model: str = "net", **changed: Any) -> m.Loaded:
    """`net`, as a worker describes it: float32[batch, 4] -> float32[batch, 4]."""
    fields: dict[str, Any] = {
        "model": model, "revision": revision, "inputs": [X], "outputs": [Y], "batchable": True,
        "alone_reason": "", "max_batch": 4, "provider": "cpu", "placement": "CPU", "warmup_ns": {4: MS},
    } | changed  # fmt: skip
    return m.Loaded(**fields)


class World:
    """A core that serves `net`, a client, and what everybody has been told."""

    def __init__(self, workers: int = 1) -> None:
        self.core = Core(YardConfig({"net": config()}, Limits()), EPOCH, 4710)
        self.now_ns = 1_000 * MS
        self.client: list[Any] = []
        self.answers: dict[int, m.ModelChanged | m.Refused] = {}  # to operators
        self.told: dict[int, list[Any]] = {}  # to workers, without what a test has already taken
        self.do(e.ArenaOpened(1, 1 << 20))
        self.do(e.ClientJoined(1, 1))
        for number in range(1, workers + 1):
            self.join(number)
            self.say(number, loaded())
        self.take()

    def do(self, event: e.Event) -> None:
        for action in self.core.handle(event, self.now_ns):
            if isinstance(action, e.ToAdmin):
                assert action.admin not in self.answers, f"order {action.admin} was answered twice"
                self.answers[action.admin] = action.message
            elif isinstance(action, e.ToClient):
                self.client.append(action.message)
            elif isinstance(action, e.ToWorker):
                self.told.setdefault(action.worker, []).append(action.message)
        self.core.counters.tally()
        invariants.check(self.core)

    def take(self, worker: int | None = None) -> list[Any]:
        """What a worker (or all of them) has been told since the last look."""
        if worker is not None:
            return self.told.pop(worker, [])
        everything = [message for messages in self.told.values() for message in messages]
        self.told.clear()
        return everything

    def join(self, worker: int) -> None:
        self.do(e.WorkerJoined(worker, 5000 + worker))

    def die(self, worker: int) -> None:
        self.do(e.WorkerGone(worker))
        self.told.pop(worker, None)

    def say(self, worker: int, message: Any) -> None:
        self.do(e.WorkerSaid(worker, message))

    def load(self, admin: int, name: str = "other", path: Path = NEW) -> None:
        self.do(e.ModelWanted(admin, config(name, path), False))

    def swap(self, admin: int, tolerance: float | None = None, name: str = "net", path: Path = NEW) -> None:
        self.do(e.ModelWanted(admin, config(name, path), True, tolerance))

    def unload(self, admin: int, name: str = "net") -> None:
        self.do(e.ModelUnwanted(admin, name))

    def submit(self, number: int, model: str = "net", rows: int = 1) -> None:
        at = number * 256
        message = m.Submit(
            number, model, Priority.NORMAL, 0, [Tensor(1, [rows, 4], at)], [Slot(at, 16 * rows)]
        )
        self.do(e.Submitted(1, 1, message))

    def turn(self) -> list[m.Batch]:
        """The batches that are lent now, of all workers."""
        self.do(e.Turn())
        return [batch for batches in self.told.values() for batch in batches if isinstance(batch, m.Batch)]

    def done(self, worker: int, batch: m.Batch, compute_ns: int = MS) -> None:
        self.say(worker, m.Done(EPOCH, batch.batch, 0, compute_ns, 0, 0, []))

    def refusal(self, admin: int) -> tuple[Code, str]:
        answer = self.answers[admin]
        assert isinstance(answer, m.Refused)
        return Code(answer.code), answer.text

    @property
    def revision(self) -> int:
        return self.core.models["net"].revision


@pytest.fixture
def world() -> World:
    return World()


# ---- new models ---------------------------------------------------------------------------------


def test_a_new_model_is_served_when_the_last_worker_has_it() -> None:
    world = World(workers=2)
    world.load(1)
    assert world.take(1) == [m.Load("other", 1, str(NEW), 4, None, True)]
    assert world.take(2) == []
    world.say(1, loaded(model="other"))
    assert "other" not in world.core.models
    assert world.take(2) == [m.Load("other", 1, str(NEW), 4, None, True)]
    world.say(2, loaded(model="other"))
    assert world.answers == {1: m.ModelChanged("other", 1)}
    assert world.core.models["other"].state is ModelState.READY
    world.submit(1, "other")
    assert [(batch.model, batch.revision) for batch in world.turn()] == [("other", 1)]


def test_a_request_for_a_model_that_is_still_being_tried_is_refused(world: World) -> None:
    world.load(1)
    world.submit(1, "other")
    assert (world.client[-1].code, "this yard has: net" in world.client[-1].text) == (
        Code.UNKNOWN_MODEL,
        True,
    )


def test_who_waits_for_the_models_of_a_yard_sees_a_new_one(world: World) -> None:
    world.load(1)
    world.say(1, loaded(model="other"))
    world.do(e.DescribeAsked(1, m.Describe(5, "other")))
    assert [info.name for info in world.client[-1].models] == ["other"]


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    world.load(1, "net")
    assert world.refusal(1) == (Code.INVALID_REQUEST, "'net' is served already: swap it, or unload it first")
    assert world.take() == []


def test_without_a_worker_nothing_can_be_tried() -> None:
    world = World(workers=0)
    world.load(1)
    world.swap(2)
    assert world.refusal(1)[0] == world.refusal(2)[0] == Code.OVERLOADED


def test_a_yard_takes_no_more_models_than_a_configuration_may_have(world: World) -> None:
    for number in range(MODELS_MAX):
        world.core.models[f"m{number}"] = world.core.models["net"]
    world.load(1)
    assert world.refusal(1)[0] == Code.INVALID_REQUEST
    assert world.take() == []


def test_a_new_model_that_cannot_be_loaded_leaves_nothing(world: World) -> None:
    world.load(1)
    world.take()
    world.say(1, m.LoadFailed("other", 1, "it is no ONNX"))
    assert world.refusal(1) == (Code.MODEL_FAILED, "could not load 'other': it is no ONNX (worker 1)")
    assert world.take(1) == [m.Unload("other", 1)]
    assert list(world.core.models) == ["net"]


def test_a_worker_that_refuses_a_model_without_a_word_has_refused_it(world: World) -> None:
    world.load(1)
    world.take()
    world.say(1, m.LoadFailed("other", 1, ""))
    code, text = world.refusal(1)
    assert code == Code.MODEL_FAILED
    assert "the worker gave no reason (worker 1)" in text


def test_a_worker_that_loads_is_not_hung_when_its_device_is_busy_with_that() -> None:
    world = World(workers=0)
    world.join(1)
    world.say(1, loaded(provider="webgpu"))
    world.take()
    make_steady(world.core.models["net"])

    def lease_ns(number: int) -> int:
        world.submit(number)
        (batch,) = world.turn()
        world.take()
        overdue_ns = world.core.workers[1].overdue_ns - world.now_ns
        assert overdue_ns == batch.lease_ns
        world.done(1, batch)
        return overdue_ns

    assert lease_ns(1) == HUNG_MIN_NS
    world.load(1)
    assert lease_ns(2) == HUNG_LOADING_NS
    world.say(1, loaded(model="other"))
    assert lease_ns(3) == HUNG_MIN_NS
    world.load(2, "third")
    world.say(1, m.LoadFailed("third", 1, "it is no ONNX"))
    assert lease_ns(4) == HUNG_MIN_NS
    world.load(3, "third")
    world.unload(4, "third")  # then nothing is said of it any more
    assert lease_ns(5) == HUNG_MIN_NS


def test_on_the_host_a_load_beside_is_no_excuse_for_a_hung_batch(world: World) -> None:
    make_steady(world.core.models["net"])
    world.load(1)
    world.submit(1)
    (batch,) = world.turn()
    assert batch.lease_ns == HUNG_MIN_NS


# ---- swaps --------------------------------------------------------------------------------------


def test_a_swap_is_tried_on_one_worker_after_the_other_and_then_all_switch_at_once() -> None:
    world = World(workers=2)
    world.swap(1, tolerance=0.5)
    trial = m.Load("net", 2, str(NEW), 4, None, True, [], 1, 0.5)
    assert (world.take(1), world.take(2)) == ([trial], [])
    world.say(1, loaded(2, difference=0.25))
    assert (world.take(1), world.take(2)) == ([], [trial])
    world.submit(1)
    (batch,) = world.turn()
    assert batch.revision == world.revision == 1, "one worker has it, and the other has not"
    world.done(1, batch)
    world.take()
    world.say(2, loaded(2, difference=0.125))
    assert world.answers == {1: m.ModelChanged("net", 2, 0.25)}, "the greatest difference of all workers"
    assert (world.take(1), world.take(2)) == ([m.Unload("net", 1)], [m.Unload("net", 1)])
    for number in range(2, 8):
        world.submit(number)
    assert {batch.revision for batch in world.turn()} == {2}
    assert world.core.models["net"].config.path == NEW


def test_the_old_revision_is_dropped_behind_what_was_lent_of_it(world: World) -> None:
    world.submit(1)
    (batch,) = world.turn()
    world.swap(1)
    world.say(1, loaded(2))
    kinds = [(type(message).__name__, message.revision) for message in world.take(1)]
    assert kinds == [("Batch", 1), ("Load", 2), ("Unload", 1)]
    world.done(1, batch, compute_ns=900 * MS)
    (completed,) = world.client
    assert completed.batch.revision == 1, "the receipt names what answered"
    assert world.core.workers[1].timings["net"].predict_ns(4) == MS
    assert world.core.workers[1].timings["net"].predict_ns(1) == MS, "the old one's time is not the new one's"


def test_what_waited_is_run_by_the_new_revision(world: World) -> None:
    for number in range(1, 5):
        world.submit(number)
    world.swap(1)
    world.say(1, loaded(2))
    world.take()
    (batch,) = world.turn()
    assert (batch.revision, batch.rows) == (2, 4)
    world.done(1, batch)
    assert world.client[-1].batch.revision == 2


def test_what_a_dead_worker_held_of_the_old_revision_is_run_by_the_new_one() -> None:
    world = World(workers=2)
    world.submit(1)
    world.turn()
    (holder,) = [number for number, told in world.told.items() if told]
    world.swap(1)
    world.say(1, loaded(2))
    world.say(2, loaded(2))
    world.die(holder)
    world.take()
    (batch,) = world.turn()
    assert (batch.revision, len(batch.apart())) == (2, 1)


def swap_between_parts(world: World) -> None:
    """A request of six rows, of which the old revision runs four, and the new one two."""
    world.submit(1, rows=6)
    (first,) = world.turn()
    world.swap(1)
    world.say(1, loaded(2))
    world.take()
    world.done(1, first)
    (rest,) = world.turn()
    assert [(batch.rows, batch.revision) for batch in (first, rest)] == [(4, 1), (2, 2)]
    world.take()
    world.done(1, rest)


def test_a_request_whose_parts_two_revisions_have_run_is_run_again_as_a_whole(world: World) -> None:
    swap_between_parts(world)
    assert world.client == [], "its outputs are no answer of either revision"
    for rows in (4, 2):
        (batch,) = world.turn()
        assert (batch.rows, batch.revision) == (rows, 2)
        world.take()
        world.done(1, batch)
    (completed,) = world.client
    assert (completed.requests, completed.batch.revision) == ([1], 2)
    assert gauges.snapshot(world.core)["requeued"] == 1


def test_of_a_request_that_is_run_again_no_frame_of_the_first_time_is_answered(world: World) -> None:
    def in_frames(batch: m.Batch) -> None:
        outputs = [m.ItemOutputs(0, [Tensor(1, [batch.rows, 4], 0, 1)])]
        done = m.Done(EPOCH, batch.batch, 0, MS, 0, 0, outputs)
        world.do(e.WorkerSaid(1, done, [f"revision {batch.revision}"]))
        world.take()

    world.submit(1, rows=6)
    (first,) = world.turn()
    world.swap(1)
    world.say(1, loaded(2))
    world.take()
    in_frames(first)
    for _ in range(3):
        (batch,) = world.turn()
        in_frames(batch)
    (answer,) = world.client
    assert [[tensor.shape for tensor in part] for part in answer.parts] == [[[4, 4]], [[2, 4]]]


def test_where_nothing_may_run_twice_a_request_that_two_revisions_have_run_fails(world: World) -> None:
    world.core.models["net"].config = replace(config(), idempotent=False)
    world.submit(1, rows=6)
    (first,) = world.turn()
    world.do(e.ModelWanted(1, replace(config(path=NEW), idempotent=False), True))
    world.say(1, loaded(2))
    world.take()
    world.done(1, first)
    (rest,) = world.turn()
    world.done(1, rest)
    (failed,) = world.client
    assert (failed.request, failed.code) == (1, Code.MODEL_FAILED)
    assert "the parts of this request do not belong together" in failed.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": [TensorSpec("z", 1, ["batch", 4])]}, "its input is z: float32[batch, 4]"),
        ({"inputs": [TensorSpec("x", 7, ["batch", 4])]}, "its input is x: int64[batch, 4]"),
        ({"inputs": [TensorSpec("x", 1, ["batch", 5])]}, "its input is x: float32[batch, 5]"),
        ({"batch_axes": [1, 0]}, "they have their rows on different axes"),
        ({"inputs": [X, TensorSpec("z", 1, ["batch", 4])]}, "it has 2 inputs, and the one that serves has 1"),
        ({"outputs": [TensorSpec("y", 1, ["batch", "k"])]}, "its output is y: float32[batch, k]"),
        ({"outputs": [Y, Y]}, "it has 2 outputs, and the one that serves has 1"),
    ],
)
def test_one_that_takes_or_gives_other_tensors_is_refused(world: World, changed: Any, said: str) -> None:
    world.swap(1)
    world.take()
    world.say(1, loaded(2, **changed))
    code, text = world.refusal(1)
    assert code == Code.MODEL_FAILED
    assert said in text
    assert text.endswith("(worker 1); revision 1 serves on")
    assert world.take(1) == [m.Unload("net", 2)]
    assert world.revision == 1


ALONE = {"batchable": False, "alone_reason": "rows differ by 0.3"}


def drain(world: World) -> list[m.Batch]:
    """Every batch that is lent from now on, each done by worker 1."""
    seen: list[m.Batch] = []
    for _ in range(20):
        batches = world.turn()
        world.take()
        for batch in batches:
            world.done(1, batch)
        seen += batches
    return seen


def test_a_swap_may_end_batches_and_what_waits_runs_whole_and_alone(world: World) -> None:
    world.submit(1, rows=6)
    (first,) = world.turn()
    for number in (2, 3):
        world.submit(number, rows=2)
    world.swap(1)
    world.say(1, loaded(2, **ALONE))
    world.take()
    world.done(1, first)
    assert [(batch.rows, len(batch.apart())) for batch in drain(world)][-3:] == [(0, 1)] * 3
    assert sorted(number for message in world.client for number in message.requests) == [1, 2, 3]
    info = world.core.models["net"].info()
    assert (info.batchable, info.alone_reason, info.max_batch) == (False, "rows differ by 0.3", 1)


def test_a_swap_may_begin_batches(world: World) -> None:
    world.swap(1)
    world.say(1, loaded(2, **ALONE))
    for number in (1, 2, 3):
        world.submit(number)
    lent = world.turn()
    world.swap(2)
    world.say(1, loaded(3))
    world.take()
    for batch in lent:
        world.done(1, batch)
    for number in (4, 5):
        world.submit(number)
    assert sorted((batch.rows, len(batch.apart())) for batch in drain(world)) == [(0, 1), (2, 2)]
    assert len({number for message in world.client for number in message.requests}) == 5


def test_where_workers_disagree_on_the_new_revision_it_runs_alone() -> None:
    world = World(workers=2)
    world.swap(1)
    world.say(1, loaded(2))
    world.say(2, loaded(2, **ALONE))
    info = world.core.models["net"].info()
    assert (info.batchable, info.alone_reason) == (False, "rows differ by 0.3")


def test_a_model_batches_when_all_its_workers_have_learned_that_it_may() -> None:
    world = World(workers=2)
    world.swap(1)
    for worker in (1, 2):
        world.say(worker, loaded(2, **ALONE))
    model = world.core.models["net"]
    world.say(1, loaded(2))
    assert not model.batchable
    world.submit(1, rows=6)
    assert [batch.rows for batch in world.turn()] == [0]
    world.take()
    world.say(2, loaded(2))
    assert (model.batchable, model.max_batch, model.alone_reason) == (True, 4, "")
    for number in (2, 3, 4, 5):
        world.submit(number)
    assert sum(batch.rows for batch in world.turn()) > 1


def test_what_a_worker_has_learned_against_batches_is_the_reason(world: World) -> None:
    world.swap(1)
    world.say(1, loaded(2, **ALONE))
    world.say(1, loaded(2, batchable=False, alone_reason="seen on requests"))
    assert world.core.models["net"].alone_reason == "seen on requests"


def test_parts_in_frames_say_on_which_axis_they_belong_together(world: World) -> None:
    world.submit(1, rows=6)
    for rows in (4, 2):
        (batch,) = world.turn()
        world.take()
        outputs = [m.ItemOutputs(0, [Tensor(1, [rows, 4], 0, 1)])]
        world.do(e.WorkerSaid(1, m.Done(EPOCH, batch.batch, 0, MS, 0, 0, outputs), [b""]))
    (answer,) = world.client
    assert (len(answer.parts), answer.axes) == (2, [0])


def test_the_names_of_free_axes_bind_nobody(world: World) -> None:
    world.swap(1)
    world.say(1, loaded(2, inputs=[TensorSpec("x", 1, ["N", 4])], outputs=[TensorSpec("y", 1, ["N", 4])]))
    assert world.answers == {1: m.ModelChanged("net", 2)}


def test_one_that_is_described_as_no_model_can_be_is_refused(world: World) -> None:
    world.load(1)
    world.say(1, loaded(model="other", inputs=[TensorSpec("x", 1, [])]))
    assert "it was described wrongly: x: float32[] has no axis 0 to count rows on" in world.refusal(1)[1]


def test_a_worker_that_cannot_load_it_ends_the_trial_of_all() -> None:
    world = World(workers=2)
    world.swap(1)
    world.say(1, loaded(2))
    world.take()
    world.say(2, m.LoadFailed("net", 2, "out of memory"))
    code, text = world.refusal(1)
    assert (code, text) == (
        Code.MODEL_FAILED, "'net' was not changed: out of memory (worker 2); revision 1 serves on",
    )  # fmt: skip
    assert (world.take(1), world.take(2)) == ([m.Unload("net", 2)], [m.Unload("net", 2)])
    world.submit(1)
    assert [batch.revision for batch in world.turn()] == [1]


def test_the_next_trial_has_a_revision_of_its_own(world: World) -> None:
    world.swap(1)
    world.say(1, m.LoadFailed("net", 2, "no"))
    world.swap(2)
    world.say(1, loaded(2))  # the first trial's, on its way all the time
    assert 2 not in world.answers
    assert world.core.counters.snapshot()["refused"]["stale_load"] == 1
    world.say(1, loaded(3))
    assert world.answers[2] == m.ModelChanged("net", 3)


def test_a_model_that_failed_at_the_start_can_be_swapped_for_one_that_works() -> None:
    world = World(workers=0)
    world.join(1)
    world.say(1, m.LoadFailed("net", 1, "it is no ONNX"))
    assert world.core.models["net"].state is ModelState.FAILED
    world.take()
    world.swap(1, tolerance=0.0)
    (trial,) = world.take(1)
    assert trial.baseline_revision == 0, "there is nothing to compare with"
    world.say(1, loaded(2))
    assert world.answers == {1: m.ModelChanged("net", 2)}
    assert world.core.models["net"].info().reason == ""


# ---- several changes, workers that come and go --------------------------------------------------


def test_a_newer_change_of_the_same_model_ends_the_one_before(world: World) -> None:
    world.swap(1)
    world.take()
    world.swap(2, path=OLD)
    assert world.refusal(1) == (
        Code.CANCELLED,
        "'net' was not changed: a newer change of the same model came; revision 1 serves on",
    )
    assert [type(message).__name__ for message in world.take(1)] == ["Unload", "Load"]
    world.say(1, loaded(2))
    assert 2 not in world.answers
    world.say(1, loaded(3))
    assert world.answers[2] == m.ModelChanged("net", 3)


def test_changes_of_two_models_do_not_touch_each_other(world: World) -> None:
    world.swap(1)
    world.load(2)
    world.say(1, m.LoadFailed("net", 2, "no"))
    world.say(1, loaded(model="other"))
    assert world.refusal(1)[0] == Code.MODEL_FAILED
    assert world.answers[2] == m.ModelChanged("other", 1)


def test_a_worker_that_dies_at_its_trial_ends_it() -> None:
    world = World(workers=2)
    world.swap(1)
    world.say(1, loaded(2))
    world.take()
    world.die(2)
    assert (
        world.refusal(1)[1] == "'net' was not changed: a worker died while it loaded it; revision 1 serves on"
    )
    assert world.take(1) == [m.Unload("net", 2)]


def test_a_worker_that_dies_before_its_turn_is_not_waited_for() -> None:
    world = World(workers=2)
    world.swap(1)
    world.die(2)
    world.say(1, loaded(2))
    assert world.answers == {1: m.ModelChanged("net", 2)}


def test_a_worker_that_dies_after_its_trial_is_not_switched() -> None:
    world = World(workers=2)
    world.swap(1)
    world.say(1, loaded(2))
    world.die(1)
    world.say(2, loaded(2))
    assert world.answers == {1: m.ModelChanged("net", 2)}
    assert [info.worker for info in world.core.models["net"].info().workers] == [2]


def test_nothing_is_switched_without_a_worker_that_comes_meanwhile(world: World) -> None:
    world.swap(1)
    world.take()
    world.join(2)
    assert [message.revision for message in world.take(2) if isinstance(message, m.Load)] == [1]
    world.say(1, loaded(2))
    assert not world.answers
    (trial,) = world.take(2)
    assert (trial.revision, trial.baseline_revision) == (2, 0), "it does not serve the old one yet"
    world.say(2, loaded(1))
    world.say(2, loaded(2))
    assert world.answers == {1: m.ModelChanged("net", 2)}
    assert [info.worker for info in world.core.models["net"].info().workers] == [1, 2]


def test_a_worker_that_comes_after_the_switch_loads_the_new_file(world: World) -> None:
    world.swap(1)
    world.say(1, loaded(2))
    world.join(2)
    assert [(message.revision, message.path) for message in world.take(2) if isinstance(message, m.Load)] == [
        (2, str(NEW))
    ]


def test_a_file_that_has_become_another_model_is_not_served_by_a_worker_that_comes_back(world: World) -> None:
    world.die(1)
    world.join(2)
    world.say(2, loaded(inputs=[TensorSpec("x", 1, ["batch", 9])]))
    info = world.core.models["net"].info()
    assert (info.state, info.inputs) == (ModelState.FAILED, [X])
    assert "its input is x: float32[batch, 9]" in info.reason
    world.submit(1)
    assert world.turn() == []


def test_somebody_elses_answer_is_no_answer_to_a_trial() -> None:
    world = World(workers=2)
    world.swap(1)
    world.say(2, loaded(2))
    assert not world.answers
    assert world.core.counters.snapshot()["refused"]["stale_load"] == 1


# ---- models that go -----------------------------------------------------------------------------


def test_a_model_goes_when_what_it_had_has_ended(world: World) -> None:
    for number in range(1, 7):
        world.submit(number)
    first, *more = world.turn()
    assert more == []
    world.unload(1)
    world.submit(7)
    assert world.client[-1].code == Code.UNKNOWN_MODEL
    assert not world.answers
    world.take()
    world.done(1, first)
    (second,) = world.turn()
    assert second.rows == 2
    world.take()
    world.done(1, second)
    assert world.answers == {1: m.ModelChanged("net", 1)}
    assert world.take(1) == [m.Unload("net", 1)]
    assert world.core.models == {}
    ended = [
        number for message in world.client if isinstance(message, m.Completed) for number in message.requests
    ]
    assert sorted(ended) == [1, 2, 3, 4, 5, 6]


def test_a_model_that_nobody_uses_goes_at_once(world: World) -> None:
    world.unload(1)
    assert world.answers == {1: m.ModelChanged("net", 1)}
    assert world.take(1) == [m.Unload("net", 1)]


def test_a_leaving_model_is_hidden_and_known_to_nobody(world: World) -> None:
    world.submit(1)
    world.turn()
    world.unload(1)
    world.do(e.DescribeAsked(1, m.Describe(8, "")))
    assert world.client[-1].models == []
    world.do(e.DescribeAsked(1, m.Describe(9, "net")))
    assert world.client[-1].code == Code.UNKNOWN_MODEL


def test_everybody_who_asked_for_the_end_hears_of_it(world: World) -> None:
    world.submit(1)
    (batch,) = world.turn()
    world.unload(1)
    world.unload(2)
    world.done(1, batch)
    assert world.answers == {1: m.ModelChanged("net", 1), 2: m.ModelChanged("net", 1)}


@pytest.mark.parametrize("how", ["cancelled", "the client is gone", "the worker dies"])
def test_a_leaving_model_waits_for_the_slots_of_what_has_ended(world: World, how: str) -> None:
    world.submit(1)
    (batch,) = world.turn()
    world.unload(1)
    if how == "the client is gone":
        world.do(e.ClientGone(1))
    else:
        world.do(e.CancelAsked(1, m.Cancel([1])))
    assert not world.answers, "a worker may still write there"
    if how == "the worker dies":
        world.die(1)
    else:
        world.done(1, batch)
    assert world.answers == {1: m.ModelChanged("net", 1)}


def test_what_waits_for_a_leaving_model_is_run_by_a_worker_that_comes(world: World) -> None:
    world.submit(1)
    world.die(1)
    world.unload(1)
    world.join(2)
    world.say(2, loaded())
    world.take()
    (batch,) = world.turn()
    world.done(2, batch)
    assert world.answers == {1: m.ModelChanged("net", 1)}


def test_nothing_is_loaded_under_a_name_that_is_still_leaving(world: World) -> None:
    world.submit(1)
    (batch,) = world.turn()
    world.unload(1)
    world.load(2, "net")
    assert world.refusal(2) == (Code.OVERLOADED, "'net' is being unloaded; try again")
    world.done(1, batch)
    world.load(3, "net")
    world.say(1, loaded(2))
    assert world.answers[3] == m.ModelChanged("net", 2), "a late answer is about no later model"


def test_unloading_ends_a_trial_of_the_same_name(world: World) -> None:
    world.swap(1)
    world.unload(2)
    assert world.refusal(1) == (
        Code.CANCELLED,
        "'net' was not changed: the model was unloaded meanwhile",
    )
    assert world.answers[2] == m.ModelChanged("net", 1)
    assert m.Unload("net", 2) in world.take(1)


def test_unloading_what_is_only_being_tried_ends_the_trial(world: World) -> None:
    world.load(1)
    world.unload(2, "other")
    assert world.refusal(1)[0] == Code.CANCELLED
    assert world.answers[2] == m.ModelChanged("other", 1)
    assert "other" not in world.core.models


def test_a_model_that_nobody_knows_cannot_go(world: World) -> None:
    world.unload(1, "nte")
    assert world.refusal(1) == (Code.UNKNOWN_MODEL, "no model is called 'nte'; this yard has: net")


def test_who_waits_for_a_model_that_is_still_loading_hears_that_it_goes() -> None:
    world = World(workers=0)
    world.do(e.DescribeAsked(1, m.Describe(5, "net")))
    assert world.client == []
    world.unload(1)
    assert world.client[-1].code == Code.UNKNOWN_MODEL
