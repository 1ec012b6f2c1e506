"""The worker's session over plain messages: what it keeps, and when it lets go."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from batchyard.gpuworker.answers import Result
from batchyard.gpuworker.worker import Worker
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.segments import SegmentHandle
from batchyard.transport.tensors import Tensor, TensorSpec


class Arenas:
    """A worker's Memory that only remembers."""

    may_shrink = ()

    def __init__(self) -> None:
        self.attached: list[int] = []

    def attach(self, number: int, handle: SegmentHandle, broker_pid: int) -> None:
        self.attached.append(number)

    def detach(self, number: int) -> None:
        if number in self.attached:
            self.attached.remove(number)

    def detach_all(self) -> None:
        self.attached.clear()


def greeted(arenas: Any) -> tuple[Worker, list[Any]]:
    said: list[Any] = []

    def send(messages: list[Any], frames: Any = ()) -> None:
        said.extend(messages)

    session = Worker("cpu", 4711, send, lambda key, load, beside: None, arenas)  # type: ignore[arg-type,return-value]
    session.register()
    session.handle(m.WorkerWelcome(7, 1, 42))
    session.handle(m.Attach(3, SegmentHandle("memfd", "5", 4096)))
    return session, said


def test_registering_twice_with_one_broker_loses_no_arena() -> None:
    arenas = Arenas()
    session, said = greeted(arenas)
    session.register()  # the old connection's end is noticed after the new one's greeting
    assert arenas.attached == [3]
    assert said == [m.Register(4711, ["cpu"])] * 2


def test_a_welcome_ends_what_an_earlier_broker_had_attached() -> None:
    arenas = Arenas()
    session, said = greeted(arenas)
    session.handle(m.Refused(Code.UNKNOWN_CONNECTION, "register first"))
    assert said == [m.Register(4711, ["cpu"])] * 2
    session.handle(m.WorkerWelcome(8, 1, 43))
    assert arenas.attached == []


def test_a_worker_that_may_not_register_complains_once_and_asks_for_the_secret_again(
    caplog: pytest.LogCaptureFixture
) -> None:
    secrets = iter(["old", "older still", "new"])
    said: list[Any] = []
    nothing: Any = None
    session = Worker("cpu", 4711, said.extend, nothing, nothing, secret=lambda: next(secrets))
    for _ in range(2):
        session.register()
        session.handle(m.Refused(Code.UNAUTHORIZED, "not without the secret"))
        assert session.unauthorized
    session.register()
    assert [message.secret for message in said] == ["old", "older still", "new"]
    assert caplog.text.count("not without the secret") == 1


def test_a_welcome_drops_the_bindings_into_what_is_unmapped() -> None:
    forgotten: list[int] = []
    model: Any = SimpleNamespace(
        name="net", inputs=[], outputs=[], batchable=True, alone_reason="", max_batch=4, placement="",
        batch_axes=None, evidence="", padding=None, recipe=SimpleNamespace(name="cpu"), warmup_ns={}, buckets=[], origin=None, claimed_ns={}, streams=False, forget_bindings=lambda: forgotten.append(1),
    )  # fmt: skip
    arenas: Any = Arenas()
    started: list[Any] = []
    session = Worker("cpu", 4711, lambda messages, frames=(): None, lambda *job: started.append(job), arenas)
    session.handle(m.Load("net", 1, __file__, 4, None, False))
    session.loaded(started[0][0], (model, None))
    session.register()
    assert not forgotten
    session.handle(m.WorkerWelcome(8, 1, 43))
    assert forgotten == [1]


# ---- models by name and revision ----------------------------------------------------------------


class Model:
    """What a Worker uses of a ServedModel."""

    inputs: ClassVar[list[TensorSpec]] = [TensorSpec("x", 1, ["n", 4])]
    outputs = inputs
    batchable, alone_reason, max_batch, placement = True, "", 4, ""
    batch_axes: ClassVar[list[int]] = [0, 0]
    evidence = disproved = ""
    has_learned = False
    padding = None
    recipe = SimpleNamespace(name="cpu")
    warmup_ns: ClassVar[dict[int, int]] = {}
    origin = None
    claimed_ns: ClassVar[dict[int, int]] = {}
    buckets: ClassVar[list[int]] = []
    streams = False

    def __init__(self, text: str) -> None:
        self.text = text
        self.bindings = 1

    def forget_bindings(self) -> None:
        self.bindings = 0

    def run(self, batch: m.LentBatch, memory: Any) -> Any:
        raise RuntimeError(self.text)  # it comes back in what is said


class Loading:
    """A session with a loader that finishes when it is told to."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.jobs: list[tuple[Any, m.Load, Any]] = []
        self.arenas = Arenas()
        self.session = Worker("cpu", 4711, self._send, lambda *job: self.jobs.append(job), self.arenas)  # type: ignore[arg-type]
        self.welcome(7)

    def _send(self, messages: list[Any], frames: Any = ()) -> None:
        self.said += messages

    def welcome(self, epoch: int) -> None:
        self.session.handle(m.WorkerWelcome(epoch, 1, 42))

    def load(
        self, revision: int, path: Path, beside: int = 0, tolerance: float | None = None, name: str = "net"
    ) -> None:
        self.session.handle(m.Load(name, revision, str(path), 4, None, True, [], beside, tolerance))

    def finish(self, outcome: Any = None, text: str = "", difference: float | None = None) -> Model:
        """The oldest job comes to its end."""
        key, load, _ = self.jobs.pop(0)
        model = Model(text or f"{load.model} {load.revision}")
        self.session.loaded(key, (model, difference) if outcome is None else outcome)
        return model

    def unload(self, revision: int, name: str = "net") -> None:
        self.session.handle(m.Unload(name, revision))

    def answer(self, revision: int, name: str = "net") -> str:
        """Which model runs a batch of that revision, or why none does."""
        self.session.handle(m.LentBatch(1, name, revision, 1, b""))  # type: ignore[arg-type]
        return str(self.said.pop().text.removeprefix(f"'{name}' failed: "))

    def take(self) -> list[tuple[Any, ...]]:
        """What has been said of models: (revision, difference), or (revision, why not)."""
        said, self.said = self.said, []
        return [
            (message.revision, message.text if isinstance(message, m.LoadFailed) else message.difference)
            for message in said
            if isinstance(message, m.Loaded | m.LoadFailed)
        ]


@pytest.fixture
def worker() -> Loading:
    return Loading()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path in paths:
        path.write_bytes(b"model")
    return paths


def test_revisions_are_served_side_by_side_until_one_is_unloaded(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    old = worker.finish()
    worker.load(2, files[1], beside=1)
    assert worker.jobs[0][2] is old, "it is compared with the one that serves"
    worker.finish(difference=0.5)
    assert worker.take() == [(1, None), (2, 0.5)]
    assert (worker.answer(1), worker.answer(2)) == ("net 1", "net 2")
    worker.unload(1)
    assert worker.answer(1) == "this worker has not loaded revision 1 of 'net'"
    assert worker.answer(2) == "net 2"


def test_a_trial_that_is_given_up_leaves_the_old_one(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish()
    worker.load(2, files[1], beside=1)
    worker.finish()
    worker.unload(2)
    assert worker.answer(1) == "net 1"
    assert "has not loaded" in worker.answer(2)


def test_a_trial_that_is_given_up_while_it_loads_is_not_kept(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish()
    worker.load(2, files[1], beside=1)
    worker.unload(2)
    gone = weakref.ref(worker.finish())
    assert gone() is None
    assert worker.take() == [(1, None)]


def test_unloading_lets_the_model_go(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    gone = weakref.ref(worker.finish())
    assert gone() is not None
    worker.unload(1)
    assert gone() is None


def test_the_same_file_is_read_anew_for_a_trial(worker: Loading, files: Any) -> None:
    # What lies beside the file, its weights, may have changed though the file has not.
    worker.load(1, files[0])
    worker.finish(text="old weights")
    worker.load(2, files[0], beside=1, tolerance=0.1)
    worker.finish(text="new weights", difference=0.05)
    assert worker.take() == [(1, None), (2, 0.05)]
    assert (worker.answer(1), worker.answer(2)) == ("old weights", "new weights")
    worker.unload(1)
    assert worker.answer(2) == "new weights"
    worker.welcome(8)
    worker.load(1, files[0])
    assert worker.answer(1) == "new weights"


def test_a_new_broker_gets_at_once_what_the_last_one_had(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish()
    worker.load(1, files[1], name="other")
    worker.finish()
    worker.take()
    worker.welcome(8)
    assert "has not loaded" in worker.answer(1), "it has not asked for it yet"
    worker.load(1, files[0])
    worker.load(1, files[1], name="other")
    assert worker.take() == [(1, None), (1, None)]
    assert worker.jobs == []
    assert (worker.answer(1), worker.answer(1, "other")) == ("net 1", "other 1")


def test_a_file_that_has_changed_is_loaded_anew_for_a_new_broker(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish(text="old")
    worker.welcome(8)
    os.replace(files[1], files[0])
    worker.load(1, files[0])
    assert worker.answer(1) == "this worker has not loaded revision 1 of 'net'"
    worker.finish(text="new")
    assert worker.answer(1) == "new"


def test_what_a_former_broker_had_swapped_in_is_no_way_around_the_canary(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish(text="a")
    worker.load(2, files[1], beside=1)
    worker.finish(text="b", difference=9.0)
    worker.welcome(8)  # before the old one was unloaded: both are kept
    worker.load(1, files[0])
    worker.take()
    worker.load(2, files[1], beside=1, tolerance=0.5)
    assert worker.take() == []
    assert worker.jobs[0][2].text == "a"
    worker.finish("its answers differ")
    assert worker.take() == [(2, "its answers differ")]


def test_a_load_under_way_serves_the_next_broker_as_well(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.welcome(8)
    worker.load(1, files[0])
    assert len(worker.jobs) == 1
    worker.finish()
    assert worker.take() == [(1, None)], "to the new one, once"
    assert worker.answer(1) == "net 1"


def test_a_load_that_no_broker_wants_any_more_is_not_kept(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.welcome(8)
    gone = weakref.ref(worker.finish())
    assert gone() is None
    assert worker.take() == []


def test_what_a_former_brokers_trial_comes_to_is_nothing_to_the_next_one(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.finish(text="old")
    os.replace(files[1], files[0])
    worker.load(2, files[0], beside=1, tolerance=0.0)
    worker.welcome(8)
    worker.load(1, files[0])
    worker.take()
    worker.finish("its answers differ, and 0 is allowed")
    assert worker.take() == []
    worker.finish(text="new")
    assert worker.take() == [(1, None)]
    assert worker.answer(1) == "new"


def test_a_file_that_changes_while_it_is_loaded_is_refused(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    os.replace(files[1], files[0])
    worker.finish()
    assert worker.take() == [(1, "the file changed while it was loaded")]
    worker.load(2, files[0])
    files[0].unlink()
    worker.finish()
    assert worker.take() == [(2, "the file changed while it was loaded")]


def test_a_file_that_is_not_there_is_refused_at_once(worker: Loading, tmp_path: Path) -> None:
    worker.load(1, tmp_path / "nowhere.onnx")
    ((revision, reason),) = worker.take()
    assert (revision, reason, worker.jobs) == (1, "nowhere.onnx: No such file or directory", [])


def test_every_revision_drops_its_bindings_before_memory_is_unmapped(worker: Loading, files: Any) -> None:
    worker.load(1, files[0])
    worker.load(2, files[0], beside=1)
    models = [worker.finish(), worker.finish()]
    worker.session.handle(m.Detach(3))
    assert [model.bindings for model in models] == [0, 0]


# ---- the end of its process ---------------------------------------------------------------------


@pytest.mark.parametrize("runs_on", [False, True])
def test_who_leaves_for_a_lost_device_runs_nothing_more_and_who_has_a_choice_what_it_was_lent(
    worker: Loading, files: Any, runs_on: bool
) -> None:
    worker.load(1, files[0])
    worker.finish()
    worker.said.clear()
    worker.session.leave("x" * 5000, runs_on)
    assert worker.said == [m.Leaving("x" * 1000)]
    worker.session.handle(m.LentBatch(1, "net", 1, 1, b""))  # type: ignore[arg-type]
    assert [type(message) for message in worker.said[1:]] == [m.BatchFailed] * runs_on
    assert not worker.session.dismissed
    worker.session.handle(m.Dismissed())
    assert worker.session.dismissed


# ---- nothing is said that the broker would refuse -------------------------------------------------


def test_a_model_that_can_not_be_told_to_the_broker_is_one_that_can_not_be_served(worker: Loading, files: Any) -> None:
    """A refused message is a lost one: the model would be loading for ever."""
    worker.load(1, files[0])
    key, _, _ = worker.jobs.pop(0)
    model = Model("net")
    model.outputs = []  # type: ignore[misc]
    worker.session.loaded(key, (model, None))
    ((revision, text),) = worker.take()
    assert revision == 1
    assert text.startswith("its inputs and outputs don't fit into a message to the broker: ")


class Answering(Model):
    """Answers what it is given."""

    def __init__(self, result: Result) -> None:
        super().__init__("net")
        self.result = result

    def run(self, batch: m.LentBatch, memory: Any) -> Any:
        return self.result


def answering(worker: Loading, path: Path) -> Answering:
    worker.load(1, path)
    key, _, _ = worker.jobs.pop(0)
    model = Answering(Result())
    worker.session.loaded(key, (model, None))
    worker.said.clear()
    return model


def ran(worker: Loading) -> list[Any]:
    """What is said of a batch."""
    worker.said.clear()
    worker.session.handle(m.LentBatch(1, "net", 1, 1, b""))  # type: ignore[arg-type]
    return list(worker.said)


@pytest.mark.parametrize("shape", [[1] * 65, [-1], [1 << 50]])
def test_an_answer_that_can_not_be_told_fails_its_batch_and_nobody_elses(
    worker: Loading, files: Any, shape: list[int]
) -> None:
    """An answer of rank 33 once took its worker from all models for over a minute."""
    model = answering(worker, files[0])
    model.result.frames = [b"1234"]
    model.result.inline_outputs = [m.ItemOutputs(0, [Tensor(1, shape, 0, 1)])]
    (failed,) = ran(worker)
    assert isinstance(failed, m.BatchFailed)
    assert (failed.batch, failed.code) == (1, Code.MODEL_FAILED)
    assert failed.text.startswith("the answer of 'net' doesn't fit into a message to the broker: ")
    assert codec.worker_to_broker.refusal(failed) == ""
    model.result.inline_outputs = [m.ItemOutputs(0, [Tensor(1, [1], 0, 1)])]
    (done,) = ran(worker)
    assert isinstance(done, m.Done)


def test_that_rows_are_none_is_said_once_and_before_the_batch_that_showed_it(worker: Loading, files: Any) -> None:
    model = answering(worker, files[0])
    (done,) = ran(worker)
    assert isinstance(done, m.Done)
    model.disproved = "output 'y' came out with shape [1]" + " and more" * 1000
    alone, done = ran(worker)
    assert (alone.model, alone.revision) == ("net", 1)
    assert alone.reason.startswith("output 'y' came out with shape [1]")
    assert codec.worker_to_broker.refusal(alone) == ""
    assert isinstance(done, m.Done)
    assert [type(message) for message in ran(worker)] == [m.Done]
    worker.welcome(8)
    worker.load(1, files[0])
    (loaded,) = [message for message in worker.said if isinstance(message, m.Loaded)]
    assert not loaded.batchable, "the next broker is told at once"
