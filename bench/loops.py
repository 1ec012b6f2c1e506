"""The load: a closed loop (a window of requests in flight) and an open loop (arrivals on a schedule).

Owns when a request is sent and what is counted as its latency. It sees a client only through
`Client` below, so that a test can stand in for it; it prints nothing and starts no process.

The two loops answer different questions. A closed loop asks how fast the yard can go: the next
request waits for an answer, so a stall delays the load too, and hides itself. An open loop asks what
a user would feel: arrivals don't wait. There, latency counts from the *intended* send time. Counting
from the actual one would forgive every stall that also held back the sender, which is "coordinated
omission" (Gil Tene, "How NOT to Measure Latency", 2013; wrk2 and HdrHistogram correct the same way).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np

from .statistics import Measured

WARM_UP_S = 0.05
DRAIN_S = 30.0  # the patience with what is still in flight after the last send
WATCH_S = 0.02  # how often the watching thread looks: rarely, since it takes the GIL from the I/O thread
LATE_NS = 1_000_000  # a send this much after its intended time counts as late
UNANSWERED = "Unanswered"  # counted in `errors`: no outcome at all within DRAIN_S


class Future(Protocol):
    """What a loop needs of a `concurrent.futures.Future`."""

    def result(self, timeout: float | None = None) -> Any: ...
    def add_done_callback(self, fn: Callable[[Any], None], /) -> None: ...


class Client(Protocol):
    """What a loop needs of a `batchyard.Client`."""

    def infer(self, model: str, x: Any, /, **options: Any) -> Any: ...
    def submit(self, model: str, x: Any, /, **options: Any) -> Future: ...
    def map(self, model: str, inputs: Iterable[Any], /, **options: Any) -> Iterator[Any]: ...


class Clock(Protocol):
    """What the open loop needs of time; a test has one of its own."""

    def now_ns(self) -> int: ...
    def sleep(self, duration_s: float) -> None: ...


class WallClock:
    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)


def closed_loop(
    client: Client,
    model: str,
    inputs: Sequence[Any],
    in_flight: int,
    duration_s: float,
    *,
    warm_up_s: float = WARM_UP_S,
) -> Measured:
    """Keep `in_flight` requests under way for `duration_s`; each answer sends the next request.

    One in flight is `infer` on the calling thread. More are `submit`s whose done-callbacks submit
    again, on the client's I/O thread, so that what one answer message completes leaves as one message
    again. `inputs` are used in turn. Requests that end during warm-up or drain are not counted.
    """
    if in_flight == 1:
        return _one_in_flight(client, model, inputs, duration_s, warm_up_s)
    return _Window(client, model, inputs, in_flight, duration_s, warm_up_s).run()


def mapped_loop(
    client: Client,
    model: str,
    inputs: Sequence[Any],
    in_flight: int,
    duration_s: float,
    *,
    warm_up_s: float = WARM_UP_S,
) -> Measured:
    """`map` with a window of `in_flight` for `duration_s`: the same load as `closed_loop`, without futures.

    A latency counts from the moment at which `map` takes the input to the one at which it hands the
    result out, in order.
    """
    measured = Measured()
    record = measured.latencies_ns.append
    from_ns = time.perf_counter_ns() + int(warm_up_s * 1e9)
    until_ns = from_ns + int(duration_s * 1e9)
    started_ns: deque[int] = deque()

    def source() -> Iterator[Any]:
        for x in cycle(inputs):
            now_ns = time.perf_counter_ns()
            if now_ns >= until_ns:
                return
            started_ns.append(now_ns)
            yield x

    try:
        for _ in client.map(model, source(), window=in_flight):
            ended_ns = time.perf_counter_ns()
            taken_ns = started_ns.popleft()
            if from_ns <= ended_ns < until_ns:
                record(ended_ns - taken_ns)
    except Exception as error:
        measured.failed(error)
    measured.elapsed_ns = until_ns - from_ns
    return measured


def _one_in_flight(
    client: Client, model: str, inputs: Sequence[Any], duration_s: float, warm_up_s: float
) -> Measured:
    measured = Measured()
    record = measured.latencies_ns.append
    turn = cycle(inputs)
    now_ns = time.perf_counter_ns
    from_ns = now_ns() + int(warm_up_s * 1e9)
    until_ns = from_ns + int(duration_s * 1e9)
    ended_ns = first_ns = 0
    while ended_ns < until_ns:
        x = next(turn)
        started_ns = now_ns()
        try:
            client.infer(model, x)
        except Exception as error:
            measured.failed(error)
            ended_ns = now_ns()
            continue
        ended_ns = now_ns()
        if started_ns >= from_ns:
            first_ns = first_ns or started_ns
            record(ended_ns - started_ns)
    measured.elapsed_ns = ended_ns - (first_ns or from_ns)
    return measured


class _Window:
    """A window of requests, each a track of its own: its answer sends its next request.

    A track that meets an error stops and is started again by the watching thread, so a yard that
    refuses everything is asked at a bounded rate, and no callback calls itself forever.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        inputs: Sequence[Any],
        in_flight: int,
        duration_s: float,
        warm_up_s: float,
    ) -> None:
        self._submit = partial(client.submit, model)
        self._turn: Iterator[Any] = cycle(inputs)
        self._in_flight = in_flight
        self._duration_ns = int(duration_s * 1e9)
        self._warm_up_ns = int(warm_up_s * 1e9)
        self._from_ns = 0
        self._until_ns = 0
        # Appended to and popped from by two threads; both are atomic on a list.
        self._stopped_tracks: list[None] = [None] * in_flight
        self._measured = Measured()

    def run(self) -> Measured:
        self._from_ns = time.perf_counter_ns() + self._warm_up_ns
        self._until_ns = self._from_ns + self._duration_ns
        while (remaining_ns := self._until_ns - time.perf_counter_ns()) > 0:
            for _ in range(len(self._stopped_tracks)):
                self._stopped_tracks.pop()
                self._send()
            time.sleep(min(WATCH_S, remaining_ns / 1e9))
        give_up_ns = time.perf_counter_ns() + int(DRAIN_S * 1e9)
        while len(self._stopped_tracks) < self._in_flight and time.perf_counter_ns() < give_up_ns:
            time.sleep(0.001)
        unanswered = self._in_flight - len(self._stopped_tracks)
        if unanswered:
            self._measured.errors[UNANSWERED] += unanswered
        self._measured.elapsed_ns = self._duration_ns
        return self._measured

    def _send(self) -> None:
        started_ns = time.perf_counter_ns()
        try:
            future = self._submit(next(self._turn))
        except Exception as error:
            self._measured.failed(error)
            self._stopped_tracks.append(None)
            return
        future.add_done_callback(partial(self._ended, started_ns))

    def _ended(self, started_ns: int, future: Future) -> None:
        ended_ns = time.perf_counter_ns()
        try:
            future.result()
        except Exception as error:
            self._measured.failed(error)
            self._stopped_tracks.append(None)
            return
        if ended_ns >= self._until_ns:
            self._stopped_tracks.append(None)
            return
        if ended_ns >= self._from_ns:
            self._measured.latencies_ns.append(ended_ns - started_ns)
        self._send()


def poisson_schedule(rate_per_s: float, duration_s: float, seed: int) -> list[int]:
    """Arrival times in ns from the start, exponentially spaced; the same seed gives the same arrivals."""
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError(f"an open loop needs a rate and a duration, not {rate_per_s}/s for {duration_s} s")
    random = np.random.default_rng(seed)
    arrivals_s = np.empty(0)
    block = int(rate_per_s * duration_s) + 16
    while not arrivals_s.size or arrivals_s[-1] < duration_s:
        last_s = arrivals_s[-1] if arrivals_s.size else 0.0
        gaps_s = random.exponential(1 / rate_per_s, block)
        arrivals_s = np.concatenate([arrivals_s, last_s + np.cumsum(gaps_s)])
    return [int(at_s * 1e9) for at_s in arrivals_s[arrivals_s < duration_s]]


class Send(NamedTuple):
    """One request of a schedule: when from the start, and how."""

    at_ns: int
    priority: Any = None
    deadline_s: float | None = None


def open_loop(
    client: Client,
    model: str,
    inputs: Sequence[Any],
    rate_per_s: float,
    duration_s: float,
    seed: int,
    *,
    priorities: Sequence[Any] = (),
    warm_up_s: float = 0.5,
    clock: Clock | None = None,
) -> Measured:
    """Send on a Poisson schedule, whatever the answers do; latency counts from the intended send time.

    `priorities`, when given, are drawn evenly from the same seed. Arrivals of the first `warm_up_s` are sent
    and not counted; `duration_s` comes on top.
    """
    schedule_ns = poisson_schedule(rate_per_s, warm_up_s + duration_s, seed)
    draws = np.random.default_rng([seed, 1]).integers(0, max(1, len(priorities)), len(schedule_ns))
    sends = [
        Send(at_ns, priorities[draw] if priorities else None)
        for at_ns, draw in zip(schedule_ns, draws, strict=True)
    ]
    return scheduled_loop(client, model, inputs, sends, duration_s, warm_up_s=warm_up_s, clock=clock)


def scheduled_loop(
    client: Client,
    model: str,
    inputs: Sequence[Any],
    sends: Sequence[Send],
    duration_s: float,
    *,
    warm_up_s: float = 0.5,
    clock: Clock | None = None,
) -> Measured:
    """Send when the schedule says, whatever the answers do; latency counts from then.

    Each priority gets its own latencies in `by_priority_ns`. A send that left more than LATE_NS after its
    time is counted in `late_sends`: many of them mean that the sender, or the arena that it waits for, is the
    limit and not the yard.
    """
    clock = clock or WallClock()
    measured = Measured()
    ended: list[None] = []
    turn = cycle(inputs)
    warm_up_ns = int(warm_up_s * 1e9)
    start_ns = clock.now_ns()

    def on_done(intended_ns: int, priority: Any, future: Future) -> None:
        ended_ns = clock.now_ns()
        try:
            future.result()
        except Exception as error:
            measured.failed(error)
        else:
            if intended_ns >= start_ns + warm_up_ns:
                measured.latencies_ns.append(ended_ns - intended_ns)
                if priority is not None:
                    name = getattr(priority, "name", str(priority))
                    measured.by_priority_ns.setdefault(name, []).append(ended_ns - intended_ns)
        ended.append(None)

    for offset_ns, priority, deadline_s in sends:
        intended_ns = start_ns + offset_ns
        # Plain sleep, no spinning: on a small machine a spinning sender would take the yard's core. What
        # the sleep overshoots (about 60 us) is inside the latency, as it would be for a real user.
        while (early_ns := intended_ns - clock.now_ns()) > 0:
            clock.sleep(early_ns / 1e9)
        if -early_ns > LATE_NS and offset_ns >= warm_up_ns:
            measured.late_sends += 1
            measured.late_worst_ns = max(measured.late_worst_ns, -early_ns)
        options = {} if priority is None else {"priority": priority}
        if deadline_s is not None:
            options["deadline"] = deadline_s
        try:
            future = client.submit(model, next(turn), **options)
        except Exception as error:
            measured.failed(error)
            ended.append(None)
            continue
        future.add_done_callback(partial(on_done, intended_ns, priority))

    give_up_ns = clock.now_ns() + int(DRAIN_S * 1e9)
    while len(ended) < len(sends) and clock.now_ns() < give_up_ns:
        clock.sleep(0.001)
    if len(ended) < len(sends):
        measured.errors[UNANSWERED] += len(sends) - len(ended)
    measured.elapsed_ns = int(duration_s * 1e9)
    return measured
