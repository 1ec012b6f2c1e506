"""The verbs of a client's life, in the calling thread: each asks, and checks what it is answered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from batchyard.tests.striking import same

from .hour_judge import TIMEOUTS_S, CutOff, Life

MODEL, STREAMED = "step", "many"  # y = x + state, stateN = -x; STREAMED_ANSWERS answers, each one more
STREAMED_ANSWERS = 4

Verb = Callable[[Any, Life], Any]


def infer(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    guarded(life, "infer", due_ns, lambda: life.check("infer", inputs, client.infer(MODEL, inputs, timeout=timeout_s)))


def guarded(life: Life, name: str, due_ns: int, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        life.ended(name, due_ns, error)
        if isinstance(error, CutOff):
            raise
    else:
        life.ended(name, due_ns, None)


def _submit(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    calls: list[int] = []

    def call() -> None:
        future = client.submit(MODEL, inputs, timeout=timeout_s)
        future.add_done_callback(lambda _: calls.append(1))
        if random.random() < 0.2:
            future.cancel()  # cut off in here, Python's own futures forget their callbacks
        else:
            life.callbacks.append(calls)
        life.check("submit", inputs, future.result())

    guarded(life, "submit or cancel", due_ns, call)


def _map(client: Any, life: Life) -> None:
    several = [life.draw()[0] for _ in range(5)]
    timeout_s = random.choice(TIMEOUTS_S)
    due_ns = time.monotonic_ns() + int(5 * timeout_s * 1e9)

    def call() -> None:
        answers = list(client.map(MODEL, several, timeout=timeout_s, window=random.choice((1, 2, 8))))
        if len(answers) != len(several):
            life.fault("lost", f"map: {len(answers)} answers of {len(several)}")
        for inputs, answer in zip(several, answers, strict=False):
            life.check("map", inputs, answer)

    guarded(life, "map", due_ns, call)


def _stream(client: Any, life: Life) -> None:
    number, timeout_s = float(random.randrange(1000)), random.choice(TIMEOUTS_S[1:])
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)

    def call() -> None:
        answers = []
        for answer in client.stream(STREAMED, np.full((1, 1), number, np.float32), timeout=timeout_s):
            answers.append(float(answer[0]))
            if answers != [number + n for n in range(len(answers))]:
                life.fault("wrong", f"stream: {answers} from {number}")
        life.outcomes["right"] += 1
        if len(answers) != STREAMED_ANSWERS:
            life.fault("lost", f"stream: {answers}")

    guarded(life, "stream", due_ns, call)


def _empty(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)

    def call() -> None:
        placed = client.empty(inputs["x"].shape)
        placed[:] = inputs["x"]
        life.check("empty", inputs, client.infer(MODEL, {**inputs, "x": placed}, timeout=timeout_s))

    guarded(life, "empty", due_ns, call)


def _sequence(client: Any, life: Life) -> None:
    inputs, timeout_s = life.draw()
    due_ns = time.monotonic_ns() + int(3 * timeout_s * 1e9)

    def call() -> None:
        with client.sequence(MODEL) as steps:
            state = np.zeros_like(inputs["x"])
            for _ in range(3):
                y = steps.infer(inputs["x"], timeout=timeout_s)
                if not same(y, inputs["x"] + state):
                    life.fault("wrong", "sequence")
                state = -inputs["x"]
                life.outcomes["right"] += 1

    guarded(life, "sequence", due_ns + int(10e9), call)  # its first question has its own patience


def _models(client: Any, life: Life) -> None:
    timeout_s = random.choice(TIMEOUTS_S)
    due_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    guarded(life, "models", due_ns, lambda: client.models(timeout=timeout_s))


VERBS: tuple[Verb, ...] = (infer, infer, _submit, _submit, _map, _stream, _empty, _sequence, _models)
REMOTE: tuple[Verb, ...] = (infer, _submit, _map, _stream, _models)
PRESSED: tuple[Verb, ...] = (infer, _submit, _map, _empty)
