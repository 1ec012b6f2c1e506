"""What became of every call of a client's life: whether its answer was right, and whether it came in time.

Lateness is judged beside a control in the same process: a plain thread that sleeps for 5 ms again and again, and
knows when it was woken late. It also reads how long threads of this process were ready to run and had no core
(the kernel's schedstat).
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import traceback
from collections import Counter, deque
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
from batchyard.tests.striking import same

TIMEOUTS_S = (0.05, 0.3, 2.0, 10.0)
ROWS = (1, 3, 16, 256)
LATE_NS = 50_000_000  # promised
CONTROL_S = 0.005
CONTROL_SHARE = 2  # an answer needs two threads to be woken; the control is one
TYPED = ("DeadlineExceeded", "Overloaded", "BrokerLost", "WorkerLost", "ArenaExhausted")


class CutOff(Exception):
    """Raised by a signal's handler, at any instruction."""


class Control:
    """Something that sleeps, and when it was woken late: a thread, or a task of an event loop."""

    def __init__(self) -> None:
        self.stalls: deque[tuple[int, int]] = deque(maxlen=20_000)
        self.queued: deque[tuple[int, int]] = deque(maxlen=20_000)  # when, and how long they had no core so far
        self.worst_ns = self._due_ns = self._woke_ns = 0

    def run(self) -> None:
        while True:
            self._sleeps()
            time.sleep(CONTROL_S)
            self.queued.append((self._woken(), _queued_ns()))

    async def beat(self, life: Life) -> None:
        while True:
            self._sleeps()
            await asyncio.sleep(CONTROL_S)
            since_ns, now_ns = self._due_ns, self._woken()
            life.judge("the event loop stood still", since_ns, now_ns, life.control)

    def _sleeps(self) -> None:
        # From when it last woke: a process is also stopped while its control does not sleep.
        self._due_ns = (self._woke_ns or time.monotonic_ns()) + int(CONTROL_S * 1e9)

    def _woken(self) -> int:
        now_ns = self._woke_ns = time.monotonic_ns()
        self.worst_ns = max(self.worst_ns, now_ns - self._due_ns)
        if now_ns - self._due_ns > 1_000_000:
            self.stalls.append((self._due_ns, now_ns))
        return now_ns

    def stalled_ns(self, since_ns: int, until_ns: int) -> int:
        """For how much of this time it was due and had not been woken."""
        total_ns = max(0, until_ns - max(self._due_ns, since_ns))
        for at_ns, to_ns in reversed(self.stalls.copy()):
            if to_ns <= since_ns:
                break
            total_ns += max(0, min(to_ns, until_ns) - max(at_ns, since_ns))
        return total_ns

    def queued_ns(self, since_ns: int) -> int:
        """For how long threads of this process had no core since then, all of them together."""
        before_ns = next((queued_ns for at_ns, queued_ns in reversed(self.queued.copy()) if at_ns < since_ns), 0)
        return max(0, _queued_ns() - before_ns)  # threads end, and take their figures along


def _queued_ns() -> int:
    total_ns = 0
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat") as file:
                total_ns += int(file.read().split()[1])
        except OSError:
            pass  # it has ended
    return total_ns


class Life:
    """What became of every call."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.texts: list[str] = []
        self.late_ns = self.beyond_ns = self.grace_ns = 0
        self.control = Control()
        self.beat: Control | None = None  # of the event loop, if there is one
        threading.Thread(target=self.control.run, daemon=True).start()
        self.callbacks: list[list[int]] = []  # how often each future's was called

    def draw(self) -> tuple[dict[str, Any], float]:
        """Inputs that no other call has, and a timeout."""
        number = random.random()
        rows = random.choice(ROWS)
        timeout_s = random.choice(TIMEOUTS_S)
        return {"x": np.full((rows, 64), number, np.float32), "state": np.full((rows, 64), 1, np.float32)}, timeout_s

    def fault(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        if len(self.texts) < 5:
            self.texts.append(f"{kind}: {text}"[:1500])

    def check(self, name: str, inputs: dict[str, Any], answer: Any) -> None:
        x = inputs["x"]
        if same(answer["y"], x + inputs["state"]) and same(answer["stateN"], -x):
            self.outcomes["right"] += 1
        else:
            self.fault("wrong", f"{name}: {answer['y'][:1, :3]} for {x[:1, :3]}")

    def in_a_callback(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, CutOff) or type(error).__name__ in TYPED:  # of a task that nobody could await
            self.outcomes["cut off in a callback"] += 1
        elif error is not None:
            self.fault("unexpected", "in a callback: " + "".join(traceback.format_exception(error))[-1200:])

    def judge(self, name: str, due_ns: int, now_ns: int, control: Control) -> None:
        """Was it in time, where the control would have been?"""
        late_ns = now_ns - due_ns
        if late_ns <= 0:
            return
        stalled_ns = control.stalled_ns(due_ns - LATE_NS, now_ns)
        beyond_ns = late_ns - CONTROL_SHARE * stalled_ns - self.grace_ns
        queued_ns = 0
        if beyond_ns > LATE_NS // 2:
            queued_ns = self.control.queued_ns(due_ns - LATE_NS)
            beyond_ns -= queued_ns
        self.late_ns = max(self.late_ns, late_ns)
        self.beyond_ns = max(self.beyond_ns, beyond_ns)
        if beyond_ns > LATE_NS:
            explained = f"the control {stalled_ns / 1e6:.0f} ms, without a core {queued_ns / 1e6:.0f} ms"
            self.fault("late", f"{name}: {late_ns / 1e6:.0f} ms; {explained}")

    def ended(self, name: str, due_ns: int, error: BaseException | None) -> None:
        """A call is over: was it in time, and is its error one that it may have?"""
        self.judge(f"{name} ({error!r})", due_ns, time.monotonic_ns(), self.beat or self.control)
        if error is None:
            return
        kind = type(error).__name__
        self.outcomes[kind] += 1
        if kind in TYPED or isinstance(error, CutOff | CancelledError | asyncio.CancelledError):
            return
        if kind == "Cancelled" and "cancel" in name:
            return
        self.fault("unexpected", f"{name}: " + "".join(traceback.format_exception(error))[-1200:])
