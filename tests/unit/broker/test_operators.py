"""The operators' side of the broker over a wire that only pretends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from batchyard.broker import events as e
from batchyard.broker import operators as room
from batchyard.broker.config import ModelConfig, YardConfig
from batchyard.broker.core import Core
from batchyard.broker.operators import Operators
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import Code
from batchyard.transport.tensors import TensorSpec
from batchyard.transport.wire import Ended

from .wires import FakeListener, FakePeer


class Operator(FakePeer):
    """An operator; what it is told is noted with all that is told."""

    def __init__(self, name: str, said: list[tuple[Operator, Any]]) -> None:
        super().__init__()
        self.name = name
        self.said = said

    def __repr__(self) -> str:
        return self.name

    def send(self, parts: Sequence[Any]) -> None:
        if self.ended:
            raise Ended("gone")
        self.said += [(self, message) for message in codec.broker_to_admin.decode(parts[0])]


SAID: list[tuple[Operator, Any]] = []
ONE, OTHER = Operator("one", SAID), Operator("other", SAID)


class Office:
    """A broker with one worker that serves `net`, and operators."""

    def __init__(self, folder: Path) -> None:
        for name in ("net.onnx", "new.onnx"):
            (folder / name).write_bytes(b"")
        net = ModelConfig("net", folder / "net.onnx", 4, file="net.onnx")
        self.config = config = YardConfig({"net": net}, models_root=folder, max_batch=16)
        self.core = Core(config, 1, 2)
        self.listener = FakeListener()
        SAID.clear()
        ONE.ended = OTHER.ended = False
        self.orders: list[Any] = []  # Loads that the worker was told of
        self.admin = Operators(self.listener, self.core.models, self.core.counters, config)
        self.act(self.core.handle(e.WorkerJoined(1, 5), 0))
        self.loaded("net", 1)
        self.orders.clear()

    def act(self, actions: list[e.Action]) -> None:
        for action in actions:
            if isinstance(action, e.ToAdmin):
                self.admin.write(action)
            elif isinstance(action, e.ToWorker) and isinstance(action.message, m.Load):
                self.orders.append(action.message)

    def loaded(self, model: str, revision: int) -> None:
        spec = [TensorSpec("x", 1, ["n", 4])]
        message = m.Loaded(model, revision, spec, spec, True, "", 4, "cpu", "CPU", {})
        self.act(self.core.handle(e.WorkerSaid(1, message), 0))

    def hear(self, who: Operator, *messages: Any) -> list[tuple[Operator, Any]]:
        """What is said at once when an operator sends these."""
        return self.hear_bytes(who, codec.encode(list(messages)))

    def look(self) -> None:
        """As the loop does."""
        for event in self.admin.read(0):
            if isinstance(event, e.SnapshotAsked):
                self.admin.answer(event.admin, codec.encode([m.SnapshotTaken({"pid": 2})]))
            else:
                self.act(self.core.handle(event, 0))

    def hear_bytes(self, who: Operator, *frames: bytes) -> list[tuple[Operator, Any]]:
        self.listener.arrivals.append((who, list(frames)))
        self.look()
        said = list(SAID)
        SAID.clear()
        return said

    def refused(self) -> dict[str, int]:
        return dict(self.core.counters.snapshot()["refused"])


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_question_is_answered_at_once(office: Office) -> None:
    assert office.hear(ONE, m.Snapshot()) == [(ONE, m.SnapshotTaken({"pid": 2}))]


def test_an_operator_that_knows_no_secret_is_refused_whole_and_stays_a_stranger(office: Office) -> None:
    office.admin = Operators(office.listener, office.core.models, office.core.counters, office.config, "5ec")
    for messages in ([m.Snapshot()], [m.Snapshot("5ec"), m.UnloadModel("net")], [m.UnloadModel("net", "sesam")]):
        ((_, answer),) = office.hear(ONE, *messages)
        assert answer.code == Code.UNAUTHORIZED
    assert office.listener.admitted == []
    assert office.refused() == {"admin_unauthorized": 3}
    assert office.hear(ONE, m.Snapshot("5ec")) == [(ONE, m.SnapshotTaken({"pid": 2}))]
    assert office.listener.admitted == [ONE]


@pytest.mark.parametrize(
    "frames", [[b""], [b"\xc1"], [b"garbage", b"and more"], [codec.encode([m.Snapshot()])[:-1]]]
)
def test_what_is_no_message_is_counted_and_refused(office: Office, frames: list[bytes]) -> None:
    ((who, answer),) = office.hear_bytes(ONE, *frames)
    assert (who, type(answer), answer.code) == (ONE, m.Refused, Code.INVALID_REQUEST)
    assert office.refused()["admin_malformed"] == 1


def test_another_version_is_told_so(office: Office) -> None:
    ((_, answer),) = office.hear_bytes(ONE, b"\x92\x63" + codec.encode([m.Snapshot()])[2:])
    assert answer.code == Code.WRONG_VERSION


def test_every_order_of_one_message_is_answered(office: Office) -> None:
    said = office.hear(
        ONE,
        m.SwapModel("nobody", ""),
        m.LoadModel("b", "nowhere.onnx"),
        m.Snapshot(),
        m.LoadModel("c", "new.onnx"),
    )
    assert [type(answer).__name__ for _, answer in said] == ["Refused", "Refused", "SnapshotTaken"]
    assert [answer.code for _, answer in said[:2]] == [Code.UNKNOWN_MODEL, Code.INVALID_REQUEST]
    assert office.refused()["admin_refused"] == 2
    office.loaded("c", 1)
    assert [(ONE, m.ModelChanged("c", 1))] == SAID


def test_answers_go_to_who_asked_in_the_order_in_which_they_come_true(office: Office) -> None:
    assert office.hear(ONE, m.LoadModel("b", "new.onnx")) == []
    assert office.hear(OTHER, m.LoadModel("c", "new.onnx")) == []
    office.loaded("c", 1)
    office.loaded("b", 1)
    assert [(OTHER, m.ModelChanged("c", 1)), (ONE, m.ModelChanged("b", 1))] == SAID


def test_a_model_that_is_loaded_gets_the_yards_maximum_unless_another_is_asked_for(
    office: Office, tmp_path: Path
) -> None:
    office.hear(ONE, m.LoadModel("b", "new.onnx"), m.LoadModel("c", "new.onnx", 3))
    assert [(load.model, load.max_batch) for load in office.orders] == [("b", 16), ("c", 3)]
    assert {load.path for load in office.orders} == {str((tmp_path / "new.onnx").resolve())}


def test_a_swap_keeps_what_the_configuration_says_of_the_model(office: Office, tmp_path: Path) -> None:
    office.hear(ONE, m.SwapModel("net", "new.onnx", 0.5))
    (load,) = office.orders
    assert load == m.Load("net", 2, str((tmp_path / "new.onnx").resolve()), 4, None, True, [], 1, 0.5)
    office.loaded("net", 2)
    office.hear(ONE, m.SwapModel("net", ""))
    assert office.orders[-1].path == load.path, "read anew is what was swapped in"


def test_how_long_a_run_may_take_is_told_with_an_order_or_stays_as_it_was(office: Office) -> None:
    limits = []
    orders = [m.LoadModel("b", "new.onnx", None, 5), m.LoadModel("c", "new.onnx")]
    orders += [m.SwapModel("net", "", None, 7), m.SwapModel("net", ""), m.SwapModel("net", "", None, 0)]
    for order in orders:
        office.hear(ONE, order)
        load = office.orders[-1]
        office.loaded(load.model, load.revision)
        limits.append(office.core.models[load.model].config.run_ns_max)
    assert limits == [5, 0, 7, 7, 0]


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(office: Office, tolerance: float) -> None:
    ((_, answer),) = office.hear(ONE, m.SwapModel("net", "", tolerance))
    assert isinstance(answer, m.Refused)
    assert office.orders == []


def test_a_name_that_is_a_path_is_refused(office: Office) -> None:
    ((_, answer),) = office.hear(ONE, m.LoadModel("../net", "new.onnx"))
    assert (answer.code, "expected a name of 1 to 255 letters" in answer.text) == (Code.INVALID_REQUEST, True)


def test_too_many_orders_at_once_are_refused_and_questions_are_not(office: Office) -> None:
    orders = [m.LoadModel(f"m{number}", "new.onnx") for number in range(room.ORDERS_MAX)]
    for start in range(0, len(orders), room.QUESTIONS_MAX):
        assert office.hear(ONE, *orders[start : start + room.QUESTIONS_MAX]) == []
    (refused, answered) = office.hear(OTHER, m.UnloadModel("net"), m.Snapshot())
    assert (refused[0], refused[1].code) == (OTHER, Code.OVERLOADED)
    assert isinstance(answered[1], m.SnapshotTaken)
    office.loaded("m0", 1)
    SAID.clear()
    assert office.hear(OTHER, m.UnloadModel("net")) == [(OTHER, m.ModelChanged("net", 1))]


def test_the_order_of_somebody_who_has_gone_is_carried_out_all_the_same(office: Office) -> None:
    office.hear(ONE, m.LoadModel("b", "new.onnx"))
    ONE.ended = True
    office.loaded("b", 1)
    assert "b" in office.core.models
    assert SAID == []
    assert office.refused()["admin_unreachable"] == 1


def test_a_flood_is_read_a_little_at_a_time(office: Office) -> None:
    office.listener.arrivals.extend((ONE, [codec.encode([m.Snapshot()])]) for _ in range(room.ANSWERS_MAX + 3))
    office.look()
    assert len(SAID) == room.ANSWERS_MAX
    office.look()
    assert len(SAID) == room.ANSWERS_MAX + 3
