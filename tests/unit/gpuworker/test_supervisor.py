"""The supervisor's loop, with processes that end as they are told to: who is started, after what, and where
it stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from batchyard.gpuworker import supervisor
from batchyard.gpuworker.ladder import Ladder
from batchyard.gpuworker.probe import Probed
from batchyard.gpuworker.supervisor import POLL_S, Supervisor
from batchyard.transport.errors import BatchyardError
from batchyard.transport.processes import DELAY_FIRST_S

LOST = 5  # the status of a child whose device is lost
FOR_EVER_NS = 1 << 62


class Child:
    """What the supervisor uses of a ChildProcess."""

    started: ClassVar[list[Child]] = []
    sentinel = None

    def __init__(self, command: list[str], name: str) -> None:
        self.provider = command[command.index("--provider") + 1]
        self.fallen = command[command.index("--fallback-reason") + 1]
        self.pid = 1000 + len(self.started)
        self.status: int | None = None
        self.asked: list[int] = []  # signals

    def start(self) -> None:
        self.started.append(self)

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.status = -15 if self.status is None else self.status


class Probe:
    """What the supervisor uses of a Probe."""

    begun: ClassVar[list[Probe]] = []

    def __init__(self, provider: str, device: int | None, worker: int, now_s: float) -> None:
        self.provider = provider
        self.found: Probed | None = None
        self.closed = False
        self.begun.append(self)

    def poll(self, now_s: float) -> Probed | None:
        return self.found

    def close(self) -> None:
        self.closed = True


class Stop:
    """The event that ends the loop: every wait for it is where the next step of a test happens."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = iter(steps)
        self.waits: list[float] = []

    def wait(self, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        step = next(self._steps, None)
        if step is not None:
            step()
        return step is None


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervisor, "ChildProcess", Child)
    monkeypatch.setattr(supervisor, "Probe", Probe)

    def kill(pid: int, number: int) -> None:
        Child.started[pid - 1000].asked.append(number)

    monkeypatch.setattr(os, "kill", kill)
    Child.started.clear()
    Probe.begun.clear()
    yield
    assert all(child.status is not None for child in Child.started), "a child is left"
    assert all(probe.closed or probe.found for probe in Probe.begun), "a probe is left"


def run(stop: Stop, ladder: Ladder | None = None, insist: bool = False) -> list[str]:
    """The providers of the children that were started."""
    event: Any = stop
    Supervisor(ladder or Ladder(["cpu"]), [], event, insist).run()
    return [child.provider for child in Child.started]


def ends(status: int) -> Callable[[], object]:
    return lambda: setattr(Child.started[-1], "status", status)


def finds(works: bool) -> Callable[[], object]:
    return lambda: setattr(Probe.begun[-1], "found", Probed(works, text="as told"))


def nothing() -> None:
    """Happens."""


def quarantined(until_ns: int) -> Ladder:
    """A ladder whose best provider is in quarantine until then."""
    ladder = Ladder(["webgpu", "cpu"], quarantine_ns=FOR_EVER_NS)
    ladder._quarantine["webgpu"] = (until_ns, "its device was lost")
    return ladder


@pytest.mark.parametrize("status", [0, 1, LOST, -9], ids=str)
def test_a_child_that_ends_without_being_asked_is_started_again_after_a_delay(status: int) -> None:
    stop = Stop(ends(status), nothing)
    assert run(stop) == ["cpu", "cpu"]
    assert stop.waits[1] >= DELAY_FIRST_S, "also where user code has ended it with status 0"


def test_what_is_told_to_stop_while_it_waits_starts_no_child() -> None:
    assert run(Stop(ends(1))) == ["cpu"]


def test_what_is_told_to_stop_while_it_probes_starts_no_child_and_ends_the_probe() -> None:
    assert run(Stop(nothing), Ladder(["webgpu", "cpu"])) == []
    assert [probe.closed for probe in Probe.begun] == [True]


def test_a_provider_whose_probe_fails_is_passed_over_and_its_reason_told() -> None:
    assert run(Stop(finds(False)), Ladder(["webgpu", "cpu"])) == ["cpu"]
    assert Child.started[0].fallen == "webgpu does not work here: as told"


def test_a_provider_that_was_asked_for_must_work_at_the_start() -> None:
    with pytest.raises(BatchyardError, match="webgpu was asked for and does not work here: as told"):
        run(Stop(finds(False)), Ladder(["webgpu", "cpu"]), insist=True)
    assert Child.started == []


@pytest.mark.parametrize("insist", [False, True])
def test_two_strikes_take_a_worker_down_also_from_what_was_asked_for(insist: bool) -> None:
    strikes = [ends(LOST), nothing, ends(LOST), nothing]
    assert run(Stop(finds(True), *strikes), Ladder(["webgpu", "cpu"]), insist) == ["webgpu", "webgpu", "cpu"]
    assert "webgpu is in quarantine" in Child.started[-1].fallen


def test_when_the_quarantine_is_over_a_child_is_asked_to_leave_for_what_works() -> None:
    ladder = quarantined(FOR_EVER_NS)

    def is_over() -> None:
        ladder._quarantine["webgpu"] = (0, "")

    stop = Stop(is_over, finds(True), nothing, nothing, ends(0), nothing)
    assert run(stop, ladder) == ["cpu", "webgpu"]
    assert Child.started[0].asked == [supervisor.LEAVE_SIGNAL], "once"
    assert stop.waits == [POLL_S] * len(stop.waits), "nobody waits for a child that left"
    assert Child.started[1].fallen == ""


def test_what_does_not_work_after_its_quarantine_is_in_it_again_and_the_child_stays() -> None:
    assert run(Stop(finds(False), nothing), quarantined(0)) == ["cpu"]
    assert "in quarantine" in Child.started[0].fallen


def test_a_child_that_dies_while_a_better_provider_is_probed_ends_that_probe() -> None:
    ladder = quarantined(FOR_EVER_NS)

    def is_over() -> None:
        ladder._quarantine["webgpu"] = (0, "")

    def is_not() -> None:
        ends(1)()
        ladder._quarantine["webgpu"] = (FOR_EVER_NS, "")

    assert run(Stop(is_over, is_not, nothing), ladder) == ["cpu", "cpu"]
    assert [probe.closed for probe in Probe.begun] == [True]
