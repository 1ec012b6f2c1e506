"""The load: its schedule, where latency starts, and that no failure is lost. Time is a number here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from statistics import mean, stdev
from typing import Any

import pytest
from batchyard.bench import loops
from batchyard.bench.arrivals import Rate
from batchyard.bench.loops import closed_loop, open_loop, poisson_schedule

MS = 1_000_000


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert poisson_schedule(500, 2, seed=7) == poisson_schedule(500, 2, seed=7)
    assert poisson_schedule(500, 2, seed=7) != poisson_schedule(500, 2, seed=8)


@pytest.mark.parametrize("seed", range(5))
def test_arrivals_are_poisson_at_the_asked_rate(seed: int) -> None:
    schedule_ns = poisson_schedule(1_000, 20, seed)
    assert abs(len(schedule_ns) - 20_000) < 5 * 20_000**0.5  # five standard deviations of the count
    assert schedule_ns == sorted(schedule_ns)
    assert schedule_ns[-1] < 20e9
    gaps_ns = [after - before for before, after in itertools.pairwise(schedule_ns)]
    assert stdev(gaps_ns) / mean(gaps_ns) == pytest.approx(1, abs=0.05)  # exponential, and not a metronome


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="needs a rate"):
        poisson_schedule(rate, 1, seed=1)


def test_a_rate_is_a_number_or_a_share() -> None:
    assert Rate.parse("0.8x") == Rate(0.8, True)
    assert Rate.parse("250") == Rate(250, False)
    for wrong in ("x", "-1", "nan", "infx"):
        with pytest.raises(ValueError):  # noqa: PT011  # float's own text, or ours
            Rate.parse(wrong)


class FakeTime:
    """A clock that moves when somebody sleeps on it."""

    def __init__(self) -> None:
        self.time_ns = 5_000 * MS

    def now_ns(self) -> int:
        return self.time_ns

    def sleep(self, duration_s: float) -> None:
        self.time_ns += max(1, round(duration_s * 1e9))


class FakeServer:
    """Answers every submit after 1 ms; one submit meets a stall in which the sender is held up, too."""

    def __init__(self, clock: FakeTime, stall_at: int | None = None, stall_ns: int = 0) -> None:
        self._clock, self._stall_at, self._stall_ns = clock, stall_at, stall_ns
        self.seen: list[dict[str, Any]] = []

    def infer(self, model: str, x: Any, /, **options: Any) -> Any:
        raise AssertionError("an open loop never waits for an answer")

    def submit(self, model: str, x: Any, /, **options: Any) -> Future[Any]:
        if len(self.seen) == self._stall_at:
            self._clock.time_ns += self._stall_ns
        self.seen.append(options)
        self._clock.time_ns += MS
        future: Future[Any] = Future()
        future.set_result(x)
        return future


def test_a_stall_is_in_the_latency_of_everyone_who_wanted_to_send_meanwhile() -> None:
    clock = FakeTime()
    calm = open_loop(FakeServer(clock), "m", [0], 100, 10, seed=3, warm_up_s=0, clock=clock)
    clock = FakeTime()
    server = FakeServer(clock, stall_at=300, stall_ns=2_000 * MS)
    stalled = open_loop(server, "m", [0], 100, 10, seed=3, warm_up_s=0, clock=clock)

    assert len(stalled.latencies_ns) == len(calm.latencies_ns)
    assert max(calm.latencies_ns) < 20 * MS
    # About 200 arrivals fell into the stall. Timed from their actual sends, one of them would be slow.
    assert sum(latency_ns > 100 * MS for latency_ns in stalled.latencies_ns) > 150
    assert max(stalled.latencies_ns) >= 2_000 * MS
    assert stalled.late_sends > 150
    assert stalled.late_worst_ns > 1_900 * MS


def test_arrivals_of_the_warm_up_are_sent_and_not_counted() -> None:
    clock = FakeTime()
    server = FakeServer(clock)
    measured = open_loop(server, "m", [0], 100, 3, seed=3, warm_up_s=1, clock=clock)
    warm = sum(at_ns < 1_000 * MS for at_ns in poisson_schedule(100, 4, 3))
    assert len(server.seen) == len(measured.latencies_ns) + warm
    assert measured.elapsed_ns == 3_000 * MS


def test_priorities_are_mixed_evenly_and_told_apart() -> None:
    clock = FakeTime()
    server = FakeServer(clock)
    measured = open_loop(
        server, "m", [0], 100, 10, seed=1, priorities=["URGENT", "LOW"], warm_up_s=0, clock=clock
    )
    by_priority = {name: len(latencies) for name, latencies in measured.by_priority_ns.items()}
    assert sum(by_priority.values()) == len(measured.latencies_ns)
    assert by_priority == pytest.approx({"URGENT": 500, "LOW": 500}, rel=0.25)
    assert {options["priority"] for options in server.seen} == {"URGENT", "LOW"}


class _Failing(FakeServer):
    """Refuses every third submit, and fails every third future."""

    def submit(self, model: str, x: Any, /, **options: Any) -> Future[Any]:
        self.seen.append(options)
        if len(self.seen) % 3 == 0:
            raise BlockingIOError("refused")
        future: Future[Any] = Future()
        if len(self.seen) % 3 == 1:
            future.set_exception(TimeoutError("too late"))
        else:
            future.set_result(x)
        return future


def test_an_open_loop_counts_what_failed_and_goes_on() -> None:
    clock = FakeTime()
    server = _Failing(clock)
    measured = open_loop(server, "m", [0], 100, 3, seed=1, warm_up_s=0, clock=clock)
    sent = len(server.seen)
    assert set(measured.errors) == {"BlockingIOError", "TimeoutError"}
    assert sum(measured.errors.values()) + len(measured.latencies_ns) == sent
    assert measured.error_texts["TimeoutError"] == "too late"


class _Silent(FakeServer):
    """Takes everything and never answers."""

    def submit(self, model: str, x: Any, /, **options: Any) -> Future[Any]:
        self.seen.append(options)
        return Future()


def test_requests_without_an_outcome_are_errors() -> None:
    clock = FakeTime()
    server = _Silent(clock)
    measured = open_loop(server, "m", [0], 10, 1, seed=1, warm_up_s=0, clock=clock)
    assert measured.errors == {loops.UNANSWERED: len(server.seen)}


class _Answering:
    """A client whose answers come when `answer` says so, in the thread that asks for it."""

    def __init__(self, outcome: Callable[[int], Any]) -> None:
        self._outcome, self.asked, self.open, self.most_open = outcome, 0, 0, 0

    def infer(self, model: str, x: Any, /, **options: Any) -> Any:
        self.asked += 1
        outcome = self._outcome(self.asked)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def submit(self, model: str, x: Any, /, **options: Any) -> Future[Any]:
        from threading import Timer

        self.asked += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        outcome = self._outcome(self.asked)
        future: Future[Any] = Future()

        def answer() -> None:
            self.open -= 1
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        Timer(0.001, answer).start()
        return future


def test_one_in_flight_uses_infer_and_counts_each_answer() -> None:
    client = _Answering(lambda index: TimeoutError("odd") if index % 2 else index)
    measured = closed_loop(client, "m", [0], 1, 0.02, warm_up_s=0)
    assert measured.latencies_ns
    assert len(measured.latencies_ns) + measured.errors["TimeoutError"] == client.asked
    assert client.most_open == 0


def test_a_window_stays_full_and_drains() -> None:
    client = _Answering(lambda index: index)
    measured = closed_loop(client, "m", [0], 4, 0.1, warm_up_s=0.01)
    assert client.most_open == 4
    assert client.open == 0
    assert 4 < len(measured.latencies_ns) < client.asked
    assert measured.elapsed_ns == pytest.approx(0.1e9)
    assert not measured.errors


def test_a_window_in_which_everything_fails_ends_and_says_so() -> None:
    client = _Answering(lambda index: RuntimeError("broken"))
    measured = closed_loop(client, "m", [0], 4, 0.1, warm_up_s=0)
    assert not measured.latencies_ns
    assert measured.errors["RuntimeError"] == client.asked
    assert client.asked <= 4 * (0.1 / loops.WATCH_S + 2)  # asked again at a bounded rate
