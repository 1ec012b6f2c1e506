"""A signal's handler may raise at any instruction of an event loop's callbacks, and more than once: no call outlives
its timeout for it, and whoever waits is told once. The loop's clock is ours, and the broker never answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from batchyard.client import session
from batchyard.client.loop import GUARD_S, GUARDS, LoopLink
from batchyard.client.request import Request
from batchyard.client.session import Sessions, Settings
from batchyard.tests.striking import CLIENT, CutOff, struck
from batchyard.transport import codec
from batchyard.transport import messages as m
from batchyard.transport.errors import BatchyardError

TIMEOUT_NS = 250_000_000
FOREVER_NS = 10_000_000_000


class Clock:
    """Passes when the loop sleeps."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.on_forever: Callable[[], object] = lambda: None

    def monotonic_ns(self) -> int:
        return self.now_ns

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_ns += 1_000 if timeout is None else int(timeout * 1e9) + 1_000
        if timeout is None or self.now_ns > FOREVER_NS:  # nothing is planned any more
            self.on_forever()
        return []

    def close(self) -> None:
        pass

    def get_map(self) -> dict[int, Any]:
        return {}


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        clock.on_forever = self.stop
        super().__init__(clock)  # type: ignore[arg-type]
        self.set_exception_handler(lambda *_: None)  # of CutOff

    def time(self) -> float:
        return self.clock.now_ns / 1e9

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass


class Silent:
    """A connection on which the broker welcomes, and then says nothing."""

    undelivered = lends = False
    blocked_on = None
    watched = ()

    def __init__(self, *_: Any) -> None:
        self.script = [[codec.encode([m.Welcome(7, 1 << 20)])]]

    def receive(self, timeout_ms: int) -> Any:
        return self.script.pop() if self.script else None

    def send(self, parts: Any) -> None:
        pass

    connect = __init__

    def close(self) -> None:
        pass


class Carrier:
    def connect(self, *_: Any) -> Silent:
        return Silent()

    def close(self) -> None:
        pass


class Call:
    """A question on a loop of its own; `outcomes`: what it was told, and how late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(session, "carrier", lambda *_: Carrier())
        monkeypatch.setattr(time, "monotonic_ns", self.clock.monotonic_ns)
        self.loop = Loop(self.clock)
        self.link = LoopLink(Sessions(Settings("tcp://127.0.0.1:7070", None, None, "frames", 5.0)), self.loop)
        self.due_ns = self.clock.now_ns + TIMEOUT_NS
        self.outcomes: list[tuple[Any, float]] = []
        question = Request("", None, 0, 0, self.due_ns, self.clock.now_ns)
        question.is_question = True
        self.link.start(question, self.ended)

    def ended(self, outcome: Any) -> None:
        self.outcomes.append((outcome, (self.clock.now_ns - self.due_ns) / 1e9))
        self.loop.call_later(GUARDS * GUARD_S, self.loop.stop)

    def late_s(self) -> float:
        """How late the one outcome came."""
        ((outcome, late_s),) = self.outcomes
        assert isinstance(outcome, BatchyardError)
        return late_s


def test_a_call_whose_callbacks_are_struck_at_any_instruction_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    instruction, is_within = 0, True
    while is_within:
        instruction += 1
        call = Call(monkeypatch)
        is_within = struck(call.loop.run_forever, instruction, CLIENT)
        assert call.late_s() < 2 * GUARD_S, instruction
        call.loop.close()
    assert instruction > 100


@pytest.mark.parametrize("lost", range(1, GUARDS))
@pytest.mark.parametrize("before", range(6))
def test_looks_that_are_lost_one_after_the_other_cost_a_call_no_more_than_their_time(
    before: int, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loop is about to call them: nothing of ours has run."""
    left = [before, lost]

    def striking(callback: Callable[[LoopLink], None]) -> Callable[[LoopLink], None]:
        def called(link: LoopLink) -> None:
            if left[0]:
                left[0] -= 1
            elif left[1]:
                left[1] -= 1
                raise CutOff
            callback(link)

        return called

    for name in ("_tick", "_look_after"):
        monkeypatch.setattr(LoopLink, name, striking(getattr(LoopLink, name)))
    call = Call(monkeypatch)
    call.loop.run_forever()
    assert call.late_s() < (lost + 1) * GUARD_S
    call.loop.close()
